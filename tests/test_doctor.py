"""`pi0-doctor`: a line for each failure with its remedy, crashes and hangs among them."""

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from conftest import metaworld_policy
from safetensors.torch import load_file, save_file
from small_sets import draft, write

from pi0.ript import environments
from pi0.ript.commands import doctor, machine_checks, trial_checks
from pi0.ript.commands.findings import Finding, Request

ROOT = Path(__file__).parent.parent


def only(findings: list[Finding]) -> str:
    assert len(findings) == 1
    return str(findings[0])


def the_bad(findings: list[Finding]) -> list[str]:
    return [str(f) for f in findings if f.level != "ok"]


# Versions -----------------------------------------------------------------------------------------------


def test_versions_here():
    found = machine_checks.versions(Request())
    assert the_bad(found) == []
    assert [f.text.split()[0] for f in found][1:] == [*machine_checks._PACKAGES, "metaworld"]
    assert machine_checks.versions(Request("libero_10"))[-1].text.startswith("hf-libero ")


def test_other_versions(monkeypatch):
    real = metadata.version

    def version(name: str) -> str:
        if name == "mujoco":
            raise metadata.PackageNotFoundError(name)
        changed = {"torch": "2.11.7+cpu", "lerobot": "0.5.1"}
        return changed.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(machine_checks, "_PYTHON", (3, 99))
    here = ".".join(map(str, sys.version_info[:3]))
    assert the_bad(machine_checks.versions(Request())) == [
        f"FAIL  python {here}, expected 3.99: make setup",
        "warn  torch 2.11.7+cpu, tested with 2.11.0: make setup, or pip install 'torch==2.11.0'",
        "FAIL  lerobot 0.5.1, tested with 0.6.1: make setup, or pip install 'lerobot==0.6.1'",
        "FAIL  mujoco is not installed, expected 3.8.1: make setup, or pip install 'mujoco==3.8.1'",
    ]


def test_an_installed_package_has_no_constraints(monkeypatch, tmp_path):
    monkeypatch.setattr(machine_checks, "_CONSTRAINTS", tmp_path / "constraints.txt")
    assert the_bad(machine_checks.versions(Request()))[0].startswith("warn  packages: no constraints.txt")


# Machine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("free", "level"), [(1, "FAIL"), (10, "warn"), (100, "ok")])
def test_disk(monkeypatch, tmp_path, free, level):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free * 1e9))
    line = only(machine_checks.disk(Request(output_dir=str(tmp_path / "not/yet"))))
    assert line.startswith(f"{level:<4}  disk: {free} GB free for {tmp_path}/not/yet")
    assert ("remove old checkpoints" in line) == (level != "ok")


def test_disk_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    line = only(machine_checks.disk(Request(output_dir=str(tmp_path / "file/run"))))
    assert line == f"FAIL  disk: {tmp_path}/file is not a directory to write to: choose another output_dir"


@pytest.mark.parametrize(
    ("available", "limit", "line"),
    [
        (50, None, "ok    memory: 50.0 GB available"),
        (50, "max", "ok    memory: 50.0 GB available"),
        (50, "9000000000", "warn  memory: 8.0 GB available: end other programs"),
        (1.5, "9000000000", "FAIL  memory: 1.5 GB available: end other programs"),
    ],
)
def test_memory(monkeypatch, tmp_path, available, limit, line):
    monkeypatch.setattr(machine_checks, "_CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available * 1e9))
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("1000000000\n")
    assert only(machine_checks.memory(Request())).startswith(line)


def test_cores(monkeypatch):
    monkeypatch.setattr(machine_checks, "usable_cores", lambda: 4.0)
    assert only(machine_checks.cores(Request())) == "ok    CPU cores: 4"
    monkeypatch.setattr(machine_checks, "usable_cores", lambda: 1.5)
    line = only(machine_checks.cores(Request()))
    assert line == "warn  CPU cores: 1.5: use task.num_workers=1; policy and simulators take turns"


def test_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine_checks, "_DRIVER", tmp_path / "version")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert only(machine_checks.gpu(Request())).startswith("warn  GPU: none: toys need none;")
    (tmp_path / "version").touch()
    line = only(machine_checks.gpu(Request()))
    assert line.startswith(f"FAIL  GPU: there is an NVIDIA driver, but torch {torch.__version__} cannot use")
    assert "see `nvidia-smi`" in line


@pytest.mark.parametrize(
    ("major", "wrong", "line"),
    [
        (9, 0, "ok    GPU 0: H, 70 of 80 GB free, driver 580.95.05, CUDA 13.0, bfloat16"),
        (7, 0, "no bfloat16: use policy.dtype=float32"),
        (9, 1, "a product of matrices is wrong: replace it"),
    ],
)
def test_gpus(monkeypatch, tmp_path, major, wrong, line):
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        get_device_properties=lambda index: SimpleNamespace(name="H", major=major, minor=0),
        mem_get_info=lambda index: (70e9, 80e9),
    )
    ones = torch.ones
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Release\n")
    monkeypatch.setattr(machine_checks, "_DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape) + wrong)
    assert line in only(machine_checks.gpu(Request()))


# Trials -------------------------------------------------------------------------------------------------


def test_an_image_of_one_color(monkeypatch):
    from pi0.ript.envs.metaworld import MetaWorldSimulation

    black = np.zeros((64, 64, 3), np.uint8)
    monkeypatch.setattr(MetaWorldSimulation, "render", lambda self: {"front": black})
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    line = only(trial_checks.rendering(Request()))
    assert line.startswith("FAIL  rendering metaworld with MUJOCO_GL=osmesa: one color from front: install")


def test_missing_assets(monkeypatch, tmp_path):
    monkeypatch.setenv("LIBERO_ASSETS", str(tmp_path))
    line = only(trial_checks.assets(Request("libero_object")))
    assert line.startswith(f"FAIL  assets of libero_object: LIBERO_ASSETS={tmp_path} does not hold")
    assert "hf download lerobot/libero-assets" in line
    assert only(trial_checks.assets(Request())) == "ok    assets of metaworld: in its package"


def test_a_process_group_that_adds_wrongly(monkeypatch):
    monkeypatch.setattr(trial_checks, "exchange", lambda *ranks: 2.0)
    monkeypatch.setattr(
        trial_checks.subprocess,
        "Popen",
        lambda *a, **k: SimpleNamespace(wait=lambda s: 0, kill=lambda: None, returncode=0),
    )
    line = only(trial_checks.process_group(Request()))
    assert line == (
        "FAIL  process group: the sum of 1 and 2 is 2, exit code 0: set GLOO_SOCKET_IFNAME=lo, and let this "
        "machine's name resolve (a line in /etc/hosts)"
    )


def test_checkpoints(tmp_path):
    assert trial_checks.checkpoint(Request()) == []
    policy = metaworld_policy()
    policy.save_pretrained(tmp_path)
    request = Request(checkpoint=str(tmp_path))
    count = sum(p.numel() for p in policy.model.parameters())
    line = only(trial_checks.checkpoint(request))
    assert line == f"ok    checkpoint: {tmp_path}, {count:,} parameters, fits metaworld"
    with pytest.raises(ValueError, match="cameras: the policy takes"):
        trial_checks.checkpoint(Request("libero_object", checkpoint=str(tmp_path)))
    with pytest.raises(ValueError, match=r"--checkpoint: nothing at 'no\.where'"):
        trial_checks.checkpoint(Request(checkpoint="no.where"))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.action_out_proj.weight"
    save_file({**tensors, name: tensors[name][:2].clone()}, file)
    with pytest.raises(ValueError, match=r"shape +action_out_proj\.weight: expected"):
        trial_checks.checkpoint(request)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        trial_checks.checkpoint(request)


# Processes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("import os; os.abort()", "FAIL  rendering: died of SIGABRT (no message): install EGL"),
        (
            "raise RuntimeError('no context\\nat all')",
            "FAIL  rendering: RuntimeError: no context: install EGL",
        ),
        (
            "import sys; sys.exit('nothing works')",
            "FAIL  rendering: exit code 1 (nothing works): install EGL",
        ),
        ("import time; time.sleep(60)", "FAIL  rendering: no answer in 4 s: install EGL"),
    ],
)
def test_a_crash_is_a_line(monkeypatch, code, line):
    check = doctor.CHECKS["rendering"]
    monkeypatch.setitem(doctor.CHECKS, "rendering", doctor.Check(check.function, 4.0, check.remedy))
    assert only(doctor.ask("rendering", [sys.executable, "-c", code])).startswith(line)


def test_a_check_in_its_own_process(tmp_path):
    (tmp_path / "file").touch()
    line = only(doctor.findings("disk", Request(output_dir=str(tmp_path / "file"))))
    assert line == f"FAIL  disk: {tmp_path}/file is not a directory to write to: choose another output_dir"
    assert [f.level for f in doctor.findings("CPU cores", Request())] in (["ok"], ["warn"])


def test_the_report_and_its_exit_code(monkeypatch, capsys):
    asked = []
    answers = {
        "disk": [Finding("FAIL", "disk: full", "empty it")],
        "memory": [Finding("warn", "few", "more")],
    }

    def findings(name, request):
        asked.append((name, request))
        return answers.get(name, [])

    monkeypatch.setattr(doctor, "findings", findings)
    assert doctor.main(["--env", "libero", "--checkpoint", "a", "--output-dir", "b"]) == 1
    assert capsys.readouterr().out == "FAIL  disk: full: empty it\nwarn  few: more\n1 checks failed\n"
    assert asked == [(name, Request("libero", "a", "b")) for name in doctor.CHECKS]
    del answers["disk"]
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.endswith("nothing failed\n")


def test_every_environment_can_be_named(capsys):
    with pytest.raises(SystemExit, match="0"):
        doctor.main(["--help"])
    text = capsys.readouterr().out
    assert not [name for name in environments.ENVIRONMENTS if name not in text]


@pytest.mark.slow
def test_a_real_run(tmp_path):
    """All that needs no GPU is fine where the tests run."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "pi0/ript/commands/doctor.py"), "--output-dir", str(tmp_path)],
        env={**doctor.os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines[-1] == "nothing failed"
    assert any(line.startswith("ok    rendering metaworld with MUJOCO_GL=") for line in lines)
    assert "ok    process group: two processes exchanged a number (gloo)" in lines
    assert json.dumps(lines).count("FAIL") == 0


# Data sets --------------------------------------------------------------------------------------------------


def test_a_data_set_is_described_and_everything_wrong_with_it_told(tmp_path, capsys):
    good = write(draft([3, 5, 4], "video"), tmp_path / "good")
    made = draft([3, 5, 4, 4])
    for row in made.rows:
        row["observation.state"] = np.array([row["code"], 7.0, 0.0, 1.0])
    made.meta(1)["length"] = 4
    made.of(3)[2]["action"] = np.full(3, np.nan)
    bad = write(made, tmp_path / "bad")
    assert doctor.main(["--dataset", str(good)]) == 0
    told = capsys.readouterr().out
    for line in (
        "ok    files, numbers and frames agree: it can be trained on",
        "      3 episodes, 12 frames at 20 fps (0.6 s); lengths 3 to 5, median 4",
        "      success: 2 yes, 1 no, 0 unknown",
        "      task 'do thing 0': 2 episodes, 7 frames",
        "      camera observation.images.front: 32x32, stored as video, 0.037 MB decoded",
    ):
        assert line in told
    assert doctor.main(["--dataset", str(good), str(bad), "--json"]) == 1
    first, second = json.loads(capsys.readouterr().out)["datasets"]
    assert (first["can_be_trained_on"], second["can_be_trained_on"]) == (True, False)
    failed = [finding["text"] for finding in second["findings"] if finding["level"] == "FAIL"]
    assert [text.split(": ")[:3] for text in failed] == [
        ["meta/episodes", "length", "episode 1"],
        ["data", "action", "episode 3"],
    ]
    assert second["figures"]["dimensions_that_hardly_move"]["observation.state"] == [1, 2, 3]
    assert second["figures"]["episodes"] == 4
    assert "observation.state[1] is always 7" in [finding["text"] for finding in second["findings"]]
    assert doctor.main(["--dataset", str(bad)]) == 1
    told = capsys.readouterr().out
    assert told.count("FAIL") == 2
    assert "it can be trained on" not in told
    assert told.endswith(f"cannot be trained on: {bad}\n")
    assert doctor.main(["--dataset", str(tmp_path / "nowhere")]) == 1
    assert "FAIL  no LeRobotDataset: expected meta/info.json in" in capsys.readouterr().out


def test_episodes_that_two_data_sets_share_are_told(tmp_path, capsys):
    one, other = draft([3, 5, 4]), draft([4, 3, 6])
    for there, here in zip(other.of(0), one.of(2), strict=True):
        there["code"] = here["code"]
    roots = [str(write(made, tmp_path / str(i))) for i, made in enumerate((one, other))]
    assert doctor.main(["--dataset", *roots]) == 0
    assert (
        f"warn  {roots[0]} and {roots[1]} share 1 episode, by their numbers: [(2, 0)]"
        in capsys.readouterr().out
    )


def test_a_data_set_with_other_column_names_is_described_with_the_mapping_it_needs(tmp_path, capsys):
    made = draft([3, 5])
    made.names |= {"observation.state": "state", "action": "actions"}
    assert doctor.main(["--dataset", str(write(made, tmp_path / "set"))]) == 0
    told = capsys.readouterr().out
    assert "warn  columns have other names" in told
    assert "data_features_name_mapping: {'observation.state': 'state', 'action': 'actions'}" in told
    assert "2 episodes, 8 frames" in told


def test_a_dimension_that_hardly_moves_is_told_with_its_figures(tmp_path, capsys):
    made = draft([300])
    for place, row in enumerate(made.rows):
        row["action"] = np.array([0.5 if place % 3 else 0.1, -1.0 if place not in (7, 80) else 1.0, 0.3])
    assert doctor.main(["--dataset", str(write(made, tmp_path / "set"))]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warn  ")]
    assert [line.split(": ")[0] for line in told] == [
        "warn  action[1] hardly moves",
        "warn  action[2] is always 0.3",
    ]
    assert "hardly moves: -1 to 1, in 98 % of the frames -1 to -1" in told[0]
