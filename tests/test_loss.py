"""The loss of RIPT equals its definition, window by window, in value and gradient."""

import numpy as np
import pytest
import torch
from conftest import CAMERA, TASKS, toy_policy

from pi0 import Indicator
from pi0.ript.loss import AdvantageLoss

ALPHA = 0.3
DRAWS = 2


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def policy():
    policy = toy_policy(indicator="embedding")
    with torch.no_grad():
        policy.model.indicator_embedding.weight.normal_(generator=draws(4))
    return policy


@pytest.fixture
def windows() -> dict:
    """Four windows: a win, a loss, a draw, and a win that ends inside its window."""
    g = draws(7)
    return {
        CAMERA: torch.randint(0, 256, (4, 48, 64, 3), dtype=torch.uint8, generator=g),
        "observation.state": torch.randn(4, 4, generator=g),
        "action": torch.randn(4, 8, 3, generator=g),
        "action_is_pad": torch.arange(8)[None] >= torch.tensor([[8], [8], [8], [3]]),
        "task": TASKS * 2,
        "advantage": torch.tensor([1.0, -1 / 3, 0.0, 0.5]),
        "window": torch.tensor([3, 0, 7, 5]),
    }


def take(batch: dict, i: int) -> dict:
    return {key: value[i : i + 1] for key, value in batch.items()}


SEED = (0, 4)


def by_definition(policy, windows: dict, alpha: float) -> list[torch.Tensor]:
    """The loss of each window alone, at the noise that AdvantageLoss draws for it from SEED."""
    losses = []
    for i, advantage in enumerate(windows["advantage"].tolist()):
        key = np.random.SeedSequence((*SEED, windows["window"][i].item())).generate_state(1)[0]
        g = draws(int(key))
        noise = torch.randn(DRAWS, 8, 8, generator=g)[:, None]
        noise_and_time = {"noise": noise, "time": policy.model.sample_time((DRAWS, 1), policy.device, g)}
        loss = alpha * policy.loss(take(windows, i), indicator=Indicator.NONE, **noise_and_time)
        if advantage > 0:
            loss = loss + policy.loss(take(windows, i), indicator=Indicator.POSITIVE, **noise_and_time)
        losses.append(loss)
    return losses


def gradients(policy, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the loss adds to the gradients."""
    policy.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def assert_close(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_value_is_the_definition(policy, windows):
    loss = AdvantageLoss(policy, ALPHA, DRAWS)(windows, SEED)
    torch.testing.assert_close(loss, sum(by_definition(policy, windows, ALPHA)))


def test_gradient_is_the_sum_of_the_windows_gradients(policy, windows):
    """So micro-batches of any size add up to the whole batch, given the noise of each window."""
    whole = gradients(policy, AdvantageLoss(policy, ALPHA, DRAWS)(windows, SEED))
    policy.zero_grad()
    for loss in by_definition(policy, windows, ALPHA):
        loss.backward()
    assert_close(whole, {name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
    assert max(g.abs().max() for g in whole.values()) > 1e-2


def test_worse_windows_teach_the_unconditional_velocity_only(policy, windows):
    windows["advantage"] = torch.tensor([-1.0, -0.2, 0.0, -3.0])
    actual = gradients(policy, AdvantageLoss(policy, ALPHA, DRAWS)(windows, SEED))
    expected = gradients(policy, sum(by_definition(policy, windows, ALPHA)))
    assert_close(actual, expected)
    embedding = actual["model.indicator_embedding.weight"]
    assert embedding[Indicator.NONE].abs().max() > 0
    assert embedding[Indicator.POSITIVE].abs().max() == 0


def test_better_windows_teach_the_positive_velocity_too(policy, windows):
    embedding = gradients(policy, AdvantageLoss(policy, ALPHA)(windows, SEED))[
        "model.indicator_embedding.weight"
    ]
    assert embedding[Indicator.POSITIVE].abs().max() > 0
    assert embedding[Indicator.NEGATIVE].abs().max() == 0


def test_only_better_windows_are_computed_with_a_positive_indicator(policy, windows, monkeypatch):
    computed, loss = [], type(policy).loss
    monkeypatch.setattr(
        type(policy),
        "loss",
        lambda self, batch, **options: (
            computed.append((options["indicator"], batch["window"].tolist())) or loss(self, batch, **options)
        ),
    )
    AdvantageLoss(policy, ALPHA, DRAWS)(windows, SEED)
    assert computed == [(Indicator.NONE, [3, 0, 7, 5]), (Indicator.POSITIVE, [3, 5])]


def test_without_better_windows_and_alpha_every_gradient_is_zero(policy, windows):
    windows["advantage"] = -torch.ones(4)
    actual = gradients(policy, AdvantageLoss(policy, 0.0)(windows, SEED))
    assert actual.keys() == dict(policy.named_parameters()).keys()  # as distributed training needs it
    assert not any(g.any() for g in actual.values())


def test_the_seed_is_the_only_source_of_chance(policy, windows):
    loss = AdvantageLoss(policy, ALPHA).train()
    values = []
    for seed in range(4):
        torch.manual_seed(seed)
        values.append(loss(windows, SEED).item())
    assert len(set(values)) == 1
    assert loss(windows, (0, 5)).item() != values[0]


def test_the_order_of_the_windows_does_not_matter(policy, windows):
    """Noise belongs to a window, not to its place in a batch, so processes can share a step."""
    order = [2, 0, 3, 1]
    shuffled = {k: [v[i] for i in order] if isinstance(v, list) else v[order] for k, v in windows.items()}
    loss = AdvantageLoss(policy, ALPHA, DRAWS)
    torch.testing.assert_close(loss(shuffled, SEED), loss(windows, SEED))


def test_dropout_of_the_indicator_is_refused():
    with pytest.raises(ValueError, match=r"indicator_dropout: expected 0 .* found 0.5"):
        AdvantageLoss(toy_policy(indicator="embedding", indicator_dropout=0.5), ALPHA)


def test_the_policy_must_take_an_indicator():
    with pytest.raises(ValueError, match="indicator: this policy takes none"):
        AdvantageLoss(toy_policy(indicator="none"), ALPHA)
