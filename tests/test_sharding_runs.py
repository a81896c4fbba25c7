"""Whole runs whose processes hold parts end as DDP's do: rung 13, pi0-train, RECAP; what a process takes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import drifting
import numpy as np
import pytest
import recap_runs
from forked import together
from safetensors.torch import load_file
from test_supervised import make_episode, publish, settings

from pi0.ript.config.schema import Distributed
from pi0.ript.distributed import cleanup_distributed
from pi0.ript.supervised.trainer import Training

pytestmark = pytest.mark.slow
SHARDED = "distributed.strategy=fsdp"
ROOT = Path(__file__).parent.parent


def losses_of(run_dir: Path) -> list[float]:
    return [row["train/loss"] for row in json.loads((run_dir / "results.json").read_text())["metrics"]]


def test_rung_13_learns_as_ddp_does_and_goes_on_with_other_numbers_of_processes(tmp_path):
    drifting.install()
    try:
        drifting.prepare(tmp_path)
        more = ("algo.data_batch_size=4", "algo.max_sampling_attempts=8")

        def run(size, name, *arguments):
            together(size, tmp_path / "found", drifting.run, tmp_path, name, *more, *arguments)
            return losses_of(tmp_path / name)

        ddp, fsdp = run(2, "ddp"), run(2, "fsdp", SHARDED)
        assert np.allclose(fsdp, ddp, rtol=1e-5)
        run(2, "first", SHARDED, "training.num_train_steps=1")
        for size in (2, 1, 4):
            shutil.copytree(tmp_path / "first", tmp_path / f"by-{size}")
            rest = run(size, f"by-{size}", SHARDED, "--resume")
            assert rest == fsdp if size == 2 else np.allclose(rest, fsdp, rtol=1e-5)
        weights = [tmp_path / name / "policy/model.safetensors" for name in ("fsdp", "by-2")]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    finally:
        drifting.uninstall()


def train(root: str, output: Path, kind: str, name: str, strategy: str) -> None:
    """Run pi0-train with a moving average of the weights, and validation."""
    distributed = Distributed(strategy=strategy)
    options = {"exp_name": name, "val_freq": 2, "ema_decay": 0.9, "distributed": distributed}
    Training(settings(root, output, kind, **options)).run()
    cleanup_distributed()


@pytest.mark.parametrize("kind", ["pi0", "value"])
def test_pi0_train_ends_where_ddp_does(tmp_path, kind):
    root = str(publish(tmp_path / "demos", {i: make_episode(i, length=3 + i) for i in range(5)}))
    for strategy in ("ddp", "fsdp"):
        together(2, tmp_path / "found", train, root, tmp_path, kind, strategy, strategy)
    for name, size in {"again": 2, "alone": 1}.items():
        shutil.copytree(tmp_path / "fsdp", tmp_path / name, symlinks=True)
        shutil.rmtree(tmp_path / name / "checkpoint-6")
        together(size, tmp_path / "found", train, root, tmp_path, kind, name, "fsdp")
    models = {n: load_file(tmp_path / n / "model.safetensors") for n in ("ddp", "fsdp", "again", "alone")}
    for key, value in models["fsdp"].items():
        assert (value - models["ddp"][key]).abs().max() < 1e-4, key
        assert (value == models["again"][key]).all(), key
        assert (value - models["alone"][key]).abs().max() < 1e-4, key
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("ddp", "fsdp")
    ]
    for ddp, fsdp in zip(*rows, strict=True):
        assert [fsdp["loss"], fsdp["val_loss"]] == pytest.approx([ddp["loss"], ddp["val_loss"]], rel=1e-5)


def test_recap_learns_as_ddp_does(tmp_path):
    def run(strategy):
        fewer = ("rounds=1", "baselines=false", "filtered_rounds=1")
        options = (*fewer, f"distributed.strategy={strategy}")
        stages = recap_runs.run(tmp_path / strategy, *options)
        return {name: record["figures"].get("loss") for name, record in stages.items()}

    ddp, fsdp = (together(2, tmp_path / "found", run, strategy)[0] for strategy in ("ddp", "fsdp"))
    assert fsdp.keys() == ddp.keys()
    # Rollouts amplify the rounding of the SFT policy: what follows them is compared no closer.
    for name in ("sft", "value"):
        assert fsdp[name] == pytest.approx(ddp[name], rel=1e-5)
    assert fsdp["round-1/policy"] == pytest.approx(ddp["round-1/policy"], rel=0.2)


def test_a_process_takes_at_most_0_6_of_what_it_takes_with_the_whole_model():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/real_size_fsdp.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "right" in done.stdout
