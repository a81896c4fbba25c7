"""`pi0-train`: supervised training of a pi0 policy or of a value function, by a JSON or YAML file.

    python pi0/ript/scripts/train.py --config_path=configs/sft_pi0_config.json

Under torchrun or accelerate several processes train together, with DDP or FSDP.
"""

import sys
from collections.abc import Sequence

from pi0.errors import say_errors_in_one_line
from pi0.ript.supervised import SupervisedSettings, parse_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    say_errors_in_one_line("pi0-train")  # of a process that was lost, too
    return _train(parse_settings(arguments))


def _train(settings: SupervisedSettings) -> int:
    from pi0.ript.checkpoint import SnapshotError  # torch comes with it
    from pi0.ript.data.training_data import is_of_a_reader
    from pi0.ript.distributed import cleanup_distributed
    from pi0.ript.monitoring import NonFiniteLossError
    from pi0.ript.results import RunInUseError
    from pi0.ript.supervised.trainer import Training

    try:
        training = Training(settings)
    except (ValueError, SnapshotError, RunInUseError) as error:
        sys.stderr.write(f"pi0-train: error: {error}\n")
        return 2
    try:
        training.run()
    except (NonFiniteLossError, SnapshotError) as error:
        sys.stderr.write(f"\npi0-train: error: {error}\n")
        return 1
    except RuntimeError as error:
        if not is_of_a_reader(error):
            raise
        remedy = "the same command with --resume goes on; dataset_mixture.num_workers=0 reads without them"
        sys.stderr.write(f"\npi0-train: error: a process that reads data was lost: {error}; {remedy}\n")
        return 1
    cleanup_distributed()
    return 0


if __name__ == "__main__":
    sys.exit(main())
