"""`pi0-eval --suites`: published weights on LIBERO's suites, in small; no simulator but in the slow test."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from libero_standin import (
    CAMERAS,
    NOBODYS,
    NoSimulator,
    instructions,
    lerobot_directory,
    openpi_directory,
    small_pi0,
)
from test_checkpoint import episode

from pi0.ript import evaluation_plan, policy_evaluation
from pi0.ript.commands.evaluate import main
from pi0.ript.config.loading import load_config_from_yaml
from pi0.ript.environments import FOUR_SUITES
from pi0.ript.envs import BatchedEnv, make_suite
from pi0.ript.envs.libero_suite import LiberoSuite
from pi0.ript.evaluate import EpisodeResult, Evaluation
from pi0.ript.evaluation_plan import EvaluationPace
from pi0.ript.evaluation_settings import EvaluationConfig
from pi0.ript.published import FOLDER, PublishedSuccess, published_file
from pi0.ript.rollout import GuidedPolicy
from pi0.ript.suite_table import suite_rows

FILES = sorted(FOLDER.glob("*.yaml"))
NAME = "lerobot/pi0_libero_finetuned"


@pytest.fixture
def no_simulator(monkeypatch):
    monkeypatch.setattr(LiberoSuite, "check", lambda *_: None)
    monkeypatch.setattr(LiberoSuite, "make", lambda suite, task: NoSimulator(task, suite))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    directory = tmp_path_factory.mktemp("published") / "weights"
    small_pi0().save_pretrained(directory)
    return directory


@pytest.fixture
def hub(weights, monkeypatch):
    """What was asked of the hub, which has the weights under every name."""
    asked = []

    def download(repository, revision, **_):
        asked.append((repository, revision))
        return str(weights)

    monkeypatch.setattr("pi0.pretrained.snapshot_download", download)
    return asked


def words(tmp_path: Path, *more: object) -> list[str]:
    """One episode of every task, in this process."""
    fixed = ["--device", "cpu", "--num-workers", "0", "--videos", "0", "--output", tmp_path / "eval"]
    return [str(word) for word in (*fixed, *more)]


def few(*more: object, steps: int = 10) -> tuple[object, ...]:
    """Episodes that are soon over, with images of 32 pixels; no longer as published."""
    options = {"max_episode_length": steps, "image_size": 32, "render_size": 32, "num_parallel_envs": 2}
    return (*more, *(word for key, x in options.items() for word in ("--env-option", f"{key}={x}")))


def read(path: Path) -> dict:
    return json.loads(path.read_text())


# Results ------------------------------------------------------------------------------------------------


def test_all_suites_are_evaluated_beside_what_was_published(tmp_path, no_simulator, hub, monkeypatch, capsys):
    monkeypatch.setattr(
        GuidedPolicy, "chunks", lambda _, seen, *more: np.zeros((len(seen), 10, 7), np.float32)
    )
    argv = words(tmp_path, "--policy", NAME, "--suites", "all", "--episodes", 2)
    assert main(argv) == 0, capsys.readouterr().err
    said, output = capsys.readouterr().out, tmp_path / "eval"
    assert set(hub) == {(NAME, None)}
    # The suites' own deadlines and images, and the published number of executed actions.
    for suite, deadline in zip(FOUR_SUITES, (220, 280, 300, 520), strict=True):
        plan = f"plan: {suite}: 10 tasks x 2 episodes of up to {deadline} steps, images of 224 pixels"
        assert plan in said
    assert "plan: 80 episodes of up to 26400 steps, 8 at a time" in said
    assert (
        said.index("plan: 80 episodes")
        < said.index("plan: memory of a process: weights ")
        < said.index("plan: at most ")
    )
    assert "10 actions in 8 episodes take" in said
    assert "GB are available" in said
    assert said.index("after 8 episodes; about ") < said.index(
        "libero_spatial: 10/20 50.0% [29.9, 70.1]; about "
    )
    record = read(output / "suites.json")["policy"]
    assert list(record) == list(FOUR_SUITES)
    assert {(x["num_successes"], x["num_episodes"]) for x in record.values()} == {(10, 20)}
    assert [(x["success"], x["agrees"]) for x in record["libero_goal"]["published"]] == [(90.0, False)]
    spatial = record["libero_spatial"]["published"]
    assert [(x["success"], x["n_action_steps"], x["agrees"]) for x in spatial] == [(69.0, 50, None)]
    row = r"^libero_goal +10/20 50\.0% \[29\.9, 70\.1\] +90\.0% \(10 actions a chunk\) +no +https://github"
    assert re.search(row, said, re.MULTILINE)
    assert re.search(r"^libero_10 .* 35\.0% .* other settings ", said, re.MULTILINE)
    whole = Evaluation.from_dict(read(output / "evaluation.json"))
    assert (whole.num_successes, whole.num_episodes, len(whole.by_task())) == (40, 80, 40)
    for suite in FOUR_SUITES:
        part = read(output / f"evaluation-{suite}.json")
        assert part["episodes"] == [
            e for e in whole.to_dict()["episodes"] if e["task"].startswith(f"{suite}/")
        ]
    page = (output / "report.html").read_text()
    assert "Suites, policy" in page
    assert "issues/2156" in page
    assert not (output / "episodes").exists()


def test_what_is_finished_is_not_done_again_after_a_kill(tmp_path, no_simulator, hub, monkeypatch, capsys):
    begun, made, send, chunks = [], [], BatchedEnv.send, GuidedPolicy.chunks

    def counted(env, states, *others):
        begun.extend(state.hash for state in states.values())
        return send(env, states, *others)

    def chunks_or_interrupt(*args):
        made.append(1)
        if len(made) == 52:
            raise KeyboardInterrupt
        return chunks(*args)

    monkeypatch.setattr(BatchedEnv, "send", counted)
    monkeypatch.setattr(evaluation_plan, "measured_round", lambda *_: (3.0, 1.5))
    monkeypatch.setattr(GuidedPolicy, "chunks", chunks_or_interrupt)
    suites, short = ("--env", "libero_spatial", "libero_goal"), few("--episodes", 2, steps=20)
    argv = words(tmp_path, "--policy", NAME, *suites, *short)
    assert main(argv) == 130
    output = tmp_path / "eval"
    assert (output / "evaluation-libero_spatial.json").exists()
    kept = {file.stem.split("-")[0] for file in (output / "episodes").glob("policy-libero_goal-*/*.npz")}
    assert 0 < len(kept) < 20
    # 20 episodes of 2 chunks in 2 slots are 20 rounds, and at the end one slot may be the last; in each suite
    assert (
        "plan: at most about 3.1 min: 10 actions in 2 episodes take 3 s of inference and 1.5 s of"
        in capsys.readouterr().out
    )

    monkeypatch.setattr(GuidedPolicy, "chunks", chunks)
    begun.clear()
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "libero_spatial: finished already" in said
    assert f"{len(kept)} of 20 episodes are there already" in said
    assert len(begun) == 20 - len(kept)
    assert not {state[:16] for state in begun} & kept
    assert read(output / "suites.json")["policy"]["libero_spatial"]["num_successes"] == 10
    assert {row["agrees"] for row in read(output / "suites.json")["policy"]["libero_goal"]["published"]} == {
        None
    }


def test_other_weights_do_not_count_as_finished(tmp_path, no_simulator, monkeypatch, capsys):
    small_pi0().save_pretrained(tmp_path / "weights")
    options = few("--episodes", 1, "--tasks", 0)
    argv = words(tmp_path, "--policy", tmp_path / "weights", "--suites", "libero_10", "libero_goal", *options)
    write, files = policy_evaluation.write_evaluation, []

    def interrupted(path, evaluation):
        write(path, evaluation)
        files.append(path.name)
        if len(files) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(policy_evaluation, "write_evaluation", interrupted)
    assert main(argv) == 130
    other = small_pi0()
    other.model.action_out_proj.bias.data.add_(1.0)
    shutil.rmtree(tmp_path / "weights")
    other.save_pretrained(tmp_path / "weights")
    monkeypatch.undo()
    monkeypatch.setattr(LiberoSuite, "check", lambda *_: None)
    monkeypatch.setattr(LiberoSuite, "make", lambda suite, task: NoSimulator(task, suite))
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "finished already" not in said
    assert said.count("of other weights or another version; beginning anew") == 2


def test_two_policies_are_compared_on_the_states_of_all_suites(weights, tmp_path, no_simulator):
    other = small_pi0()
    other.save_pretrained(tmp_path / "other")
    options = few("--episodes", 1, "--tasks", 0, 1)
    suites = ("--suites", "libero_10", "libero_object", "--compare", tmp_path / "other")
    assert main(words(tmp_path, "--policy", weights, *suites, *options)) == 0
    assert read(tmp_path / "eval/comparison.json")["comparison"]["num_episodes"] == 4
    assert list(read(tmp_path / "eval/suites.json")) == ["format", "before", "after"]


def test_a_figure_agrees_if_it_lies_in_the_interval():
    episodes = tuple(EpisodeResult("libero_10/t", str(i), i < 80, 5) for i in range(100))
    found = {"libero_10": Evaluation(0, episodes)}  # 80 of 100: [71.1, 86.7]
    figures = [
        PublishedSuccess("libero_10", success, horizon, 500, "somewhere")
        for success, horizon in ((86.6, 5), (86.8, 5), (80.0, 10))
    ]
    assert [row.agrees for row in suite_rows(found, figures, 5)] == [True, False]
    assert [row.agrees for row in suite_rows(found, figures, 10)] == [True]
    assert [row.agrees for row in suite_rows(found, figures, None)] == [None] * 3
    assert [row.published for row in suite_rows(found, [], 5)] == [None]


def test_the_time_left_is_told_from_what_episodes_took(monkeypatch):
    """Rounds of 2 s; so far episodes have taken half of their deadlines."""
    said, now = [], iter([0.0, 2.0, 4.0, 6.0])
    monkeypatch.setattr(evaluation_plan.time, "monotonic", lambda: next(now))
    pace = EvaluationPace({"a": [300], "b": [300] * 9}, said.append, _chunk=50, _num_slots=4)
    still = np.zeros((1, 1, 7), np.float32)
    timed = pace.timed(evaluation_plan.FunctionPolicy(lambda *_: still))
    for _ in range(4):
        timed.chunks([], [], [], [])
    pace._steps, pace._most_steps = 12, 24
    pace.finish("a", "a: 1/2")
    pace.finish("b", "b: 2/2")
    # 9 episodes of 6 chunks in 4 slots: 3 after each other in one, so 18 rounds
    assert said == ["a: 1/2; about 0.3 min left, at most about 0.6 min", "b: 2/2"]


# Forms of checkpoints -----------------------------------------------------------------------------------


def config_file(tmp_path: Path, published: str, sizes: str) -> Path:
    """The file of a published checkpoint, for weights in small."""
    file = tmp_path / published
    text = (FOLDER / published).read_text()
    file.write_text(text.replace("policy:\n", f"policy:\n  config: {sizes}\n", 1))
    return file


def of_file(tmp_path: Path, file: Path, weights: Path) -> list[str]:
    small = ["suites=[libero_object]", "eval.rollouts_per_task=1", "eval.n_video=0", "task.num_workers=0"]
    few = [
        "task.max_episode_length=10",
        "task.task_names=[0]",
        f"output_dir={tmp_path / 'eval'}",
        "device=cpu",
    ]
    keys = [f"--{word}" for word in (*small, *few)]
    return [f"--config_path={file}", f"--policy_path={weights}", *keys]


def test_lerobots_form(tmp_path, no_simulator, monkeypatch, capsys):
    sizes = lerobot_directory(tmp_path / "weights", small_pi0())
    names = {file.name for file in (tmp_path / "weights").iterdir()}
    assert {"config.json", "model.safetensors", "policy_preprocessor.json"} <= names
    assert "pi0_config.json" not in names
    assert list(read(tmp_path / "weights/config.json")["input_features"])[:3] == [*CAMERAS, NOBODYS]
    file = config_file(tmp_path, "lerobot_pi0_libero_finetuned.yaml", sizes)
    assert main(of_file(tmp_path, file, tmp_path / "weights")) == 0, capsys.readouterr().err
    assert read(tmp_path / "eval/suites.json")["policy"]["libero_object"]["num_episodes"] == 1


def test_openpis_form_brings_its_cameras(tmp_path, no_simulator, monkeypatch, capsys):
    """With its file, and without: then the cameras' names are openpi's, and one flag is to be given."""
    sizes = openpi_directory(tmp_path / "weights", small_pi0())
    tokenizer = small_pi0().tokenizer
    monkeypatch.setattr("pi0.pretrained.PromptTokenizer.from_pretrained", lambda *_: tokenizer)
    file = config_file(tmp_path, "openpi_pi0_libero.yaml", sizes)
    argv = of_file(tmp_path, file, tmp_path / "weights")
    assert main(argv) == 0, capsys.readouterr().err
    monkeypatch.setattr("pi0.openpi_format.read_config", lambda *_: small_pi0().config)
    plain = ["--policy", tmp_path / "weights", "--env", "libero_object", *few("--episodes", 1, "--tasks", 0)]
    assert main(words(tmp_path, *plain)) == 2
    assert "--extra-delta-transform, --no-extra-delta-transform" in capsys.readouterr().err
    assert main(words(tmp_path, *plain, "--extra-delta-transform")) == 0, capsys.readouterr().err


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_published_file_names_policy_horizon_cameras_and_sources(file):
    config = load_config_from_yaml(file, schema=EvaluationConfig)
    assert config.suites == list(FOUR_SUITES)
    assert config.policy.n_action_steps in (5, 10)
    assert len(config.task.camera_names or ()) == 2
    assert config.published
    assert {figure.suite for figure in config.published} <= set(FOUR_SUITES)
    assert all(figure.source.startswith("https://") for figure in config.published)
    is_openpi = file.stem.startswith("openpi")
    assert (config.policy.extra_delta_transform is not None) == is_openpi
    assert is_openpi or published_file(config.policy_path.partition("@")[0]) == file
    text = file.read_text()
    assert all(f"# {word}:" in text for word in ("Revision", "Statistics", "Cameras", "Horizon"))


def test_a_figure_without_a_source_is_refused():
    with pytest.raises(ValueError, match="published: expected suite, success"):
        PublishedSuccess("libero_10", 85.2, 5)


def test_the_revision_is_what_the_file_or_the_user_names(tmp_path, no_simulator, hub):
    measured = "45dcc8fc0e02601c8ccf0554fbd1d26a55070c1f"
    small = few("--env", "libero_goal", "--tasks", 0, "--episodes", 1)
    for policy, revision in ((f"{NAME}_v044", measured), (f"{NAME}_v044@other", "other"), (NAME, None)):
        hub.clear()
        assert main(words(tmp_path, "--policy", policy, *small)) == 0
        assert set(hub) == {(policy.partition("@")[0], revision)}


# What is refused, before anything is loaded ------------------------------------------------------------


@pytest.fixture
def no_loading(no_simulator, monkeypatch):
    def load(*_):
        raise AssertionError("a policy was loaded")

    monkeypatch.setattr(policy_evaluation, "_load", load)


def refused(capsys, argv) -> str:
    """The one line of an error."""
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("pi0-eval: error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--suites", "libero_spacial"], "unknown LIBERO suite 'libero_spacial'; did you mean 'libero_"),
        (["--env", "libero_10", "metaworld"], "--suites: unknown LIBERO suite 'metaworld'; "),
        (["--suites", "libero_10", "libero_10"], "--suites: expected each suite once"),
        (["--suites", "all", "--env", "libero_10"], "--suites: they are in place of --env"),
        (["--suites", "all", "--env", "libero_10", "libero_goal"], "leave out --env or --suites"),
        (["--suites", "all", "--policy", "toy"], "--suites: a toy learns one suite's tasks"),
        (["--suites", "all", "--recording-root", "rollouts"], "a data set is of one suite"),
        (["--suites", "all", "--episodes", "51"], "libero has 50 held-out states per task"),
        (["--suites", "all", "--statistics", "nowhere.json"], "--statistics: no file at 'nowhere.json'"),
    ],
)  # fmt: skip
def test_suites_that_cannot_be_evaluated(weights, tmp_path, no_loading, capsys, extra, message):
    assert message in refused(capsys, words(tmp_path, "--policy", weights, *extra))
    assert not (tmp_path / "eval").exists()


@pytest.mark.parametrize(
    ("features", "message", "remedy"),
    [
        (
            {"image_keys": (*CAMERAS, "observation.images.image3"), "absent_cameras": ()},
            "the policy takes ['image', 'image2', 'image3'], the environment shows ['image', 'image2']; ",
            "train the policy on data of these cameras first",
        ),
        (
            {"image_keys": ("observation.images.front", "observation.images.wrist"), "absent_cameras": ()},
            "cameras: the policy takes ['front', 'wrist']",
            "--env-option camera_names=...",
        ),
        (
            {"state_dim": 32, "state_normalization": "identity"},
            "observation.state: expected float32 (32,), found float32 (8,)",
            "take one that was trained on this environment's data, or train it there first (pi0-train)",
        ),
    ],
    ids=["three cameras", "other names", "a base's state"],
)
def test_a_checkpoint_that_does_not_fit_libero(tmp_path, no_loading, capsys, features, message, remedy):
    small_pi0(features).save_pretrained(tmp_path / "weights")
    error = refused(capsys, words(tmp_path, "--policy", tmp_path / "weights", "--suites", "all"))
    assert message in error
    assert remedy in error


def test_statistics_that_are_missing(tmp_path, no_loading, monkeypatch, capsys):
    """The file is gone, or the preprocessor names none, as that of a converted base."""
    sizes = lerobot_directory(tmp_path / "weights", small_pi0())
    file = config_file(tmp_path, "lerobot_pi0_libero_finetuned.yaml", sizes)
    argv = of_file(tmp_path, file, tmp_path / "weights")
    (statistics,) = (tmp_path / "weights").glob("policy_preprocessor_step_*_normalizer_processor.safetensors")
    statistics.unlink()
    assert f"its normaliser names '{statistics.name}', which is not there" in refused(capsys, argv)
    before = read(tmp_path / "weights/policy_preprocessor.json")
    for step in before["steps"]:
        step.pop("state_file", None)
    (tmp_path / "weights/policy_preprocessor.json").write_text(json.dumps(before))
    error = refused(capsys, argv)
    assert "policy.statistics_path: " in error
    assert "name a file of them: openpi's norm_stats.json, or one that pi0-stats makes" in error


def test_openpi_without_its_statistics(tmp_path, no_loading, capsys):
    sizes = openpi_directory(tmp_path / "weights", small_pi0())
    shutil.rmtree(tmp_path / "weights/assets")
    file = config_file(tmp_path, "openpi_pi05_libero.yaml", sizes)
    error = refused(capsys, of_file(tmp_path, file, tmp_path / "weights"))
    assert "expected one assets/<asset_id>/norm_stats.json, found none" in error


def test_the_files_placeholder_is_to_be_filled_in(no_loading, capsys):
    error = refused(capsys, [f"--config_path={FOLDER / 'openpi_pi0_libero.yaml'}"])
    assert "nobody filled in the placeholder" in error


def test_libero_by_itself_is_the_toy_task(weights, tmp_path, no_simulator, capsys):
    argv = words(tmp_path, "--policy", weights, "--env", "libero", *few("--episodes", 1))
    assert main([*argv, "--env-option", "camera_names=[image,image2]"]) == 0
    said = capsys.readouterr().out
    assert "plan:" not in said
    assert not (tmp_path / "eval/suites.json").exists()
    assert list(read(tmp_path / "eval/evaluation.json")["tasks"]) == [
        "libero_object/pick_up_the_salad_dressing_and_place_it_in_the_basket"
    ]


# Real LIBERO --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.skipif("LIBERO_ASSETS" not in os.environ, reason="set LIBERO_ASSETS to LIBERO's assets")
def test_two_suites_of_real_libero(weights, tmp_path, capsys):
    """One episode in each, until the deadline: weights of no training succeed nowhere."""
    options = (
        "--policy",
        weights,
        "--suites",
        "libero_spatial",
        "libero_object",
        "--tasks",
        0,
        "--episodes",
        1,
    )
    few = ("--n-action-steps", 50, "--env-option", "num_parallel_envs=1")
    assert main([*words(tmp_path, *options, *few), "--videos", "1"]) == 0, capsys.readouterr().err
    episodes = read(tmp_path / "eval/evaluation.json")["episodes"]
    assert [episode["num_steps"] for episode in episodes] == [220, 280]
    assert not any(episode["success"] for episode in episodes)
    assert (tmp_path / "eval/evaluation-libero_spatial.mp4").stat().st_size > 0
    said = capsys.readouterr().out
    assert "plan: libero_object: 1 tasks x 1 episodes of up to 280 steps, images of 224 pixels" in said
    assert re.search(r"plan: at most about [\d.]+ min: 50 actions in 1 episodes take", said)
    (task, *_) = make_suite("libero", suite="libero_spatial").tasks()
    assert task.instruction in instructions()


def test_an_episode_beyond_a_process_s_share_ends_no_evaluation():
    """Which process runs an episode is decided while they run."""
    said = []
    played = episode()
    pace = EvaluationPace({"a": [played.task.max_steps] * 2}, said.append)
    for _ in range(3):
        pace._note("a", played)
    assert pace.left == {"a": []}
