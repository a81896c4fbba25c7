"""Prints the table of sizes and rates in docs/cluster.md: computed by the formulas of `pi0-recap --plan`."""

from collections.abc import Iterator
from pathlib import Path

from pi0.ript.config import load_config_from_yaml
from pi0.ript.recap import RecapConfig
from pi0.ript.recap.budget import planned_work
from pi0.ript.recap.cluster_plan import (
    NUM_CAMERAS,
    model_costs,
    planned_model,
    run_hours,
    update_seconds,
)
from pi0.ript.recap.gpus import GPUS
from pi0.ript.recap.model_budget import policy_memory

ROOT = Path(__file__).parent.parent
COUNTS = (1, 2, 4, 8, 16, 32, 64)
GPU = "H100"


def rows() -> Iterator[str]:
    """Yield the lines of the table."""
    config = load_config_from_yaml(ROOT / "configs/recap_libero.yaml", schema=RecapConfig)
    work, gpu = planned_work(config), GPUS[GPU]
    training = config.finetuning.training
    everything, expert = planned_model(config, "none"), planned_model(config, "expert_only")
    costs = model_costs(everything, NUM_CAMERAS)
    yield "| GPUs | all weights, ddp | all, fsdp | expert alone, ddp | update of 256 | RECAP | samples/s |"
    yield "|---|---|---|---|---|---|---|"
    for count in COUNTS:
        seconds = update_seconds(costs, gpu, count, training.batch_size)
        hours = run_hours(config, work, costs, gpu, count).total
        memory = [
            policy_memory(config, model, NUM_CAMERAS, count, strategy).peak / 1e9
            for model, strategy in ((everything, "ddp"), (everything, "fsdp"), (expert, "ddp"))
        ]
        sizes = " | ".join(f"{size:.0f} GB" for size in memory)
        rate = training.batch_size / seconds
        yield f"| {count} | {sizes} | {seconds:.2f} s | {hours:.1f} h | {rate:.0f} |"


if __name__ == "__main__":
    print("\n".join(rows()))
