"""What the budget says a model takes is what it takes."""

from dataclasses import replace

import pytest
import torch
from conftest import toy_policy

from pi0 import PI0Policy
from pi0.needs import (
    MemoryNeeds,
    acting_sizes,
    disk_needs,
    example_observation,
    process_memory,
    sized_model,
    training_memory,
)
from pi0.ript.checkpoint.files import UNTRAINED

LORA = {"lora_rank": 2, "lora_alpha": 2.0}


def size(directory) -> int:
    return sum(
        file.stat().st_size for file in directory.glob("*.safetensors") if "processor" not in file.name
    )


@pytest.mark.parametrize("which", ["none", "vision", "expert_only", "lora"])
def test_files_are_as_large_as_told(tmp_path, which):
    policy = toy_policy()
    if which == "lora":
        config = replace(policy.config, vlm=replace(policy.config.vlm, **LORA))
        policy = PI0Policy(config, policy.features, policy.tokenizer, policy.statistics)
    policy.save_pretrained(tmp_path / "base")
    model = sized_model(policy.config, tmp_path / "base")
    model.freeze(which)
    policy.model.freeze(which)
    policy.save_pretrained(tmp_path / "run/sft", untrained=tmp_path / "run" / UNTRAINED)
    told = disk_needs(model)
    assert told.complete == pytest.approx(size(tmp_path / "base"), rel=0.05)
    assert told.trained == pytest.approx(size(tmp_path / "run/sft"), rel=0.05)
    stored = size(tmp_path / "run" / UNTRAINED) if which != "none" else 0
    assert told.untrained == pytest.approx(stored, rel=0.05)


@pytest.mark.parametrize("which", ["none", "expert_only"])
def test_activations_are_those_that_a_forward_pass_keeps(tmp_path, which):
    """Counted without memory, and counted on real tensors."""
    policy = toy_policy(dtype="bfloat16")
    policy.save_pretrained(tmp_path)
    model = sized_model(policy.config, tmp_path)
    for m in (model, policy.model):
        m.freeze(which)
    told = training_memory(model, 3, 1)
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    assert told.gradients == 4 * sum(p.numel() for p in trained)
    assert told.weights == sum(p.numel() * p.element_size() for p in policy.model.parameters())
    kept, own = {}, {p.untyped_storage().data_ptr() for p in policy.model.parameters()}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    config = policy.config
    observation = example_observation(config, 3, 1, config.tokenizer_max_length)
    actions = torch.zeros(3, config.chunk_size, config.max_action_dim)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy.model.loss(observation, actions)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert measured
    assert told.activations == pytest.approx(measured, rel=0.05)


def test_memory_of_processes_that_train_together():
    model = toy_policy(dtype="bfloat16").model
    sizes = acting_sizes(model)
    assert sizes["vlm.embed.weight"] == 2 * model.vlm.embed.weight.numel()
    assert sizes["vision.position"] == 4 * model.vision.position.numel()
    whole = sum(sizes.values())
    blocks = 2 * sum(size for name, size in sizes.items() if name.startswith("vlm.blocks.0."))
    needs = MemoryNeeds(weights=12 * whole, gradients=10 * whole, moments=20 * whole, activations=4 * whole)

    def peak(strategy, num_processes, **options):
        return process_memory(needs, model, strategy, num_processes, **options).peak

    for strategy in ("ddp", "fsdp"):
        assert peak(strategy, 1, accumulates=False) == (12 + 20 + 10) * whole
        assert peak(strategy, 1, accumulates=True) == (12 + 20 + 10 + 4) * whole
    assert peak("ddp", 2, accumulates=False) == (12 + 20 + 10 + 10) * whole, "and what is sent of gradients"
    assert peak("ddp", 2, accumulates=True) == (12 + 20 + 10 + 4 + 10) * whole
    assert peak("fsdp", 2, accumulates=False) == (12 + 20 + 10) * whole // 2 + blocks
    assert peak("fsdp", 4, accumulates=True) == (12 + 20 + 10) * whole // 4 + (10 + 4) * whole + blocks
    little = replace(needs, activations=0)
    told = process_memory(little, model, "fsdp", 40, accumulates=False)
    assert told.peak == told.weights + told.moments + whole, "acting takes more than training"
