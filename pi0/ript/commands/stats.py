"""`pi0-stats`: normalisation statistics of states and actions over a mixture of data sets."""

import argparse
import sys
from collections.abc import Sequence

from pi0.errors import say_errors_in_one_line
from pi0.features import ACTION, STATE
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.settings import DatasetSettings, MixtureSettings, check_mixture
from pi0.ript.files import path_argument

_OTHER_NAMES = "in data_features_name_mapping, as {observation.state: state}; null for a camera that it lacks"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    say_errors_in_one_line("pi0-stats")  # a full disk
    try:
        _run(options)
    except (ValueError, OSError) as error:
        message = str(error).replace(_OTHER_NAMES, "with --columns observation.state=state action=actions")
        sys.stderr.write(f"pi0-stats: error: {message}\n")
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    names = _column_names(options.columns)
    settings = MixtureSettings(
        datasets=[DatasetSettings(repo_id=x, data_features_name_mapping=names) for x in options.datasets],
        weights=options.weights,
        action_freq=options.action_freq,
    )
    check_mixture(settings)
    if options.output.is_dir():
        raise ValueError(f"--output: expected the name of a file, found the directory {options.output}")
    relative = [bool(x) for x in options.relative_actions or []]
    from pi0.normalize import coinciding_quantiles  # torch comes with it
    from pi0.ript.data.statistics import mixture_statistics, save_statistics
    from pi0.ript.data.training_data import open_sets

    sets = open_sets(settings, cameras=())
    _require_equal_widths(sets, len(relative))
    statistics = mixture_statistics(
        sets,
        [frames.rows(frames.selected) for frames in sets],
        settings.weights,
        relative_actions=relative,
        chunk_size=options.chunk_size,
        settings=settings,
    )
    made_from = {
        "datasets": [frames.name for frames in sets],
        "weights": settings.weights,
        "relative_actions": relative,
        "chunk_size": options.chunk_size,
        "action_freq": options.action_freq,
    }
    save_statistics(options.output, statistics, made_from)
    for feature, numbers in statistics.items():
        for _, text in coinciding_quantiles(numbers):
            sys.stderr.write(f"pi0-stats: warning: {feature}: {text}\n")
    frames = sum(int(x.lengths[x.selected].sum()) for x in sets)
    sys.stdout.write(
        f"{options.output}: statistics of {frames} frames of {len(sets)} data sets; for pi0-train: "
        f"policy.statistics_path={options.output}\n"
    )


def _column_names(columns: Sequence[str]) -> dict[str, str | None]:
    names: dict[str, str | None] = {}
    for text in columns:
        key, _, name = text.partition("=")
        if key not in (STATE, ACTION) or not name:
            raise ValueError(f"--columns: expected {STATE}=NAME or {ACTION}=NAME, found {text!r}")
        names[key] = name
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pi0-stats",
        description="Compute the normalisation statistics of states and actions over data sets.",
        epilog="examples:\n"
        "  pi0-stats data/demonstrations --output runs/sft/processor/statistics.json\n"
        "  pi0-stats data/a data/b --weights 1 3 --output statistics.json\n\n"
        "exit codes: 0 done; 2 unusable arguments or data",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("datasets", nargs="+", metavar="DATASET", help="directory of a LeRobotDataset v3, or hub name")
    output = "file to write, such as RUN/processor/statistics.json"
    add("--output", type=path_argument, required=True, help=output)
    add("--columns", nargs="+", default=[], metavar="KEY=NAME", help="what the sets call observation.state "
        "and action, where it is something else")  # fmt: skip
    add("--weights", type=float, nargs="+", help="one per data set (default: their numbers of frames)")
    add("--relative-actions", type=int, nargs="+", choices=(0, 1), metavar="0|1", help="per action "
        "dimension: is it relative to the state at the chunk's start? (default: none is)")  # fmt: skip
    add("--chunk-size", type=int, default=50, help="with --relative-actions: actions per chunk (%(default)s)")
    add("--action-freq", type=float, help="with --relative-actions: Hz (default: each set's own)")
    return parser


def _require_equal_widths(sets: Sequence[FrameSet], num_relative: int) -> None:
    widths = {frames.name: (frames.states.shape[1], frames.actions.shape[1]) for frames in sets}
    if len(set(widths.values())) > 1:
        raise ValueError(f"expected the same widths of state and action in all data sets, found {widths}")
    state, action = next(iter(widths.values()))
    if num_relative > min(state, action):
        raise ValueError(
            f"--relative-actions: expected at most {min(state, action)} numbers, found {num_relative}"
        )


if __name__ == "__main__":
    sys.exit(main())
