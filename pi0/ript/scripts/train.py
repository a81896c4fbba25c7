"""`pi0-train`: supervised training of a pi0 policy or of a value function, by a JSON or YAML file.

    python pi0/ript/scripts/train.py --config_path=configs/sft_pi0_config.json

Under torchrun or accelerate several processes train together, with DDP.
"""

import os
import sys
from collections.abc import Sequence

from pi0.ript.checkpoint import SnapshotError
from pi0.ript.config import ConfigError
from pi0.ript.distributed import cleanup_distributed
from pi0.ript.monitoring import NonFiniteLossError
from pi0.ript.results import RunInUseError
from pi0.ript.supervised import SupervisedSettings, Training, parse_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    settings = parse_settings(arguments)
    try:
        training = _prepared(settings)
    except (ValueError, SnapshotError, RunInUseError) as error:
        sys.stderr.write(f"pi0-train: error: {error}\n")
        return 2
    try:
        training.run()
    except (NonFiniteLossError, SnapshotError) as error:
        sys.stderr.write(f"\npi0-train: error: {error}\n")
        return 1
    cleanup_distributed()
    return 0


def _prepared(settings: SupervisedSettings) -> Training:
    for name in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false") == "true":
            raise ConfigError(
                f"accelerate: expected a configuration of plain processes (MULTI_GPU, MULTI_CPU, NO), found "
                f"{name}; each process here holds the whole model (DDP)"
            )
    return Training(settings)


if __name__ == "__main__":
    sys.exit(main())
