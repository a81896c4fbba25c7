"""`pi0-eval`: figures, files, comparison, the rollouts as a data set, and what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import METAWORLD, metaworld_policy, opened, toy_policy

from pi0 import PI0Policy
from pi0.ript import policy_evaluation, results
from pi0.ript.commands.evaluate import main
from pi0.ript.config import validation
from pi0.ript.config.schema import EnvironmentSettings, EvalSettings
from pi0.ript.data.records import EpisodeDataError, require_training_states
from pi0.ript.distributed import World
from pi0.ript.environments import WarmStart, get_environment
from pi0.ript.envs import BatchedEnv, make_suite
from pi0.ript.evaluate import Evaluation, compare, evaluate
from pi0.ript.evaluation_checks import require_usable
from pi0.ript.evaluation_settings import EvaluationConfig
from pi0.ript.policy_evaluation import _said_where_it_is, evaluate_policy
from pi0.ript.policy_settings import PolicySettings
from pi0.ript.rollout import GuidedPolicy
from pi0.ript.success_table import success_text

BUTTON, PLATE = METAWORLD
OPTIONS = {"max_episode_length": 20, "num_parallel_envs": 3}
ONE_TASK, SILENT = {"task_names": [BUTTON]}, {"n_video": 0}


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Two checkpoints, the second one of other weights."""
    directory = tmp_path_factory.mktemp("policies")
    policy = metaworld_policy()
    policy.save_pretrained(directory / "first")
    with torch.no_grad():
        policy.model.action_out_proj.weight.mul_(1.5)
    policy.save_pretrained(directory / "second")
    return directory


def settings(policies: Path, tmp_path: Path, task=(), eval=(), **changes) -> EvaluationConfig:  # noqa: A002
    """Return what is evaluated; `task` and `eval` are changes in these sections."""
    environment = {"task_names": [BUTTON, PLATE], "num_workers": 0, **OPTIONS, **dict(task)}
    values = {
        "policy_path": str(policies / "first"),
        "task": EnvironmentSettings("metaworld", **environment),
        "eval": EvalSettings(**{"rollouts_per_task": 2, "first_state": 3, **dict(eval)}),
        "device": "cpu",
        "output_dir": str(tmp_path / "eval"),
    }
    return EvaluationConfig(**values | changes)


def arguments(policies: Path, *extra: object) -> list[str]:
    fixed = ["--env", "metaworld", "--num-workers", "0", "--device", "cpu"]
    options = [word for key, value in OPTIONS.items() for word in ("--env-option", f"{key}={value}")]
    return ["--policy", str(policies / "first"), *fixed, *options, *map(str, extra)]


def heldout(metaworld):
    return [s for task in METAWORLD for s in metaworld.initial_states(task, "heldout", range(3, 5))]


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_one_policy(policies, tmp_path, metaworld, capsys):
    output = tmp_path / "eval"
    argv = arguments(policies, "--tasks", BUTTON, PLATE, "--episodes", 2, "--first-state", 3)
    assert main([*argv, "--output", str(output)]) == 0
    policy = PI0Policy.from_pretrained(policies / "first")
    expected = evaluate(metaworld, GuidedPolicy(policy), heldout(metaworld))
    assert Evaluation.from_dict(read(output / "evaluation.json")) == expected
    assert (output / "evaluation.mp4").stat().st_size > 0
    assert read(output / "settings.json")["policy_path"] == str(policies / "first")
    assert not (output / "comparison.json").exists()
    table = success_text({"policy": expected})
    legend = f"policy: {policies / 'first'}; held-out states"
    device = "device: cpu (as the settings ask)"
    assert capsys.readouterr().out == f"{device}\n{legend}\n{table}\nresults: {output}\n"
    assert "[0.0, 49.0]" in table, "Wilson's interval of 0 of 4"
    page = (output / "report.html").read_text()
    assert legend in page
    assert re.findall(r"<td>([^<]*)</td><td>(\d/\d) ", page) == [
        (f"metaworld/{BUTTON}", "0/2"),
        (f"metaworld/{PLATE}", "0/2"),
        ("all", "0/4"),
    ]
    assert 'src="evaluation.mp4"' in page
    assert "<summary>settings.json</summary>" in page


def test_two_policies_on_the_same_states(policies, tmp_path, capsys):
    chosen = settings(
        policies, tmp_path, eval=SILENT | {"cfg_guidance_scale": 2.0}, compare=str(policies / "second")
    )
    before, after = evaluate_policy(chosen)
    assert [e.state for e in before.episodes] == [e.state for e in after.episodes]
    found = read(tmp_path / "eval/comparison.json")
    assert found["before"] == {"policy": chosen.policy_path, **before.to_dict()}
    assert found["after"] == {"policy": chosen.compare, **after.to_dict()}
    assert found["comparison"] == json.loads(json.dumps(asdict(compare(before, after))))
    assert list(found["tasks"]) == [f"metaworld/{task}" for task in (BUTTON, PLATE)]
    assert Evaluation.from_dict(read(tmp_path / "eval/compared.json")) == after
    assert not list(tmp_path.rglob("*.mp4"))
    legend = f"before: {chosen.policy_path}; after: {chosen.compare}; held-out states"
    assert f"{legend}\n{success_text({'before': before, 'after': after})}" in capsys.readouterr().out
    page = (tmp_path / "eval/report.html").read_text()
    assert legend in page
    assert f"<td>all</td><td>after</td><td>{after}</td><td>{compare(before, after)}</td>" in page


def test_the_rollouts_become_a_data_set_of_the_same_episodes(policies, tmp_path):
    plain = evaluate_policy(settings(policies, tmp_path, task=ONE_TASK))[0]
    root = tmp_path / "rollouts"
    judged = {"recording_root": str(root), "states": "heldout"}
    kept = evaluate_policy(settings(policies, tmp_path, task=ONE_TASK, eval=judged))[0]
    assert kept == plain
    assert [r.initial_state.index for r in kept.recorded] == [3]
    episodes = opened(root)
    assert [labels.initial_state_hash for labels in episodes.labels] == [e.state for e in plain.episodes]
    assert [labels.success for labels in episodes.labels] == [e.success for e in plain.episodes]
    assert list(episodes.lengths) == [e.num_steps for e in plain.episodes]
    assert episodes.fps == 40
    assert len({labels.source for labels in episodes.labels}) == 1
    assert episodes.collection["origin"]["source"].startswith("policy:")
    with pytest.raises(EpisodeDataError, match=r"rollouts begin from held-out states.*or set allow=true"):
        require_training_states(root, "allow=true")


# Interrupted --------------------------------------------------------------------------------------------


@pytest.fixture
def begun(monkeypatch):
    """The hashes of the initial states from which episodes begin in this process."""
    hashes, send = [], BatchedEnv.send

    def counted(env, states, *others):
        hashes.extend(state.hash for state in states.values())
        return send(env, states, *others)

    monkeypatch.setattr(BatchedEnv, "send", counted)
    return hashes


def interrupted(chosen: EvaluationConfig, after: int) -> set[str]:
    """Evaluate until Ctrl+C after so many inferences; return the finished states' hashes, shortened."""
    chunks, made = GuidedPolicy.chunks, []

    def chunks_or_interrupt(*args):
        made.append(1)
        if len(made) > after:
            raise KeyboardInterrupt
        return chunks(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GuidedPolicy, "chunks", chunks_or_interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluate_policy(chosen)
    return {file.stem.split("-")[0] for file in (Path(chosen.output_dir) / "episodes").rglob("*.npz")}


@pytest.mark.parametrize("store", ["journal", "dataset"])
def test_after_a_kill_the_same_command_goes_on_and_runs_no_episode_twice(
    policies, tmp_path, metaworld, begun, capsys, store
):
    kept = {"journal": "whole/episodes/*/*.npz", "dataset": "dataset.partial/*.parquet"}[store]
    split = {"journal": "heldout", "dataset": "train"}[store]
    recording = ["--recording-root", tmp_path / "dataset"] * (store == "dataset")
    argv = arguments(policies, "--episodes", 9, "--videos", 2, *recording, "--output", tmp_path / "whole")
    process = subprocess.Popen(
        [sys.executable, "-m", "pi0.ript.commands.evaluate", *argv],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while not list(tmp_path.glob(kept)):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.kill()
    process.communicate()
    there = len(list(tmp_path.glob(kept)))
    assert 0 < there < 9

    assert main(argv) == 0
    assert f"{there} of 9 episodes are there already" in capsys.readouterr().out
    assert len(begun) == 9 - there
    states = metaworld.initial_states(BUTTON, split, range(9))
    policy = PI0Policy.from_pretrained(policies / "first")
    expected = evaluate(metaworld, GuidedPolicy(policy), states)
    assert Evaluation.from_dict(read(tmp_path / "whole/evaluation.json")) == expected
    assert (tmp_path / "whole/evaluation.mp4").stat().st_size > 0
    assert not (tmp_path / "whole/episodes").exists()
    if store == "dataset":
        assert list(opened(tmp_path / "dataset").lengths) == [e.num_steps for e in expected.episodes]


def test_more_episodes_go_on_from_those_that_are_there(policies, tmp_path, begun):
    there = interrupted(settings(policies, tmp_path, eval=SILENT), after=6)
    assert there
    begun.clear()
    (evaluation,) = evaluate_policy(settings(policies, tmp_path, eval={"rollouts_per_task": 3}))
    shown = {episode.state[:16] for episode in evaluation.episodes[::3]}
    again = {state[:16] for state in begun}
    assert again & there <= shown, "whose pictures were not asked for before"
    assert len(again | there) == 6


@pytest.mark.parametrize("change", ["weights", "guidance"])
def test_another_policy_or_other_settings_begin_anew(policies, tmp_path, begun, capsys, change):
    shutil.copytree(policies / "first", tmp_path / "policy")
    chosen = settings(policies, tmp_path, policy_path=str(tmp_path / "policy"))
    assert interrupted(chosen, after=4)
    begun.clear()
    if change == "weights":
        shutil.copytree(policies / "second", tmp_path / "policy", dirs_exist_ok=True)
    else:
        chosen = replace(chosen, eval=replace(chosen.eval, cfg_guidance_scale=0.0))
    evaluate_policy(chosen)
    assert len(begun) == 4
    said = capsys.readouterr().out
    assert ("of other weights or another version; beginning anew" in said) == (change == "weights")
    assert bool(list((tmp_path / "eval.1").rglob("*.npz"))) == (change == "guidance"), "kept, moved aside"


def test_pictures_and_recording_are_of_one_run(policies, tmp_path, begun):
    root = tmp_path / "rollouts"
    (evaluation,) = evaluate_policy(
        settings(policies, tmp_path, eval={"recording_root": str(root), "n_video": 2})
    )
    assert sorted(begun) == sorted(e.state for e in evaluation.episodes), "each is simulated once"
    for shown, episode in zip(evaluation.recorded, opened(root), strict=True):
        assert shown.images.keys() == episode.images.keys()
        for camera, frames in episode.images.items():
            np.testing.assert_array_equal(shown.images[camera], frames)


def test_a_data_set_names_its_robot_and_stores_its_images_as_demonstrations_do(policies, tmp_path):
    root = tmp_path / "rollouts"
    evaluate_policy(settings(policies, tmp_path, task=ONE_TASK, eval={"recording_root": str(root)}))
    described = read(root / "meta/collection.json")
    info = WarmStart("metaworld", (BUTTON,), "hesitating").demonstrations().info()
    for key in ("robot_type", "storage", "fps"):
        assert described[key] == getattr(info, key)
    libero = make_suite("libero").tasks()[0]
    assert libero.robot == "panda"
    assert WarmStart("libero", (libero.name,), "hesitating").demonstrations().storage == "video"


def test_a_toy_is_trained_when_asked_for(policies, tmp_path, monkeypatch):
    asked = []

    def warm_start(spec, cache, **changes):
        asked.append((spec.tasks, changes["indicator"]))
        return metaworld_policy()

    monkeypatch.setattr(policy_evaluation, "warm_start", warm_start)
    chosen = settings(policies, tmp_path, task=ONE_TASK, policy_path="toy")
    assert evaluate_policy(chosen)[0].num_episodes == 2
    assert asked == [((BUTTON,), "embedding")]


def test_a_file_may_change_the_policy(policies, tmp_path, monkeypatch):
    acting = []

    def guided(policy, guidance):
        acting.append(policy.config.n_action_steps)
        return GuidedPolicy(policy, guidance)

    monkeypatch.setattr(policy_evaluation, "GuidedPolicy", guided)
    chosen = settings(policies, tmp_path, task=ONE_TASK, eval=SILENT)
    for policy in (PolicySettings(), PolicySettings(n_action_steps=2)):
        evaluate_policy(replace(chosen, policy=policy))
    assert acting == [8, 2]


@pytest.mark.slow
def test_two_processes_give_what_one_gives(policies, tmp_path):
    alone = evaluate_policy(
        settings(policies, tmp_path, task=ONE_TASK, eval={"rollouts_per_task": 3, "first_state": 0})
    )[0]
    output = tmp_path / "two"
    given = arguments(policies, "--episodes", 3, "--output", output, "--videos", 0)
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(20000 + (os.getpid() + 1) % 20000),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "pi0.ript.commands.evaluate", *given],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    texts = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    assert Evaluation.from_dict(read(output / "evaluation.json")) == alone
    assert len(read(output / "evaluation.json")["episodes"]) == 3
    assert "results:" in texts[0][0]
    assert texts[1][0] == ""


# What is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--policy", "nowhere"], "--policy: nothing at 'nowhere'; expected a pi0 checkpoint directory"),
        (["--compare", "nowhere"], "--compare: nothing at 'nowhere'"),
        (["--env", "metaword"], "did you mean 'metaworld'?"),
        (["--tasks", "buton-press-v3"], "did you mean 'button-press-v3'"),
        (["--tasks", "99"], "expected a number from 0 to 49, found 99"),
        (["--env", "metaworld", "--env-option", "image_sice=3"], "did you mean 'image_size'?"),
        (["--env-option", "image_size"], "--env-option: expected KEY=VALUE, found 'image_size'"),
        (["--env-option", "task_names=1"], "--env-option: task_names has an option of its own, --tasks"),
        (["--episodes", "0"], "--episodes: expected at least 1, found 0"),
        (["--first-state", "-1"], "--first-state: expected 0 or more, found -1"),
        (["--device", "cuda:63"], "--device: 'cuda:63' is not there"),
    ],
)
def test_unusable_arguments(policies, tmp_path, capsys, extra, message):
    assert main([*arguments(policies), "--output", str(tmp_path / "eval"), *extra]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("pi0-eval: error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "eval").exists(), "refused before anything is written"


def test_a_directory_that_another_process_writes_to(policies, tmp_path, capsys, monkeypatch):
    results.lock_directory(tmp_path / "eval")
    monkeypatch.setattr(results, "_locks", {})  # of another process
    assert main([*arguments(policies), "--output", str(tmp_path / "eval")]) == 2
    assert re.search(r"^pi0-eval: error: .*eval is being written by process \d+ on ", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_keys": ("observation.images.wrist",)}, "cameras: the policy takes ['wrist']"),
        ({"action_dim": 3}, "action: expected float32 (3,), found float32 (4,)"),
    ],
)
def test_a_policy_of_another_robot(tmp_path, capsys, changes, message):
    metaworld_policy(changes).save_pretrained(tmp_path / "policy")
    assert main(["--policy", str(tmp_path / "policy"), "--env", "metaworld", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert ("data_features_name_mapping says null" in error) == ("cameras" in message)


def test_the_remedy_for_other_cameras_is_an_option_that_is_there(tmp_path, capsys, monkeypatch):
    """Renaming LIBERO's cameras, in words of options or of a file; each is then taken."""
    # As far as no simulator is needed.
    monkeypatch.setattr(policy_evaluation, "evaluate_policy", require_usable)
    monkeypatch.setattr(
        type(get_environment("libero_object").suite()), "check", lambda *_: None
    )  # nor are assets
    names = ("observation.images.front", "observation.images.wrist")
    features = {"image_keys": names, "state_dim": 8, "action_dim": 7, "state_normalization": "identity"}
    toy_policy(features).save_pretrained(tmp_path / "policy")
    options = [f"--policy={tmp_path / 'policy'}", "--env", "libero_object", "--tasks", "0", "--device", "cpu"]
    file = tmp_path / "rollouts.json"
    file.write_text(json.dumps({"policy_path": str(tmp_path / "policy"), "env": {"suite": "libero_object"}}))
    of_file = [f"--config_path={file}", "--device=cpu"]
    for words, said, option in (
        (
            options,
            "with --env-option camera_names=..., third",
            ["--env-option", "camera_names=[front,wrist]"],
        ),
        (of_file, "with task.camera_names, third", ["--task.camera_names=[front,wrist]"]),
    ):
        assert main(words) == 2
        assert said in capsys.readouterr().err
        assert main([*words, *option]) == 0, capsys.readouterr().err


def test_a_policy_with_an_absent_camera_is_evaluated(tmp_path, capsys):
    cameras = ("observation.images.front", "observation.images.right_wrist_0_rgb")
    metaworld_policy({"image_keys": cameras, "absent_cameras": cameras[1:]}).save_pretrained(
        tmp_path / "policy"
    )
    small = ("max_episode_length=3", "num_parallel_envs=1")
    options = [word for option in small for word in ("--env-option", option)]
    words = ["--policy", str(tmp_path / "policy"), "--env", "metaworld", "--tasks", "button-press-v3"]
    more = ["--episodes", "1", "--videos", "0", "--num-workers", "0", "--device", "cpu"]
    assert main([*words, *more, *options, "--output", str(tmp_path / "eval")]) == 0, capsys.readouterr().err
    assert read(tmp_path / "eval/evaluation.json")["num_episodes"] == 1


def test_guidance_needs_an_indicator(tmp_path, capsys):
    metaworld_policy(indicator="none").save_pretrained(tmp_path / "policy")
    argv = ["--policy", str(tmp_path / "policy"), "--env", "metaworld", "--device", "cpu", "--guidance", "2"]
    assert main(argv) == 2
    assert "--guidance: expected 1 for" in capsys.readouterr().err


def test_an_instruction_that_the_policy_cannot_read(policies, tmp_path, capsys):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/evaluation.json").write_text("an earlier one")
    argv = arguments(policies, "--tasks", "drawer-open-v3", "--output", tmp_path / "eval")
    assert main(argv) == 2
    assert "pi0-eval: error: " in capsys.readouterr().err
    assert (tmp_path / "eval/evaluation.json").read_text() == "an earlier one", "nothing is moved aside"


def test_a_benchmark_has_so_many_states(monkeypatch, policies, tmp_path, capsys):
    monkeypatch.setattr(validation, "get_environment", few_states(validation.get_environment))
    argv = arguments(policies, "--episodes", 6, "--first-state", 5, "--output", tmp_path / "eval")
    assert main(argv) == 2
    assert "metaworld has 10 held-out states per task, found first_state=5 and" in capsys.readouterr().err


def few_states(get_environment):
    from pi0.ript.environments import Environment

    class Few(Environment):
        num_heldout = 10

    return lambda *names, **options: Few(**vars(get_environment(*names, **options)))


def test_recording_is_of_one_policy_and_into_a_new_directory(policies, tmp_path, capsys):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/file").touch()
    argv = arguments(policies, "--output", tmp_path / "eval", "--recording-root")
    assert main([*argv, str(tmp_path / "old")]) == 2
    assert "old exists already; choose another directory" in capsys.readouterr().err
    assert main([*argv, str(tmp_path / "new"), "--compare", str(policies / "second")]) == 2
    assert "one policy's rollouts make a data set" in capsys.readouterr().err


# Which guidance ------------------------------------------------------------------------------------------


def test_several_guidances_are_tried_on_validation_states_and_one_is_to_be_taken(
    policies, tmp_path, metaworld, capsys
):
    PI0Policy.from_pretrained(policies / "first", changes={"indicator": "embedding"}).save_pretrained(
        tmp_path / "guided"
    )
    argv = arguments(policies, "--tasks", BUTTON, "--episodes", 2, "--videos", 0, "--guidance", "2,0,2")
    argv[1] = str(tmp_path / "guided")
    assert main([*argv, "--output", str(tmp_path / "eval")]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'guided'} acts with each guidance; validation states" in said
    assert re.search(r"^guidance 2 +0/2 0\.0% \[0\.0, 65\.8\]\s", said, re.MULTILINE)
    assert "to take: guidance 0, 0/2 0.0% [0.0, 65.8] (most successes; of equal ones the smallest)" in said
    choice = read(tmp_path / "eval/choice.json")
    assert (choice["guidance"], choice["states"], list(choice["evaluations"])) == (
        0.0,
        "validation",
        ["2", "0"],
    )
    for name in ("2", "0"):
        of_file = read(tmp_path / f"eval/guidance-{name}.json")
        assert of_file["episodes"] == choice["evaluations"][name]["episodes"]
    assert [e["state"] for e in choice["evaluations"]["0"]["episodes"]] == [
        state.hash for state in metaworld.initial_states(next(iter(metaworld.tasks)), "validation", range(2))
    ]
    assert "to take: guidance 0" in (tmp_path / "eval/report.html").read_text()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            ["--guidance", "1,x"],
            "--guidance: expected numbers of 0 or more with commas between them, found '1,x'",
        ),
        (["--guidance", "1,1"], "--guidance: expected two or more numbers of 0 or more, found [1.0]"),
        (
            ["--guidance", "1,2", "--compare", "{}"],
            "--guidance: a choice is made for one policy alone; leave out compare",
        ),
    ],
)
def test_a_choice_of_guidance_that_cannot_be_made(policies, tmp_path, capsys, extra, message):
    extra = [word.format(policies / "second") for word in extra]
    assert main([*arguments(policies), "--output", str(tmp_path / "eval"), *extra]) == 2
    assert message in capsys.readouterr().err


def test_evaluations_whose_names_have_a_point_are_files_of_their_own(tmp_path):
    from pi0.ript.evaluate import EpisodeResult, Evaluation
    from pi0.ript.results import read_evaluation, write_evaluation

    counts = {"guidance-1": 1, "guidance-1.5": 2, "guidance-2": 3}
    for name, count in counts.items():
        episodes = tuple(EpisodeResult("a", str(i), i < count, 8) for i in range(4))
        write_evaluation(tmp_path / name, Evaluation(0, episodes))
    read = {name: read_evaluation(tmp_path / f"{name}.json").num_successes for name in counts}
    assert read == counts


def test_an_error_that_another_process_has_for_itself_is_said_by_it(capsys):
    for rank in range(2):
        with pytest.raises(ValueError, match="none of mine"), _said_where_it_is(World(rank, 2)):
            raise ValueError("none of mine")
    assert capsys.readouterr().err == "pi0-eval: error: rank 1: none of mine\n"
