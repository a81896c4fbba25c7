"""What comes from elsewhere is data: nothing that is read runs code, and damage ends in one line.

docs/security.md says what is trusted. Pages that escape what they show: test_recap_report.py, test_label.py.
"""

import hashlib
import io
import json
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import opened
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_checkpoint import CONFIG, PROGRESS, SAMPLER, Sampler, episode, tiny_policy, trained
from test_episodes import make_episode, publish

from pi0 import PI0Policy
from pi0.ript.checkpoint import load_checkpoint, save_checkpoint
from pi0.ript.checkpoint.journal import EpisodeJournal
from pi0.ript.config import ConfigError, load_config_from_yaml
from pi0.ript.envs.initial_state import load_initial_states, save_initial_states
from pi0.ript.envs.libero_files import read_pruned_init
from pi0.ript.labels.frames import read_labelled_frames

ROOT = Path(__file__).parent.parent


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def bombs(mark: Path) -> dict[str, bytes]:
    """The bomb in each form in which Python's and torch's readers would take one."""
    torch_file, arrays, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"optimizer": Bomb(mark), "model": Bomb(mark)}, torch_file)
    value = np.empty(1, object)
    value[0] = Bomb(mark)
    np.savez(arrays, **dict.fromkeys(("format", "task", "vector", "demo/values", "states"), value))
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Bomb(mark)))
    return {
        "pickle": pickle.dumps(Bomb(mark)),
        "torch": torch_file.getvalue(),
        "numpy": arrays.getvalue(),
        "archive": archive.getvalue(),
    }


def test_the_bombs_go_off(tmp_path):
    """Else the tests below show nothing."""
    mark = tmp_path / "mark"
    for form, content in bombs(mark).items():
        if form == "torch":
            torch.load(io.BytesIO(content), weights_only=False)
        elif form == "numpy":
            np.load(io.BytesIO(content), allow_pickle=True)["task"]
        elif form == "archive":
            pickle.loads(zipfile.ZipFile(io.BytesIO(content)).read("archive/data.pkl"))
        else:
            pickle.loads(content)
        assert mark.exists(), form
        mark.unlink()


# Each makes something that is read, and returns its directory and how it is read.


def a_policy(place: Path):
    tiny_policy().save_pretrained(place)
    return lambda: PI0Policy.from_pretrained(place)


def a_checkpoint(place: Path):
    policy, optimizer = trained()
    save_checkpoint(policy, optimizer, 2, CONFIG, place, progress=PROGRESS, sampler_state=SAMPLER)
    (path,) = place.glob("checkpoint-*")

    def read():
        # Whoever plants a bomb can write the hash that fits it.
        about = json.loads((path / "checkpoint.json").read_text())
        for name, facts in about["files"].items():
            if (path / name).is_file():
                content = (path / name).read_bytes()
                facts |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (path / "checkpoint.json").write_text(json.dumps(about))
        load_checkpoint(path, *trained(seed=3), Sampler())

    return read


def a_data_set(place: Path):
    publish(place, {i: make_episode(i, size=16) for i in range(2)})
    return lambda: list(opened(place))


def a_journal(place: Path):
    written = episode()
    EpisodeJournal(place).write(written)

    def read():
        if EpisodeJournal(place).read(written.task, written.initial_state, written.seed) is None:
            raise ValueError("damaged, so the episode is run again")

    return read


def initial_states(place: Path):
    save_initial_states(place / "states.npz", [episode().initial_state])
    return lambda: load_initial_states(place / "states.npz")


def labels(place: Path):
    place.mkdir()
    ones = {"demo/values": np.ones(3), "demo/advantages": np.ones(3), "demo/returns": np.ones(3)}
    np.savez(place / "frames.npz", **ones, **{"demo/lengths": np.array([3])})
    return lambda: read_labelled_frames(place / "frames.npz")


def libero_states(place: Path):
    place.mkdir()
    with zipfile.ZipFile(place / "task.pruned_init", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(np.zeros((2, 3))))
    return lambda: read_pruned_init(place / "task.pruned_init")


MADE = [a_policy, a_checkpoint, a_data_set, a_journal, initial_states, labels, libero_states]


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_a_pickle_in_any_file_that_is_read_is_not_run(make, tmp_path):
    read = make(tmp_path / "whole")
    read()
    mark = tmp_path / "mark"
    files = sorted(path for path in (tmp_path / "whole").rglob("*") if path.is_file())
    assert files
    shutil.copytree(tmp_path / "whole", tmp_path / "copy")
    refused = 0
    for file in files:
        for form, content in bombs(mark).items():
            file.write_bytes(content)
            try:
                read()
            except Exception:  # noqa: BLE001  what it is, other tests say
                refused += 1
            assert not mark.exists(), f"{form} in {file.name} ran"
            shutil.copyfile(tmp_path / "copy" / file.relative_to(tmp_path / "whole"), file)
    assert refused >= len(bombs(mark)), "the files are not read at all"
    read()


# Damaged files ----------------------------------------------------------------------------------------------

SEARCH = settings(
    max_examples=250, deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip


@st.composite
def damages(draw):
    """How a file is damaged: bytes flipped near its beginning, cut, emptied, a word replaced."""
    kind = draw(st.sampled_from(["flip", "cut", "word"]))
    return kind, draw(st.floats(0, 1)), draw(st.integers(1, 255)), draw(st.sampled_from(WORDS))


WORDS = [b"null", b"-1", b"1e999", b'"x"', b"[]", b"{}", b"true", b"NaN", b"99999999999999999999", b""]


def damaged(content: bytes, damage) -> bytes:
    kind, where, bits, word = damage
    at = int(where * min(len(content) - 1, 4000))
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ bits]) + content[at + 1 :]
    if kind == "cut":
        return content[:at]
    values = list(re.finditer(rb'(?<=[:\[, ])(-?[\d.]+|true|false|null|"[^"]*")', content[:4000]))
    if not values:
        return content[:at] + word + content[at:]
    value = values[int(where * (len(values) - 1))]
    return content[: value.start()] + word + content[value.end() :]


def require_a_line(error: Exception, where: str) -> None:
    assert isinstance(error, ValueError | OSError), f"{where}: {type(error).__name__}: {error}"
    assert str(error), where
    assert len(str(error)) < 3000, where


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pi0_config.json"])
def test_a_damaged_policy_is_refused_in_a_line_or_is_a_policy(tmp_path, name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # of a tokenizer's damaged name
    tiny_policy().save_pretrained(tmp_path)
    file = tmp_path / name
    content = file.read_bytes()
    refused = []

    @SEARCH
    @given(damages())
    def read(damage):
        file.write_bytes(damaged(content, damage))
        try:
            PI0Policy.from_pretrained(tmp_path)
        except Exception as error:  # noqa: BLE001  which they may be is what is tested
            require_a_line(error, f"{name}, {damage}")
            refused.append(damage)

    read()
    assert len(refused) > 50


def test_a_damaged_configuration_is_refused_in_a_line_or_is_one(tmp_path):
    content = (ROOT / "pi0/ript/config/minimal_test.yaml").read_bytes()
    file = tmp_path / "config.yaml"
    refused = []

    @SEARCH
    @given(damages())
    def read(damage):
        file.write_bytes(damaged(content, damage))
        try:
            load_config_from_yaml(file)
        except Exception as error:  # noqa: BLE001  which they may be is what is tested
            require_a_line(error, str(damage))
            refused.append(damage)

    read()
    assert len(refused) > 50


@pytest.mark.parametrize(
    "value", ["${eval:'1+1'}", "${python:os}", "${shell:id}", "!!python/object/apply:os.getcwd []"]
)
def test_a_configuration_runs_no_code(tmp_path, value):
    file = tmp_path / "config.yaml"
    file.write_text(f"exp_name: {value}\n")
    with pytest.raises(ConfigError):
        load_config_from_yaml(file)
