"""Pools of initial states: identity, files, disjointness."""

import numpy as np
import pytest

from pi0.ript.envs import (
    InitialState,
    InitialStateError,
    load_initial_states,
    pool_hash,
    require_disjoint,
    save_initial_states,
)


@pytest.fixture
def states():
    rng = np.random.default_rng(0)
    return [
        InitialState(f"suite/{name}", rng.normal(size=size), "train", i)
        for i, (name, size) in enumerate([("a", 3), ("b", 5), ("a", 3)])
    ]


@pytest.fixture
def path(tmp_path, states):
    save_initial_states(tmp_path / "pool.npz", states)
    return tmp_path / "pool.npz"


def test_round_trip_is_exact(path, states):
    loaded = load_initial_states(path, {"suite/a", "suite/b"})
    assert loaded == states
    assert [(s.task, s.split, s.index, s.source) for s in loaded] == [
        (s.task, s.split, s.index, s.source) for s in states
    ]
    assert pool_hash(loaded) == pool_hash(states) != pool_hash(states[::-1])
    assert list(path.parent.iterdir()) == [path]


def test_identity_is_task_and_vector(states):
    a = states[0]
    assert a == InitialState(a.task, a.vector.copy(), "heldout", 7)
    assert a != InitialState("suite/b", a.vector, "train", 0)
    nudged = a.vector.copy()
    nudged[0] = np.nextafter(nudged[0], 1.0)
    assert a != InitialState(a.task, nudged, "train", 0)


def test_state_cannot_change(states):
    with pytest.raises(ValueError, match="read-only"):
        states[0].vector[0] = 1.0
    source = np.zeros(2)
    state = InitialState("suite/a", source, "train", 0)
    source[0] = 1.0
    assert state.vector[0] == 0.0


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"text"])
def test_corrupt_file_is_one_clear_error(path, damage):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InitialStateError, match=r"pool\.npz.*make the pool of states again"):
        load_initial_states(path)


def test_no_flipped_byte_goes_unnoticed(path, states):
    content = path.read_bytes()
    refused = 0
    for at in range(0, len(content), 11):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        try:
            assert load_initial_states(path) == states, "the damage was outside of the content"
        except InitialStateError:
            refused += 1
    assert refused > 50


def test_altered_content_is_found_by_its_hash(path):
    with np.load(path) as file:
        columns = dict(file)
    columns["vector"] = columns["vector"] + 1e-12
    np.savez(path, **columns)
    with pytest.raises(InitialStateError, match=r"is corrupt: content hash \w+, expected \w+"):
        load_initial_states(path)


def test_other_npz_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", vector=np.zeros(3))
    with pytest.raises(InitialStateError, match="is not a file of initial states"):
        load_initial_states(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError):
        load_initial_states(tmp_path / "absent.npz")


def test_state_of_another_task_is_refused(path):
    with pytest.raises(InitialStateError, match=r"task 'suite/b'; expected one of \['suite/a'\]"):
        load_initial_states(path, {"suite/a"})


def test_shared_state_is_found(states):
    require_disjoint(states[:1], states[1:])
    copy = InitialState(states[2].task, states[2].vector, "heldout", 99)
    with pytest.raises(InitialStateError, match="1 are in both, the first of task 'suite/a'"):
        require_disjoint(states, [copy])


def test_empty_pool_is_not_written(tmp_path):
    with pytest.raises(InitialStateError, match="no states to save"):
        save_initial_states(tmp_path / "pool.npz", [])
