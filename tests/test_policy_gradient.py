"""GRPO: likelihood ratios of noisy chunks, their clipping, and a gradient that points to better episodes."""

import math
import re
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import toy_policy
from plugin_example.__main__ import write_policy
from plugin_example.line import LineSuite
from torch.distributions import Normal

from pi0 import Indicator, PI0Policy
from pi0.errors import UnusableError
from pi0.flow import step_time, stochastic_step
from pi0.prefix_cache import PrefixCache
from pi0.ript.advantage import standardised
from pi0.ript.checkpoint.journal import EpisodeJournal
from pi0.ript.config import load_config_from_yaml
from pi0.ript.envs import EnvObservation, make_env
from pi0.ript.episode import START
from pi0.ript.groups import collect_groups
from pi0.ript.loss import AdvantageLoss, acting_policy, make_learner
from pi0.ript.policy_gradient import PolicyGradientLoss, StochasticPolicy, clipped_objective
from pi0.ript.rollout import GuidedPolicy, rollout
from pi0.ript.training.objectives import FlowLearner
from pi0.ript.windows import Windows, chunk_windows

MINIMAL = Path(__file__).parent.parent / "pi0/ript/config/minimal_test.yaml"
ALGORITHMS = Path(__file__).parent.parent / "docs/algorithms.md"
LEVEL, NUM_STEPS = 0.5, 2


@pytest.fixture(scope="module")
def line():
    assert LineSuite
    with make_env("line", num_slots=4, max_steps=8) as env:
        yield env


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    directory = tmp_path_factory.mktemp("policy")
    write_policy(directory)
    return directory


@pytest.fixture
def policy(start):
    return PI0Policy.from_pretrained(start, changes={"indicator": "embedding"}).train()


@pytest.fixture
def algo():
    return replace(
        load_config_from_yaml(MINIMAL).algo,
        name="grpo",
        stochastic_steps=NUM_STEPS,
        stochastic_among=NUM_STEPS,
    )


def episodes(line, policy, count: int = 4, **options):
    states = line.initial_states("line/right", "train", range(count))
    return rollout(
        line, StochasticPolicy(policy, LEVEL, NUM_STEPS, NUM_STEPS), states, list(range(count)), **options
    )


@pytest.fixture
def windows(line, policy) -> Windows:
    """The chunks of four episodes, with advantages of either sign."""
    return chunk_windows(episodes(line, policy), [1.5, -1.0, 0.5, -0.25], 4)


def batch_of(windows: Windows, *indices: int):
    return windows.batch(np.array(indices or range(len(windows))))


def log_prob_by_definition(policy: PI0Policy, windows: Windows, i: int) -> torch.Tensor:
    """The log density of a chunk, step by step, by torch's distributions."""
    batch, model = batch_of(windows, i), policy.model
    observation = policy.preprocess(batch, Indicator.POSITIVE)
    context = model.context(model.prefix(observation), observation)
    total = torch.zeros(())
    for k, step in enumerate(batch["chunk.steps"][0]):
        x = batch["chunk.before"][:, k]
        v = model.velocity(context, x, model.time_features(step_time(step[None], NUM_STEPS)))
        mean, std = stochastic_step(x, v, step[None], NUM_STEPS, LEVEL)
        total = total + Normal(mean, std[:, None, None]).log_prob(batch["chunk.after"][:, k])[..., :1].mean()
    return total


def gradients(policy: PI0Policy, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


# The loss -----------------------------------------------------------------------------------------------


def test_what_is_noted_is_the_density_under_the_acting_policy(policy, windows):
    for i in range(len(windows)):
        expected = log_prob_by_definition(policy, windows, i).item()
        assert windows.chunks["log_prob"][i] == pytest.approx(expected, abs=1e-4)


def test_at_the_acting_policy_ratios_are_one_and_the_gradient_is_reinforces(policy, windows):
    learner = PolicyGradientLoss(policy, LEVEL, 0.2)
    loss = learner(batch_of(windows), (0, 0))
    assert loss.item() == pytest.approx(-windows.advantages.sum(), abs=1e-3)
    actual = gradients(policy, loss)
    parts = [-float(a) * log_prob_by_definition(policy, windows, i) for i, a in enumerate(windows.advantages)]
    expected = gradients(policy, torch.stack(parts).sum())
    assert actual.keys() == expected.keys()
    for name in actual:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-3, atol=1e-4, msg=name)
    assert max(g.abs().max() for g in actual.values()) > 0.1


def test_batches_add_up_to_the_whole(policy, windows):
    learner, n = PolicyGradientLoss(policy, LEVEL, 0.2, 0.1), len(windows)
    with torch.no_grad():
        policy.model.action_out_proj.weight.mul_(1.05)
        parts = [learner(batch_of(windows, i), (0, 0)) for i in range(n)]
        torch.testing.assert_close(sum(parts), learner(batch_of(windows), (0, 0)), rtol=1e-4, atol=1e-4)


def test_clipping():
    """A good chunk that is likelier than the range allows teaches no more, nor an unlikely bad one."""
    log_ratio = torch.tensor([0.0, 0.1, 0.3, -0.3, 0.3, -0.3, 80.0], requires_grad=True)
    advantage = torch.tensor([2.0, 2.0, 2.0, 2.0, -2.0, -2.0, 2.0])
    found = clipped_objective(log_ratio, advantage, 0.2)
    e = np.exp(0.3)
    expected = [2.0, 2 * np.exp(0.1), 2.4, 2 / e, -2 * e, -1.6, 2.4]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))
    (gradient,) = torch.autograd.grad(found.sum(), log_ratio)
    assert (gradient != 0).tolist() == [True, True, False, True, True, False, False]
    assert gradient.isfinite().all()


def test_beyond_the_range_a_chunk_changes_nothing(policy, windows):
    batch = batch_of(windows)
    batch["chunk.log_prob"] = batch["chunk.log_prob"] - 1.0 * batch["advantage"].sign()  # ratios e or 1 / e
    found = gradients(policy, PolicyGradientLoss(policy, LEVEL, 0.2)(batch, (0, 0)))
    assert not any(g.any() for g in found.values())


def test_every_trained_parameter_has_a_gradient_even_without_a_chunk(policy, windows):
    """As distributed training needs it; a process without a share takes an empty batch."""
    learner = PolicyGradientLoss(policy, LEVEL, 0.2)
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    empty = windows.batch(np.arange(0))
    assert gradients(policy, learner(batch_of(windows), (0, 0))).keys() == trained
    found = gradients(policy, learner(empty, (0, 0)))
    assert found.keys() == trained
    assert not any(g.any() for g in found.values())


@pytest.mark.parametrize("freeze", ["expert_only", "none"])
def test_the_divergence_to_the_start_is_that_of_gaussians(policy, windows, freeze):
    policy.model.freeze(freeze)
    learner = PolicyGradientLoss(policy, LEVEL, 0.2, 0.5)
    assert len(list(learner.parameters())) == len(list(policy.parameters())), "the copy is not trained"
    batch = batch_of(windows) | {"advantage": torch.zeros(len(windows))}
    assert learner(batch, (0, 0)).item() == 0
    before = [_moments(policy, windows, i) for i in range(len(windows))]
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if parameter.requires_grad:
                parameter.mul_(1.05 if name.startswith("vlm") else 1.02)
    expected = 0.0
    for i, (mean, std) in enumerate(before):
        now, _ = _moments(policy, windows, i)
        widths = std[:, None, None].expand_as(now)
        kl = torch.distributions.kl_divergence(Normal(now, widths), Normal(mean, widths))
        expected += 0.5 * kl[..., :1].mean((-1, -2)).sum().item()
    assert expected > 1e-4
    assert learner(batch, (0, 0)).item() == pytest.approx(expected, rel=1e-3)


@torch.no_grad()
def _moments(policy, windows, i):
    batch, model = batch_of(windows, i), policy.model
    observation = policy.preprocess(batch, Indicator.POSITIVE)
    context = model.context(model.prefix(observation), observation).repeat(NUM_STEPS)
    steps, x = batch["chunk.steps"][0], batch["chunk.before"][0]
    v = model.velocity(context, x, model.time_features(step_time(steps, NUM_STEPS)))
    return stochastic_step(x, v, steps, NUM_STEPS, LEVEL)


def test_kept_prefixes_change_nothing(policy, windows):
    policy.model.freeze("expert_only")
    learner = PolicyGradientLoss(policy, LEVEL, 0.2, 0.1)
    expected = gradients(policy, learner(batch_of(windows), (0, 0)))
    policy.prefixes = PrefixCache(2**30)
    for seed in ((0, 0), (0, 1), (1, 0)):
        found = gradients(policy, learner(batch_of(windows), seed))
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)
        assert policy.prefixes.computed == policy.prefixes.num_samples, "once for the steps of an iteration"
        assert policy.prefixes.found == (0 if seed[1] == 0 else len(windows)) + _repeated(windows)


def _repeated(windows: Windows) -> int:
    """How many windows have the image of another, in one pass over them."""
    return len(windows) - len(np.unique(windows.images["front"], axis=0))


def test_guidance_stays_without_effect(policy, windows):
    """The embedding of the indicator, zero at first, is not trained, so guidance changes nothing."""
    learner = PolicyGradientLoss(policy, LEVEL, 0.2)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3, weight_decay=0.1)
    learner(batch_of(windows), (0, 0)).backward()
    optimizer.step()
    assert not policy.model.indicator_embedding.weight.any()
    batch, noise = batch_of(windows), torch.randn(len(windows), 4, 1)
    one, two = (policy.sample_actions(batch, noise=noise, guidance=g) for g in (1.0, 2.0))
    torch.testing.assert_close(one, two)


# Acting -------------------------------------------------------------------------------------------------


def test_without_noise_it_acts_as_the_policy_that_is_judged(line, policy):
    """For a chunk: the next one has other noise, because the generator of the episode has moved further."""
    states = line.initial_states("line/right", "train", range(3))
    silent = rollout(line, StochasticPolicy(policy, 0.0, NUM_STEPS, NUM_STEPS), states, [1, 2, 3])
    guided = rollout(line, GuidedPolicy(policy), states, [1, 2, 3])
    for ours, theirs in zip(silent, guided, strict=True):
        np.testing.assert_array_equal(ours.actions[:4], theirs.actions[:4])


def test_an_episode_is_a_function_of_its_seed_with_its_notes(line, policy, tmp_path):
    """Whatever runs beside it; and the journal gives it back bit for bit."""
    together, journal = episodes(line, policy, 4), EpisodeJournal(tmp_path)
    state = line.initial_states("line/right", "train", [2])[0]
    (alone,) = rollout(line, StochasticPolicy(policy, LEVEL, NUM_STEPS, NUM_STEPS), [state], [2])
    journal.write(alone)
    read = journal.read(alone.task, state, 2)
    for other in (together[2], read):
        assert other.chunks.keys() == {START, "steps", "before", "after", "log_prob"}
        for name, values in alone.chunks.items():
            assert values.dtype == other.chunks[name].dtype
            np.testing.assert_array_equal(values, other.chunks[name])


def test_windows_are_the_chunks_of_mixed_groups(line, policy, algo):
    states = cycle(line.initial_states("line/right", "train", range(6)))
    options = {"num_groups": 2, "group_size": 6, "max_attempts": 12, "seed": (0,), "render_every": 1}
    collection = collect_groups(line, acting_policy(policy, algo, 0), states, **options)
    assert collection.kept
    windows = collection.windows(policy.config.chunk_size)
    rollouts = [r for group in collection.kept for r in group.rollouts]
    assert len(windows) == sum(-(-len(r) // 4) for r in rollouts)
    advantages = standardised(np.stack([group.rewards for group in collection.kept])).ravel()
    np.testing.assert_allclose(windows.advantages, np.repeat(advantages, [-(-len(r) // 4) for r in rollouts]))
    loss = make_learner(policy, algo)(windows.batch(np.arange(len(windows))), (0, 0))
    assert loss.item() == pytest.approx(-windows.advantages.sum(), abs=1e-3)


def test_more_noisy_steps_than_steps_are_refused_before_any_work(policy, algo):
    with pytest.raises(UnusableError, match=r"algo.stochastic_among: expected at most the policy's 2 .* use"):
        make_learner(policy, replace(algo, stochastic_among=3))


def test_a_copy_of_what_processes_share_is_refused(policy, algo, monkeypatch):
    monkeypatch.setattr(policy.model, "later", object())
    with pytest.raises(UnusableError, match=r"algo.kl_weight: expected 0 where processes share"):
        make_learner(policy, replace(algo, kl_weight=0.1))


# Cost ---------------------------------------------------------------------------------------------------


def passes(policy: PI0Policy, update, *others) -> tuple[int, int]:
    """Return for how many samples prefix and action expert are computed in an update, by all its models."""
    counts = {"prefix": 0, "velocity": 0}

    def counted(name, function):
        def run(*args, **options):
            counts[name] += args[0].batch_size if name == "prefix" else len(args[1])
            return function(*args, **options)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for model in (policy.model, *others):
            for name in counts:
                patch.setattr(model, name, counted(name, getattr(model, name)))
        update()
    return counts["prefix"], counts["velocity"]


def test_the_cost_of_an_update_is_what_the_document_says(policy, windows):
    """Passes for a window, through prefix and expert."""
    rows = re.findall(
        r"^\| (.+?) \|.*\| ([\d *DS]+) \| ([\d *DS]+) \|$", ALGORITHMS.read_text(), re.MULTILINE
    )
    said = {name: tuple(_product(cell, D=3, S=NUM_STEPS) for cell in cells) for name, *cells in rows}
    one, text = batch_of(windows, 0), toy_policy(indicator="text")
    found = {
        "ript, indicator an embedding": passes(policy, lambda: AdvantageLoss(policy, 0.1, 3)(one, (0, 0))),
        "ript, indicator in the prompt": passes(text, lambda: AdvantageLoss(text, 0.1, 3)(_raw(), (0, 0))),
        "grpo": passes(policy, lambda: PolicyGradientLoss(policy, LEVEL, 0.2)(one, (0, 0))),
        "filtered, awr, recap with objective=indicator": passes(
            policy, lambda: FlowLearner(policy, 3)(one, torch.tensor([Indicator.POSITIVE]), (0, 0))
        ),
    }
    for name, which in (("vision or language", "none"), ("expert alone", "expert_only")):
        policy.model.freeze(which)
        learner = PolicyGradientLoss(policy, LEVEL, 0.2, 0.1)
        cost = passes(policy, partial(learner, one, (0, 0)), *learner._start)
        found[f"grpo, kl_weight above 0, {name} trained"] = cost
    assert found == said


def _product(cell: str, **values: int) -> int:
    return math.prod(values.get(factor) or int(factor) for factor in cell.split(" * "))


def _raw() -> dict:
    """A window for a policy with the indicator in the prompt."""
    return {
        "observation.images.front": torch.zeros(1, 48, 64, 3, dtype=torch.uint8),
        "observation.state": torch.zeros(1, 4),
        "action": torch.zeros(1, 8, 3),
        "task": ["press the button"],
        "advantage": torch.ones(1),
        "window": torch.zeros(1, dtype=torch.long),
    }


# Learning -----------------------------------------------------------------------------------------------


def test_what_is_rewarded_becomes_more_frequent(policy):
    """A bandit: a chunk succeeds if its actions are on average above those that the policy usually takes."""
    (task,) = LineSuite().tasks()
    seen = EnvObservation(images={"front": np.zeros((8, 8, 3), np.uint8)}, state=np.zeros(2, np.float32))
    count, (first, last) = 32, (0, 25)
    policy.model.freeze("expert_only")
    learner = PolicyGradientLoss(policy, LEVEL, 0.2)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    rates = []
    for iteration in range(last + 1):
        generators = [torch.Generator().manual_seed(1000 * iteration + i) for i in range(count)]
        acting = StochasticPolicy(policy, LEVEL, NUM_STEPS, NUM_STEPS)
        chunks = acting.chunks([seen] * count, [task] * count, generators, [task])
        if iteration == first:
            level = np.median(chunks.actions.mean((1, 2)))
        rewards = (chunks.actions.mean((1, 2)) > level).astype(np.float64)
        rates.append(rewards.mean())
        if rewards.min() == rewards.max():
            continue
        windows = Windows(
            images={"front": np.zeros((count, 8, 8, 3), np.uint8)},
            states=np.zeros((count, 2), np.float32),
            actions=chunks.actions,
            is_pad=np.zeros((count, 4), bool),
            instructions=[task.instruction] * count,
            advantages=standardised(rewards[None])[0].astype(np.float32),
            chunks=chunks.notes,
        )
        for _ in range(2):
            optimizer.zero_grad()
            (learner(batch_of(windows), (0, iteration, 0)) / count).backward()
            optimizer.step()
    assert rates[first] == 0.5
    assert np.mean(rates[-5:]) > 0.85
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    guided = GuidedPolicy(policy).chunks([seen] * count, [task] * count, generators, [task])
    assert (guided.mean((1, 2)) > level).mean() > 0.8, "without noise, too"
