"""Equality with lerobot's pi0 and pi05 on the same random weights."""

from dataclasses import replace

import pytest
import torch
from conftest import lerobot_state_dict, tiny_config
from ours import observation
from peers import lerobot_actions, lerobot_loss, lerobot_pi0, lerobot_pi05
from sizes import SIZES, make_inputs

from pi0 import Pi0Model
from pi0.weights import WeightLoader

RTOL = 1e-5


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def worst_element(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="module", params=["pi0", "pi05"])
def pair(request):
    """Lerobot's policy and our model with its weights."""
    is_pi05 = request.param == "pi05"
    lerobot = (lerobot_pi05 if is_pi05 else lerobot_pi0)(SIZES["tiny"])
    model = Pi0Model(tiny_config(pi05=is_pi05))
    WeightLoader().load(model, model.config, lerobot.model.state_dict(), "lerobot")
    return lerobot, model


@pytest.fixture(scope="module")
def inputs():
    """Three samples: the last camera masked in all, prompts of different lengths."""
    return make_inputs(SIZES["tiny"], batch=3, cameras_real=1, prompt_tokens=[4, 12, 7], seed=5)


def our_loss(model, x, compact=True):
    o = observation(x)
    if not compact:
        o = replace(
            o,
            images=x.images,
            image_mask=x.image_mask,
            tokens=x.tokens,
            token_mask=x.token_mask,
            is_dense=False,
        )
    return model.loss(o, x.actions, noise=x.noise[None], time=x.time[None])


@pytest.mark.parametrize("compact", [True, False])
def test_loss_elements_are_lerobots(pair, inputs, compact):
    lerobot, model = pair
    with torch.no_grad():
        assert worst_element(our_loss(model, inputs, compact), lerobot_loss(lerobot, inputs)) < RTOL


def test_actions_are_lerobots_and_the_noise_is_left_alone(pair, inputs):
    lerobot, model = pair
    before = inputs.noise.clone()
    actions = model.sample(observation(inputs), noise=inputs.noise)
    assert worst_element(actions, lerobot_actions(lerobot, inputs)) < RTOL
    assert torch.equal(inputs.noise, before)


def test_every_gradient_is_lerobots(pair, inputs):
    lerobot, model = pair
    lerobot.zero_grad()
    lerobot_loss(lerobot, inputs).mean().backward()
    model.zero_grad()
    our_loss(model, inputs).mean().backward()
    ours = lerobot_state_dict(model, model.config, gradients(model))
    theirs = {n: p.grad for n, p in lerobot.model.named_parameters() if p.grad is not None}
    # Softmax ignores a constant added to its logits, so key biases have no gradient but rounding.
    noise_only = {n for n in ours if n.endswith("k_proj.bias")}
    largest = max(theirs[n].norm() for n in ours)
    assert all(theirs[n].norm() < 1e-5 * largest and ours[n].norm() < 1e-5 * largest for n in noise_only)
    errors = {n: relative_error(ours[n], theirs[n]) for n in ours if n not in noise_only}
    assert max(errors.values()) < RTOL, sorted(errors.items(), key=lambda x: -x[1])[:5]
    left_out = {n for n, g in theirs.items() if n not in ours and g.abs().max() > 0}
    assert not left_out, "lerobot trains what we do not have"


def test_no_parameter_is_dead(pair, inputs):
    model = pair[1]
    model.zero_grad()
    our_loss(model, inputs).mean().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not dead


def test_expert_only_gradients_are_those_of_the_whole_model(pair, inputs):
    model = pair[1]
    model.zero_grad()
    our_loss(model, inputs).mean().backward()
    whole = {n: g.clone() for n, g in gradients(model).items()}
    model.zero_grad()
    model.freeze("expert_only")
    our_loss(model, inputs).mean().backward()
    expert = gradients(model)
    model.freeze("none")
    assert {n.split(".")[0] for n in set(whole) - set(expert)} == {"vision", "vlm"}
    assert all(torch.equal(expert[n], whole[n]) for n in expert)


def test_garbage_behind_masks_changes_nothing(pair, inputs):
    model = pair[1]
    spoiled = replace(
        inputs,
        images=torch.where(inputs.image_mask[:, :, None, None, None], inputs.images, 0.7),
        tokens=torch.where(inputs.token_mask, inputs.tokens, 3),
    )
    with torch.no_grad():
        expected = our_loss(model, inputs, compact=False)
        assert torch.equal(our_loss(model, spoiled, compact=False), expected)


def test_bfloat16_is_as_close_to_float32_as_lerobots():
    size = SIZES["tiny"]
    exact, rounded = lerobot_pi0(size), lerobot_pi0(size, dtype="bfloat16")
    model = Pi0Model(tiny_config(dtype="bfloat16"))
    WeightLoader().load(model, model.config, exact.model.state_dict(), "lerobot")
    errors = {"loss": ([], []), "actions": ([], [])}
    for seed in range(8):
        x = make_inputs(size, batch=8, cameras_real=2, prompt_tokens=9, seed=seed)
        with torch.no_grad():
            loss, actions = lerobot_loss(exact, x), lerobot_actions(exact, x)
            ours = {"loss": our_loss(model, x), "actions": model.sample(observation(x), noise=x.noise)}
            theirs = {"loss": lerobot_loss(rounded, x), "actions": lerobot_actions(rounded, x)}
        for name, expected in (("loss", loss), ("actions", actions)):
            errors[name][0].append(relative_error(ours[name], expected))
            errors[name][1].append(relative_error(theirs[name].float(), expected))
    for name, (mine, peers) in errors.items():
        assert sum(mine) <= 1.2 * sum(peers), (name, sum(mine) / sum(peers))
        assert sum(mine) > 0, "the computation was not in bfloat16"


@pytest.mark.parametrize("pi05", [False, True])
def test_inference_weights_in_bfloat16_change_nothing(pi05):
    model = Pi0Model(tiny_config(dtype="bfloat16", pi05=pi05))
    with torch.no_grad():
        for parameter in model.parameters():  # adaptive norms start at zero
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    x = make_inputs(SIZES["tiny"], batch=2, cameras_real=2, prompt_tokens=9)
    before = model.sample(observation(x), noise=x.noise)
    num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    assert torch.equal(model.to_inference().sample(observation(x), noise=x.noise), before)
    assert sum(p.numel() * p.element_size() for p in model.parameters()) < 0.8 * num_bytes


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
