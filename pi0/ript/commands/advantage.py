"""`pi0-advantage`: the advantage of every frame of some data sets, and the threshold for policy training.

Frames in which a person corrected the policy (column intervention) are positive, and not ranked.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pi0.errors import say_errors_in_one_line
from pi0.registry import load_plugins
from pi0.ript.commands.arguments import command_parser, complain
from pi0.ript.commands.dataset_arguments import (
    add_reading_arguments,
    dataset_settings,
    in_words_of_options,
    with_options,
)
from pi0.ript.commands.policy_argument import add_embodiment
from pi0.ript.config import ConfigError
from pi0.ript.config.loading import load_config, say_device
from pi0.ript.config.yaml_files import read_yaml
from pi0.ript.data.settings import DatasetSettings, mixture_problems
from pi0.ript.files import flatten, path_argument
from pi0.ript.labels.advantages import ADVANTAGES_PATH, require_share
from pi0.ript.labels.settings import Advantage
from pi0.ript.policy_settings import require_device_name
from pi0.ript.supervised.settings import SupervisedSettings

_EXAMPLES = """
examples:
  pi0-advantage --value runs/demo/round-1/value --policy runs/demo/sft data/demonstrations data/rollouts
  pi0-advantage --config_path=runs/value --dataset_mixture=configs/advantage_calc_config.json --batch_size=20

exit codes: 0 labelled; 2 unusable arguments, data or value function
"""


def read_mixture(path: Path) -> list[DatasetSettings]:
    """Return the data sets of a mixture's file, or of the section `dataset_mixture` in a file of pi0-train.

    Raises:
        ConfigError: It cannot be read, or is wrong.
    """
    values = read_yaml(path, "dataset_mixture")
    section = values.get("dataset_mixture", values)
    layer = (str(path), flatten({"dataset_mixture": section}))
    mixture = load_config([layer], SupervisedSettings).dataset_mixture
    if problems := [f"{path}: {problem}" for problem in mixture_problems(mixture)]:
        raise ConfigError(*problems)
    for dataset in mixture.datasets:
        if dataset.episodes is not None:
            name = dataset.root or dataset.repo_id
            print(f"{name}: all episodes are labelled, not only those of 'episodes'")  # noqa: T201
    return [replace(dataset, episodes=None, excluded_episodes=None) for dataset in mixture.datasets]


def main(argv: Sequence[str] | None = None) -> int:
    """Label and print; return the exit code."""
    options = _parser().parse_args(argv)
    say_errors_in_one_line("pi0-advantage")  # a full disk
    try:
        datasets = [dataset_settings(name, options) for name in options.datasets]
        if options.dataset_mixture:
            datasets += [with_options(dataset, options) for dataset in read_mixture(options.dataset_mixture)]
        tags = dict.fromkeys([*(dataset.embodiment_tag for dataset in datasets), options.embodiment])
        if len(robots := [tag for tag in tags if tag is not None]) > 1:
            raise ConfigError(
                f"embodiment_tag: a value function is of one robot, found {', '.join(robots)}; label the "
                "data sets of each by themselves"
            )
        if not datasets:
            raise ConfigError("expected data sets, or --dataset_mixture FILE; --help has examples")
        if options.embodiment is not None and options.policy is None:
            raise ConfigError("--embodiment: is of the policy that a value function reads; name it: --policy")
        require_share(options.positive_fraction)
        require_device_name(options.device)
        return _label(options, datasets)
    except ValueError as error:
        return complain("pi0-advantage", in_words_of_options(error))


def _label(options: argparse.Namespace, datasets: Sequence[DatasetSettings]) -> int:
    from pi0.ript.labels.labelled_sets import label_datasets  # torch comes with it

    load_plugins(options.plugins)
    say_device(options.device)
    labels = label_datasets(
        options.value,
        options.policy,
        datasets,
        Advantage(options.positive_fraction, options.scope, options.ranked),
        embodiment=options.embodiment,
        device=options.device,
        batch_size=options.batch_size,
    )
    print(labels)  # noqa: T201
    for name, share in labels.figures()["positive_share"].items():
        print(f"{name}: {share:.1%} positive, written to {Path(name) / ADVANTAGES_PATH}")  # noqa: T201
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("pi0-advantage", str(__doc__), _EXAMPLES)
    add = parser.add_argument
    add("datasets", nargs="*", help="LeRobotDatasets v3 with success labels: directories, or hub names")
    add("--value", "--config_path", type=path_argument, required=True, help="directory of the value function")
    add("--policy", type=path_argument, help="directory of the policy whose prefix it reads")
    add_embodiment(parser)
    add(
        "--dataset_mixture",
        type=path_argument,
        help="JSON or YAML file with 'datasets', besides directories",
    )
    add("--positive-fraction", type=float, default=0.3, help="share of ranked frames above epsilon (0.3)")
    add("--scope", choices=("global", "per_task"), default="global", help="one epsilon, or one per task")
    ranked = "successes: find epsilon among their frames, and frames of failures are never positive"
    add("--ranked", choices=("all", "successes"), default="all", help=ranked)
    add("--device", default="auto", help="cpu, cuda, ..., or auto")
    plugins = "import a package that adds configurations; may be repeated"
    add("--plugins", metavar="PACKAGE", action="append", default=[], help=plugins)
    sizes = ("--batch_size", "--dataloader_batch_size")
    add(*sizes, type=int, default=256, help="frames per forward pass (256)")
    add_reading_arguments(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
