"""What a policy does with raw data: loss, sampling, guidance, queue, and the input it refuses."""

import warnings

import pytest
import torch
from conftest import CAMERA, TASKS, toy_policy

from pi0 import Indicator, Observation, toy_config
from pi0.normalize import MissingStatisticsError, Normalizer
from pi0.observation import withhold
from pi0.policy import PI0Policy


@pytest.fixture(scope="module")
def policy():
    return toy_policy()


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Loss ---------------------------------------------------------------------------------------------------


def test_reductions_agree(policy, batch):
    element = policy.loss(batch, reduction="element", generator=draws(0))
    sample = policy.loss(batch, reduction="sample", generator=draws(0))
    assert element.shape == (2, 8, 3)
    torch.testing.assert_close(sample, element.mean((1, 2)))
    torch.testing.assert_close(policy.loss(batch, generator=draws(0)), sample.mean())


def test_padded_actions_do_not_count(policy, batch):
    is_pad = torch.arange(8)[None] >= torch.tensor([[8], [3]])
    element = policy.loss(batch, reduction="element", generator=draws(0))
    padded = policy.loss({**batch, "action_is_pad": is_pad}, reduction="element", generator=draws(0))
    assert torch.equal(padded[0], element[0])
    assert torch.equal(padded[1, :3], element[1, :3])
    assert padded[1, 3:].abs().max() == 0
    sample = policy.loss({**batch, "action_is_pad": is_pad}, reduction="sample", generator=draws(0))
    torch.testing.assert_close(sample, torch.stack([element[0].mean(), element[1, :3].mean()]))


def test_loss_dims_real_or_all(batch):
    every = toy_policy({"loss_dims": "all"}).loss(batch, reduction="element", generator=draws(0))
    real = toy_policy().loss(batch, reduction="element", generator=draws(0))
    assert every.shape == (2, 8, 8)
    assert torch.equal(every[..., :3], real)


def test_several_draws_are_the_mean_of_single_ones(policy, batch):
    noise, time = torch.randn(3, 2, 8, 8), torch.rand(3, 2)
    together = policy.loss(batch, reduction="element", noise=noise, time=time)
    alone = [
        policy.loss(batch, reduction="element", noise=noise[i : i + 1], time=time[i : i + 1])
        for i in range(3)
    ]
    torch.testing.assert_close(together, torch.stack(alone).mean(0))
    assert policy.loss(batch, num_draws=4, generator=draws(0)).isfinite()


def test_a_prefix_can_be_used_again(policy, batch, noise):
    prefix = policy.prefix(batch)
    assert torch.equal(
        policy.loss(batch, prefix=prefix, generator=draws(0)), policy.loss(batch, generator=draws(0))
    )
    assert torch.equal(
        policy.sample_actions(batch, noise=noise, prefix=prefix), policy.sample_actions(batch, noise=noise)
    )


def test_checkpointing_changes_memory_not_gradients(batch):
    results = []
    for checkpointing in (False, True):
        policy = toy_policy(gradient_checkpointing=checkpointing)
        policy.loss(batch, generator=draws(0)).backward()
        results.append([p.grad for p in policy.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("shape", [(2, 1), (2, 7), (8,)])
def test_padding_flags_of_another_shape_are_refused(policy, batch, shape):
    with pytest.raises(ValueError, match=r"action_is_pad: expected \(2, 8\)"):
        policy.loss({**batch, "action_is_pad": torch.zeros(shape, dtype=torch.bool)})


def test_a_prefix_that_holds_an_indicator_cannot_be_used_for_another_loss(batch):
    policy = toy_policy(indicator="text")
    with pytest.raises(ValueError, match=r"prefix: a prompt with an indicator"):
        policy.loss(batch, indicator=Indicator.NEGATIVE, prefix=policy.prefix(batch))


# Raw units ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mean_std", "quantiles", "min_max", "identity"])
@pytest.mark.parametrize("epsilon", ["lerobot", "openpi"])
@pytest.mark.parametrize("relative", [(), (True, True, False)])
def test_decoding_inverts_encoding(batch, mode, epsilon, relative):
    policy = toy_policy({"action_normalization": mode, "epsilon": epsilon, "relative_actions": relative})
    actions, state = batch["action"], batch["observation.state"]
    encoded = policy.encode_actions(actions, state)
    assert encoded.shape == (2, 8, 8)
    torch.testing.assert_close(policy.decode_actions(encoded, state), actions, rtol=1e-5, atol=1e-5)


def test_relative_actions_are_based_on_the_state(batch):
    absolute = toy_policy({"action_normalization": "identity"})
    relative = toy_policy({"action_normalization": "identity", "relative_actions": (True, False)})
    actions, state = batch["action"], batch["observation.state"]
    difference = absolute.encode_actions(actions, state) - relative.encode_actions(actions, state)
    assert torch.allclose(difference[:, :, 0], state[:, None, 0].expand(2, 8), atol=1e-6)
    assert difference[:, :, 1:].abs().max() == 0


@pytest.mark.parametrize("mode", ["MEAN_STD", "QUANTILES", "MIN_MAX"])
def test_normalisation_is_lerobots(mode):
    from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.processor import NormalizerProcessorStep, UnnormalizerProcessorStep

    policy = toy_policy()
    features = {"action": PolicyFeature(FeatureType.ACTION, (3,))}
    norm_map = {FeatureType.ACTION: NormalizationMode(mode)}
    x = torch.randn(2, 8, 3)
    step = NormalizerProcessorStep(features, norm_map, policy.statistics)
    back = UnnormalizerProcessorStep(features, norm_map, policy.statistics)
    ours = Normalizer("action", 3, mode.lower(), policy.statistics)  # pyright: ignore
    torch.testing.assert_close(ours.encode(x), step._normalize_action(x, inverse=False))
    torch.testing.assert_close(ours.decode(x), back._normalize_action(x, inverse=True))


def test_quantiles_that_coincide_are_told_where_the_dimension_moves():
    def numbers(**changes):
        usual = {"q01": [-1.0, -1.0], "q99": [1.0, -1.0], "min": [-2.0, -1.0], "max": [2.0, 1.0]}
        return {"action": usual | changes}

    with pytest.warns(
        UserWarning, match=r"'action': dimension 1: q01 and q99 are both -1, its values -1 to 1"
    ):
        Normalizer("action", 2, "quantiles", numbers())
    with pytest.warns(UserWarning, match="dimension 1"):
        Normalizer("action", 2, "quantiles", numbers(q99=[1.0, -1.0 + 1e-7]))
    with pytest.warns(UserWarning, match="dimension 1"):  # openpi's files have no limits
        Normalizer("action", 2, "quantiles", numbers(min=None, max=None, std=[1.0, 0.2]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Normalizer("action", 2, "quantiles", numbers(max=[2.0, -1.0]))  # which never moves
        Normalizer("action", 2, "quantiles", numbers(min=None, max=None, std=[1.0, 0.0]))
        Normalizer("action", 1, "quantiles", numbers())
        Normalizer("action", 2, "min_max", numbers())


@pytest.mark.parametrize("mode", ["mean_std", "quantiles", "identity"])
def test_a_state_far_outside_is_told_once_by_its_name(batch, noise, mode):
    policy = toy_policy({"state_normalization": mode})
    statistics = policy.statistics["observation.state"]
    far = {**batch, "observation.state": batch["observation.state"].clone()}
    far["observation.state"][1, 2] = statistics["mean"][2] + 200 * statistics["std"][2]

    def told(observation) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            policy.sample_actions(observation, noise=noise)
            policy.loss({**observation, "action": batch["action"]}, generator=draws(0))
        return [str(warning.message) for warning in caught]

    assert told(batch) == []
    lines = told(far)
    assert len(lines) == (mode != "identity")
    assert all(
        line.startswith(f"observation.state[2] is {far['observation.state'][1, 2]:.4g}") for line in lines
    )
    assert told(far) == []
    far["observation.state"][0, 0] = 1e6
    assert len(told(far)) == (mode != "identity"), "of another dimension"


def test_statistics_of_several_data_sets_are_refused():
    with pytest.raises(ValueError, match=r"one vector as mean, found shape \(2, 3\)"):
        Normalizer("action", 3, "mean_std", {"action": {"mean": torch.zeros(2, 3), "std": torch.ones(2, 3)}})


def test_missing_statistics_say_how_to_make_them():
    with pytest.raises(MissingStatisticsError, match=r"'q01' of 'action'.*compute_statistics"):
        Normalizer("action", 3, "quantiles", {"action": {"mean": [0.0] * 3}})
    policy = toy_policy()
    with pytest.raises(MissingStatisticsError, match=r"observation\.state.*no statistics"):
        PI0Policy(policy.config, policy.features, policy.tokenizer, None)


# Acting -------------------------------------------------------------------------------------------------


def test_actions_come_in_raw_units_and_leave_the_noise_alone(policy, batch, noise):
    before = noise.clone()
    actions = policy.sample_actions(batch, noise=noise, num_steps=3)
    assert actions.shape == (2, 8, 3)
    assert torch.equal(noise, before)
    model = policy.model.sample(policy.preprocess(batch), noise=noise, num_steps=3)
    assert torch.equal(actions, policy.decode_actions(model, batch["observation.state"]))


def test_select_action_executes_the_queue_before_it_samples_again(batch, noise):
    policy = toy_policy(n_action_steps=3)
    chunk = policy.sample_actions(batch, noise=noise)
    other = {**batch, "observation.state": batch["observation.state"] + 1}
    for i in range(3):
        assert torch.equal(policy.select_action(batch if i == 0 else other, noise=noise), chunk[:, i])
    assert torch.equal(
        policy.select_action(other, noise=noise), policy.sample_actions(other, noise=noise)[:, 0]
    )
    policy.reset()
    assert torch.equal(policy.select_action(batch, noise=noise), chunk[:, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": TASKS[::-1]}, r"task: expected .*7 more actions.*call reset\(\)"),
        ({"episode_index": [0, 2]}, r"episode_index: expected \(0, 1\).*found \(0, 2\).*reset"),
        ({"observation.state": torch.full((2, 4), float("nan"))}, "observation.state: expected finite"),
        ({"observation.images.wrist": torch.zeros(2, 16, 16, 3)}, "cameras: expected"),
    ],
)
def test_queued_actions_are_not_given_to_another_batch(batch, noise, change, message):
    policy, first = (
        toy_policy(n_action_steps=8, chunk_size=8),
        {**batch, "episode_index": torch.tensor([0, 1])},
    )
    policy.select_action(first, noise=noise)
    with pytest.raises(ValueError, match=message):
        policy.select_action({**first, **change}, noise=noise)
    policy.reset()
    if "task" in change or "episode_index" in change:
        expected = policy.sample_actions({**first, **change}, noise=noise)[:, 0]
        assert torch.equal(policy.select_action({**first, **change}, noise=noise), expected)


def test_queued_actions_are_not_given_to_a_batch_of_another_size(batch, noise):
    policy = toy_policy(n_action_steps=8, chunk_size=8)
    policy.select_action(batch, noise=noise)
    one = {key: value[:1] for key, value in batch.items()}
    with pytest.raises(ValueError, match=r"batch_size: expected 2, .*found 1"):
        policy.select_action(one)
    with pytest.raises(ValueError, match=r"observation\.state: missing"):
        policy.select_action({})


def test_samples_of_a_batch_do_not_influence_each_other(policy, batch, noise):
    both = policy.sample_actions(batch, noise=noise)
    alone = {key: value[1:] for key, value in batch.items()}
    torch.testing.assert_close(
        policy.sample_actions(alone, noise=noise[1:])[0], both[1], rtol=1e-5, atol=1e-5
    )


def test_noise_of_another_shape_is_refused(policy, batch):
    with pytest.raises(ValueError, match=r"noise: expected \(2, 8, 8\), found \(2, 5, 8\)"):
        policy.sample_actions(batch, noise=torch.zeros(2, 5, 8))


@pytest.mark.parametrize("mode", ["embedding", "text"])
def test_guidance_one_is_conditional_zero_unconditional_and_between_is_linear(batch, noise, mode):
    policy = toy_policy(indicator=mode, num_inference_steps=1)
    if mode == "embedding":
        torch.nn.init.normal_(policy.model.indicator_embedding.weight, generator=draws(0))

    def sample(guidance, **options):
        return policy.sample_actions(batch, noise=noise, guidance=guidance, **options)

    conditional, unconditional = sample(1.0), sample(1.0, indicator=Indicator.NONE)
    assert not torch.allclose(conditional, unconditional, atol=1e-3)
    torch.testing.assert_close(sample(0.0), unconditional, rtol=1e-5, atol=1e-5)
    expected = unconditional + 2.5 * (conditional - unconditional)  # one step: linear in the velocity
    torch.testing.assert_close(sample(2.5), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sample(2.5, prefix=policy.prefix(batch)), sample(2.5), rtol=1e-5, atol=1e-5)


def test_a_new_indicator_embedding_changes_nothing(batch, noise):
    plain, conditioned = toy_policy(), toy_policy(indicator="embedding")
    conditioned.model.load_state_dict(plain.model.state_dict(), strict=False)
    expected = plain.sample_actions(batch, noise=noise)
    assert torch.equal(conditioned.sample_actions(batch, noise=noise), expected)
    torch.testing.assert_close(conditioned.sample_actions(batch, noise=noise, guidance=3.0), expected)


def test_the_indicator_is_withheld_at_the_set_rate_in_training_only(batch):
    values = withhold(torch.ones(4000, dtype=torch.long), 0.3, torch.device("cpu"), draws(0))
    assert 0.27 < (values == Indicator.NONE).float().mean() < 0.33
    assert set(values.tolist()) == {int(Indicator.NONE), int(Indicator.POSITIVE)}
    policy = toy_policy(indicator="embedding", indicator_dropout=0.3)
    torch.nn.init.normal_(policy.model.indicator_embedding.weight, generator=draws(0))
    positive = torch.full((2,), int(Indicator.POSITIVE))
    fixed = {"noise": torch.zeros(1, 2, 8, 8), "time": torch.ones(1, 2)}
    losses = {policy.loss(batch, indicator=positive, **fixed).item() for _ in range(20)}
    assert len(losses) == 1, "evaluation mode withholds nothing"
    policy.train()
    losses = {policy.loss(batch, indicator=positive, **fixed).item() for _ in range(20)}
    assert len(losses) > 1, "the loss uses the drawn indicators"


def test_indicator_and_guidance_need_a_policy_that_takes_them(policy, batch):
    with pytest.raises(ValueError, match=r"indicator: this policy takes none"):
        policy.loss(batch, indicator=Indicator.POSITIVE)
    with pytest.raises(ValueError, match=r"guidance: expected 1"):
        policy.sample_actions(batch, guidance=2.0)


def test_pi05_reads_the_state_from_the_prompt(batch, noise):
    policy = toy_policy({"state_normalization": "quantiles", "action_normalization": "quantiles"}, pi05=True)
    actions = policy.sample_actions(batch, noise=noise)
    moved = {**batch, "observation.state": batch["observation.state"] + 1}
    assert not torch.allclose(policy.sample_actions(moved, noise=noise), actions, atol=1e-4)
    assert policy.loss(batch).isfinite()


# Input that does not fit --------------------------------------------------------------------------------

BAD_INPUT = {  # name -> change of the batch, message
    "image dtype": ({CAMERA: torch.zeros(2, 3, 64, 64, dtype=torch.int32)}, r"front: expected uint8.*int32"),
    "image range": ({CAMERA: torch.full((2, 3, 64, 64), 255.0)}, r"front: expected floats in \[0, 1\].*255"),
    "image NaN": ({CAMERA: torch.full((2, 3, 64, 64), torch.nan)}, r"front: expected floats.*nan"),
    "image axes": ({CAMERA: torch.zeros(2, 64, 64)}, r"front: expected \(batch, 3, height, width\)"),
    "cameras": ({"observation.images.wrist": torch.zeros(2, 3, 64, 64)}, r"cameras: expected.*found.*wrist"),
    "state NaN": (
        {"observation.state": torch.tensor([[0.0] * 4, [0, torch.nan, 0, 0]])},
        r"nan at index \[1, 1\]",
    ),
    "state width": (
        {"observation.state": torch.zeros(2, 5)},
        r"observation.state: expected.*dim 4.*\(2, 5\)",
    ),
    "state batch": ({"observation.state": torch.zeros(3, 4)}, r"observation.state: expected.*batch size 2"),
    "action chunk": ({"action": torch.zeros(2, 7, 3)}, r"action: expected.*chunk_size 8.*\(2, 7, 3\)"),
    "action NaN": ({"action": torch.full((2, 8, 3), torch.inf)}, r"action: expected finite"),
    "prompt length": (
        {"task": ["press the button " * 20] * 2},
        r"prompt: expected at most.*40 tokens, found 6",
    ),
    "prompt word": ({"task": ["kick the ball"] * 2}, r"prompt: .*kick.*does not know"),
    "task type": ({"task": None}, r"task: expected a string or a list of strings"),
    "task count": ({"task": TASKS * 2}, r"task: expected 2 instructions.*found 4"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_input_that_does_not_fit_is_refused_by_name(policy, batch, name):
    change, message = BAD_INPUT[name]
    with pytest.raises(ValueError, match=message):
        policy.loss({**batch, **change})


def test_a_missing_field_is_named(policy, batch):
    for key in ("observation.state", "action", CAMERA, "task"):
        with pytest.raises(ValueError, match=key if key != CAMERA else "cameras"):
            policy.loss({k: v for k, v in batch.items() if k != key})


def test_widths_beyond_the_models_are_refused():
    with pytest.raises(ValueError, match=r"state_dim: expected at most max_state_dim=3, found 4"):
        toy_policy(max_state_dim=3)
    with pytest.raises(ValueError, match=r"action_dim: expected at most max_action_dim=2, found 3"):
        toy_policy(max_action_dim=2)


def test_a_tokenizer_may_have_more_ids_than_the_model_as_long_as_prompts_do_not_use_them(policy, batch):
    policy.tokenizer.tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert policy.tokenizer.vocab_size == policy.config.vocab_size + 1, "as PaliGemma's on the hub"
    assert policy.preprocess(batch).tokens.max() < policy.config.vocab_size
    with pytest.raises(ValueError, match=r"vocab_size: expected more than \d+, the largest token id"):
        policy.preprocess({**batch, "task": ["press <image>"] * 2})


@pytest.mark.parametrize(
    "change",
    [{"n_action_steps": 9}, {"num_inference_steps": 0}, {"dtype": "float16"}, {"indicator": "maybe"},
     {"indicator_dropout": 1.5}, {"pi05": True, "indicator": "embedding"}],
)  # fmt: skip
def test_a_configuration_that_cannot_be_is_refused(change):
    config = toy_config(20)
    for name, value in change.items():  # past the type checks that only tests have
        object.__setattr__(config, name, value)
    with pytest.raises(ValueError, match=next(reversed(change))):
        config.__post_init__()


def test_the_input_specification_is_what_the_model_takes():
    config = toy_config(20)
    spec = config.inputs_spec(batch_size=2, num_cameras=3)
    values = {name: torch.ones(shape, dtype=getattr(torch, dtype)) for name, (shape, dtype) in spec.items()}
    actions = values.pop("actions")
    assert config.create().loss(Observation(**values), actions).shape == actions.shape


# Cameras ------------------------------------------------------------------------------------------------


def test_a_camera_that_the_robot_lacks_costs_and_changes_nothing(batch, noise):
    wrist = "observation.images.wrist"
    one = toy_policy()
    two = toy_policy({"image_keys": (wrist, CAMERA), "absent_cameras": (wrist,)})
    assert two.preprocess(batch).images.shape[1] == 1
    assert torch.equal(two.sample_actions(batch, noise=noise), one.sample_actions(batch, noise=noise))


def test_a_camera_can_be_missing_from_some_samples(batch, noise):
    wrist = "observation.images.wrist"
    two = toy_policy({"image_keys": (CAMERA, wrist)})
    one = toy_policy()
    mixed = {**batch, wrist: batch[CAMERA], f"{wrist}_is_pad": torch.tensor([True, False])}
    actions = two.sample_actions(mixed, noise=noise)
    expected = one.sample_actions(batch, noise=noise)
    torch.testing.assert_close(actions[0], expected[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(actions[1], expected[1], atol=1e-4)


def test_layouts_and_dtypes_of_images_are_the_same_image(policy, batch):
    last = batch[CAMERA]
    first = last.permute(0, 3, 1, 2)
    expected = policy.preprocess(batch).images
    for image in (first, first / 255.0, last.float() / 255.0, last.numpy()):
        torch.testing.assert_close(policy.preprocess({**batch, CAMERA: image}).images, expected)
    assert expected.shape == (2, 1, 3, 64, 64)
    assert (expected[:, :, :, :8] == -1).all(), "48 x 64 is padded above and below"
    torch.testing.assert_close(expected[:, 0, :, 8:56], first / 127.5 - 1)


def test_resizing_is_lerobots():
    from lerobot.policies.common.vla_utils import resize_with_pad_torch

    from pi0.preprocess import resize_with_pad

    x = torch.rand(2, 3, 100, 160)
    expected = resize_with_pad_torch(x, 64, 64)
    torch.testing.assert_close(resize_with_pad(x, 64, "bilinear"), expected)
    assert not torch.allclose(resize_with_pad(x, 64, "antialias"), expected, atol=0.05)
