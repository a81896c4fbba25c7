"""What a training takes in each of two processes: with the whole model in both (DDP), or half of it (FSDP).

python benchmarks/real_size_fsdp.py          both, at 193 M parameters, and their ratio
python benchmarks/real_size.py --only fsdp   FSDP at the real size, expert only (make test-real ONLY=fsdp)

Each loads a checkpoint, takes optimizer steps (not acting before at the real size), and saves what it has.
The figures are of the process that needed more, and of its anonymous memory, imports and all.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from real_size import REAL, Peak, example, write_checkpoint

from pi0.config import GemmaConfig, Pi0Config
from pi0.ript.distributed import cleanup_distributed, setup_distributed
from pi0.ript.loss import AdvantageLoss
from pi0.ript.policy_settings import PolicySettings
from pi0.ript.rollout import GuidedPolicy
from pi0.ript.starting_policy import make_policy
from pi0.ript.training.optimization import make_optimizer
from pi0.ript.training.settings import Optimizer

NUM_PROCESSES = 2
RATIO_BOUND = 0.6
LARGE = Pi0Config(
    vlm=GemmaConfig(width=1024, depth=8, mlp_dim=4096, num_heads=8, head_dim=128),
    expert=GemmaConfig(width=512, depth=8, mlp_dim=2048, num_heads=8, head_dim=128),
    vision=replace(REAL.vision, image_size=56, width=512, depth=6, mlp_dim=2048, num_heads=8),
    vocab_size=32_000,
    chunk_size=8,
    n_action_steps=8,
)
"""193 M parameters, all of them trained, in float32."""


def train(directory: Path, strategy: str, freeze: str, dtype: str, num_steps: int) -> dict[str, float]:
    """Take optimizer steps as one of the processes of this run; return the most memory in GiB of each part.

    Args:
        directory: The checkpoint.
        strategy: "ddp" or "fsdp".
        freeze: What is not trained.
        dtype: Of the computation.
        num_steps: Optimizer steps, the last one counts; with 1 none acts before it.
    """
    world, peak = setup_distributed("cpu", strategy=strategy), Peak()
    settings = PolicySettings(freeze=freeze, dtype=dtype)
    changes = {"indicator": "embedding"}
    policy = world.first(make_policy, str(directory), settings, _no_toy, 0, changes=changes)
    learner = world.wrap(AdvantageLoss(policy, 0.1))
    figures = {"loading": peak.gib(whole=True)}
    batch = example(1, policy.config.chunk_size)
    optimizer = make_optimizer(policy, Optimizer())
    for number in range(num_steps):  # the first one makes the optimizer's state
        if num_steps > 1:
            GuidedPolicy(policy)
            policy.sample_actions(batch, num_steps=1)
            figures["acting"] = peak.gib(whole=True)
        policy.train()
        peak = Peak() if number == num_steps - 1 else peak
        loss = learner({**batch, "advantage": torch.ones(1), "window": torch.arange(1)}, (0,))
        world.backward(loss)
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    figures["step"] = peak.gib(whole=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as saved:
        world.on_main(policy.save_pretrained, saved)
    figures["saving"] = peak.gib(whole=True)
    everybody = [figures for (figures,) in world.gather([figures])]
    cleanup_distributed()
    return {
        **{name: max(own[name] for own in everybody) for name in figures},
        "all together": sum(max(own.values()) for own in everybody),
    }


def started(
    directory: Path, strategy: str, freeze: str = "none", dtype: str = "float32", num_steps: int = 2
) -> dict[str, float]:
    """Return what `train` returns in processes of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(NUM_PROCESSES), "LOCAL_WORLD_SIZE": str(NUM_PROCESSES)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, __file__, "--measure", str(directory), strategy, freeze, dtype, str(num_steps)]
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(NUM_PROCESSES)
    ]
    said = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{strategy}: ended with {[process.returncode for process in processes]}")
    return json.loads(said[0].splitlines()[-1])


def real_figures(directory: Path) -> dict[str, float]:
    """Take one expert-only step at the real size; return what both processes need together, in GiB."""
    return {
        f"{name}, GiB": value
        for name, value in started(directory, "fsdp", "expert_only", "bfloat16", 1).items()
    }


def _no_toy(**changes: object) -> None:
    raise AssertionError(changes)


def main() -> int:
    """Compare the strategies; return 1 if FSDP needs more than its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        torch.set_num_threads(1)
        place, strategy, freeze, dtype, num_steps = options.measure
        print(json.dumps(train(Path(place), strategy, freeze, dtype, int(num_steps))))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "checkpoint"
        write_checkpoint(directory, LARGE, torch.float32)
        figures = {strategy: started(directory, strategy) for strategy in ("ddp", "fsdp")}
    for name in figures["ddp"]:
        ddp, fsdp = figures["ddp"][name], figures["fsdp"][name]
        print(f"{name}: ddp {ddp:.2f} GiB, fsdp {fsdp:.2f} GiB, ratio {fsdp / ddp:.2f}")
    ratio = figures["fsdp"]["step"] / figures["ddp"]["step"]
    print(f"a step: ratio {ratio:.2f}, at most {RATIO_BOUND}: {'right' if ratio <= RATIO_BOUND else 'WRONG'}")
    return int(ratio > RATIO_BOUND)


if __name__ == "__main__":
    sys.exit(main())
