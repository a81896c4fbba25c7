"""What a policy takes in memory: the dtypes its weights are held in; loading needs no second copy."""

import json
import subprocess
import sys

import pytest
import real_size
import stand_in
import torch
from conftest import toy_policy

from pi0 import PI0Policy
from pi0.checkpoint_names import WEIGHTS
from pi0.ript.policy_settings import PolicySettings
from pi0.ript.starting_policy import make_policy
from pi0.ript.training.optimization import make_optimizer
from pi0.ript.training.settings import Optimizer
from pi0.tensor_files import Deferred, stored_tensors, write_tensor_file
from pi0.trainable import inference_dtypes

VISION, VLM, EXPERT, NORM, PROJECTION = (
    "vision.blocks.0.qkv.weight",
    "vlm.blocks.0.gate_up.weight",
    "expert.blocks.0.qkv.weight",
    "vlm.blocks.0.norm1.weight",
    "action_in_proj.weight",
)
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A toy stored in float32, and as lerobot's bfloat16 mode stores it."""
    root = tmp_path_factory.mktemp("checkpoints")
    policy = toy_policy()
    policy.save_pretrained(root / "float32")
    policy.save_pretrained(root / "bfloat16")
    stored = stored_tensors(root / "bfloat16" / WEIGHTS)
    rounded = {
        key: Deferred.of(tensor.read().bfloat16() if stand_in.is_rounded(key) else tensor.read())
        for key, tensor in stored.items()
    }
    write_tensor_file(root / "bfloat16" / WEIGHTS, rounded)
    return root


def held(model) -> list[torch.dtype]:
    return [model.get_parameter(name).dtype for name in (VISION, VLM, EXPERT, NORM, PROJECTION)]


def test_a_checkpoint_is_held_as_it_is_stored(checkpoints):
    assert held(PI0Policy.from_pretrained(checkpoints / "float32").model) == [FLOAT32] * 5
    policy = PI0Policy.from_pretrained(checkpoints / "bfloat16")
    assert held(policy.model) == [FLOAT32, BFLOAT16, BFLOAT16, FLOAT32, FLOAT32]
    assert not any(parameter.is_meta for parameter in policy.parameters())


@pytest.mark.parametrize(
    ("stored", "settings", "expected"),
    [
        ("float32", {}, [FLOAT32] * 5),
        ("bfloat16", {}, [FLOAT32] * 5),  # all is trained
        ("bfloat16", {"freeze": "expert_only"}, [FLOAT32, BFLOAT16, FLOAT32, FLOAT32, FLOAT32]),
        ("float32", {"freeze": "expert_only"}, [FLOAT32] * 5),
        (
            "float32",
            {"freeze": "expert_only", "dtype": "bfloat16"},
            [FLOAT32, BFLOAT16, FLOAT32, FLOAT32, FLOAT32],
        ),
        (
            "float32",
            {"freeze": "expert_only", "frozen_dtype": "bfloat16"},
            [FLOAT32, BFLOAT16, FLOAT32, FLOAT32, FLOAT32],
        ),
        (
            "bfloat16",
            {"freeze": "expert_only", "frozen_dtype": "float32", "dtype": "bfloat16"},
            [FLOAT32] * 5,
        ),
    ],
)
def test_what_is_trained_is_held_in_float32_and_what_is_frozen_as_asked(
    checkpoints, stored, settings, expected
):
    policy = make_policy(str(checkpoints / stored), PolicySettings(**settings), toy_policy, 0)
    assert held(policy.model) == expected
    assert {p.dtype for p in policy.model.parameters() if p.requires_grad} == {FLOAT32}
    policy.model.freeze(settings.get("freeze", "none"), settings.get("frozen_dtype"))
    assert held(policy.model) == expected, "loading and freezing must say the same"


def test_frozen_weights_in_bfloat16_compute_what_float32_copies_of_them_do(checkpoints, batch):
    settings = {"freeze": "expert_only", "dtype": "bfloat16"}
    gradients = []
    for frozen_dtype in (None, "float32"):
        settings["frozen_dtype"] = frozen_dtype
        policy = make_policy(str(checkpoints / "bfloat16"), PolicySettings(**settings), toy_policy, 0)
        policy.loss(batch, generator=torch.Generator().manual_seed(0)).backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert gradients[0]
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_a_policy_that_only_acts_is_rounded_where_its_computation_rounds(checkpoints):
    policy = make_policy(
        str(checkpoints / "float32"), PolicySettings(dtype="bfloat16"), toy_policy, 0, only_acts=True
    )
    assert held(policy.model) == [FLOAT32, BFLOAT16, BFLOAT16, FLOAT32, FLOAT32]
    assert held(policy.model.to_inference()) == [FLOAT32, BFLOAT16, BFLOAT16, FLOAT32, FLOAT32]


def test_weights_in_bfloat16_are_not_trained(checkpoints):
    policy = PI0Policy.from_pretrained(checkpoints / "bfloat16")
    with pytest.raises(ValueError, match=r"expected float32 in training, found torch.bfloat16"):
        make_optimizer(policy.model, Optimizer())
    policy.model.freeze("none")
    make_optimizer(policy.model, Optimizer())


def test_saving_keeps_the_dtypes_and_every_bit(checkpoints, tmp_path):
    policy = PI0Policy.from_pretrained(checkpoints / "bfloat16")
    policy.save_pretrained(tmp_path)
    before, after = (stored_tensors(path / WEIGHTS) for path in (checkpoints / "bfloat16", tmp_path))
    assert {name: x.dtype for name, x in before.items()} == {name: x.dtype for name, x in after.items()}
    assert all(torch.equal(before[name].read(), after[name].read()) for name in before)


def test_a_process_that_loads_a_policy_never_holds_a_second_copy(tmp_path):
    stand_in.write_checkpoint(tmp_path / "shallow", stand_in.SHALLOW)
    command = [sys.executable, real_size.__file__, "--measure", "load", "--keep", str(tmp_path / "shallow")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    policy = PI0Policy.from_pretrained(
        tmp_path / "shallow", dtypes=lambda model: inference_dtypes(model, torch.bfloat16)
    )
    assert figures["policy, GiB"] == pytest.approx(real_size.size_gib(policy))
    assert figures["peak above it"] <= real_size.LOADING_BOUND
