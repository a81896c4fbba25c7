"""What pi0-export writes computes what the policy does, or is not written."""

import json
import shutil

import pytest
import torch
from conftest import CAMERA, TASKS, toy_policy

from pi0 import PI0Policy, lerobot_format
from pi0.config import GemmaConfig, SiglipConfig
from pi0.ript.commands.export import main

TINY = GemmaConfig(width=32, depth=1, mlp_dim=32, num_heads=2, head_dim=16)


@pytest.fixture(scope="module")
def policy():
    policy = toy_policy(
        indicator="embedding",
        vlm=TINY,
        expert=TINY,
        vision=SiglipConfig(width=32, depth=1, num_heads=2, mlp_dim=32, patch_size=8, image_size=16),
        tokenizer_max_length=12,
    )
    torch.nn.init.normal_(policy.model.indicator_embedding.weight)
    return policy


@pytest.fixture(scope="module")
def checkpoint(policy, tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    policy.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """A directory with an export, and the program in it before it was saved; tracing takes seconds."""
    output, programs, trace = tmp_path_factory.mktemp("torch") / "exported", [], torch.export.export

    def keep(*arguments, **options):
        programs.append(trace(*arguments, **options))
        return programs[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.export, "export", keep)
        assert run(checkpoint, output, "--batch-size", "2", "--num-steps", "1") == 0
    return output, programs[0]


def run(checkpoint, output, *arguments):
    return main([checkpoint, "--output", str(output), "--device", "cpu", *arguments])


def test_the_program_acts_as_the_policy_does(policy, exported, batch, noise):
    output, _ = exported
    assert [file.name for file in output.parent.iterdir()] == ["exported"]
    described = json.loads((output / "sampler.json").read_text())
    assert described["inputs"]["images"] == {"shape": [2, 1, 3, 16, 16], "dtype": "float32"}
    assert described["num_steps"] == 1
    assert described["statistics"]["action"]["mean"] == policy.statistics["action"]["mean"].tolist()
    sampler = torch.export.load(output / "sampler.pt2").module()
    seen = policy.preprocess({**batch, "task": TASKS}, pad_prompts=True)
    chunk = sampler(seen.images, seen.image_mask, seen.tokens, seen.token_mask, seen.state, noise)
    actions = policy.decode_actions(chunk, batch["observation.state"])
    expected = policy.sample_actions(batch, noise=noise, num_steps=1, pad_prompts=True)
    torch.testing.assert_close(actions, expected, rtol=1e-5, atol=1e-5)
    other = policy.sample_actions({**batch, CAMERA: 255 - batch[CAMERA]}, noise=noise, num_steps=1)
    assert not torch.allclose(actions, other, atol=1e-3)


def test_lerobots_directory_is_the_policy(policy, checkpoint, tmp_path, batch, noise, monkeypatch):
    sizes = {"gemma_2b": policy.config.vlm, "gemma_300m": policy.config.expert}  # as if lerobot had a toy
    monkeypatch.setattr(lerobot_format, "VARIANTS", sizes)
    assert run(checkpoint, tmp_path / "lerobot", "--format", "lerobot") == 0
    again = PI0Policy.from_pretrained(tmp_path / "lerobot")
    assert torch.equal(again.sample_actions(batch, noise=noise), policy.sample_actions(batch, noise=noise))
    assert json.loads((tmp_path / "lerobot" / "config.json").read_text())["type"] == "pi0"


def test_a_result_that_differs_is_not_published(checkpoint, exported, tmp_path, monkeypatch, capsys):
    load = torch.export.load

    def damaged(path):
        program = load(path)
        with torch.no_grad():
            program.state_dict["model.action_out_proj.bias"].add_(0.01)
        return program

    monkeypatch.setattr(torch.export, "export", lambda *_, **__: exported[1])
    arguments = (checkpoint, tmp_path / "exported", "--batch-size", "2", "--num-steps", "1")
    assert run(*arguments) == 0
    shutil.rmtree(tmp_path / "exported")
    assert "largest difference to the policy 0\n" in capsys.readouterr().out
    monkeypatch.setattr(torch.export, "load", damaged)
    assert run(*arguments) == 1
    assert "differs by 0.01, more than --tolerance 0.0001; nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_done_is_said_first(checkpoint, tmp_path, capsys):
    assert run(checkpoint, tmp_path) == 2
    assert "is there already; remove it" in capsys.readouterr().err
    assert run(str(tmp_path / "nothing"), tmp_path / "new") == 2
    assert "CHECKPOINT: no directory at" in capsys.readouterr().err
    assert run(checkpoint, tmp_path / "new", "--cameras", "2") == 2
    assert "--cameras: expected at most the 1 of the policy, found 2" in capsys.readouterr().err
    assert run(checkpoint, tmp_path / "new", "--plugins", "not_there_at_all") == 2
    assert "'not_there_at_all' is not installed" in capsys.readouterr().err
    assert run(checkpoint, tmp_path / "new", "--format", "lerobot") == 2
    assert "only in the sizes gemma_2b, gemma_300m, and this one has others" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(checkpoint, tmp_path / "new", "--format", "onnx")
    assert "choose from torch, lerobot" in capsys.readouterr().err.replace("'", "")
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "examples:" in capsys.readouterr().out
