"""The card of a policy says what the files of its run say, and what they do not; names in it stay text."""

import json
import re
import shlex
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import huggingface_hub.errors
import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from plugin_example.__main__ import write_policy
from plugin_example.model import PLAIN

from pi0 import PI0Policy, lerobot_format
from pi0.errors import UnusableError
from pi0.ript.commands import chosen_policy
from pi0.ript.commands import evaluate as evaluate_command
from pi0.ript.commands import export as export_command
from pi0.ript.config import TrainConfig
from pi0.ript.envs import make_env
from pi0.ript.evaluate import EpisodeResult, Evaluation, evaluate
from pi0.ript.files import write_json
from pi0.ript.guidance import record_guidance
from pi0.ript.markdown import code_block, escaped, markdown_table
from pi0.ript.model_card import write_card
from pi0.ript.origin import base_card
from pi0.ript.origin.evaluated import with_evaluation
from pi0.ript.origin.finding import read_origin
from pi0.ript.report import append_row
from pi0.ript.results import write_evaluation, write_results
from pi0.ript.rollout import GuidedPolicy

HOSTILE = (
    "<script>alert(1)</script> | [x](http://evil.example) ```\n---\n# @all `$(rm)` \u202e www.evil.example"
)

NO_SUCCESS = "* the success of this policy\\: no evaluation of it was found"


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """One that can act in the plugin's environment."""
    config = replace(PLAIN, indicator="embedding")
    return write_policy(tmp_path_factory.mktemp("start"), config).eval()


@pytest.fixture
def as_lerobot(monkeypatch):
    """As if lerobot had a toy of these sizes."""
    monkeypatch.setattr(lerobot_format, "VARIANTS", {"gemma_2b": PLAIN.vlm, "gemma_300m": PLAIN.expert})


@pytest.fixture(scope="module")
def run(policy, tmp_path_factory) -> Path:
    """A run of the ladder whose evaluations are real."""
    run = tmp_path_factory.mktemp("runs") / "press"
    config = asdict(TrainConfig(output_dir="/home/somebody/runs", policy_path="lerobot/pi0_base"))
    config["task"] |= {"benchmark_name": "line", "max_episode_length": 7, "num_workers": 0}
    config["plugins"] = ["plugin_example"]
    config["eval"] |= {"rollouts_per_task": 2, "first_state": 3}
    config["logging"]["on_event"] = "mail somebody"
    (run / "experiment_cfg").mkdir(parents=True)
    (run / "experiment_cfg/config.yaml").write_text(yaml.safe_dump(config))
    with make_env("line", num_slots=2, max_steps=7) as env:
        heldout = env.initial_states("right", "heldout", range(3, 5))
        before, after = (evaluate(env, GuidedPolicy(policy, guidance), heldout) for guidance in (1.0, 2.0))
    write_evaluation(run / "before", before)
    rows = [{"iteration": i, "rollout/attempts": 5, "rollout/success": 0.25 + i} for i in range(4)]
    write_results(run, config, rows, before, after, policy)
    (run / "after.mp4").write_bytes(b"video")
    return run


def card_of(directory: Path) -> ModelCard:
    return ModelCard.load(directory / "README.md")


def written(policy: PI0Policy, origin, tmp_path: Path, name: str = "me/press") -> ModelCard:
    tmp_path.mkdir(exist_ok=True)
    write_card(tmp_path, policy, origin, name)
    return card_of(tmp_path)


def test_the_command_of_the_card_gives_the_evaluation_again(run, tmp_path, as_lerobot, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    output = Path("exported")
    arguments = [str(run / "policy"), "--format", "lerobot", "--output", str(output), "--device", "cpu"]
    assert export_command.main(arguments) == 0
    card = card_of(output)
    (command,) = re.findall(r"^pi0-eval .*", card.text, re.MULTILINE)
    words = shlex.split(command)[1:]
    assert words[:2] == ["--policy", str(output)]
    words += ["--output", str(tmp_path / "again"), "--device", "cpu", "--num-workers", "0", "--videos", "0"]
    assert evaluate_command.main(words) == 0
    expected = json.loads((run / "after.json").read_text())
    assert json.loads((tmp_path / "again/evaluation.json").read_text())["episodes"] == expected["episodes"]
    assert json.loads((output / "evaluation.json").read_text()) == expected


def test_a_ladders_card_says_what_the_run_says(run, policy, tmp_path, monkeypatch):
    theirs = "---\nlicense: gemma\nlicense_link: https://example.org/terms\n---\n# Base\n"
    monkeypatch.setattr(base_card, "fetch_card", lambda _: theirs)
    card = written(policy, read_origin(run / "policy"), tmp_path / "card")
    after = Evaluation.from_dict(json.loads((run / "after.json").read_text()))
    assert escaped(str(after)) in card.text
    assert (
        "held-out states 3 to 4 of each task of line, one episode from each, seed 0, guidance 2" in card.text
    )
    assert "* the checkpoint lerobot/pi0\\_base of the hub" in card.text
    assert "| 3 | 5 |" not in card.text, "rows of iterations that the run did not make"
    assert "| 2 | 5 |  | 2.250 |  |" in card.text
    assert "gemma, https\\://example.org/terms" in card.text
    for private in ("/home/somebody", "mail somebody"):
        assert private not in card.content
    assert "[after](videos/0-after.mp4)" in card.text
    assert (tmp_path / "card/videos/0-after.mp4").read_bytes() == b"video"
    assert "## Not known" not in card.text
    front = card.data.to_dict()
    assert (front["base_model"], front["license"]) == ("lerobot/pi0_base", "gemma")
    assert card.data.eval_results[0].metric_value == after.success_rate


def test_a_policy_in_no_run_has_a_card_of_its_checkpoint_alone(run, policy, tmp_path, monkeypatch):
    policy.save_pretrained(tmp_path / "alone")
    record_guidance(tmp_path / "alone", 3.0)
    card = written(policy, read_origin(tmp_path / "alone"), tmp_path / "alone")
    assert "lies in no run of pi0-ript" in card.text
    assert "* lineage, data and settings\\: the checkpoint does not say" in card.text
    assert NO_SUCCESS in card.text
    assert "the licence of the base" in card.text
    assert "It acts with guidance 3." in card.text
    assert not {"## Success", "## Lineage", "## Data", "## Videos", "## Settings"} & set(
        card.text.splitlines()
    )
    assert "pi0-eval" not in card.text
    assert {"license", "model-index", "base_model"}.isdisjoint(card.data.to_dict())

    def unreachable(_):
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(base_card, "fetch_card", unreachable)
    card = written(policy, read_origin("somebody/policy"), tmp_path / "of_hub")
    assert card.data.base_model == "somebody/policy"
    assert "the licence of the base \\(somebody/policy\\)" in card.text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "---\n[1]\n---\n",
        "---\nlicense: [a, b]\nbase_model: 3\n---\n",
        "---\na: [\n---\n",
        "---\n!!python/object/apply:os.mkdir [planted]\n---\n",
    ],
)
def test_a_card_that_says_nothing_of_use_is_as_none(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text(text)
    assert base_card.read_base_card(str(tmp_path)) == base_card.BaseCard()
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]


# RECAP and pi0-train ----------------------------------------------------------------------------------------


def of_task(task: str, *successes: bool) -> Evaluation:
    return Evaluation(0, tuple(EpisodeResult(task, str(i), is_one, 8) for i, is_one in enumerate(successes)))


def stage(hash_: str, figures=None, settings=None, **inputs: str) -> dict:
    places = {role: {"stage": name, "hash": f"hash of {name}"} for role, name in inputs.items()}
    return {
        "settings": settings or {},
        "inputs": places,
        "figures": figures or {},
        "output": {"path": hash_, "hash": f"hash of {hash_}"},
        "code": {"commit": "0123456789abcdef"},
    }


@pytest.fixture
def recap_run(tmp_path) -> Path:
    """Two rounds and a rival, whose task and instruction are hostile; round 1 is published."""
    run, task = tmp_path / "recap", f"suite/{HOSTILE}"
    judged = {
        "eval": {"rollouts_per_task": 2, "first_state": 0, "cfg_guidance_scale": 3.0, "n_video": 0},
        "task": {"benchmark_name": "suite", "task_names": [HOSTILE], "image_size": 64},
        "states": "heldout",
        "guidance": {task: 1.5},
    }
    reading = {"reading": {"task_ids": {HOSTILE: task}}}
    stages = {
        "demonstrations": stage("demonstrations", {"episodes": 7}),
        "sft": stage("sft", settings=reading, demonstrations="demonstrations"),
        "sft-evaluation": stage("sft-evaluation", settings=judged, policy="sft"),
    }
    for name, start in {
        "round-1": "sft",
        "round-2": "round-1/policy",
        "baseline-filtered/round-1": "sft",
    }.items():
        role = "sft" if "baseline" in name else "start"
        stages[f"{name}/rollouts"] = stage(f"{name}/rollouts", {"episodes": 9, "success": 0.5}, policy=start)
        stages[f"{name}/policy"] = stage(f"{name}/policy", **{role: start, "rollouts-1": f"{name}/rollouts"})
        stages[f"{name}/evaluation"] = stage(f"{name}/evaluation", settings=judged, policy=f"{name}/policy")
    for number, name in enumerate(name for name in stages if name.endswith("evaluation")):
        (run / name).mkdir(parents=True)
        write_evaluation(run / name / "evaluation", of_task(task, number > 0, number > 1))
    write_json(run / "recap_state.json", {"format": 1, "stages": stages})
    write_json(run / "results.json", {"format": 1, "config": {}, "published": "round 1"})
    config = {"algorithm": "recap", "policy_path": str(run / "no/where"), "plugins": ["my_package"]}
    (run / "experiment_cfg").mkdir()
    (run / "experiment_cfg/config.yaml").write_text(
        yaml.safe_dump({**config, "demonstrations": {"root": HOSTILE}})
    )
    for place in ("policy", "round-1/policy", "round-2/policy", "sft", "baseline-filtered/round-1/policy"):
        (run / place).mkdir(exist_ok=True)
    return run


def test_a_policy_of_recap_has_the_lineage_of_its_round(recap_run):
    origin = read_origin(recap_run / "policy")
    assert (origin.own, list(origin.evaluations)) == (
        "round 1",
        ["SFT", "round 1", "round 2", "filtered, round 1"],
    )
    assert [line.partition(" (")[0] for line in origin.lineage[:2]] == ["round 1", "SFT"]
    assert origin.lineage[2] == ".../no/where, which is not here now: what it comes from is not known"
    rows = origin.data_tables["Data sets that it or what it comes from was trained on"]
    assert [row[:3] for row in rows[1:]] == [["demonstrations", 7, None], ["round-1/rollouts", 9, "0.500"]]
    assert (
        read_origin(recap_run / "round-2/policy")
        .lineage[0]
        .startswith("round 2 (round-2/policy, SHA-256 hash of")
    )
    rival = read_origin(recap_run / "baseline-filtered/round-1/policy")
    assert (rival.own, rival.meanings["SFT"]) == ("filtered, round 1", "before the rounds, guidance 1")


def test_an_evaluation_of_other_weights_is_not_the_policys(recap_run, policy, tmp_path):
    state = json.loads((recap_run / "recap_state.json").read_text())
    state["stages"]["round-1/policy"]["output"]["hash"] = "another"
    write_json(recap_run / "recap_state.json", state)
    origin = read_origin(recap_run / "policy")
    assert (origin.own, origin.conditions) == (None, None)
    assert origin.missing == ()
    assert NO_SUCCESS in written(policy, origin, tmp_path / "card").text


def test_what_comes_from_data_stays_text(recap_run, policy, tmp_path):
    card = written(policy, read_origin(recap_run / "policy"), tmp_path / "card")
    assert card.data.eval_results[0].dataset_name == f"suite/{HOSTILE}"
    tokens = MarkdownIt("commonmark").enable("table").parse(card.text)
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert headings == [
        "press",
        *("Use", "The policy", "Lineage", "Data", "Success", "Settings", "Not known"),
    ]
    inline = [child for token in tokens for child in token.children or []]
    links = {child.attrs["href"] for child in inline if child.type == "link_open"}
    assert links == {"evaluation.json"}
    assert not [child for child in inline if child.type == "html_inline"]
    blocks = "".join(token.content for token in tokens if token.type == "html_block")
    assert blocks.split() == ["<details><summary>all", "others</summary>", "</details>"]
    (command,) = [token.content for token in tokens if token.type == "fence" and token.info == "bash"]
    words = shlex.split(command)
    assert words[words.index("--tasks") + 1] == f"suite/{HOSTILE}"
    assert words[words.index("--guidance") + 1] == "1.5"
    assert words[-4:] == ["--env-option", "image_size=64", "--plugins", "my_package"]


@pytest.mark.parametrize(
    "text", [HOSTILE, "- x", "1. x", "`", "``` `", "", "  ", "*a*_b_~~c~~", "&lt;", "=== "]
)
def test_markdown_shows_any_text_as_it_is(text):
    shown = MarkdownIt("commonmark").enable("table").render(escaped(text))
    assert shown.count("<") == (2 if text.strip() else 0), "anything but one paragraph"
    inside = MarkdownIt("commonmark").parse(f"{code_block(text)}\n\nafter it")
    assert [token.type for token in inside if token.type.endswith("_open") or token.type == "fence"] == [
        *("fence", "paragraph_open"),
    ]
    assert markdown_table([["a"], [text]]).count("\n") == 2
    assert markdown_table([["a"]]) == ""


def test_a_run_of_pi0_train_has_the_evaluation_of_its_step(tmp_path):
    run = tmp_path / "sft"
    settings = {
        "policy_path": "toy",
        "steps": 40,
        "policy": {"advantage": "use"},
        "dataset_mixture": {"datasets": [{"repo_id": "me/set"}, {"root": "/data/set"}], "weights": [2, 1]},
        "task": {"benchmark_name": "metaworld", "task_names": None},
        "eval": {"rollouts_per_task": 2, "first_state": 0, "cfg_guidance_scale": 1.0},
        "seed": 5,
    }
    for place in (run, run / "checkpoint-20-best-success_0.5"):
        (place / "experiment_cfg").mkdir(parents=True)
        (place / "experiment_cfg/config.yaml").write_text(yaml.safe_dump(settings))
    (run / "evaluations").mkdir()
    for step in (20, 40):
        write_evaluation(run / f"evaluations/step-{step}", of_task("metaworld/x", True, step > 20))
    final, best = read_origin(run), read_origin(run / "checkpoint-20-best-success_0.5")
    assert (final.own, best.own) == ("step 40", "step 20")
    assert (list(final.evaluations), list(best.evaluations)) == (["step 20", "step 40"], ["step 20"])
    assert final.hub_datasets == ("me/set",)
    rows = final.data_tables["Data sets"]
    assert [row[0] for row in rows[1:]] == ["me/set", ".../data/set"]
    assert final.conditions is not None
    assert final.conditions.seed == 0, "that of the file"
    assert final.base == "toy"
    later = tmp_path / "later"
    settings["policy_path"] = str(run / "checkpoint-20-best-success_0.5")
    (later / "experiment_cfg").mkdir(parents=True)
    (later / "experiment_cfg/config.yaml").write_text(yaml.safe_dump(settings))
    found = read_origin(later)
    assert [line.partition(": ")[0] for line in found.lineage] == [
        ".../sft/checkpoint-20-best-success_0.5",
        "a toy policy of random weights, which that run made and first trained",
    ]
    assert found.base == "toy"
    assert list(found.data_tables) == ["In the run sft: data sets", "Data sets"]
    assert "In the run sft: advantage of the frames: as labelled." in found.data
    settings["policy_path"] = str(run)  # a run that was overwritten by one that began with it
    (run / "experiment_cfg/config.yaml").write_text(yaml.safe_dump(settings))
    assert read_origin(run).lineage == (
        f"{'.../' + '/'.join(run.parts[-2:])}, a checkpoint that lies in no run",
    )


def test_damage_is_said_in_one_line(recap_run):
    (recap_run / "recap_state.json").write_text('{"stages": {"sft": 3}}')
    with pytest.raises(UnusableError, match="its files do not say what those of a run do"):
        read_origin(recap_run / "policy")
    (recap_run / "experiment_cfg/config.yaml").write_text("a: [")
    with pytest.raises(UnusableError, match=r"config\.yaml: damaged"):
        read_origin(recap_run / "policy")


def test_an_evaluation_by_pi0_eval_is_taken_if_it_is_of_the_policy(run, tmp_path):
    found, policy = tmp_path / "eval", run / "policy"
    write = {
        "policy_path": "base",
        "compare": str(policy),
        "suites": ["libero_spatial", "libero_goal"],
        "task": {"benchmark_name": "none", "task_names": None},
        "policy": {"n_action_steps": 5},
        "eval": {"rollouts_per_task": 2, "first_state": 0, "cfg_guidance_scale": 1.0, "states": None},
    }
    found.mkdir()
    with pytest.raises(UnusableError, match="expected a finished evaluation of pi0-eval"):
        with_evaluation(read_origin(policy), policy, found)
    write_json(found / "settings.json", write)
    write_evaluation(found / "evaluation", of_task("libero_goal/x", False, True))
    write_evaluation(found / "compared", of_task("libero_goal/x", True, True))
    origin = with_evaluation(read_origin(policy), policy, found)
    assert (origin.own, list(origin.evaluations)) == ("after", ["before", "after"])
    assert origin.meanings == {}, "before is not what training began with"
    assert origin.missing == ("what before is, beyond its name base",)
    assert origin.conditions is not None
    (command,) = origin.conditions.commands("me/it")
    assert "--env libero_spatial libero_goal --episodes 2" in command
    assert "--n-action-steps 5" in command
    with pytest.raises(UnusableError, match=r"--evaluation: .* is of base, .*, not of .*before.json"):
        with_evaluation(read_origin(policy), run / "before.json", found)
    write_json(found / "settings.json", {})
    with pytest.raises(UnusableError, match=r"settings\.json is damaged"):
        with_evaluation(read_origin(policy), policy, found)


def evaluated_by_pi0_eval(directory: Path, policy: Path, compare: Path | None = None, **options) -> Path:
    """Write what pi0-eval leaves behind, with guidance 2; return the directory."""
    directory.mkdir()
    settings = {
        "policy_path": str(policy),
        "compare": None if compare is None else str(compare),
        "task": {"benchmark_name": "suite", "task_names": None},
        "eval": {"rollouts_per_task": 2, "first_state": 0, "cfg_guidance_scale": 2.0},
        "options": options,
    }
    write_json(directory / "settings.json", settings)
    write_evaluation(directory / "evaluation", of_task("suite/x", True, False))
    if compare is not None:
        write_evaluation(directory / "compared", of_task("suite/x", True, True))
    return directory


def test_names_of_an_evaluation_mean_nothing_of_the_runs(run, policy, tmp_path):
    mine, other = run / "policy", tmp_path / "other"
    for number, found in enumerate(
        [
            evaluated_by_pi0_eval(tmp_path / "alone", mine),
            evaluated_by_pi0_eval(tmp_path / "both", other, mine),
        ]
    ):
        card = written(policy, with_evaluation(read_origin(mine), mine, found), tmp_path / f"card-{number}")
        assert "training began with" not in card.text
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/before.json").unlink()
    shutil.copytree(mine, tmp_path / "run/checkpoint-2/policy")
    assert read_origin(tmp_path / "run/checkpoint-2/policy").meanings == {}


def test_a_policy_in_no_run_that_was_evaluated_has_its_success(policy, tmp_path):
    policy.save_pretrained(tmp_path / "alone")
    found = evaluated_by_pi0_eval(tmp_path / "found", tmp_path / "alone")
    origin = with_evaluation(read_origin(tmp_path / "alone"), tmp_path / "alone", found)
    card = written(policy, origin, tmp_path / "card")
    known, _, unknown = card.text.partition("## Not known")
    assert "## Success" in known
    assert "lineage, data and settings" in unknown
    assert "success" not in unknown


def test_a_card_has_the_end_of_absolute_paths_alone(policy, tmp_path):
    policy.save_pretrained(tmp_path / "alone")
    options = {"assets": "/home/somebody/data/assets", "more": {"where": ["/home/somebody/x/y"]}}
    found = evaluated_by_pi0_eval(tmp_path / "found", tmp_path / "alone", **options)
    origin = with_evaluation(read_origin(tmp_path / "alone"), tmp_path / "alone", found)
    card = written(policy, origin, tmp_path / "card", "/home/somebody/exports/mine")
    assert "/home/somebody" not in card.content
    assert str(tmp_path) not in card.content
    assert 'from_pretrained(".../exports/mine")' in card.text
    (command,) = re.findall(r"^pi0-eval .*", card.text, re.MULTILINE)
    words = shlex.split(command)
    assert words[words.index("--policy") + 1] == ".../exports/mine"
    assert words[words.index("--env-option") + 1] == 'assets=".../data/assets"'
    assert "with whole paths for those that begin with .../" in card.text


def test_an_evaluation_of_another_policy_is_said_before_the_weights_are_read(
    run, tmp_path, monkeypatch, capsys
):
    found = evaluated_by_pi0_eval(tmp_path / "found", tmp_path / "other")
    monkeypatch.setattr(chosen_policy, "load_policy", None)  # would fail if it were called
    words = ["--evaluation", str(found), "--output", str(tmp_path / "new")]
    assert export_command.main([str(run / "policy"), *words]) == 2
    assert "evaluate this policy: pi0-eval --policy" in capsys.readouterr().err


def test_a_run_that_goes_on_has_the_policy_of_its_end_before(run, tmp_path):
    """Of the ladder: resumed with more iterations, and stopped before they were made."""
    again = tmp_path / "again"
    shutil.copytree(run, again)
    file = again / "experiment_cfg/config.yaml"
    config = yaml.safe_load(file.read_text())
    count = config["training"]["num_train_steps"]
    config["training"]["num_train_steps"] = count + 10
    config["policy_path"] = "somebody/else"
    file.write_text(yaml.safe_dump(config))
    for number in range(count + 2):
        append_row(again, {"iteration": number}, number)
    origin = read_origin(again / "policy")
    assert origin.method.endswith(f"after {count} iterations.")
    assert [row[0] for row in origin.data_tables["Rollouts by iteration"][1:]] == list(range(count))
    assert origin.settings["training"]["num_train_steps"] == count
    assert origin.base == "lerobot/pi0_base"


def trained_run(path: Path, steps: int, last_row: int | None = None, **facts) -> Path:
    """Write the settings of a run of pi0-train; of a checkpoint where facts of one are given."""
    settings = {
        "exp_name": "sft",
        "policy_path": "toy",
        "steps": steps,
        "policy": {},
        "dataset_mixture": {},
        "task": {},
        "eval": {},
    }
    (path / "experiment_cfg").mkdir(parents=True)
    (path / "experiment_cfg/config.yaml").write_text(yaml.safe_dump(settings))
    if last_row is not None:
        append_row(path, {"loss": 1.0}, last_row)
    if facts:
        write_json(path / "checkpoint.json", {"format": 1, **facts})
    return path


@pytest.mark.parametrize("name", ["best", "checkpoint-1000"])
@pytest.mark.parametrize("facts", [{"position": [500, 0]}, {"metric": "success", "value": 0.5, "step": 500}])
def test_a_checkpoint_that_was_copied_away_is_of_its_own_step(name, facts, tmp_path):
    origin = read_origin(trained_run(tmp_path / name, 1000, **facts))
    assert origin.method == "The policy of the run sft (supervised, pi0-train) at step 500, a checkpoint."


def test_the_step_of_a_policy_is_not_guessed(tmp_path):
    """Of a copy without checkpoint.json, and of a run that goes on and has not made its steps."""
    ended = read_origin(trained_run(tmp_path / "ended", 20, 20))
    assert ended.method.endswith("at step 20, the last one.")
    for origin in (
        read_origin(trained_run(tmp_path / "copy", 20)),
        read_origin(trained_run(tmp_path / "going on", 20, 12)),
    ):
        assert origin.method.endswith("at a step that its files do not say.")
        assert origin.missing == ("at which step of its run this policy was saved",)
