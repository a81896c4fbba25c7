"""The data sets that a command takes: how they are read, and what it calls the settings of that."""

import argparse
import re
from dataclasses import replace

from pi0.ript.data.settings import DatasetSettings

_OPTIONS = {
    "in data_features_name_mapping, as {observation.state: state}": "with --columns observation.state=state",
    "data_features_name_mapping": "--columns",
    "set assume_success": "pass --assume-success",
}
"""What a message says of a setting -> what the option is called."""


def add_reading_arguments(parser: argparse.ArgumentParser, *, with_success: bool = True) -> None:
    """Add --columns and, unless labels are what the command makes, --assume-success."""
    add = parser.add_argument
    columns = (
        "what the set calls observation.state, action, cameras and intervention, where it is something else"
    )
    add("--columns", nargs="+", default=[], metavar="KEY=NAME", help=columns)
    parser.set_defaults(assume_success=False)
    if with_success:
        add(
            "--assume-success",
            action="store_true",
            help="unlabelled episodes are successes (curated data only)",
        )


def dataset_settings(name: str, options: argparse.Namespace) -> DatasetSettings:
    """Return how a data set is read, a directory or a name on the hub; a wrong option is a ValueError."""
    pairs = [text.partition("=") for text in options.columns]
    wrong = [key for key, _, column in pairs if not (key and column)]
    if wrong:
        raise ValueError(f"--columns: expected KEY=NAME, found {wrong}")
    columns: dict[str, str | None] = {key: column for key, _, column in pairs}
    return DatasetSettings(
        repo_id=name, assume_success=options.assume_success, data_features_name_mapping=columns
    )


def with_options(dataset: DatasetSettings, options: argparse.Namespace) -> DatasetSettings:
    """Return how a data set of a file is read: as the file says, and as the options say where it does not."""
    said = dataset_settings("", options)
    columns = dataset.data_features_name_mapping or said.data_features_name_mapping
    assumed = dataset.assume_success or said.assume_success
    return replace(dataset, assume_success=assumed, data_features_name_mapping=columns)


def in_words_of_options(error: Exception) -> str:
    """Return what an error says, with the names of options in place of settings."""
    message = str(error)
    for setting, option in _OPTIONS.items():
        message = re.sub(rf"(?<![.\w]){re.escape(setting)}", option, message)  # not a key of a file
    return message
