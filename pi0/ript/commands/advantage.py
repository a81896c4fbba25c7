"""`pi0-advantage`: the advantage of every frame of some data sets, and the threshold for policy training."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from pi0 import PI0Policy
from pi0.registry import load_plugins
from pi0.ript.config import ConfigError
from pi0.ript.config.loading import say_device
from pi0.ript.config.yaml_files import include
from pi0.ript.episodes import EpisodeDataError, load_episodes, load_labels
from pi0.ript.files import hash_files
from pi0.ript.labels.advantages import ADVANTAGES_PATH, require_share
from pi0.ript.labels.calibration import predict
from pi0.ript.labels.labelling import Advantage, FrameLabels, label_frames, write_labels
from pi0.ript.labels.returns import RewardConfig
from pi0.ript.labels.sources import Source
from pi0.ript.starting_policy import require_device
from pi0.value import ValueFunction
from pi0.weights import CheckpointError

_EXAMPLES = """
examples:
  pi0-advantage --value runs/demo/round-1/value --policy runs/demo/sft data/demonstrations data/rollouts
  pi0-advantage --config_path=runs/value --dataset_mixture=configs/advantage_calc_config.json --batch_size=20

exit codes: 0 labelled; 2 unusable arguments, data or value function
"""


def label_datasets(
    directory: Path,
    policy: Path | None,
    datasets: Sequence[Path],
    settings: Advantage,
    *,
    assume_success: bool = False,
    device: str = "cpu",
    batch_size: int = 256,
) -> FrameLabels:
    """Write `meta/advantages.json` into each data set; return the thresholds and what they mean.

    Args:
        directory: Of a value function, with the reward that it was trained on (reward.json).
        policy: Whose prefix it reads, in its expert form.
        datasets: LeRobotDatasets v3 with success labels.
        settings: Share of all frames above epsilon, and whether there is one epsilon for all or one per task.
        assume_success: Take every episode of a data set without labels for a success.
        device: Of the computation.
        batch_size: Frames per forward pass.
    """
    where = require_device(device)
    require_share(settings.positive_fraction)
    sources = [Source(str(d), load_labels(d, assume_success=assume_success)) for d in datasets]
    reward = _reward(directory).resolve(max(int(source.episodes.lengths.max()) for source in sources))
    reads = PI0Policy.from_pretrained(policy, device=where) if policy else None
    value = ValueFunction.from_pretrained(directory, reads).to(where)
    values = []
    for source in sources:
        with TemporaryDirectory() as images:  # what a large set decodes to may not fit in memory
            episodes = load_episodes(source.name, assume_success=assume_success, image_files=Path(images))
            values.append(predict(value, episodes, batch_size=batch_size))
    labels = label_frames(sources, values, reward, settings)
    write_labels(labels, datasets, hash_files(directory))
    return labels


def _reward(directory: Path) -> RewardConfig:
    path = directory / "reward.json"
    if not path.exists():
        raise CheckpointError(
            f"{path} is missing: expected the directory of a value function that RECAP or pi0-train wrote"
        )
    reward = RewardConfig(**json.loads(path.read_text()))
    if reward.truncated != "failure":
        raise ConfigError(
            f"{path}: expected truncated='failure', found {reward.truncated!r}: a data set does not say "
            "which of its episodes only ran out of time; train a value function with 'failure', or label "
            "inside a RECAP run"
        )
    return reward


def read_mixture(path: Path) -> list[Path]:
    """Return the roots of the data sets in a mixture's JSON file (key `datasets`: `root`, or `repo_id`).

    Raises:
        ConfigError: It cannot be read, or has none.
    """
    try:
        described = include(json.loads(path.read_text()), path)
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"dataset_mixture: {path}: {error}") from error
    datasets = described.get("dataset_mixture", described).get("datasets")
    if not datasets:
        raise ConfigError(f"{path}: expected data sets under 'datasets', found none")
    roots = [dataset.get("root") or dataset["repo_id"] for dataset in datasets]
    for root, dataset in zip(roots, datasets, strict=True):
        if dataset.get("episodes") is not None:
            print(f"{root}: all episodes are labelled, not only those of 'episodes'")  # noqa: T201
    return [Path(root).expanduser() for root in roots]


def main(argv: Sequence[str] | None = None) -> int:
    """Label and print; return the exit code."""
    options = _parser().parse_args(argv)
    try:
        datasets = [
            *options.datasets,
            *(read_mixture(options.dataset_mixture) if options.dataset_mixture else ()),
        ]
        if not datasets:
            raise ConfigError("expected data sets, or --dataset_mixture FILE; --help has examples")
        load_plugins(options.plugins)
        say_device(options.device)
        labels = label_datasets(
            options.value,
            options.policy,
            datasets,
            Advantage(options.positive_fraction, options.scope, ranked="all"),
            assume_success=options.assume_success,
            device=options.device,
            batch_size=options.batch_size,
        )
    except (ConfigError, CheckpointError, EpisodeDataError, ValueError) as error:
        message = str(error).replace("load it with assume_success=True", "pass --assume-success")
        sys.stderr.write(f"pi0-advantage: error: {message}\n")
        return 2
    print(labels)  # noqa: T201
    for name, share in labels.figures()["positive_share"].items():
        print(f"{name}: {share:.1%} positive, written to {Path(name) / ADVANTAGES_PATH}")  # noqa: T201
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pi0-advantage",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("datasets", nargs="*", type=Path, help="directories of LeRobotDatasets v3 with success labels")
    add("--value", "--config_path", type=Path, required=True, help="directory of the value function")
    add("--policy", type=Path, help="directory of the policy whose prefix it reads (its expert form)")
    add("--dataset_mixture", type=Path, help="JSON file with 'datasets', in place of or besides directories")
    add("--positive-fraction", type=float, default=0.3, help="share of all frames above epsilon (0.3)")
    add("--scope", choices=("global", "per_task"), default="global", help="one epsilon, or one per task")
    add("--assume-success", action="store_true", help="unlabelled episodes are successes (curated data only)")
    add("--device", default="auto", help="cpu, cuda, ..., or auto")
    plugins = "import a package that adds configurations; may be repeated"
    add("--plugins", metavar="PACKAGE", action="append", default=[], help=plugins)
    add(
        "--batch_size", "--dataloader_batch_size", type=int, default=256, help="frames per forward pass (256)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
