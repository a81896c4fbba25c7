"""`pi0-label`: says which episodes of a data set succeeded, beside the frames, which stay as they are.

The success of each episode comes from a CSV file, such as the page of `pi0-dataset-viz --label` saves, from a
column of the data set, or from a rule on the last state. It is written to meta/success.json, which every
command of pi0-ript reads; lerobot loads the data set as before.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pi0.errors import say_errors_in_one_line
from pi0.features import STATE
from pi0.ript.commands.arguments import command_parser, complain
from pi0.ript.commands.dataset_arguments import add_reading_arguments, dataset_settings, in_words_of_options
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.hub import Place, locate
from pi0.ript.data.reader import examine
from pi0.ript.data.records import EpisodeDataError
from pi0.ript.data.settings import DatasetSettings
from pi0.ript.data.success_file import SUCCESS_PATH, write_success
from pi0.ript.data.success_sources import Rule, dimension_names, successes_in_column, successes_in_table
from pi0.ript.data.tables import fault_lines, read_info
from pi0.ript.files import path_argument

_EXAMPLES = """
examples:
  pi0-dataset-viz recordings/drawer --label               a page: watch, judge, save success.csv
  pi0-label recordings/drawer --csv success.csv           the first line: episode_index,success
  pi0-label recordings/drawer --column next.success       an episode succeeded if any of its frames says so
  pi0-label recordings/drawer --rule "state[7] > 0.04"    of the last state: an index, or a name in its place

exit codes: 0 labelled; 2 unusable arguments, labels or data
"""
_EXAMPLE_EPISODES = 5  # that a message names


def main(argv: Sequence[str] | None = None) -> int:
    """Label and print the successes of each task; return the exit code."""
    options = _parser().parse_args(argv)
    say_errors_in_one_line("pi0-label")  # a full disk
    try:
        settings = dataset_settings(options.dataset, options)
        place = locate(settings)
        frames = _open(place, settings, options.overwrite)
        labels = _joined(frames, _said(options, place.root, settings, frames), options)
        path = write_success(place.root, frames, labels)
        labelled = _open(place, settings, is_relabelled=False)
    except (ValueError, OSError) as error:
        return complain("pi0-label", in_words_of_options(error))
    print(f"{path}: {len(labels)} of {labelled.num_episodes} episodes have a label")  # noqa: T201
    for line in _success_by_task(labelled):
        print(line)  # noqa: T201
    return 0


def _open(place: Place, settings: DatasetSettings, is_relabelled: bool) -> FrameSet:
    """Return the frames of a set, also of episodes with faults, which do not hinder judging how they ended.

    `is_relabelled`: earlier labels that cannot be believed do not count, instead of being an error.
    """
    frames, faults = examine(place, settings, cameras=())
    of_labels = [fault for fault in faults if fault.where == str(SUCCESS_PATH)]
    hindering = [
        fault for fault in faults if fault not in of_labels and (frames is None or not fault.episodes)
    ]
    hindering += [] if is_relabelled else of_labels
    if frames is None or hindering:
        raise EpisodeDataError("\n".join(fault_lines(place.root, hindering)))
    return frames


def _said(
    options: argparse.Namespace, root: Path, settings: DatasetSettings, frames: FrameSet
) -> Mapping[int, bool]:
    """Return the success of the episodes that the source in the options speaks of."""
    if options.csv is not None:
        return successes_in_table(options.csv)
    if options.column is not None:
        return successes_in_column(root, options.column)
    info = read_info(root, []) or {}
    column = settings.data_features_name_mapping.get(STATE) or STATE
    return options.rule.successes(frames, dimension_names(info.get("features", {}).get(column, {})))


def _joined(frames: FrameSet, said: Mapping[int, bool], options: argparse.Namespace) -> dict[int, bool]:
    """Return the labels that the set has together with those that are said now.

    Raises:
        EpisodeDataError: They are of other episodes, contradict each other, or leave episodes out.
    """
    numbers = frames.episodes.tolist()
    own = {n: x.success for n, x in zip(numbers, frames.labels, strict=True) if x.success is not None}
    labels = own | dict(said)

    def refuse(expected: str, wrong: set[int], remedy: str) -> None:
        if wrong:
            first = ", ".join(map(str, sorted(wrong)[:_EXAMPLE_EPISODES]))
            more = f" and {len(wrong) - _EXAMPLE_EPISODES} more" if len(wrong) > _EXAMPLE_EPISODES else ""
            raise EpisodeDataError(f"{frames.name}: expected {expected} {first}{more}; {remedy}")

    there = f"numbers of its {len(numbers)} episodes, {numbers[0]} to {numbers[-1]}, found"
    refuse(there, said.keys() - set(numbers), "are these labels of another data set?")
    if not options.overwrite:
        changed = {number for number in said.keys() & own.keys() if said[number] != own[number]}
        refuse(
            "the labels that the set has, found others for episodes", changed, "replace them with --overwrite"
        )
    if not options.allow_missing:
        missing = set(numbers) - labels.keys()
        refuse("a label for each episode, found none for", missing, "label them, or pass --allow-missing")
    return labels


def _success_by_task(frames: FrameSet) -> list[str]:
    """Return a line for each task."""
    tasks: dict[str, list[bool | None]] = {}
    for labels in frames.labels:
        tasks.setdefault(labels.task_id or labels.instruction, []).append(labels.success)
    return [
        f"{task}: {ends.count(True)} of {len(ends) - ends.count(None)} successes"
        + (f", {ends.count(None)} without a label" if None in ends else "")
        for task, ends in tasks.items()
    ]


def _rule(text: str) -> Rule:
    """Return a rule; a type for argparse."""
    try:
        return Rule.parse(text)
    except EpisodeDataError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("pi0-label", str(__doc__), _EXAMPLES)
    parser.add_argument("dataset", metavar="DATASET", help="LeRobotDataset v3: a directory, or a hub name")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--csv", type=path_argument, metavar="FILE", help="lines of episode_index,success")
    column = "column of the frames, or of meta/episodes, with 0, 1, true and false"
    source.add_argument("--column", metavar="NAME", help=column)
    source.add_argument("--rule", type=_rule, help="'state[7] > 0.04', with < <= > >=: of the last state")
    add = parser.add_argument
    add(
        "--overwrite",
        action="store_true",
        help="replace labels that say otherwise; recordings stay as they are",
    )
    add(
        "--allow-missing", action="store_true", help="leave episodes without a label; later runs can add them"
    )
    add_reading_arguments(parser, with_success=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
