"""Prints the table of sizes and rates in docs/cluster.md: computed by the formulas of `pi0-recap --plan`."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pi0.config import Pi0Config
from pi0.ript.config import load_config_from_yaml
from pi0.ript.recap import RecapConfig
from pi0.ript.recap.budget import planned_work
from pi0.ript.recap.cluster_plan import ddp_memory, fsdp_memory, model_costs, run_hours, update_seconds
from pi0.ript.recap.gpus import GPUS

ROOT = Path(__file__).parent.parent
COUNTS = (1, 2, 4, 8, 16, 32, 64)
GPU = "H100"


def rows() -> Iterator[str]:
    """Yield the lines of the table."""
    config = load_config_from_yaml(ROOT / "configs/recap_libero.yaml", schema=RecapConfig)
    work, gpu = planned_work(config), GPUS[GPU]
    model = replace(Pi0Config(), **config.policy.changes())
    training = config.finetuning.training
    full = model_costs(model, "none", training.micro_batch_size, num_cameras=2)
    expert = model_costs(model, "expert_only", training.micro_batch_size, num_cameras=2)
    yield "| GPUs | all weights, ddp | all, fsdp | expert alone, ddp | update of 256 | RECAP | samples/s |"
    yield "|---|---|---|---|---|---|---|"
    for count in COUNTS:
        seconds = update_seconds(full, gpu, count, training.batch_size)
        hours = run_hours(config, work, full, gpu, count).total
        accumulates = math.ceil(training.batch_size / count) > training.micro_batch_size
        in_parts = fsdp_memory(full, count, accumulates=accumulates)
        yield (
            f"| {count} | {ddp_memory(full) / 1e9:.0f} GB | {in_parts / 1e9:.0f} GB "
            f"| {ddp_memory(expert) / 1e9:.0f} GB | {seconds:.2f} s | {hours:.1f} h "
            f"| {training.batch_size / seconds:.0f} |"
        )


if __name__ == "__main__":
    print("\n".join(rows()))
