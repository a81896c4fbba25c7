import dataclasses
import math

import pytest
import torch
from lerobot.policies.pi0 import modeling_pi0
from peers import (
    SIZES,
    lerobot_actions,
    lerobot_loss,
    lerobot_pi0,
    lerobot_pi05,
    make_inputs,
    set_expert_only,
    transformers_actions,
    transformers_loss,
    transformers_pi0,
)

TINY = SIZES["tiny"]


@pytest.fixture(scope="module")
def lerobot():
    return lerobot_pi0(TINY)


@pytest.fixture
def hugging_face(lerobot):
    return transformers_pi0(TINY, lerobot.model.state_dict())


@pytest.fixture(
    params=[
        {},
        {"batch": 3, "cameras_real": [1, 2, 2], "prompt_tokens": [12, 3, 7]},
        {"cameras_real": 2, "prompt_tokens": 12},
    ],
    ids=["masked camera", "mixed", "nothing masked"],
)
def inputs(request):
    return make_inputs(TINY, **request.param)


def relative_error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def test_peers_agree_up_to_the_time_embedding(lerobot, hugging_face, inputs):
    with torch.no_grad():
        expected = lerobot_loss(lerobot, inputs)
        assert relative_error(transformers_loss(hugging_face, inputs), expected) < 2e-4
        actions = lerobot_actions(lerobot, inputs)
        assert relative_error(transformers_actions(hugging_face, inputs), actions) < 1e-4


def test_peers_agree_closely_once_both_embed_time_in_float64(lerobot, hugging_face, inputs):
    fraction = torch.linspace(0, 1, TINY.expert.width // 2, dtype=torch.float64)
    embedding = hugging_face.embed_action_time.sinusoid_embeds
    embedding.sinusoid_freq = 2 * math.pi / (4e-3 * 1000.0**fraction)
    with torch.no_grad():
        expected = lerobot_loss(lerobot, inputs)
        assert relative_error(transformers_loss(hugging_face, inputs), expected) < 2e-6
        actions = lerobot_actions(lerobot, inputs)
        assert relative_error(transformers_actions(hugging_face, inputs), actions) < 2e-6


def test_trimming_the_inputs_changes_no_loss(hugging_face):
    inputs = make_inputs(TINY, prompt_tokens=[5, 7])
    trimmed = inputs.trimmed()
    assert trimmed.images.shape[1] == 1
    assert trimmed.tokens.shape[1] == 7
    with torch.no_grad():
        expected = transformers_loss(hugging_face, inputs)
        assert relative_error(transformers_loss(hugging_face, trimmed), expected) < 2e-6


@pytest.mark.parametrize("build", [lerobot_pi0, lerobot_pi05])
def test_every_input_matters_with_random_weights(build):
    policy = build(TINY)
    inputs = make_inputs(TINY, cameras_real=2)
    with torch.no_grad():
        loss = lerobot_loss(policy, inputs)
        for name in ("images", "tokens", "time"):
            changed = dataclasses.replace(inputs, **{name: getattr(inputs, name).flip(0)})
            change = (lerobot_loss(policy, changed) - loss).abs().mean() / loss.mean()
            assert change > 1e-3, name


def test_masked_cameras_and_padding_do_not_matter(lerobot):
    inputs = make_inputs(TINY)
    noisy = dataclasses.replace(
        inputs,
        images=torch.where(inputs.image_mask[..., None, None, None], inputs.images, 0.5),
        tokens=torch.where(inputs.token_mask, inputs.tokens, 7),
    )
    with torch.no_grad():
        expected = lerobot_loss(lerobot, inputs)
        torch.testing.assert_close(lerobot_loss(lerobot, noisy), expected)


def test_same_seed_same_weights_and_lerobot_left_as_it_was(lerobot):
    before = {n: getattr(modeling_pi0, n) for n in ("get_gemma_config", "PiGemmaForCausalLM")}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    again = lerobot_pi0(TINY, train_expert_only=True, gradient_checkpointing=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert before == {n: getattr(modeling_pi0, n) for n in before}
    for name, p in lerobot.named_parameters():
        assert torch.equal(p, again.get_parameter(name)), name
    assert again.model.gradient_checkpointing_enabled
    other = lerobot_pi0(TINY, seed=2)
    assert not torch.equal(other.model.state_proj.weight, lerobot.model.state_proj.weight)


def test_expert_only_can_be_switched(lerobot):
    built = lerobot_pi0(TINY, train_expert_only=True)
    everything = [p.requires_grad for p in lerobot.parameters()]
    set_expert_only(lerobot, True)
    assert [p.requires_grad for p in lerobot.parameters()] == [p.requires_grad for p in built.parameters()]
    set_expert_only(lerobot, False)
    assert [p.requires_grad for p in lerobot.parameters()] == everything


def test_weights_that_do_not_fit_are_refused(lerobot):
    weights = dict(lerobot.model.state_dict())
    del weights["action_out_proj.bias"]
    with pytest.raises(RuntimeError, match=r"missing.*action_out_proj\.bias"):
        transformers_pi0(TINY, weights)


@pytest.mark.parametrize(
    ("option", "value"), [("cameras_real", 3), ("prompt_tokens", 0), ("prompt_tokens", [4])]
)
def test_impossible_inputs_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option}: expected 2 numbers from 1 to"):
        make_inputs(TINY, **{option: value})
