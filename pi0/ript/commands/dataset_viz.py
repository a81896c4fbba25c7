"""`pi0-dataset-viz`: shows a data set on one local page, with values and advantages where it has them."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pi0.ript.data.records import EpisodeDataError
from pi0.ript.episodes import EpisodeSet, load_episodes
from pi0.ript.files import path_argument
from pi0.ript.labels.advantages import ADVANTAGES_PATH, read_advantages, read_lineage
from pi0.ript.labels.frames import (
    FRAMES_FILE,
    THRESHOLDS_FILE,
    LabelledFrames,
    read_labelled_frames,
    read_thresholds,
)
from pi0.ript.pages.dataset_page import Labels, write_dataset_page

_EXAMPLES = """
examples:
  pi0-dataset-viz demos/drawer
  pi0-dataset-viz demos/drawer --episodes 0 7 12 --output drawer.html
  pi0-dataset-viz RUN/round-1/rollouts/dataset --values RUN/round-1/advantages
  pi0-dataset-viz someones/dataset --assume-success --max-episodes 3

The page needs no network and no server: open it in a browser, or send it to somebody.

exit codes: 0 done; 2 unusable arguments or data; 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(argv)
    directory: Path = options.dataset_dir
    output = options.output or directory.resolve().with_name(f"{directory.resolve().name}.html")
    try:
        _require_usable(options, output)
        episodes = load_episodes(directory, assume_success=options.assume_success)
        shown = _shown(options, len(episodes))
        labels = _labels(options, episodes)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_dataset_page(
            output, directory, episodes, shown, labels, unlabelled_succeed=options.assume_success
        )
    except (ValueError, OSError) as error:
        message = str(error).replace("load it with assume_success=True", "pass --assume-success")
        print(f"pi0-dataset-viz: error: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("pi0-dataset-viz: interrupted", file=sys.stderr)  # noqa: T201
        return 130
    print(output)  # noqa: T201
    return 0


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
    add("dataset_dir", type=path_argument, metavar="DATASET_DIR", help="root of the data set")
    add("--output", type=path_argument, metavar="PAGE", help="the page (default: DATASET_DIR.html)")
    add("--episodes", type=int, nargs="+", metavar="N", help="episodes to show (default: the first ones)")
    add("--max-episodes", type=int, default=12, metavar="N", help="how many without --episodes (default 12)")
    values = f"{FRAMES_FILE} of a RECAP run, or its directory; instead of the data set's {ADVANTAGES_PATH}"
    add("--values", type=path_argument, metavar="DIR", help=values)
    source = (
        f"source in {FRAMES_FILE} that is this data set (default: the one with episodes of these lengths)"
    )
    add("--source", metavar="NAME", help=source)
    add("--assume-success", action="store_true", help="take episodes without success labels for successes")
    return parser


def _require_usable(options: argparse.Namespace, output: Path) -> None:
    if not options.dataset_dir.is_dir():
        raise ValueError(f"DATASET_DIR: expected a directory, found none at {options.dataset_dir}")
    if options.max_episodes < 1:
        raise ValueError(f"--max-episodes: expected at least 1, found {options.max_episodes}")
    if output.is_dir():
        raise ValueError(f"--output: expected a file name, found the directory {output}")
    if options.values is not None and not _frames_file(options.values).is_file():
        raise ValueError(f"--values: expected a {FRAMES_FILE}, found none at {_frames_file(options.values)}")
    if options.source is not None and options.values is None:
        raise ValueError(f"--source: names a source in --values, found {options.source!r} without --values")


def _shown(options: argparse.Namespace, count: int) -> list[int]:
    if options.episodes is None:
        return list(range(min(count, options.max_episodes)))
    outside = [number for number in options.episodes if not 0 <= number < count]
    if outside:
        raise ValueError(f"--episodes: expected numbers from 0 to {count - 1}, found {outside}")
    return list(dict.fromkeys(options.episodes))


def _labels(options: argparse.Namespace, episodes: EpisodeSet) -> Labels | None:
    """Return what is known of the frames' values and advantages, None if nothing is."""
    tasks = tuple(labels.task_id or labels.instruction for labels in episodes.labels)
    if options.values is not None:
        path = _frames_file(options.values)
        frames = _matching(path, read_labelled_frames(path), episodes, options.source)
        epsilon = read_thresholds(path.with_name(THRESHOLDS_FILE))
        return Labels(replace(frames, tasks=tasks), epsilon)
    if not (options.dataset_dir / ADVANTAGES_PATH).exists():
        return None
    advantages = read_advantages(options.dataset_dir, episodes)
    epsilon = read_lineage(options.dataset_dir).get("epsilon", {})
    if not isinstance(epsilon, Mapping):
        epsilon = dict.fromkeys(tasks, float(epsilon))
    return Labels(LabelledFrames(advantages, episodes.lengths, tasks=tasks), dict(epsilon))


def _frames_file(path: Path) -> Path:
    return path / FRAMES_FILE if path.is_dir() else path


def _matching(
    path: Path, sources: Mapping[str, LabelledFrames], episodes: EpisodeSet, name: str | None
) -> LabelledFrames:
    """Return the source that is this data set, by name or by the lengths of its episodes."""
    lengths = episodes.lengths.tolist()
    fitting = [key for key, source in sources.items() if source.lengths.tolist() == lengths]
    chosen = fitting if name is None else [key for key in fitting if key == name]
    if len(chosen) != 1:
        raise EpisodeDataError(
            f"{path}: expected {'one source' if name is None else repr(name)} with the lengths of the "
            f"{len(episodes)} episodes of the data set; found {fitting or 'none'} among {list(sources)}; "
            "choose with --source, or give the data set that the values were computed for"
        )
    return sources[chosen[0]]


if __name__ == "__main__":
    sys.exit(main())
