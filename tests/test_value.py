"""The value function: bins by the document's formula, a readout that sees everything, strict files."""

from dataclasses import replace

import pytest
import torch
from conftest import CAMERA, TASKS, toy_policy
from safetensors.torch import load_file, save_file

from pi0 import CheckpointError, PI0Policy
from pi0.ript.labels.returns import Outcome, returns
from pi0.ript.labels.settings import RewardConfig
from pi0.value import Inputs, ValueFunction, bin_centers, bin_of
from pi0.value_config import ValueConfig, expert_value_config, separate_value_config

FORMS = {"expert": expert_value_config, "separate": separate_value_config}


@pytest.fixture(scope="module")
def policy():
    return toy_policy()


@pytest.fixture(params=FORMS)
def value(request, policy):
    return ValueFunction(FORMS[request.param](policy), policy, seed=1)


def observation(batch: dict) -> dict:
    return {key: batch[key] for key in (CAMERA, "observation.state", "task")}


def test_bins_follow_the_formula_and_are_clamped():
    """int((r + 1) * (bins - 1)) in Python's own arithmetic, as OpenTau computes it."""
    returns = torch.arange(-1600, 1).double() / 1600
    expected = [int((r + 1) * 200) for r in returns.tolist()]
    assert bin_of(returns, 201).tolist() == expected
    assert bin_of(torch.tensor([-1.0, 0.0]), 201).tolist() == [0, 200]
    assert bin_of(torch.tensor([-2.5, -1.0001, 0.3]), 201).tolist() == [0, 0, 200]


def test_long_failed_episodes_stay_in_the_bins(value, batch):
    """Upstream's own settings (R 400, C -1000) give it bin -475 here, which its cross entropy crashes on."""
    auto = RewardConfig(C_neg=-1000.0, reward_normalizer="auto").resolve(700)
    for reward in (auto, RewardConfig(C_neg=-1000.0, reward_normalizer=400)):
        worst = torch.from_numpy(returns(700, Outcome.FAILURE, reward))
        assert worst.min() == -1.0
        bins = bin_of(worst, 201)
        assert (bins.min(), bins.max()) == (0, 82 if reward is auto else 0)  # 200 * (1 - 1000 / 1699)
        assert (bins.diff() >= 0).all()
        assert torch.isfinite(value.loss(observation(batch), worst[[0, -1]].float()).cross_entropy)


def test_the_value_is_the_mean_of_the_bin_centers(value):
    centers = bin_centers(201)
    assert centers[[0, 100, 200]].tolist() == pytest.approx([-1 + 0.5 / 201, -0.5, -0.5 / 201])
    logits = torch.full((2, 201), -40.0)
    logits[0, 7] = 40.0
    logits[1, [0, 200]] = 40.0
    expected = [centers[7].item(), (centers[0] + centers[200]).item() / 2]
    assert value.expectation(logits).tolist() == pytest.approx(expected, abs=1e-6)


def test_loss_accuracy_and_error(value, batch):
    returns = torch.tensor([-0.25, -0.75])
    loss = value.loss(observation(batch), returns)
    logits = value(observation(batch))
    target = bin_of(returns, 201)
    expected = -logits.log_softmax(-1)[[0, 1], target].mean()
    assert loss.cross_entropy.item() == pytest.approx(expected.item(), rel=1e-5)
    best = (logits.argmax(-1) + 0.5) / 200 - 1
    assert value.loss(observation(batch), best).accuracy == 1.0
    values = value.values(observation(batch))
    assert loss.error.item() == pytest.approx((values - returns).abs().mean().item(), rel=1e-5)


def test_the_value_sees_image_state_and_prompt(value, batch):
    """OpenTau's first value function read a padding position and was constant."""
    batch = observation(batch)
    logits = value(batch)
    changed = {
        CAMERA: 255 - batch[CAMERA],
        "observation.state": batch["observation.state"] + 1.0,
        "task": TASKS[::-1],
    }
    for key, other in changed.items():
        assert ((value({**batch, key: other}) - logits).abs().amax(1) > 1e-3).all(), key
    patched = batch[CAMERA].clone()
    patched[:, :12, :12] = 255 - patched[:, :12, :12]
    assert not torch.equal(value({**batch, CAMERA: patched}), logits)
    assert torch.equal(value(batch), logits)


def test_a_sample_does_not_see_the_others_of_its_batch(value, batch):
    batch = observation(batch)
    together = value(batch)
    for i in range(2):
        single = {k: v[i : i + 1] for k, v in batch.items()}
        torch.testing.assert_close(value(single)[0], together[i], rtol=1e-4, atol=1e-4)


def test_gradient_reaches_every_parameter_and_never_the_policy(value, policy, batch):
    value.loss(observation(batch), torch.tensor([-0.2, -0.8])).cross_entropy.backward()
    without = [n for n, p in value.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without
    assert all(p.grad is None for p in policy.parameters())
    own = {name.split(".")[0] for name, _ in value.named_parameters()}
    shared = {"expert", "state_proj", "readout", "head"}
    assert own == (shared if value.config.form == "expert" else shared | {"vision", "vlm"})


def test_a_short_training_fits_the_returns_of_its_samples(value, batch):
    returns = torch.tensor([-0.2, -0.8])
    optimizer = torch.optim.AdamW(value.parameters(), lr=5e-3)
    for _ in range(25):
        loss = value.loss(observation(batch), returns)
        optimizer.zero_grad()
        loss.cross_entropy.backward()
        optimizer.step()
    assert value.loss(observation(batch), returns).accuracy == 1.0
    assert value.values(observation(batch)).tolist() == pytest.approx(returns.tolist(), abs=0.08)


def test_files_give_the_same_values(value, policy, batch, tmp_path):
    value.save_pretrained(tmp_path)
    loaded = ValueFunction.from_pretrained(tmp_path, policy)
    assert loaded.config == value.config
    assert torch.equal(loaded.values(observation(batch)), value.values(observation(batch)))
    if value.config.form == "separate":
        alone = ValueFunction.from_pretrained(tmp_path)
        assert torch.equal(alone.values(observation(batch)), value.values(observation(batch)))


def test_files_that_do_not_fit_are_refused(value, policy, tmp_path):
    value.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    wrong = {**tensors, "head.bias": torch.zeros(7), "stray": torch.zeros(1)}
    del wrong["readout"]
    save_file(wrong, file)
    with pytest.raises(CheckpointError) as error:
        ValueFunction.from_pretrained(tmp_path, policy)
    for line in ("missing    readout", "unexpected stray", "mis-shaped head.bias: expected [201], found [7]"):
        assert line in str(error.value)
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors"):
        ValueFunction.from_pretrained(tmp_path / "nowhere", policy)


def test_an_expert_knows_its_policy_again(policy, tmp_path):
    ValueFunction(expert_value_config(policy), policy).save_pretrained(tmp_path)
    other = toy_policy()
    with torch.no_grad():
        other.model.vlm.last.kv.weight[0, 0] += 1e-3
    with pytest.raises(CheckpointError, match="pass that policy"):
        ValueFunction.from_pretrained(tmp_path, other)
    with pytest.raises(CheckpointError, match="pass the policy"):
        ValueFunction.from_pretrained(tmp_path)


def test_wrong_sizes_are_refused(policy):
    config = expert_value_config(policy)
    with pytest.raises(ValueError, match=r"expert\.depth: expected 2"):
        ValueFunction(replace(config, expert=replace(config.expert, depth=3)), policy)
    with pytest.raises(ValueError, match="max_state_dim: expected the policy's 8, found 9"):
        ValueFunction(replace(config, max_state_dim=9), policy)
    with pytest.raises(ValueError, match="vlm and siglip"):
        ValueConfig(expert=config.expert, vlm=policy.config.vlm)
    inputs = Inputs(policy.features, policy.tokenizer, policy.statistics)
    with pytest.raises(ValueError, match="expected that PI0Policy"):
        ValueFunction(config, inputs)
    assert ValueFunction(separate_value_config(policy), inputs).reads is None


def test_bfloat16_is_near_float32(policy, batch):
    config = separate_value_config(policy)
    exact = ValueFunction(config, policy, seed=2).values(observation(batch))
    rounded = ValueFunction(replace(config, dtype="bfloat16"), policy, seed=2).values(observation(batch))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.02)


def test_a_value_function_is_not_taken_for_a_policy(policy, tmp_path):
    ValueFunction(expert_value_config(policy), policy).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="expected a policy, found a value function"):
        PI0Policy.from_pretrained(tmp_path)
