"""The policy that training starts from, where it is a checkpoint."""

import json

import pytest
import torch
from conftest import metaworld_policy

from pi0.ript.environments import get_environment
from pi0.ript.starting_policy import require_device, starting_policy


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    metaworld_policy().save_pretrained(directory)
    return directory


def start(checkpoint, **changes):
    return starting_policy(str(checkpoint), get_environment("metaworld"), checkpoint / "unused", 0, **changes)


def test_a_checkpoint_is_changed_as_asked(checkpoint, tmp_path):
    plain = start(checkpoint)
    norm_stats = {
        name: {"mean": [0.5] * 4, "std": [2.0] * 4, "q01": None, "q99": None} for name in ("state", "actions")
    }
    file = tmp_path / "norm_stats.json"
    file.write_text(json.dumps({"norm_stats": norm_stats}))
    changed = start(
        checkpoint,
        freeze="expert_only",
        dtype="bfloat16",
        gradient_checkpointing=True,
        n_action_steps=3,
        statistics_path=str(file),
    )
    assert (changed.config.dtype, changed.config.n_action_steps) == ("bfloat16", 3)
    assert changed.config.gradient_checkpointing
    assert not plain.config.gradient_checkpointing
    trained = {name.split(".")[0] for name, p in changed.model.named_parameters() if p.requires_grad}
    assert not trained & {"vision", "vlm"}
    assert "expert" in trained
    assert changed.statistics["action"]["std"] == [2.0] * 4
    assert not torch.allclose(torch.as_tensor(plain.statistics["action"]["std"]), torch.tensor([2.0] * 4))


def test_what_is_not_there_comes_with_a_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"nothing at .*, the name of a hub repository, or 'toy'"):
        start(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"has no config\.json and no model\.safetensors"):
        start(tmp_path)
    with pytest.raises(ValueError, match="or auto, found 'gpu'"):
        require_device("gpu")
    with pytest.raises(ValueError, match="'cuda:63' is not there"):
        require_device("cuda:63")
