"""What is pushed loads in lerobot and here; without network the directory is there, and what to run."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants
from test_pretrained import lerobot_actions_of, raw_batch, raw_noise, tiny_policy

from pi0 import PI0Policy, lerobot_format
from pi0.ript import hub_upload
from pi0.ript.commands import chosen_policy
from pi0.ript.commands.export import main


class Hub:
    """A hub in a directory, in place of HfApi."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, []

    def __call__(self) -> "Hub":
        return self

    def create_repo(self, name: str, **options) -> str:
        self.calls.append((name, options))
        return f"https://hub.example/{name}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        assert commit_message
        shutil.copytree(folder_path, self.root / repo_id)


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


@pytest.fixture
def checkpoint(policy, tmp_path, monkeypatch) -> Path:
    sizes = {"gemma_2b": policy.config.vlm, "gemma_300m": policy.config.expert}  # as if lerobot had a toy
    monkeypatch.setattr(lerobot_format, "VARIANTS", sizes)
    monkeypatch.chdir(tmp_path)
    policy.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def push(checkpoint: Path, *more: str) -> int:
    return main([str(checkpoint), "--push-to-hub", "me/my_pi0", "--device", "cpu", *more])


def test_what_is_pushed_loads_in_lerobot_and_here(policy, checkpoint, tmp_path, monkeypatch, capsys):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(hub_upload, "HfApi", hub)
    assert push(checkpoint, "--private") == 0
    assert capsys.readouterr().out.endswith("pushed: https://hub.example/me/my_pi0\n")
    assert hub.calls == [("me/my_pi0", {"private": True, "exist_ok": True})]
    pushed = tmp_path / "hub/me/my_pi0"
    assert sorted(file.name for file in pushed.iterdir()) == sorted(p.name for p in Path("my_pi0").iterdir())
    assert 'from_pretrained("me/my_pi0")' in (pushed / "README.md").read_text()
    expected = policy.sample_actions(raw_batch(), noise=raw_noise())
    again = PI0Policy.from_pretrained(pushed).sample_actions(raw_batch(), noise=raw_noise())
    assert torch.equal(again, expected)
    theirs = lerobot_actions_of(pushed, False, raw_batch(), raw_noise(), monkeypatch)
    torch.testing.assert_close(theirs, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def failing_upload(how: str):
    """Return an `upload_folder` that fails as huggingface_hub's uploads of large files do."""

    def upload(*_, **__):
        if how == "batch":
            raise ValueError("LFS batch API returned errors:\nno space")
        try:
            raise ConnectionError("the storage\nis full")
        except ConnectionError as error:
            raise RuntimeError("Error while uploading 'model.safetensors' to the Hub.") from error

    return upload


@pytest.mark.parametrize("how", ["offline", "unreachable", "refused", "upload", "batch"])
def test_without_the_hub_the_directory_is_complete_and_the_last_line_says_what_to_run(
    how, checkpoint, monkeypatch, capsys
):
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif how == "unreachable":
        monkeypatch.setattr(hub_upload, "HfApi", partial(HfApi, endpoint="http://127.0.0.1:9"))
    elif how in ("upload", "batch"):
        monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: "made")
        monkeypatch.setattr(HfApi, "upload_folder", failing_upload(how))
    else:

        def refuse(*_, **__):
            raise PermissionError("403:\n  you may not")

        monkeypatch.setattr(HfApi, "create_repo", refuse)
    assert push(checkpoint, "--output", "a directory", "--private") == 3
    said = capsys.readouterr()
    reason, last = said.err.splitlines()[-2:]
    assert reason.startswith("pi0-export: error: not pushed: ")
    if how == "upload":
        assert reason.endswith("Error while uploading 'model.safetensors' to the Hub.: the storage is full")
    assert last.endswith("run: hf upload me/my_pi0 'a directory' --private")
    assert "pushed: " not in said.out
    PI0Policy.from_pretrained("a directory")
    assert Path("a directory/README.md").is_file()


def test_the_command_that_is_said_is_one_of_hf():
    """With an unreachable hub it gets as far as the connection."""
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_none"}
    command = [Path(sys.executable).parent / "hf", "upload", "me/my_pi0", "tests/plugin_example", "--private"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert "Usage" not in ended.stdout + ended.stderr
    assert "onnect" in ended.stdout + ended.stderr


def test_what_does_not_fit_together_is_said_before_any_work(checkpoint, tmp_path, monkeypatch, capsys):
    where, wrong = ["--output", str(tmp_path / "new")], "pi0-export: error: "
    cases = {
        "--push-to-hub: expected OWNER/NAME, found 'x'": [*where, "--push-to-hub", "x"],
        "--push-to-hub: expected OWNER/NAME, found 'a/b/c'": [*where, "--push-to-hub", "a/b/c"],
        "--output: expected a directory to write to": [],
        "--push-to-hub: expected OWNER/NAME, found 'me/a--b'": [*where, "--push-to-hub", "me/a--b"],
        "--push-to-hub: expected OWNER/NAME, found 'me/a.git'": [*where, "--push-to-hub", "me/a.git"],
        "--private: is of the repository": [*where, "--private"],
        "--push-to-hub: is of --format lerobot, found torch": ["--push-to-hub", "a/b", "--format", "torch"],
        "--evaluation: is of --format lerobot": [*where, "--evaluation", "x", "--format", "torch"],
        "--evaluation: expected a finished evaluation": [*where, "--evaluation", "x"],
    }
    monkeypatch.setattr(chosen_policy, "load_policy", None)  # would fail if it were called
    for said, words in cases.items():
        assert main([str(checkpoint), "--device", "cpu", *words]) == 2
        assert f"{wrong}{said}" in capsys.readouterr().err
    (tmp_path / "my_pi0").mkdir()
    assert push(checkpoint) == 2
    assert "'my_pi0' is there already" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
