"""`pi0-label`: success from a table, a column, a rule or a page; and corrections by a person are positive."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from browser import CHROMIUM, Tab, headless_tab
from conftest import opened, toy_policy
from small_sets import CAMERAS, Draft, draft, picture, write
from test_recap_training import chain
from test_supervised import settings as supervised_settings

from pi0 import Indicator
from pi0.ript.commands import advantage, dataset_viz
from pi0.ript.commands.label import main
from pi0.ript.data.encoding import video_frames
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.records import EpisodeDataError
from pi0.ript.data.settings import DatasetSettings
from pi0.ript.distributed import World
from pi0.ript.files import hash_files
from pi0.ript.labels.advantages import read_advantages, read_lineage
from pi0.ript.labels.frames import read_positive
from pi0.ript.labels.labelling import label_frames, write_labelled_frames
from pi0.ript.labels.settings import RewardConfig
from pi0.ript.labels.sources import Role, Source
from pi0.ript.pages import dataset_page, labelling_page
from pi0.ript.recap.config import RecapConfig
from pi0.ript.recap.objectives import policy_objective
from pi0.ript.recap.snapshot_plan import SnapshotPlan
from pi0.ript.recap.trainings import _is_imitated
from pi0.ript.supervised.settings import ModelSettings
from pi0.ript.supervised.trainer import Training
from pi0.ript.supervised.window_labels import policy_labels
from pi0.ript.training.settings import PolicyTraining
from pi0.value import ValueFunction
from pi0.value_config import expert_value_config
from train_ript_pi0_final import fit

LENGTHS = [5, 6, 7, 8]
NAMED = {"names": ["x", "y", "z", "gripper"]}


def unlabelled(change: Callable[[Draft], None] | None = None) -> Draft:
    """Four episodes of two tasks whose success nobody recorded; the last state of each is its number / 10."""
    made = draft(LENGTHS)
    for row in [*made.rows, *made.episodes]:
        row.pop("success")
    for number in made.numbers():
        made.of(number)[-1]["observation.state"] = np.array([number / 10, 0, 0, -number], np.float32)
    if change is not None:
        change(made)
    return made


@pytest.fixture
def root(tmp_path) -> Path:
    return write(unlabelled(), tmp_path / "set")


def table(path: Path, *lines: str) -> str:
    path.write_text("\n".join(["episode_index,success", *lines, ""]))
    return f"--csv={path}"


def ends(root: Path) -> list[bool | None]:
    return [labels.success for labels in opened(root).labels]


# Where labels come from -------------------------------------------------------------------------------------


def test_a_table_labels_every_episode_and_successes_are_told_by_task(root, tmp_path, capsys):
    path = tmp_path / "labels.csv"
    path.write_bytes(b"\xef\xbb\xbfnote,episode_index, success\r\nx,3,TRUE\r\n,0,1\r\n,1,0\r\n,2,false\r\n")
    assert main([str(root), f"--csv={path}"]) == 0
    assert ends(root) == [True, False, False, True]
    printed = capsys.readouterr().out
    assert f"{root}/meta/success.json: 4 of 4 episodes have a label\n" in printed
    assert "do thing 0: 1 of 2 successes\ndo thing 1: 1 of 2 successes\n" in printed


@pytest.mark.parametrize("where", ["frames", "meta/episodes"])
def test_a_column_of_the_frames_or_of_the_episodes_labels_them(tmp_path, where):
    def change(made: Draft) -> None:
        if where == "frames":  # yes is said in the last frame alone, as lerobot's next.success
            last = np.isin(np.arange(sum(LENGTHS)), [4, 25])
            made.extra["next.success"] = lambda _: pa.array(last.tolist())
        for row in made.episodes if where != "frames" else ():
            row["next.success"] = float(row["episode_index"] in (0, 3))

    root = write(unlabelled(change), tmp_path / "set")
    assert main([str(root), "--column=next.success"]) == 0
    assert ends(root) == [True, False, False, True]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("state[0] > 0.1", [False, False, True, True]),
        ("state[0]>=0.1", [False, True, True, True]),
        (" observation.state[ gripper ] < -1.5e0 ", [False, False, True, True]),
        ("state[3] <= -3", [False, False, False, True]),
    ],
)
def test_a_rule_on_the_last_state_labels_them(root, rule, expected):
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["observation.state"]["names"] = {"motors": NAMED["names"]}
    (root / "meta/info.json").write_text(json.dumps(info))
    assert main([str(root), f"--rule={rule}"]) == 0
    assert ends(root) == expected


@pytest.mark.parametrize(
    "rule",
    ["state[0]", "state[0] > x", "state[0] == 1", "state[0] > 1 or 1", "len(state) > 1", "state[] > 1", "1"],
)
def test_what_is_no_rule_is_refused_and_never_run(root, rule, capsys):
    with pytest.raises(SystemExit) as left:
        main([str(root), f"--rule={rule}"])
    assert left.value.code == 2
    assert "expected state[INDEX or NAME], one of > >= < <=, and a number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rule=state[4] > 0"], "expected an index from 0 to 3; its dimensions have no names, found '4'"),
        (["--rule=state[gripper] > 0"], "found 'gripper'"),
        (["--column=done"], "expected a column 'done' in data/ or meta/episodes, found none"),
        (
            ["--column=index"],
            "index: expected 0, 1, true or false, found 2 in row 2; label by --csv or --rule",
        ),
        (["--csv=/nowhere.csv"], "/nowhere.csv: expected a CSV file, found no such file"),
    ],
)
def test_a_source_that_says_nothing_of_success_is_one_line(root, capsys, words, said):
    before = hash_files(root)
    assert main([str(root), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pi0-label: error: ")
    assert said in error
    assert error.count("\n") == 1
    assert hash_files(root) == before


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            ["0,1", "1,0", "2,0", "4,1"],
            "expected numbers of its 4 episodes, 0 to 3, found 4; are these labels of",
        ),
        (["0,1", "1,0", "0,1"], "line 4: expected each episode once, found 0 again"),
        (["0,1", "1,yes"], "line 3: success: expected 0, 1, true or false, found 'yes'"),
        (["0,1", "1,"], "line 3: success: expected 0, 1, true or false, found ''; leave out the line"),
        (["0,1", "-1,1"], "line 3: episode_index: expected a whole number, found '-1'"),
        (["0,1", "1"], "line 3: success: expected 0, 1, true or false, found ''"),
        (
            ["0,1", "3,0"],
            "expected a label for each episode, found none for 1, 2; label them, or pass --allow-m",
        ),
    ],
)
def test_a_wrong_table_is_one_line_and_changes_nothing(root, tmp_path, capsys, lines, said):
    assert main([str(root), table(tmp_path / "labels.csv", *lines)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (root / "meta/success.json").exists()


def test_a_table_of_other_columns_is_refused(root, tmp_path, capsys):
    (tmp_path / "labels.csv").write_text("episode_index;success\n0;1\n")
    assert main([str(root), f"--csv={tmp_path / 'labels.csv'}"]) == 2
    assert (
        "expected a first line with episode_index,success, found ['episode_index;success']"
        in capsys.readouterr().err
    )


# What becomes of them ---------------------------------------------------------------------------------------


def test_labels_come_in_parts_and_change_only_on_request(root, tmp_path, capsys):
    labels = tmp_path / "labels.csv"
    assert main([str(root), table(labels, "0,1", "1,0"), "--allow-missing"]) == 0
    assert "do thing 0: 1 of 1 successes, 1 without a label" in capsys.readouterr().out
    assert ends(root) == [True, False, None, None]
    assert main([str(root), table(labels, "2,1", "3,1")]) == 0
    assert ends(root) == [True, False, True, True]
    assert main([str(root), table(labels, "2,1", "0,0")]) == 2
    assert "found others for episodes 0; replace them with --overwrite" in capsys.readouterr().err
    assert main([str(root), table(labels, "2,1", "0,0"), "--overwrite"]) == 0
    assert ends(root) == [False, False, True, True]


def test_a_column_that_says_otherwise_is_overruled_only_on_request(tmp_path, capsys):
    root = write(draft(LENGTHS), tmp_path / "set")  # 0 and 3 are failures, as frames and meta/episodes say
    new = table(tmp_path / "labels.csv", "0,1", "1,1")
    assert main([str(root), new]) == 2
    assert "expected the labels that the set has, found others for episodes 0; " in capsys.readouterr().err
    assert main([str(root), new, "--overwrite"]) == 0
    assert ends(root) == [True, True, True, False]


def test_lerobot_loads_the_set_as_before_and_its_files_stay(root, tmp_path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    def items() -> list[dict]:
        dataset = LeRobotDataset("local/set", root=root)
        return [dataset[i] for i in range(len(dataset))]

    statistics = {key: {"mean": [0.0]} for key in ("observation.state", "action")}
    (root / "meta/stats.json").write_text(json.dumps(statistics))
    before, expected = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}, items()
    whole = hash_files(root)
    assert main([str(root), "--rule=state[0] > 0.1"]) == 0
    assert {path: path.read_bytes() for path in before} == before
    for old, new in zip(expected, items(), strict=True):
        assert old.keys() == new.keys()
        assert all(torch.equal(x, new[key]) for key, x in old.items() if isinstance(x, torch.Tensor))
    assert hash_files(root) != whole, "labels belong to what the set is"


def test_labels_never_pass_to_other_frames(root, tmp_path, capsys):
    assert main([str(root), "--rule=state[0] > 0.1"]) == 0

    def change(made: Draft) -> None:
        made.of(2)[0]["action"] = np.ones(3, np.float32)

    other = write(unlabelled(change), tmp_path / "other")
    shutil.copy(root / "meta/success.json", other / "meta")
    with pytest.raises(
        EpisodeDataError, match=r"success\.json: episode 2: expected the states and actions that were"
    ):
        opened(other)
    assert opened(other, excluded_episodes=[2]).successes().tolist() == [False, False, False, True]
    assert main([str(other), "--rule=state[0] > 0.1"]) == 2
    assert "label the set again: pi0-label --overwrite" in capsys.readouterr().err
    assert main([str(other), "--rule=state[0] > 0.1", "--overwrite"]) == 0
    assert opened(other).successes().tolist() == [False, False, True, True]
    (other / "meta/success.json").write_text("[]")
    with pytest.raises(EpisodeDataError, match=r"success\.json: expected labels by pi0-label"):
        opened(other)
    assert main([str(other), "--rule=state[0] > 0.1", "--overwrite"]) == 0


def test_words_in_a_column_of_success_are_refused(tmp_path):
    """The word "failure" is true to Python; so were all episodes, before."""

    def change(made: Draft) -> None:
        made.extra["success"] = lambda n: pa.array(["failure"] * n)

    root = write(unlabelled(change), tmp_path / "set")
    with pytest.raises(EpisodeDataError, match="success: expected numbers, found string"):
        opened(root)


# Corrections by a person ------------------------------------------------------------------------------------
REWARD = RewardConfig(C_neg=-10.0, N_steps_look_ahead=2).resolve(10)
CORRECTED = [1, 2, 8]
"""Frames in which a person acted: two of episode 0 and one of episode 1."""


def corrected(made: Draft) -> None:
    made.extra["intervention"] = lambda n: pa.array([i in CORRECTED for i in range(n)])


def rollouts(is_corrected: np.ndarray | None = None) -> Source:
    """Eight episodes of ten frames, the first four of them failures."""
    frames = FrameSet.in_memory([chain(2 * i, 10, success=i >= 4) for i in range(8)], fps=20)
    if is_corrected is not None:
        frames = replace(frames, is_corrected=is_corrected)
    return Source("rollouts", frames, role=Role.ROLLOUTS)


@pytest.mark.parametrize("ranked", ["successes", "rollouts", "all"])
def test_corrected_frames_are_positive_and_not_ranked(ranked):
    settings = replace(RecapConfig().advantage, ranked=ranked)
    values = np.random.default_rng(1).normal(size=80)
    plain = label_frames([rollouts()], [values], REWARD, settings)
    best = np.argsort(-plain.advantages[0])
    is_corrected = np.isin(np.arange(80), [*best[:9], *best[-9:]])  # the best and the worst, of both kinds
    assert is_corrected[:40].any()
    assert is_corrected[40:].any()
    source = rollouts(is_corrected)
    labels = label_frames([source], [values], REWARD, settings)
    (positive,), (before,) = labels.positive(), plain.positive()
    assert positive[is_corrected].all(), "whatever the advantage and the end of the episode"
    own = ~is_corrected & (source.is_success() if ranked == "successes" else True)
    share = settings.positive_fraction
    assert positive[own].mean() == pytest.approx(share, abs=0.51 / own.sum()), (
        "a share of what the policy did"
    )
    assert labels.figures()["positive_fraction"] == positive[own].mean()
    assert not before[is_corrected].all()
    if ranked == "successes":
        assert not positive[~source.is_success() & ~is_corrected].any()
    everything = label_frames([rollouts(np.ones(80, bool))], [values], REWARD, settings)
    assert everything.positive()[0].all()
    assert everything.epsilon == {"suite/0": np.inf}


def test_recap_trains_on_corrections_as_positive(tmp_path):
    """Both losses, by the labels that a round reads from its frames.npz."""
    source = rollouts(np.isin(np.arange(80), [3, 4, 55]))
    values = np.random.default_rng(1).normal(size=80)
    labels = label_frames([source], [values], REWARD, RecapConfig().advantage)
    write_labelled_frames(labels, tmp_path)
    (stored,) = read_positive(tmp_path, [source])
    assert np.flatnonzero(stored[:40]).tolist() == [3, 4], "of failures nothing but what was corrected"
    settings = PolicyTraining(steps=2, batch_size=4)
    for uncond_weight in (None, 0.1):
        policy = toy_policy(indicator="embedding")
        parts = policy_objective(policy, [source], labels.advantages, [stored], settings, uncond_weight)
        assert np.array_equal(parts[0].indicator == Indicator.POSITIVE, stored)
        rows = fit(*parts, settings, (0,), SnapshotPlan(), World())
        assert np.isfinite([row["loss"] for row in rows]).all()
        assert len(rows) == 2


def test_the_rival_imitates_corrections_of_failures_too():
    source = rollouts(np.arange(80) % 10 == 3)
    assert np.array_equal(_is_imitated(source), (np.arange(80) >= 40) | (np.arange(80) % 10 == 3))


@pytest.fixture(scope="module")
def value(tmp_path_factory) -> list[str]:
    """The options of pi0-advantage that name a value function, of random weights."""
    place = tmp_path_factory.mktemp("value")
    policy = toy_policy(indicator="embedding", tasks=["do thing 0", "do thing 1"])
    policy.save_pretrained(place / "policy")
    value = ValueFunction(expert_value_config(policy, width=16), policy, seed=3)
    value.save_pretrained(place / "value")
    (place / "value/reward.json").write_text(json.dumps(asdict(REWARD)))
    return [
        f"--value={place / 'value'}",
        f"--policy={place / 'policy'}",
        "--device=cpu",
        "--positive-fraction=0.5",
    ]


WAYS = {
    "table": lambda path: table(path, "0,0", "1,1", "2,1", "3,0"),
    "column": lambda _: "--column=done",
    "rule": lambda _: "--rule=state[1] > 0.5",
}


@pytest.mark.parametrize(
    ("way", "ranked"),
    [("table", "successes"), ("column", "successes"), ("rule", "successes"), ("table", "all")],
)
def test_recordings_are_labelled_and_trained_on_with_corrections_positive(tmp_path, value, way, ranked):
    def change(made: Draft) -> None:
        corrected(made)
        made.extra["done"] = lambda _: pa.array(np.repeat([0, 1, 1, 0], LENGTHS).tolist())
        for number in (1, 2):
            made.of(number)[-1]["observation.state"] = np.array([0, 1, 0, 0], np.float32)

    root = write(unlabelled(change), tmp_path / "set")
    assert main([str(root), WAYS[way](tmp_path / "labels.csv")]) == 0
    assert advantage.main([*value, f"--ranked={ranked}", str(root)]) == 0
    config = supervised_settings(str(root), tmp_path, steps=2, policy={"advantage": "use"})
    config = replace(config, save_freq=2, log_freq=1)
    training = Training(config, World())
    training.run()
    frames = opened(root)
    advantages, epsilon = read_advantages(root, frames), read_lineage(root)["epsilon"]
    limits = np.array([epsilon[task] for task in frames.frame_tasks()])
    is_success = np.repeat([False, True, True, False], LENGTHS)
    expected = advantages > limits
    if ranked == "successes":
        expected &= is_success
    expected[CORRECTED] = True
    found = training.parts.objective.indicator == Indicator.POSITIVE
    assert np.array_equal(found, expected)
    assert found[[1, 2]].all(), "corrected frames of a failure"
    if ranked == "successes":
        assert not found[~is_success & ~frames.is_corrected].any()


def test_a_corrected_frame_needs_no_advantage(tmp_path, value):
    root = write(unlabelled(corrected), tmp_path / "set")
    assert main([str(root), "--rule=state[0] > 0.1"]) == 0
    assert advantage.main([*value, str(root)]) == 0
    path = root / "meta/advantages.json"
    entries = list(json.loads(path.read_text()).items())
    path.write_text(json.dumps(dict(x for i, x in enumerate(entries) if i not in CORRECTED)))
    (root / "meta/advantages_lineage.json").unlink()  # as from elsewhere
    use = ModelSettings(advantage="use", advantage_threshold=0.0)
    labels = policy_labels([opened(root)], [DatasetSettings(root=str(root))], use)
    assert (labels.indicator[CORRECTED] == Indicator.POSITIVE).all()
    path.write_text(json.dumps(dict(entries[1:])))
    with pytest.raises(EpisodeDataError, match="1 of 26 frames have no advantage"):
        policy_labels([opened(root)], [DatasetSettings(root=str(root))], use)


def test_the_column_of_corrections_has_a_name_that_can_be_given(tmp_path, capsys):
    def change(made: Draft) -> None:
        made.extra["is_human"] = lambda n: pa.array([[float(i in CORRECTED)] for i in range(n)])

    root = write(unlabelled(change), tmp_path / "set")
    assert not opened(root).is_corrected.any()
    mapping = {"intervention": "is_human"}
    assert np.flatnonzero(opened(root, data_features_name_mapping=mapping).is_corrected).tolist() == CORRECTED
    assert main([str(root), "--rule=state[0] > 0", "--columns", "intervention=is_person"]) == 2
    assert "'is_person'], found [" in capsys.readouterr().err


def test_a_column_of_corrections_that_is_none_is_refused_or_left_out(tmp_path):
    def change(made: Draft) -> None:
        made.extra["intervention"] = lambda n: pa.array(range(n))

    root = write(unlabelled(change), tmp_path / "set")
    with pytest.raises(
        EpisodeDataError, match=r"intervention: expected 0, 1, true or false, found 2.*intervention: null"
    ):
        opened(root)
    assert not opened(root, data_features_name_mapping={"intervention": None}).is_corrected.any()


def test_corrections_are_marked_on_the_page_of_the_set(tmp_path, monkeypatch):
    marked = []
    real = dataset_page.draw_episode

    def draw(*words, corrected, **options):
        figure = real(*words, corrected=corrected, **options)
        marked.append((corrected.tolist(), [x.get_text() for x in figure.axes[-1].get_legend().get_texts()]))
        return figure

    monkeypatch.setattr(dataset_page, "draw_episode", draw)
    root = write(unlabelled(corrected), tmp_path / "set")
    assert dataset_viz.main([str(root), "--assume-success", "--episodes", "0", "2"]) == 0
    assert [steps for steps, _ in marked] == [[False, True, True, False, False], [False] * 7]
    assert ["corrected" in legend for _, legend in marked] == [True, False]
    assert "by a person (orange)" in root.with_suffix(".html").read_text()


# The page ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["image", "video"])
def test_the_video_of_an_episode_shows_all_its_frames_and_cameras(tmp_path, monkeypatch, storage):
    monkeypatch.setattr(labelling_page, "_DECODED", 4)
    made = draft(LENGTHS, storage, num_cameras=2, episodes_per_film=2)
    root = write(made, tmp_path / "set")
    assert (
        dataset_viz.main([str(root), "--label", "--episodes", "3", "--output", f"{tmp_path}/there/x.html"])
        == 0
    )
    frames = list(video_frames(tmp_path / "there/x/episode-3.mp4"))
    assert len(frames) == 8
    for code, frame in enumerate(frames, 3000):
        seen = np.concatenate([picture(code, camera) for camera in CAMERAS], axis=1).astype(float)
        assert np.abs(frame - seen).mean() < 25, "not exact: H.264"
        assert frame.shape == seen.shape


VIDEO_WIDTH = """
new Promise(done => {
    const video = document.getElementById("video");
    const tell = () => done(video.videoWidth);
    if (video.readyState > 0) tell();
    video.onloadedmetadata = video.onerror = tell;
})
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium")
def test_a_person_labels_on_the_page_and_the_csv_that_is_saved_is_read(tmp_path, capsys):
    def change(made: Draft) -> None:
        made.tasks = [(0, "</script><b>&do"), (1, "do thing 1")]
        for row in made.episodes:
            row["tasks"] = [made.tasks[row["episode_index"] % 2][1]]

    root = write(unlabelled(change), tmp_path / "se&t")
    assert dataset_viz.main([str(root), "--label"]) == 0
    page = tmp_path / "se&t-label.html"
    assert capsys.readouterr().out == f"{page}\n"
    assert "<b>&" not in page.read_text()
    with headless_tab(tmp_path / "chromium") as tab:
        tab.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        tab.open(page, 1200)
        press(tab, "s")
        assert shown(tab) == "1: do thing 1 (no label)"
        press(tab, "s", "n", "f")
        assert shown(tab) == "3: do thing 1 (failure)", "the last episode stays"
        press(tab, "p", "p", "f")
        assert shown(tab) == "2: </script><b>&do (no label)"
        press(tab, "u")
        assert shown(tab) == "1: do thing 1 (success)"
        press(tab, "n", "s")
        assert tab.evaluate("document.getElementById('progress').textContent") == (
            "4 of 4 episodes have a label, 3 are successes; not saved yet"
        )
        assert tab.evaluate(VIDEO_WIDTH) == 32
        press(tab, "w")
        saved = waited_for(tmp_path / "se&t-success.csv")
        assert tab.complaints() == []
    assert saved == "episode_index,success\n0,1\n1,1\n2,1\n3,0\n"
    assert main([str(root), f"--csv={tmp_path / 'se&t-success.csv'}"]) == 0
    assert ends(root) == [True, True, True, False]


def press(tab: Tab, *keys: str) -> None:
    for key in keys:
        tab.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
        tab.call("Input.dispatchKeyEvent", type="keyUp", key=key)


def shown(tab: Tab) -> str:
    return tab.evaluate("document.getElementById('title').textContent")


def waited_for(path: Path) -> str:
    for _ in range(200):
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} was not saved")
