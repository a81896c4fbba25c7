"""Weights that a run does not train are stored once, by hash; policies that leave a run are complete."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from test_pretrained import lerobot_actions_of, raw_batch, raw_noise, tiny_policy

from pi0 import CheckpointError, PI0Policy
from pi0.checkpoint_names import INDEX, WEIGHTS
from pi0.ript.checkpoint.state import save_checkpoint
from pi0.saving import copy_complete
from pi0.tensor_files import stored_weights


def frozen_policy(which: str = "expert_only", **changes) -> PI0Policy:
    policy = tiny_policy(**changes)
    policy.model.freeze(which)
    return policy


def moved(policy: PI0Policy, by: float) -> PI0Policy:
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(by)
    return policy


def is_same(one: PI0Policy, other: PI0Policy) -> bool:
    parameters = dict(other.named_parameters())
    return all(torch.equal(p, parameters[name]) for name, p in one.named_parameters())


@pytest.fixture
def run(tmp_path):
    """Two stages of a run that trains the expert alone."""
    policy = frozen_policy()
    policy.save_pretrained(tmp_path / "run/sft", untrained=tmp_path / "run/untrained")
    second = PI0Policy.from_pretrained(tmp_path / "run/sft")
    second.model.freeze("expert_only")
    moved(second, 0.25).save_pretrained(tmp_path / "run/policy", untrained=tmp_path / "run/untrained")
    return tmp_path / "run"


def test_two_stages_share_one_file_and_each_is_its_own_policy(run):
    (file,) = (run / "untrained").iterdir()
    indexes = [json.loads((run / stage / INDEX).read_text()) for stage in ("sft", "policy")]
    for index in indexes:
        assert index["metadata"]["sha256"] == {f"../untrained/{file.name}": file.stem}
        trained = {key for key, place in index["weight_map"].items() if not place.startswith("..")}
        assert trained
        assert not [key for key in trained if ".paligemma." in key]
    expected = frozen_policy()
    assert is_same(PI0Policy.from_pretrained(run / "sft"), expected)
    assert is_same(PI0Policy.from_pretrained(run / "policy"), moved(expected, 0.25))


def test_a_stage_is_the_same_where_the_whole_run_was_copied(run, tmp_path):
    shutil.copytree(run, tmp_path / "elsewhere/copy")
    shutil.rmtree(run)
    assert is_same(PI0Policy.from_pretrained(tmp_path / "elsewhere/copy/sft"), frozen_policy())


def test_a_stage_that_was_copied_alone_says_so_in_one_line(run, tmp_path):
    shutil.copytree(run / "sft", tmp_path / "other/sft")
    with pytest.raises(
        CheckpointError, match=r"did not train is in \.\./untrained/\w+\.safetensors.*missing"
    ) as e:
        PI0Policy.from_pretrained(tmp_path / "other/sft")
    assert "\n" not in str(e.value)
    assert "copy the whole run" in str(e.value)


def test_another_file_in_its_place_is_refused(run):
    (file,) = (run / "untrained").iterdir()
    other = moved(tiny_policy(), 0.1)
    other.model.freeze("expert_only")
    with torch.no_grad():
        other.model.vision.position.add_(1.0)
    other.save_pretrained(run / "more", untrained=run / "untrained")
    (new,) = set((run / "untrained").iterdir()) - {file}
    new.replace(file)
    with pytest.raises(CheckpointError, match=rf"{file.name}: its content is not that which .*sft/{INDEX}"):
        PI0Policy.from_pretrained(run / "sft")


def test_what_leaves_a_run_is_complete_for_lerobot(run, tmp_path, monkeypatch):
    expected = PI0Policy.from_pretrained(run / "policy").sample_actions(raw_batch(), noise=raw_noise())
    copy_complete(run / "policy", tmp_path / "published")
    PI0Policy.from_pretrained(run / "policy").save_pretrained(tmp_path / "saved")
    shutil.rmtree(run)
    for name in ("published", "saved"):
        assert not (tmp_path / name / INDEX).exists()
        actions = lerobot_actions_of(tmp_path / name, False, raw_batch(), raw_noise(), monkeypatch)
        torch.testing.assert_close(actions, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_what_adapters_add_to_is_stored_once_and_a_published_policy_has_it_merged(tmp_path, monkeypatch):
    policy = tiny_policy()
    config = replace(policy.config, expert=replace(policy.config.expert, lora_rank=2, lora_alpha=2.0))
    policy = PI0Policy(config, policy.features, policy.tokenizer, policy.statistics)
    policy.model.freeze("lora")
    policy.save_pretrained(tmp_path / "sft", untrained=tmp_path / "untrained")
    second = PI0Policy.from_pretrained(tmp_path / "sft")
    second.model.freeze("lora")
    moved(second, 0.25).save_pretrained(tmp_path / "policy", untrained=tmp_path / "untrained")
    assert len(list((tmp_path / "untrained").iterdir())) == 1
    for stage in ("sft", "policy"):
        places = json.loads((tmp_path / stage / INDEX).read_text())["weight_map"]
        inside = {key for key, place in places.items() if not place.startswith("..")}
        assert inside
        assert not [key for key in inside if ".paligemma." in key or ".gemma_expert." in key]
    assert is_same(PI0Policy.from_pretrained(tmp_path / "sft"), policy)
    assert is_same(PI0Policy.from_pretrained(tmp_path / "policy"), second)
    copy_complete(tmp_path / "policy", tmp_path / "published")
    expected = second.eval().sample_actions(raw_batch(), noise=raw_noise())
    assert not torch.allclose(expected, policy.eval().sample_actions(raw_batch(), noise=raw_noise()))
    shutil.rmtree(tmp_path / "untrained")
    actions = lerobot_actions_of(tmp_path / "published", False, raw_batch(), raw_noise(), monkeypatch)
    torch.testing.assert_close(actions, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    assert not (tmp_path / "published/pi0_extra.safetensors").exists()


def test_a_policy_whose_every_weight_is_trained_is_one_file(tmp_path):
    tiny_policy().save_pretrained(tmp_path / "sft", untrained=tmp_path / "untrained")
    assert (tmp_path / "sft" / WEIGHTS).exists()
    assert not (tmp_path / "untrained").exists()


def test_checkpoints_of_a_run_refer_to_one_file(tmp_path):
    policy = frozen_policy()
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for step in (1, 2):
        save_checkpoint(moved(policy, 0.25), optimizer, step, {}, tmp_path)
    assert len(list((tmp_path / "untrained").iterdir())) == 1
    sizes = [p.stat().st_size for p in (tmp_path / "checkpoint-2/policy").glob("*.safetensors")]
    assert sum(p.numel() for p in trained) * 4 < sum(sizes) < sum(p.numel() for p in trained) * 4 + 20_000
    assert is_same(PI0Policy.from_pretrained(tmp_path / "checkpoint-2/policy"), policy)


def test_shards_are_written_on_request_and_read(tmp_path):
    policy = tiny_policy()
    policy.save_pretrained(tmp_path / "shards", max_shard_size=100_000)
    files = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    largest = max(x.num_bytes for x in stored_weights(tmp_path / "shards").values())
    assert all(file.stat().st_size <= max(100_000, largest) + 20_000 for file in files)
    assert is_same(PI0Policy.from_pretrained(tmp_path / "shards"), policy)
    files[1].unlink()
    with pytest.raises(CheckpointError, match=re.escape(f"names {files[1].name}, which is not there")):
        PI0Policy.from_pretrained(tmp_path / "shards")
    policy.save_pretrained(tmp_path / "shards")
    assert [file.name for file in (tmp_path / "shards").glob("model*")] == [WEIGHTS]
