"""The guide's whole flow (requirement 004) at toy size, and one training by two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pi0 import PI0Policy
from pi0.ript.report import read_rows
from pi0.value import ValueFunction

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which the flow ran."""
    directory = tmp_path_factory.mktemp("guide")
    with (directory / "log").open("w") as log:
        subprocess.run(
            ["sh", str(ROOT / "tests/guide.sh")],
            cwd=directory,
            env={**ENVIRONMENT, "CONFIGS": str(ROOT / "configs")},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    return directory


@pytest.mark.slow
@pytest.mark.sim
def test_the_guides_flow_runs_from_demonstrations_to_an_improved_policy(guide):
    train = guide / "outputs/train"
    for name in ("sft_pi0", "pi0_finetune"):
        assert PI0Policy.from_pretrained(train / name).config.indicator == "embedding"
        assert list((train / name).glob("checkpoint-*-best-val_loss_*"))
    assert list((train / "sft_pi0").glob("checkpoint-6-best-success_*"))
    for name in ("value_pretrain", "value_finetune"):
        ValueFunction.from_pretrained(train / name)
        assert "train_accuracy" in read_rows(train / name)[-1]
    epsilon = float((guide / "advantages.txt").read_text().split("070th percentile: ")[1].split()[0])
    settings = (train / "pi0_finetune/experiment_cfg/config.yaml").read_text()
    assert f"advantage_threshold: {epsilon}" in settings
    log = (guide / "log").read_text()
    assert "indicator of the advantage: positive in 30.0% of the frames" in log


@pytest.mark.slow
@pytest.mark.sim
def test_two_processes_train_as_one_does(guide):
    for count in (1, 2):
        command = [sys.executable, "-m", "pi0.ript.commands.launch", "train", f"--nproc-per-node={count}"]
        arguments = ["--steps=3", "--batch_size=8", "--log_freq=1", "--val_freq=3", f"--exp_name=by-{count}"]
        config = f"--config_path={ROOT / 'configs/sft_pi0_config.json'}"
        subprocess.run([*command, config, *arguments], cwd=guide, env=ENVIRONMENT, check=True)
    one, two = (read_rows(guide / f"outputs/train/by-{count}") for count in (1, 2))
    for row, other in zip(one, two, strict=True):
        for key in ("loss", "gradient_norm", "epoch", *(["val_loss"] if "val_loss" in row else [])):
            assert other[key] == pytest.approx(row[key], rel=1e-3), key
    weights = [load_file(guide / f"outputs/train/by-{n}/checkpoint-3/trained.safetensors") for n in (1, 2)]
    assert all(torch.allclose(weights[0][k], weights[1][k], atol=1e-3) for k in weights[0])
    assert json.loads((guide / "outputs/train/by-2/checkpoint-3/checkpoint.json").read_text())[
        "position"
    ] == [3, 0]
