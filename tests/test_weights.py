"""Checkpoints fit exactly or are refused with every difference named."""

import re
from dataclasses import replace

import pytest
import torch
from conftest import lerobot_state_dict, tiny_config
from ours import observation
from peers import lerobot_pi0, lerobot_pi05
from sizes import SIZES, make_inputs

from pi0 import CheckpointError, Pi0Model, WeightLoader
from pi0.config import Pi0Config, pi05_config
from pi0.lerobot_names import EMBEDDING, LM_HEAD, lerobot_sources, unused_shapes

STATE_PROJ = "state_proj.weight"
Q_PROJ = "paligemma_with_expert.gemma_expert.model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def tensors():
    return {k: v.clone() for k, v in lerobot_pi0(SIZES["tiny"]).model.state_dict().items()}


def load(tensors, config=None, **rules) -> Pi0Model:
    model = Pi0Model(config or tiny_config())
    WeightLoader(**rules).load(model, model.config, tensors, "model.safetensors")
    return model


def test_what_is_written_is_what_was_read(tensors):
    written = lerobot_state_dict(load(tensors), tiny_config())
    assert set(written) == set(tensors) - set(unused_shapes(tiny_config()))
    assert all(torch.equal(written[key], tensors[key]) for key in written)


def test_all_differences_are_listed_with_shapes_and_file(tensors):
    broken = dict(tensors)
    del broken[STATE_PROJ]
    broken[Q_PROJ] = broken[Q_PROJ][:-1]
    broken["value_head.weight"] = torch.zeros(2, 3)
    model = Pi0Model(tiny_config())
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(CheckpointError) as error:
        WeightLoader().load(model, model.config, broken, "model.safetensors")
    text = str(error.value)
    assert "model.safetensors" in text
    assert "missing    state_proj.weight [32, 32]" in text
    assert "unexpected value_head.weight [2, 3]" in text
    assert re.search(rf"shape +{re.escape(Q_PROJ)}: expected \[128, 32\], found \[127, 32\]", text)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters()), "nothing may change"


def test_one_of_several_fused_keys_missing_is_named(tensors):
    broken = {k: v for k, v in tensors.items() if k != Q_PROJ.replace("q_proj", "v_proj")}
    with pytest.raises(CheckpointError, match=r"missing .*layers\.0\.self_attn\.v_proj"):
        load(broken)


def test_the_caller_says_what_may_be_new_or_extra(tensors):
    changed = {k: v for k, v in tensors.items() if not k.startswith("state_proj")}
    changed["value_head.weight"] = torch.zeros(2, 3)
    model = Pi0Model(tiny_config())
    loader = WeightLoader(new=(r"^state_proj\.",), extra=(r"^value_head\.",))
    assert loader.load(model, model.config, changed, "file") == {"state_proj.weight", "state_proj.bias"}
    assert torch.equal(model.state_proj.weight, Pi0Model(tiny_config()).state_proj.weight)
    assert loader.load(model, model.config, tensors, "file") == set()
    assert torch.equal(model.state_proj.weight, tensors["state_proj.weight"])


LOADERS = {  # openpi's, as ours
    "strict": {},
    "CheckpointWeightLoader": {"new": ("lora_",), "extra": (".*",)},
    "PaliGemmaWeightLoader": {"new": (".*",), "extra": (".*",)},
}
REFUSED = {  # by what is wrong with the file
    "unknown": {"strict"},
    "lora": {"strict"},
    "missing": {"strict", "CheckpointWeightLoader"},
    "shape": set(LOADERS),
    "dtype": set(),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("case", REFUSED)
def test_loaders_follow_openpis_table(tensors, case, loader):
    stored, config, untouched = dict(tensors), tiny_config(), set()
    if case == "unknown":
        stored["value_head.weight"] = torch.zeros(2, 3)
    if case == "lora":
        config = replace(config, expert=replace(config.expert, lora_rank=2, lora_alpha=4.0))
        untouched = {n for n, _ in Pi0Model(config).named_parameters() if "lora_" in n}
        assert untouched
    if case == "missing":
        del stored[STATE_PROJ]
        untouched = {STATE_PROJ}
    if case == "shape":
        stored[STATE_PROJ] = stored[STATE_PROJ][:-1]
    if case == "dtype":
        stored = {key: tensor.bfloat16() for key, tensor in stored.items()}
    model = Pi0Model(config)
    if loader in REFUSED[case]:
        with pytest.raises(CheckpointError, match="does not fit the configuration"):
            WeightLoader(**LOADERS[loader]).load(model, config, stored, "file")
        return
    report = WeightLoader(**LOADERS[loader]).load(model, config, stored, "file")
    assert report == untouched
    for (name, parameter), fresh in zip(model.named_parameters(), Pi0Model(config).parameters(), strict=True):
        assert parameter.dtype == torch.float32
        assert (name in untouched) <= torch.equal(parameter, fresh), name
    written = lerobot_state_dict(model, config)
    assert all(torch.equal(written[key], stored[key].float()) for key in set(written) & set(stored))


@pytest.mark.parametrize(
    "rename",
    [
        lambda k: f"model.{k}",
        lambda k: f"_orig_mod.model.{k}",
        lambda k: f"module.{k}",
        lambda k: (
            k.replace("paligemma.model.language_model.", "paligemma.language_model.model.")
            .replace("paligemma.lm_head", "paligemma.language_model.lm_head")
            .replace("paligemma.model.vision_tower", "paligemma.vision_tower")
            .replace("paligemma.model.multi_modal_projector", "paligemma.multi_modal_projector")
        ),
        lambda k: k.removeprefix("action_") if k.startswith("action_time_mlp") else k,
    ],
    ids=["saved by lerobot", "compiled", "DDP", "before transformers 4.52", "time_mlp"],
)
def test_older_and_wrapped_names_are_read(tensors, rename):
    model = load({rename(k): v for k, v in tensors.items()})
    expected = dict(load(tensors).named_parameters())
    assert all(torch.equal(p, expected[n]) for n, p in model.named_parameters())


def test_the_head_stands_in_for_a_tied_embedding_but_never_replaces_one(tensors):
    tied = {k: v for k, v in tensors.items() if k != EMBEDDING}
    assert torch.equal(load(tied).vlm.embed.weight, tensors[LM_HEAD])
    assert torch.equal(load(tensors).vlm.embed.weight, tensors[EMBEDDING])
    assert not torch.equal(tensors[LM_HEAD], tensors[EMBEDDING])


def test_pi05_names_and_sizes():
    tensors = lerobot_pi05(SIZES["tiny"]).model.state_dict()
    written = lerobot_state_dict(load(tensors, tiny_config(pi05=True)), tiny_config(pi05=True))
    assert all(torch.equal(written[key], tensors[key]) for key in written)
    with pytest.raises(CheckpointError, match="missing"):
        load(tensors)


@pytest.mark.parametrize(("pi05", "millions"), [(False, 3129), (True, 3244)])
def test_real_size_has_every_tensor_of_lerobots_but_the_unused(pi05, millions):
    from lerobot.policies.pi0.configuration_pi0 import PI0Config
    from lerobot.policies.pi0.modeling_pi0 import PI0Pytorch
    from lerobot.policies.pi05.configuration_pi05 import PI05Config
    from lerobot.policies.pi05.modeling_pi05 import PI05Pytorch

    with torch.device("meta"):
        reference = PI05Pytorch(PI05Config()) if pi05 else PI0Pytorch(PI0Config())
    config = pi05_config() if pi05 else Pi0Config()
    model = Pi0Model(config, seed=None, device="meta")
    sources = lerobot_sources(config)
    assert {n for n, _ in model.named_parameters()} == set(sources)
    stored = [pair for s in sources.values() for pair in zip(s.keys, s.shapes, strict=True)]
    expected = {name: tuple(p.shape) for name, p in reference.state_dict().items()}
    assert {**dict(stored), **unused_shapes(config)} == expected
    # 3.238 B that pi0 needs by openpi's count, less what the language model's last layer never uses.
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


def test_adapters_start_at_zero_are_merged_and_alone_are_trained(tensors):
    config = tiny_config()
    lora = {"lora_rank": 2, "lora_alpha": 4.0}
    config = replace(config, vlm=replace(config.vlm, **lora), expert=replace(config.expert, **lora))
    x = make_inputs(SIZES["tiny"], batch=2, cameras_real=2, prompt_tokens=5)
    model = load(tensors, config, new=("lora_",))
    plain = load(tensors)

    def actions(m):
        return m.sample(observation(x), noise=x.noise)

    assert torch.equal(actions(model), actions(plain))
    model.freeze("lora")
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[0] for n in trained if "lora_" not in n} == {
        "action_in_proj", "action_out_proj", "time_mlp_in", "time_mlp_out", "state_proj"
    }  # fmt: skip
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    merged = load({**tensors, **lerobot_state_dict(model, config)})
    assert not torch.allclose(actions(model), actions(plain), atol=1e-2)
    torch.testing.assert_close(actions(merged), actions(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", ["nonsense", ".*", "lora"])
def test_a_freeze_filter_that_does_nothing_or_everything_is_refused(which):
    with pytest.raises(ValueError, match="freeze"):
        Pi0Model(tiny_config()).freeze(which)


def test_freeze_by_pattern():
    model = Pi0Model(tiny_config())
    model.freeze(r"vision|vlm\.embed")
    assert {n.split(".")[0] for n, p in model.named_parameters() if not p.requires_grad} == {"vision", "vlm"}
    assert model.vlm.last.kv.weight.requires_grad


def test_building_a_model_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, second = Pi0Model(tiny_config(), seed=1), Pi0Model(tiny_config(), seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = Pi0Model(tiny_config(), seed=2)
    assert not torch.equal(other.vlm.embed.weight, first.vlm.embed.weight)
