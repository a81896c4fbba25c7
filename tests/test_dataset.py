"""Initial states as a Dataset: made once, disjoint from the held-out ones, drawn in one resumable order."""

import json
from itertools import islice

import numpy as np
import pytest
from torch.utils.data import DataLoader

from pi0.ript.dataset import LiberoInitStateDataset, StateSampler, collate_fn_state, drawn
from pi0.ript.envs import InitialStateError, make_env, require_disjoint
from pi0.ript.episode import Rollout
from pi0.ript.groups import Collection, Group, InitialStateDataset


@pytest.fixture(scope="module")
def env():
    with make_env("metaworld", ["button-press-v3"]) as env:
        yield env


@pytest.fixture(scope="module")
def dataset(env, tmp_path_factory):
    """Fifteen states: it does not divide what is drawn below."""
    return LiberoInitStateDataset("metaworld", num_states=15, cache=tmp_path_factory.mktemp("s"), env=env)


def loader(dataset, sampler):
    return drawn(DataLoader(dataset, sampler=sampler, collate_fn=collate_fn_state), lambda text: None)


def tried(env, dataset, indices, solved=()):
    """A collection of groups from these states; those in `solved` succeed always, the others never."""
    nothing = np.zeros((1, 4), np.float32)

    def episode(i):
        task = env.tasks[dataset[i].task]
        return Rollout(task, dataset[i], 0, i in solved, nothing, nothing, np.zeros(1, np.int64), {})

    return Collection([], [Group([episode(i)] * 3) for i in indices])


def test_states_are_the_training_states_and_disjoint_from_the_held_out_ones(env, dataset):
    task = next(iter(env.tasks))
    assert dataset.states == env.initial_states(task, "train", range(15))
    require_disjoint(dataset.states, env.initial_states(task, "heldout", range(50)))
    assert len(dataset) == 15
    assert dataset[3] is dataset.states[3]


def test_states_are_made_once_and_a_damaged_file_is_refused(env, tmp_path, monkeypatch):
    made = LiberoInitStateDataset("metaworld", num_states=3, cache=tmp_path, env=env)
    with monkeypatch.context() as patch:
        patch.setattr(env, "initial_states", None)  # would fail if it were asked
        again = LiberoInitStateDataset("metaworld", num_states=3, cache=tmp_path, env=env)
    assert again.states == made.states
    more = LiberoInitStateDataset("metaworld", num_states=4, cache=tmp_path, env=env)
    assert more.path != made.path
    made.path.write_bytes(made.path.read_bytes()[:-40])
    with pytest.raises(InitialStateError, match="corrupt"):
        LiberoInitStateDataset("metaworld", num_states=3, cache=tmp_path, env=env)


def test_it_starts_an_environment_of_its_own_for_a_benchmark_by_name(tmp_path):
    dataset = LiberoInitStateDataset("metaworld", ["drawer-open-v3"], 2, cache=tmp_path)
    assert [s.task for s in dataset.states] == ["metaworld/drawer-open-v3"] * 2
    with pytest.raises(
        ValueError, match=r"unknown benchmark_name 'libero_goals'; did you mean 'libero_goal'"
    ):
        LiberoInitStateDataset("libero_goals")


def test_one_process_draws_the_order_of_the_rungs_before(env, dataset):
    before = InitialStateDataset(env, 15).shuffled(7)
    now = loader(dataset, StateSampler(dataset, seed=7))
    assert list(islice(now, 37)) == list(islice(before, 37))


def test_the_first_batch_is_reported(dataset):
    said = []
    states = drawn(DataLoader(dataset, collate_fn=collate_fn_state), said.append)
    assert not said
    assert list(states) == dataset.states
    assert said == ["✓ 批处理采样正常工作 / batches are drawn: state 0 of metaworld/button-press-v3"]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_processes_share_the_order_of_one(dataset, size):
    everything = list(islice(StateSampler(dataset, seed=7), 36))
    shares = [iter(StateSampler(dataset, size, rank, seed=7)) for rank in range(size)]
    assert [next(shares[i % size]) for i in range(36)] == everything


@pytest.mark.parametrize("size", [1, 2])
def test_the_position_continues_exactly_after_any_iteration(env, dataset, size):
    """Four states per iteration of fifteen, some of them solved: skipped three times, then tried again."""
    order, states = [], [None]
    ranks = [StateSampler(dataset, size, rank, seed=3, skip_threshold=3) for rank in range(size)]
    draws = [loader(dataset, sampler) for sampler in ranks]

    def iterate(ranks, draws):
        taken = [dataset.states.index(next(draws[i % size])) for i in range(4)]
        for sampler in ranks:
            sampler.update(tried(env, dataset, taken, solved={0, 4, 8}))
        assert len({json.dumps(sampler.state_dict()) for sampler in ranks}) == 1
        return taken

    for _ in range(30):
        order.append(iterate(ranks, draws))
        states.append(json.loads(json.dumps(ranks[0].state_dict())))
    for start in (1, 7, 20):
        resumed = [StateSampler(dataset, size, rank, seed=3, skip_threshold=3) for rank in range(size)]
        for sampler in resumed:
            sampler.load_state_dict(states[start])
        again = [loader(dataset, sampler) for sampler in resumed]
        assert [iterate(resumed, again) for _ in range(30 - start)] == order[start:]


def test_mastered_states_are_passed_over_and_come_back(env, dataset):
    def times_tried(skip_threshold, solved):
        sampler = StateSampler(dataset, seed=3, skip_threshold=skip_threshold)
        draws, counts = iter(sampler), np.zeros(15, int)
        for _ in range(60):
            taken = [next(draws) for _ in range(4)]
            np.add.at(counts, taken, 1)
            sampler.update(tried(env, dataset, taken, solved))
        return counts, sampler

    counts, _ = times_tried(0, {2, 5})
    assert counts.tolist() == [16] * 15
    counts, sampler = times_tried(3, {2, 5})
    assert sampler.num_mastered == 2
    assert counts.sum() == 240
    # Mastered, passed over three times, tried again: once in four passes.
    assert counts[2] == pytest.approx(counts[0] / 4, abs=1)
    assert set(counts) - {counts[2], counts[5]} <= {counts[0], counts[0] + 1, counts[0] - 1}


def test_a_collection_that_left_the_order_is_refused(env, dataset):
    sampler = StateSampler(dataset, seed=3)
    first = next(iter(sampler))
    with pytest.raises(RuntimeError, match="the order was left"):
        sampler.update(tried(env, dataset, [(first + 1) % 15]))


def test_more_processes_than_states_are_refused(dataset):
    with pytest.raises(ValueError, match=r"num_init_states: expected at least one state .* 16 .* found 15"):
        StateSampler(dataset, 16)
