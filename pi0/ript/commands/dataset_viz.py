"""`pi0-dataset-viz`: shows a data set on one local page, with values and advantages where it has them.

With --label: the page on which a person says which episodes succeeded, for pi0-label.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pi0.errors import say_errors_in_one_line
from pi0.ript.commands.dataset_arguments import (
    add_reading_arguments,
    dataset_settings,
    in_words_of_options,
)
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.reader import open_set
from pi0.ript.data.records import EpisodeDataError
from pi0.ript.files import path_argument
from pi0.ript.labels.advantages import (
    ADVANTAGES_PATH,
    from_json,
    positive_frames,
    read_advantages,
    read_lineage,
)
from pi0.ript.labels.frames import (
    FRAMES_FILE,
    THRESHOLDS_FILE,
    LabelledFrames,
    read_labelled_frames,
    read_thresholds,
)
from pi0.ript.pages.dataset_page import Labels, write_dataset_page
from pi0.ript.pages.labelling_page import write_labelling_page

_EXAMPLES = """
examples:
  pi0-dataset-viz demos/drawer
  pi0-dataset-viz demos/drawer --episodes 0 7 12 --output drawer.html
  pi0-dataset-viz RUN/round-1/rollouts/dataset --values RUN/round-1/advantages
  pi0-dataset-viz someones/dataset --assume-success --max-episodes 3
  pi0-dataset-viz recordings/drawer --label

The page needs no network and no server: open it in a browser, or send it to somebody.

exit codes: 0 done; 2 unusable arguments or data; 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(argv)
    say_errors_in_one_line("pi0-dataset-viz")  # a full disk
    directory = Path(options.dataset).expanduser().resolve()
    beside = directory.with_name(f"{directory.name}{'-label' if options.label else ''}.html")
    output = options.output or (beside if directory.is_dir() else Path(beside.name))
    try:
        _require_usable(options, output)
        frames = open_set(dataset_settings(options.dataset, options))
        shown = _shown(options, frames)
        if options.label:
            write_labelling_page(output, directory.name, frames, shown)
        else:
            frames.successes()  # an error comes before anything long
            _write_page(options, output, directory.name, frames, shown)
    except (ValueError, OSError) as error:
        message = " ".join(in_words_of_options(error).split())
        print(f"pi0-dataset-viz: error: {message}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("pi0-dataset-viz: interrupted", file=sys.stderr)  # noqa: T201
        return 130
    print(output)  # noqa: T201
    return 0


def _write_page(
    options: argparse.Namespace, output: Path, name: str, frames: FrameSet, shown: Sequence[int]
) -> None:
    labels = _labels(options, frames)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_dataset_page(output, name, frames, shown, labels, unlabelled_succeed=options.assume_success)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pi0-dataset-viz",
        description="Show a LeRobotDataset v3 on one self-contained HTML page: facts, lengths, and of each "
        "episode its frames, states and actions; also values and advantages, from meta/advantages.json or "
        "a frames.npz.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="directory of the data set, or its name on the hub")
    add("--output", type=path_argument, metavar="PAGE", help="the page (default: DATASET.html)")
    add("--episodes", type=int, nargs="+", metavar="N", help="episodes to show (default: the first ones)")
    most = "how many without --episodes (default 12; with --label all)"
    add("--max-episodes", type=int, metavar="N", help=most)
    label = (
        "make the page to say which episodes succeeded, with their videos beside it (default: DATASET-label)"
    )
    add("--label", action="store_true", help=label)
    values = f"{FRAMES_FILE} of a RECAP run, or its directory; instead of the data set's {ADVANTAGES_PATH}"
    add("--values", type=path_argument, metavar="DIR", help=values)
    source = (
        f"source in {FRAMES_FILE} that is this data set (default: the one with episodes of these lengths)"
    )
    add("--source", metavar="NAME", help=source)
    add_reading_arguments(parser)
    return parser


def _require_usable(options: argparse.Namespace, output: Path) -> None:
    if options.label and (options.values is not None or options.assume_success):
        raise ValueError("--label: asks for labels; leave out --values and --assume-success")
    if options.max_episodes is not None and options.max_episodes < 1:
        raise ValueError(f"--max-episodes: expected at least 1, found {options.max_episodes}")
    if output.is_dir():
        raise ValueError(f"--output: expected a file name, found the directory {output}")
    if options.values is not None and not _frames_file(options.values).is_file():
        raise ValueError(f"--values: expected a {FRAMES_FILE}, found none at {_frames_file(options.values)}")
    if options.source is not None and options.values is None:
        raise ValueError(f"--source: names a source in --values, found {options.source!r} without --values")


def _shown(options: argparse.Namespace, frames: FrameSet) -> list[int]:
    numbers = frames.episodes.tolist()
    if options.episodes is None:
        return numbers[: options.max_episodes or (None if options.label else 12)]
    unknown = [number for number in options.episodes if number not in numbers]
    if unknown:
        raise ValueError(
            f"--episodes: expected numbers of its {len(numbers)} episodes, {numbers[0]} to {numbers[-1]}, "
            f"found {unknown}"
        )
    return list(dict.fromkeys(options.episodes))


def _labels(options: argparse.Namespace, frames: FrameSet) -> Labels | None:
    """Return what is known of the frames' values and advantages, None if nothing is."""
    tasks = tuple(frames.frame_tasks())
    if options.values is not None:
        path = _frames_file(options.values)
        labelled = _matching(path, read_labelled_frames(path), frames, options.source)
        epsilon = read_thresholds(path.with_name(THRESHOLDS_FILE))
        return Labels(replace(labelled, tasks=tasks), epsilon)
    if not (Path(frames.name) / ADVANTAGES_PATH).exists():
        return None
    advantages, lineage = read_advantages(frames.name, frames), read_lineage(frames.name)
    epsilon = lineage.get("epsilon", {})
    epsilon = from_json(epsilon) if isinstance(epsilon, Mapping) else dict.fromkeys(tasks, float(epsilon))
    positive = None
    if epsilon:
        only_successes = lineage.get("ranked") == "successes"
        positive = positive_frames(frames, advantages, tasks, epsilon, only_successes=only_successes)
    return Labels(LabelledFrames(advantages, frames.lengths, tasks=tasks, labels=positive), epsilon)


def _frames_file(path: Path) -> Path:
    return path / FRAMES_FILE if path.is_dir() else path


def _matching(
    path: Path, sources: Mapping[str, LabelledFrames], frames: FrameSet, name: str | None
) -> LabelledFrames:
    """Return the source that is this data set, by name or by the lengths of its episodes."""
    lengths = frames.lengths.tolist()
    fitting = [key for key, source in sources.items() if source.lengths.tolist() == lengths]
    chosen = fitting if name is None else [key for key in fitting if key == name]
    if len(chosen) != 1:
        raise EpisodeDataError(
            f"{path}: expected {'one source' if name is None else repr(name)} with the lengths of the "
            f"{len(lengths)} episodes of the data set; found {fitting or 'none'} among {list(sources)}; "
            "choose with --source, or give the data set that the values were computed for"
        )
    return sources[chosen[0]]


if __name__ == "__main__":
    sys.exit(main())
