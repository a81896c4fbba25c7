"""Checkpoint directories: lerobot's and openpi's are read, ours is read by lerobot, pickles by nobody."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CAMERA, tiny_config, toy_policy
from ours import pi0_config
from peers import _lerobot_built_at, lerobot_pi0, lerobot_pi05
from safetensors.torch import load_file, save_file
from sizes import SIZES

from pi0 import CheckpointError, FeatureConfig, PI0Policy, PromptTokenizer, compute_statistics
from pi0.normalize import MissingStatisticsError
from pi0.pretrained import OWN_CONFIG, describe

TINY = SIZES["tiny"]
CAMERAS = tuple(f"observation.images.cam{i}" for i in range(2))
TOKENIZER = PromptTokenizer.from_texts(["put the bowl on the plate"])
STATISTICS = {
    "observation.state": compute_statistics(np.random.default_rng(0).normal(size=(40, 8))),
    "action": compute_statistics(np.random.default_rng(1).normal(2.0, 3.0, size=(40, 7))),
}


def tiny_policy(pi05: bool = False, features: dict | None = None, **changes) -> PI0Policy:
    """A policy with the sizes that the test's lerobot is patched to, and no parameter at zero."""
    mode = "quantiles" if pi05 else "mean_std"
    described = FeatureConfig(
        **{"image_keys": CAMERAS, "state_dim": 8, "action_dim": 7, "state_normalization": mode,
           "action_normalization": mode, **(features or {})}
    )  # fmt: skip
    config = tiny_config(pi05=pi05, tokenizer_max_length=100, **changes)
    policy = PI0Policy(config, described, TOKENIZER, STATISTICS).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


def raw_batch(batch_size: int = 2) -> dict:
    g = torch.Generator().manual_seed(2)
    return {
        **{c: torch.rand(batch_size, 3, 48, 48, generator=g) for c in CAMERAS},
        "observation.state": torch.randn(batch_size, 8, generator=g),
        "task": ["put the bowl on the plate"] * batch_size,
    }


def raw_noise() -> torch.Tensor:
    return torch.randn(2, TINY.chunk_size, TINY.max_action_dim, generator=torch.Generator().manual_seed(3))


def lerobot_actions_of(directory, pi05: bool, batch: dict, noise: torch.Tensor, monkeypatch) -> torch.Tensor:
    """Raw actions of lerobot's own loader, processors and policy."""
    import lerobot.policies.pi0 as pi0_package
    import lerobot.policies.pi05 as pi05_package
    import lerobot.processor.tokenizer_processor as tokenizer_processor
    from lerobot.policies.factory import make_pre_post_processors

    class Tokenizers:
        @staticmethod
        def from_pretrained(name, **options):
            return PromptTokenizer.from_pretrained(directory / name).tokenizer

    monkeypatch.setattr(tokenizer_processor, "AutoTokenizer", Tokenizers)
    package = pi05_package if pi05 else pi0_package
    module, policy_class = (
        (package.modeling_pi05, package.PI05Policy) if pi05 else (package.modeling_pi0, package.PI0Policy)
    )
    with _lerobot_built_at(TINY, module):
        policy = policy_class.from_pretrained(directory).eval()
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(directory))
    with torch.no_grad():
        return after(policy.predict_action_chunk(before(dict(batch)), noise=noise.clone()))


@pytest.mark.parametrize("pi05", [False, True], ids=["pi0", "pi05"])
@pytest.mark.parametrize(
    "features", [{}, {"relative_actions": (True,) * 6 + (False,)}], ids=["plain", "relative"]
)
def test_lerobot_loads_what_we_save_and_computes_the_same(tmp_path, pi05, features, monkeypatch):
    policy = tiny_policy(pi05, features)
    policy.save_pretrained(tmp_path)
    actions = lerobot_actions_of(tmp_path, pi05, raw_batch(), raw_noise(), monkeypatch)
    ours = policy.sample_actions(raw_batch(), noise=raw_noise())
    torch.testing.assert_close(ours, actions, rtol=1e-5, atol=1e-5 * actions.abs().max().item())


@pytest.mark.parametrize("changes", [{}, {"indicator": "embedding"}, {"indicator": "text"}, {"pi05": True}])
def test_what_we_save_we_load_bit_for_bit(tmp_path, changes):
    policy = tiny_policy(**changes)
    policy.save_pretrained(tmp_path / "first")
    loaded = PI0Policy.from_pretrained(tmp_path / "first")
    assert (loaded.config, loaded.features) == (policy.config, policy.features)
    parameters = dict(loaded.model.named_parameters())
    assert all(torch.equal(p, parameters[n]) for n, p in policy.model.named_parameters())
    expected = policy.sample_actions(raw_batch(), noise=raw_noise())
    assert torch.equal(loaded.sample_actions(raw_batch(), noise=raw_noise()), expected)
    loaded.save_pretrained(tmp_path / "second")
    for file in (tmp_path / "first").glob("*.json"):
        again = tmp_path / "second" / file.name
        assert again.read_text() == file.read_text()


@pytest.mark.parametrize("pi05", [False, True], ids=["pi0", "pi05"])
def test_we_load_what_lerobot_saves(tmp_path, pi05, monkeypatch):
    """A checkpoint written by lerobot alone, without any file of ours."""
    import lerobot.processor.tokenizer_processor as tokenizer_processor
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.pi0.processor_pi0 import make_pi0_pre_post_processors
    from lerobot.policies.pi05.processor_pi05 import make_pi05_pre_post_processors

    class Tokenizers:
        @staticmethod
        def from_pretrained(name, **options):
            return TOKENIZER.tokenizer

    monkeypatch.setattr(tokenizer_processor, "AutoTokenizer", Tokenizers)
    theirs = (lerobot_pi05 if pi05 else lerobot_pi0)(TINY)
    theirs.config.input_features = {c: PolicyFeature(FeatureType.VISUAL, (3, 48, 48)) for c in CAMERAS}
    theirs.config.input_features["observation.state"] = PolicyFeature(FeatureType.STATE, (8,))
    theirs.config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    theirs.config.tokenizer_max_length = 100
    theirs.save_pretrained(tmp_path)
    make = make_pi05_pre_post_processors if pi05 else make_pi0_pre_post_processors
    before, after = make(theirs.config, dataset_stats=STATISTICS)
    before.save_pretrained(tmp_path)
    after.save_pretrained(tmp_path)

    sizes = replace(pi0_config(TINY, pi05=pi05), tokenizer_max_length=100)
    policy = PI0Policy.from_pretrained(tmp_path, config=sizes, tokenizer=TOKENIZER)
    with torch.no_grad():
        expected = after(theirs.predict_action_chunk(before(raw_batch()), noise=raw_noise()))
    actions = policy.sample_actions(raw_batch(), noise=raw_noise())
    torch.testing.assert_close(actions, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_saving_again_keeps_the_tensors_that_pi0_never_uses(tmp_path):
    tiny_policy().save_pretrained(tmp_path / "first")
    file = tmp_path / "first" / "model.safetensors"
    tensors = load_file(file)
    key = "model.paligemma_with_expert.gemma_expert.lm_head.weight"
    tensors[key] = torch.randn(tensors[key].shape)
    save_file(tensors, file)
    PI0Policy.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert torch.equal(load_file(tmp_path / "second" / "model.safetensors")[key], tensors[key])


def test_adapters_are_merged_when_saved(tmp_path):
    config = tiny_config(tokenizer_max_length=100)
    config = replace(config, expert=replace(config.expert, lora_rank=2, lora_alpha=2.0))
    features = FeatureConfig(image_keys=CAMERAS, state_dim=8, action_dim=7)
    policy = PI0Policy(config, features, TOKENIZER, STATISTICS).eval()
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            if "lora_b" in name:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
    policy.save_pretrained(tmp_path)
    loaded = PI0Policy.from_pretrained(tmp_path)
    expected = policy.sample_actions(raw_batch(), noise=raw_noise())
    torch.testing.assert_close(loaded.sample_actions(raw_batch(), noise=raw_noise()), expected)


# openpi -------------------------------------------------------------------------------------------------


def openpi_directory(
    path, *, pi05=False, asset="physical-intelligence/libero", statistics=STATISTICS
) -> dict:
    """Writes what openpi's converter writes; returns the weights."""
    theirs = (lerobot_pi05 if pi05 else lerobot_pi0)(TINY).model.state_dict()
    # The converter drops one of two tied tensors and keeps the head.
    tensors = {k: v.clone() for k, v in theirs.items() if "embed_tokens" not in k}
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    config = {"action_dim": 32, "action_horizon": TINY.chunk_size, "paligemma_variant": "gemma_2b",
              "action_expert_variant": "gemma_300m", "precision": "float32"}  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    if asset:
        (path / "assets" / asset).mkdir(parents=True)
        padded = {
            ours: {n: np.pad(np.asarray(statistics[theirs][n]), (0, 24)).tolist() for n in ("mean", "std")}
            | {"q01": None, "q99": None}
            for ours, theirs in (("state", "observation.state"), ("actions", "action"))
        }
        (path / "assets" / asset / "norm_stats.json").write_text(json.dumps({"norm_stats": padded}))
    return tensors


def openpi_batch() -> dict:
    cameras = raw_batch()
    return {
        "observation.images.base_0_rgb": cameras[CAMERAS[0]],
        "observation.images.left_wrist_0_rgb": cameras[CAMERAS[1]],
        "observation.state": cameras["observation.state"],
        "task": cameras["task"],
    }


def test_openpi_checkpoint_with_its_conventions(tmp_path):
    tensors = openpi_directory(tmp_path / "checkpoint")
    policy = PI0Policy.from_pretrained(
        tmp_path / "checkpoint", config=tiny_config(), tokenizer=TOKENIZER, extra_delta_transform=True
    )
    f = policy.features
    assert (f.state_dim, f.action_dim, f.epsilon, f.prompt, f.resize, f.loss_dims) == (
        8, 7, "openpi", "openpi", "antialias", "all"
    )  # fmt: skip
    assert torch.equal(
        policy.model.vlm.embed.weight, tensors["paligemma_with_expert.paligemma.lm_head.weight"]
    )
    model = policy.model.sample(policy.preprocess(openpi_batch()), noise=raw_noise())
    actions = policy.sample_actions(openpi_batch(), noise=raw_noise())
    mean, std = STATISTICS["action"]["mean"], STATISTICS["action"]["std"]
    expected = model[..., :7] * (std + 1e-6) + mean
    expected[..., :6] += openpi_batch()["observation.state"][:, None, :6]
    torch.testing.assert_close(actions, expected)


def test_openpi_libero_must_say_whether_its_actions_are_relative(tmp_path):
    openpi_directory(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=r"extra_delta_transform=True\s+for pi0_libero"):
        PI0Policy.from_pretrained(tmp_path / "checkpoint", config=tiny_config(), tokenizer=TOKENIZER)


def test_openpi_pi05_is_recognised_by_its_weights(tmp_path):
    from pi0.openpi_format import read_config

    for pi05 in (False, True):
        openpi_directory(tmp_path / str(pi05), pi05=pi05)
        values = json.loads((tmp_path / str(pi05) / "config.json").read_text())
        config = read_config(values, tmp_path / str(pi05))
        assert (config.pi05, config.tokenizer_max_length) == (pi05, 200 if pi05 else 48)
        assert config.vlm.width == 2048


def test_openpi_without_or_with_several_assets(tmp_path):
    openpi_directory(tmp_path / "none", asset="")
    with pytest.raises(CheckpointError, match=r"one assets/<asset_id>/norm_stats.json, found none"):
        PI0Policy.from_pretrained(tmp_path / "none", config=tiny_config(), tokenizer=TOKENIZER)
    openpi_directory(tmp_path / "two")
    (tmp_path / "two/assets/droid").mkdir()
    (tmp_path / "two/assets/droid/norm_stats.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"assets/droid/norm_stats.json"):
        PI0Policy.from_pretrained(tmp_path / "two", config=tiny_config(), tokenizer=TOKENIZER)


# Old lerobot, and what is refused -----------------------------------------------------------------------


def test_statistics_among_the_weights_of_early_releases(tmp_path):
    tiny_policy().save_pretrained(tmp_path)
    (tmp_path / "pi0_config.json").unlink()
    (tmp_path / "policy_preprocessor.json").unlink()
    tensors = load_file(tmp_path / "model.safetensors")
    for where, feature in (("normalize_inputs", "observation.state"), ("normalize_targets", "action"),
                           ("unnormalize_outputs", "action")):  # fmt: skip
        for name in ("mean", "std"):
            tensors[f"{where}.buffer_{feature.replace('.', '_')}.{name}"] = STATISTICS[feature][name].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    config = tiny_config(tokenizer_max_length=100)
    loaded = PI0Policy.from_pretrained(tmp_path, config=config, tokenizer=TOKENIZER)
    expected = tiny_policy().sample_actions(raw_batch(), noise=raw_noise())
    assert torch.equal(loaded.sample_actions(raw_batch(), noise=raw_noise()), expected)


def test_null_in_a_configuration_of_another_project_is_its_default(tmp_path):
    toy_policy().save_pretrained(tmp_path)
    (tmp_path / OWN_CONFIG).unlink()
    file = tmp_path / "config.json"
    values = json.loads(file.read_text()) | {"image_resolution": [224, 224]}
    optional = sorted(values.keys() - {"type", "input_features", "output_features"})
    for key in optional:
        described = []
        for changed in ({k: v for k, v in values.items() if k != key}, values | {key: None}):
            file.write_text(json.dumps(changed))
            described.append(describe(tmp_path, None, None, None, None))
        without, null = described
        assert (null.config, null.features) == (without.config, without.features), key
    assert {"chunk_size", "dtype", "normalization_mapping", "n_obs_steps"} <= set(optional)


def test_missing_statistics_are_an_error_never_an_identity(tmp_path):
    tiny_policy().save_pretrained(tmp_path)
    (tmp_path / "policy_preprocessor.json").unlink()
    with pytest.raises(MissingStatisticsError, match="compute_statistics"):
        PI0Policy.from_pretrained(tmp_path)
    loaded = PI0Policy.from_pretrained(tmp_path, statistics=STATISTICS)
    assert loaded.sample_actions(raw_batch(), noise=raw_noise()).isfinite().all()


def test_a_statistics_file_that_is_not_there_is_named(tmp_path):
    tiny_policy().save_pretrained(tmp_path)
    next(tmp_path.glob("policy_preprocessor_step_*_normalizer_processor.safetensors")).unlink()
    with pytest.raises(
        CheckpointError, match=r"policy_preprocessor_step_\d_normalizer_processor.safetensors"
    ):
        PI0Policy.from_pretrained(tmp_path)


def test_a_checkpoint_without_statistics_is_loaded_with_those_given(tmp_path):
    """lerobot names no statistics file where it has none, as in a base checkpoint."""
    tiny_policy().save_pretrained(tmp_path)
    file = tmp_path / "policy_preprocessor.json"
    processor = json.loads(file.read_text())
    for step in processor["steps"]:
        step.pop("state_file", None)
    file.write_text(json.dumps(processor))
    with pytest.raises(MissingStatisticsError):
        PI0Policy.from_pretrained(tmp_path)
    assert PI0Policy.from_pretrained(tmp_path, statistics=STATISTICS).statistics


def test_single_fields_of_the_configuration_can_be_changed(tmp_path):
    tiny_policy(n_action_steps=3).save_pretrained(tmp_path)
    loaded = PI0Policy.from_pretrained(tmp_path, changes={"indicator": "embedding", "num_inference_steps": 4})
    assert (loaded.config.n_action_steps, loaded.config.num_inference_steps) == (3, 4)
    assert loaded.model.indicator_embedding.weight.abs().max() == 0, "new, and starts at zero"
    loaded.save_pretrained(tmp_path)
    again = PI0Policy.from_pretrained(tmp_path, changes={"indicator": "none"})
    again.save_pretrained(tmp_path)
    assert PI0Policy.from_pretrained(tmp_path).config.indicator == "none"


def test_a_checkpoint_keeps_its_tokenizer_when_the_one_it_came_from_is_gone(tmp_path):
    tiny_policy().save_pretrained(tmp_path / "first")
    policy = PI0Policy.from_pretrained(tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "moved")
    policy.save_pretrained(tmp_path / "second")
    assert PI0Policy.from_pretrained(tmp_path / "second").tokenizer.vocab_size == TOKENIZER.vocab_size


def test_an_option_that_cannot_apply_is_refused(tmp_path):
    tiny_policy().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="extra_delta_transform: only openpi"):
        PI0Policy.from_pretrained(tmp_path, extra_delta_transform=True)


class Bomb:
    """Unpickling this marks the spot."""

    def __reduce__(self):
        return (exec, ("import builtins; builtins.pickle_was_run = True",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors"])
def test_a_pickle_is_never_loaded(tmp_path, name):
    import builtins
    import pickle

    tiny_policy().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(pickle.dumps({"weight": Bomb()}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        PI0Policy.from_pretrained(tmp_path)
    assert not hasattr(builtins, "pickle_was_run")


def test_damaged_and_foreign_directories_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"neither a directory nor a hub repository"):
        PI0Policy.from_pretrained(tmp_path / "nowhere")
    tiny_policy().save_pretrained(tmp_path / "p")
    (tmp_path / "p/pi0_config.json").unlink()
    config = tmp_path / "p/config.json"
    values = json.loads(config.read_text())
    for change, message in (
        ({"type": "act"}, "type 'act'"),
        ({"n_obs_steps": 2}, "n_obs_steps"),
        ({"paligemma_variant": "gemma_9b"}, "gemma_9b"),
        ({"image_resolution": [224, 320]}, "square"),
        ({"normalization_mapping": {"VISUAL": "MEAN_STD"}}, "normalization_mapping"),
        ({"input_features": {}}, "input_features"),
    ):
        config.write_text(json.dumps({**values, **change}))
        with pytest.raises(CheckpointError, match=message):
            PI0Policy.from_pretrained(tmp_path / "p")
    config.write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        PI0Policy.from_pretrained(tmp_path / "p")
    config.unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        PI0Policy.from_pretrained(tmp_path / "p")


def test_a_toy_is_saved_with_its_tokenizer(tmp_path, batch, noise):
    policy = toy_policy()
    policy.save_pretrained(tmp_path)
    loaded = PI0Policy.from_pretrained(tmp_path)
    assert loaded.features.image_keys == (CAMERA,)
    assert torch.equal(loaded.sample_actions(batch, noise=noise), policy.sample_actions(batch, noise=noise))
