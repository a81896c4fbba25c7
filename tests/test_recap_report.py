"""The page of a RECAP run: its numbers are those of the files, parts that are missing are left out."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import opened
from matplotlib.colors import to_rgba
from test_recap_training import chain, chains

from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.records import CollectionInfo, EpisodeDataError
from pi0.ript.data.writer import EpisodeWriter
from pi0.ript.evaluate import EpisodeResult, Evaluation, compare
from pi0.ript.labels.frames import LabelledFrames, read_labelled_frames
from pi0.ript.pages import frame_figures, success_figures
from pi0.ript.pages.episode_figures import GREEN, draw_beside, draw_episode, shown_frames, typical_episodes
from pi0.ript.recap import report
from pi0.ript.recap.report import write_recap_report
from pi0.ript.recap.run_record import RecapRun, read_recap_run

HOSTILE = "<script>alert('$x$')</script>"
TASKS = ("suite/0", f"suite/{HOSTILE}")
EPSILON = {"suite/0": 0.1, "suite/1": -0.2}


def evaluation(num_successes: int, steps: int, first_state: int = 0) -> Evaluation:
    """Twenty episodes of two tasks; those of the first task succeed first."""
    return Evaluation(
        0,
        tuple(
            EpisodeResult(TASKS[i // 10], str(first_state + i), i < num_successes, steps + i)
            for i in range(20)
        ),
    )


def put_evaluation(directory: Path, found: Evaluation) -> None:
    directory.mkdir(parents=True)
    (directory / "evaluation.json").write_text(json.dumps(found.to_dict()))
    (directory / "evaluation.mp4").touch()


def put_labels(round_dir: Path, sources: dict[str, FrameSet], epsilon: dict[str, float] | None) -> None:
    """Advantages of a few steps of noise; the last frame of each source has none."""
    rng = np.random.default_rng(len(sources))
    arrays = {}
    for name, episodes in sources.items():
        n = int(episodes.lengths.sum())
        arrays[f"{name}/values"] = rng.uniform(-1, 0, n)
        arrays[f"{name}/returns"] = rng.uniform(-1, 0, n)
        arrays[f"{name}/advantages"] = np.append(rng.normal(0, 0.3, n - 1), np.nan)
        arrays[f"{name}/lengths"] = episodes.lengths
        if name != "demonstrations":  # nobody has to write down the tasks of a set made elsewhere
            arrays[f"{name}/tasks"] = np.array([labels.task_id for labels in episodes.labels])
    (round_dir / "advantages").mkdir(parents=True)
    np.savez(round_dir / "advantages/frames.npz", **arrays)
    if epsilon is not None:
        (round_dir / "advantages/thresholds.json").write_text(json.dumps(epsilon))


def put_calibration(directory: Path, correlation: float | None) -> None:
    directory.mkdir(parents=True)
    figures = {
        "num_episodes": 7,
        "num_frames": 91,
        "correlation": correlation,
        "calibration_error": 0.0625,
        "error": 0.125,
        "separation": None,
    }
    (directory / "calibration.json").write_text(json.dumps(figures))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return whole_run(tmp_path_factory.mktemp("runs") / "run <i>")


def whole_run(directory: Path) -> Path:
    """A run of two rounds, with text in it that would be HTML or mathematics."""
    put_evaluation(directory / "sft-evaluation", evaluation(4, 40))
    put_evaluation(directory / "round-1/evaluation", evaluation(9, 30))
    put_evaluation(directory / "round-2/evaluation", evaluation(13, 20))
    put_evaluation(directory / "baseline-a&b #1/evaluation", evaluation(5, 10, first_state=100))
    put_calibration(directory / "value", None)
    put_calibration(directory / "round-1/value", 0.71875)
    writer = EpisodeWriter(directory / "round-2/rollouts/dataset", CollectionInfo(20, "test", "image", {}))
    for i in range(9):
        writer.add(i, chain(i, 8 + i, success=i % 3 > 0))
    writer.finalize()
    demonstrations = chains(50, 5).frames
    put_labels(directory / "round-1", {"demonstrations": demonstrations}, dict.fromkeys(EPSILON, 0.05))
    rollouts = opened(directory / "round-2/rollouts/dataset")
    put_labels(directory / "round-2", {"demonstrations": demonstrations, "rollouts-2": rollouts}, EPSILON)
    stages = {
        "sft": {"seconds": 61.5, "figures": {"loss": 0.3125}, "output": {}, "inputs": {}},
        "round-1/value": {"seconds": 90.0, "figures": {HOSTILE: HOSTILE}, "output": {}, "inputs": {}},
    }
    (directory / "recap_state.json").write_text(json.dumps({"stages": stages}))
    (directory / "experiment_cfg").mkdir()
    (directory / "experiment_cfg/config.yaml").write_text(f"exp_name: {HOSTILE}\n")
    return directory


@pytest.fixture(scope="module")
def page(run_dir) -> str:
    return write_recap_report(run_dir).read_text()


def plain(text: str) -> str:
    """What a reader sees, a space between cells."""
    text = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", text)))


def test_the_headline_is_the_last_round_against_the_start(page):
    text, change = plain(page), compare(evaluation(4, 40), evaluation(13, 20))
    low, high = (100 * bound for bound in change.interval)
    assert "success, SFT → round 2 20.0% → 65.0% 4/20 → 13/20 states" in text
    assert f"+45.0 points [{low:+.1f}, {high:+.1f}] paired, p = {change.p_value:.2g}" in text
    assert "41.5 → 26.0 mean over the successes of each" in text


def test_every_evaluation_is_in_the_tables(page):
    text = plain(page)
    change = compare(evaluation(4, 40), evaluation(9, 30))
    assert f"all round 1 9/20 45.0% [25.8, 65.8] {change} 5-0 {change.p_value:.2g} 34.0 " in text
    assert "all baseline-a&b #1 5/20 25.0% [11.2, 46.9] other states 12.0 " in text
    assert f"{TASKS[1]} SFT 0/10 0.0% [0.0, 27.8] none {TASKS[1]} round 1 0/10 0.0% [0.0, 27.8] +0.0" in text
    assert f"{TASKS[1]} round 2 3/10 30.0% [10.8, 60.3] +30.0" in text


def test_shares_thresholds_and_calibration_are_those_of_the_files(page, run_dir):
    text = plain(page)
    with np.load(run_dir / "round-2/advantages/frames.npz") as file:
        advantages, lengths = file["rollouts-2/advantages"], file["rollouts-2/lengths"]
    limits = np.repeat([EPSILON[f"suite/{i % 2}"] for i in range(9)], lengths)
    share, n = (advantages > limits).sum() / (len(limits) - 1), len(limits) - 1
    assert (
        f"2 rollouts-2 {share:.1%} of {n} frames positive, 1 without advantage suite/0 0.1, suite/1 -0.2"
        in text
    )
    assert "2 demonstrations 45 frames, 1 without advantage" in text, "whose tasks nobody knows"
    with np.load(run_dir / "round-1/advantages/frames.npz") as file:
        positive = (file["demonstrations/advantages"] > 0.05).sum() / 45
    assert f"1 demonstrations {positive:.1%} of 45 frames positive, 1 without advantage 0.05 " in text
    assert "pretrained 7 91 0.0625 0.125 round 1 7 91 0.7188 0.0625 0.125" in text


def test_stages_videos_and_configuration(page, run_dir):
    text = plain(page)
    assert "sft 61.5 s loss 0.3125" in text
    assert "all 2.5 min" in text
    assert f"exp_name: {HOSTILE}" in text
    sources = re.findall(r'<video[^>]* src="([^"]*)"', page)
    assert sources == [
        *(
            f"{name}/evaluation.mp4"
            for name in ("sft-evaluation", "round-1/evaluation", "round-2/evaluation")
        ),
        "baseline-a%26b%20%231/evaluation/evaluation.mp4",
    ]


def test_the_page_is_whole_and_escaped(page, run_dir):
    plots = sorted(path.stem for path in (run_dir / "plots").iterdir())
    assert plots == sorted(re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,', page))
    assert plots == ["advantages", "calibration", "steps_to_success", "success", "success_by_task",
                     "value_failure", "value_success"]  # fmt: skip
    assert "<script" not in page
    assert "<h1>run &lt;i&gt;</h1>" in page
    assert not re.search(r'(src|href)="(?!data:image|[^":]*\.mp4")', page), "nothing from elsewhere"
    assert not list(run_dir.glob("*.partial"))


def test_the_episodes_shown_are_of_median_length(page, run_dir):
    rollouts = opened(run_dir / "round-2/rollouts/dataset")
    # Task 0 has episodes 0, 2, 4, 6, 8 of lengths 8, 10, 12, 14, 16; 0 and 6 failed.
    assert typical_episodes(rollouts) == [4, 0]
    assert "success: episode 4 of the rollouts of round 2, suite/0, 12 steps" in page
    assert "failure: episode 0 of the rollouts of round 2, suite/0, 8 steps" in page
    one_way = FrameSet.in_memory([chain(i, 5 + i, success=True) for i in range(5)], fps=20)
    assert typical_episodes(one_way) == [2], "no failure is invented"
    apart = FrameSet.in_memory([chain(0, 5, success=True), chain(1, 6, success=False)], fps=20)
    assert typical_episodes(apart) == [0, 1]


@pytest.mark.parametrize("length", [1, 5, 30])
def test_frames_stand_over_their_steps_and_positive_ones_are_marked(length):
    episode = chain(3, length, success=True)
    rng = np.random.default_rng(0)
    values, advantages = rng.uniform(-1, 0, length), rng.normal(size=length)
    labels = LabelledFrames(advantages, np.array([length]), values, values - 0.1)
    epsilon = float(np.median(advantages))  # of an odd number: one frame is just at it, not positive
    strip, curve, bars, band = draw_episode(episode, labels, {"suite/1": epsilon}).axes
    shown = shown_frames(length)
    assert (shown[0], shown[-1], len(shown)) == (0, length - 1, min(8, length))
    for image, frame in zip(strip.get_images(), shown, strict=True):
        assert np.array_equal(image.get_array(), episode.images["front"][frame])
        left, right, *_ = image.get_extent()
        assert (left + right) / 2 == pytest.approx(frame, abs=0.5)
    assert strip.get_xlim() == curve.get_xlim() == bars.get_xlim()
    assert any(np.array_equal(line.get_ydata(), values) for line in curve.get_lines())
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in curve.patches]
    shaded = [any(left < t < right for left, right in spans) for t in range(length)]
    assert shaded == (advantages > epsilon).tolist()
    drawn = sorted(bars.patches, key=lambda bar: bar.get_x())
    assert [bar.get_height() for bar in drawn] == pytest.approx(advantages.tolist())
    green = [bar.get_facecolor() == to_rgba(GREEN) for bar in drawn]
    assert green == (advantages > epsilon).tolist()
    assert reasons(band) == {
        name: steps
        for name, steps in (
            ("positive", np.flatnonzero(advantages > epsilon).tolist()),
            ("not positive", np.flatnonzero(advantages <= epsilon).tolist()),
        )
        if steps
    }


def reasons(band) -> dict[str, list[int]]:
    """The steps of each kind in the band of labels."""
    return {
        bars.get_label(): sorted(round(bar.get_x() + bar.get_width() / 2) for bar in bars)
        for bars in band.containers
    }


def test_a_success_stands_beside_a_failure_on_the_same_axes_and_says_why_each_frame_is_positive():
    rng = np.random.default_rng(0)
    pair = []
    for length, is_success in ((30, True), (40, False)):
        advantages, values = rng.normal(size=length), rng.uniform(-1, 0, length)
        positive = (advantages > 0.2) & is_success
        positive[0] = is_success  # a person said so
        labels = LabelledFrames(advantages, np.array([length]), values, values, labels=positive)
        pair.append((chain(3, length, success=is_success), labels))
    pair[0][1].advantages[0] = -1.0
    first, second = draw_beside(pair, {"suite/1": 0.2}, (-1.0, 0.0))
    for place in (1, 2):  # values, advantages
        assert first.axes[place].get_ylim() == second.axes[place].get_ylim()
    low, high = first.axes[2].get_ylim()
    everything = np.concatenate([labels.advantages for _, labels in pair])
    assert low < everything.min()
    assert everything.max() < high
    above = [np.flatnonzero(labels.advantages > 0.2).tolist() for _, labels in pair]
    assert reasons(first.axes[-1])["positive"] == above[0]
    assert reasons(first.axes[-1])["positive all the same"] == [0]
    assert reasons(second.axes[-1])["above it, but a failure"] == above[1]
    assert "positive" not in reasons(second.axes[-1])
    names = [text.get_text() for text in second.legends[0].get_texts()]
    assert "above it, but a failure" in names
    assert len(names) == len(set(names))


def test_success_is_drawn_with_its_interval():
    found = {"SFT": evaluation(4, 40), "round 1": evaluation(13, 40)}
    axes = success_figures.success_figure(found, {"baseline-x": evaluation(8, 40)}).axes[0]
    bars = [container[2][0].get_segments()[0] for container in axes.containers]
    expected = [e.interval for e in (*found.values(), evaluation(8, 40))]
    np.testing.assert_allclose([segment[:, 1] for segment in bars], 100 * np.array(expected))
    assert list(axes.get_lines()[0].get_ydata()) == [20.0, 65.0], "the baseline is no round"
    assert success_figures.task_success_figure({"SFT": Evaluation(0, found["SFT"].episodes[:10])}) is None
    assert success_figures.steps_figure({"SFT": evaluation(0, 40)}, {}) is None


def test_recap_stands_beside_filtered_imitation_by_round():
    own, rival = [evaluation(4, 40), evaluation(9, 30), evaluation(13, 20)], [evaluation(8, 40)]
    success, steps = success_figures.rival_figure(own, rival, "256 rollouts").axes
    recap, filtered = success.get_lines()[0], next(x for x in success.get_lines() if "every" in x.get_label())
    assert list(recap.get_ydata()) == [20.0, 45.0, 65.0]
    assert list(filtered.get_ydata()) == [20.0, 40.0], "both begin with SFT"
    bars = [container[2][0].get_segments()[0][:, 1] for container in success.containers]
    np.testing.assert_allclose(bars, 100 * np.array([e.interval for e in (*own, own[0], *rival)]))
    means = [e.mean_steps_to_success for e in own]
    assert list(steps.get_lines()[0].get_ydata()) == means
    assert success_figures.rival_figure(own, [], "") is None
    assert success_figures.rival_figure(own[:1], rival, "") is None


def test_the_rounds_are_drawn_once_where_filtered_imitation_stands_beside_them(tmp_path):
    own = {"SFT": evaluation(4, 40), "round 1": evaluation(9, 30)}
    alone = RecapRun(tmp_path, own, {}, {}, {}, {}, {}, {})
    beside = replace(alone, baselines={"filtered, round 1": evaluation(8, 40)})
    third = replace(alone, baselines={**beside.baselines, "another": evaluation(7, 40)})
    pages = [report._success(run) for run in (alone, beside, third)]
    drawn = [re.findall(r'<img alt="((?!success_by_task)[^"]*)"', page) for page in pages]
    both = ["success", "steps_to_success"]
    assert drawn == [both, ["recap_beside_filtered"], ["recap_beside_filtered", *both]]


def test_the_histogram_counts_every_frame_once():
    rng = np.random.default_rng(1)
    advantages = np.append(rng.normal(size=400), [50.0, np.nan])
    source = LabelledFrames(advantages, np.array([402]))
    (axes,) = frame_figures.advantage_figure({"a": source}, {"t": 0.5, "u": 0.5}).axes
    below, above = (sum(bar.get_height() for bar in part) for part in axes.containers)
    assert above == (advantages > 0.5).sum()
    assert below + above == 401
    assert [line.get_xdata()[0] for line in axes.get_lines()] == [0.5]
    assert (
        frame_figures.advantage_figure({"a": LabelledFrames(np.full(2, np.nan), np.array([2]))}, {}) is None
    )


def test_calibration_is_drawn_from_all_frames():
    values, returns = np.array([-0.95, -0.95, -0.15]), np.array([-0.8, -0.6, -0.15])
    source = LabelledFrames(values, np.array([3]), values, returns)
    (axes,) = frame_figures.calibration_figure({"round 1": [source]}).axes
    _, means = axes.get_lines()
    np.testing.assert_allclose(means.get_xydata(), [[-0.95, -0.7], [-0.15, -0.15]])
    assert axes.get_title() == "round 1: 3 frames"


def test_the_report_says_which_guidance_each_round_acts_with_and_why(tmp_path):
    put_evaluation(tmp_path / "sft-evaluation", evaluation(4, 40))
    put_evaluation(tmp_path / "round-1/evaluation", evaluation(9, 30))
    put_evaluation(tmp_path / "round-2/evaluation", evaluation(11, 30))

    def stage(successes: int | None, guidance: float, by_task: dict | None = None) -> dict:
        figures = (
            {}
            if successes is None
            else {"num_successes": successes, "num_episodes": 20, "interval": [0.25, 0.5]}
        )
        settings = {"eval": {"cfg_guidance_scale": guidance}, "guidance": by_task}
        return {"seconds": 1.0, "figures": figures, "settings": settings}

    stages = {
        "sft-validation": stage(5, 3.0),
        "round-1/validation": stage(8, 3.0),
        "round-1/validation-guidance-1": stage(9, 1.0),
        "round-1/evaluation": stage(None, 1.0),
        "round-2/validation": stage(8, 3.0),
        "round-2/validation-guidance-1": stage(8, 1.0),
        "round-2/evaluation": stage(None, 3.0, {"suite/0": 3.0, "suite/1": 1.0}),
    }
    (tmp_path / "recap_state.json").write_text(json.dumps({"stages": stages}))
    (tmp_path / "results.json").write_text(json.dumps({"published": "round 1", "format": 1}))
    text = plain(write_recap_report(tmp_path).read_text())
    assert "Published: round 1. Chosen by most successes on validation states" in text
    assert "SFT 1 5/20 [25, 50]% yes round 1 3 8/20 [25, 50]% round 1 1 9/20 [25, 50]% yes" in text
    assert "round 2 3 8/20 [25, 50]% in suite/0 round 2 1 8/20 [25, 50]% in suite/1" in text


# Runs under way, and damaged ones


def test_a_run_that_has_just_begun(tmp_path):
    text = write_recap_report(tmp_path).read_text()
    assert "<h2>" not in text
    put_evaluation(tmp_path / "sft-evaluation", evaluation(4, 40))
    text = plain(write_recap_report(tmp_path).read_text())
    assert "success, SFT 20.0% 4/20" in text
    assert "→" not in text
    assert "Advantages" not in text


def test_a_run_that_was_stopped_within_a_round(tmp_path):
    put_evaluation(tmp_path / "round-2/evaluation", evaluation(9, 30))
    put_evaluation(tmp_path / "round-10/evaluation", evaluation(13, 20))
    put_labels(tmp_path / "round-10", {"rollouts-10": chains(0, 3).frames}, None)
    (tmp_path / "round-11.partial").mkdir()
    run = read_recap_run(tmp_path)
    assert list(run.evaluations) == ["round 2", "round 10"], "in order of their numbers"
    text = plain(write_recap_report(tmp_path).read_text())
    assert "success, round 2 → round 10 45.0% → 65.0% 9/20 → 13/20" in text
    assert "10 rollouts-10 26 frames, 1 without advantage" in text
    assert "Value over time" not in text, "the rollouts are not there"


def test_files_that_do_not_fit_are_refused(tmp_path, run_dir):
    path = tmp_path / "frames.npz"
    good = {f"a/{kind}": np.zeros(5) for kind in ("values", "returns", "advantages")}
    cases = {
        r"expected arrays \['a/lengths'\]": good,
        r"a/values: expected one number for each of the 6 frames": good | {"a/lengths": np.array([2, 4])},
        r"a/tasks: expected one for each of 2 episodes or each of their frames, found \(1,\)": good
        | {"a/lengths": np.array([2, 3]), "a/tasks": np.array(["t"])},
    }
    for message, arrays in cases.items():
        np.savez(path, **arrays)
        with pytest.raises(EpisodeDataError, match=message):
            read_labelled_frames(path)
    path.write_text("no archive")
    with pytest.raises(EpisodeDataError, match="expected arrays in NumPy's npz format"):
        read_labelled_frames(path)
    (tmp_path / "round-2/rollouts").mkdir(parents=True)
    (tmp_path / "round-2/rollouts/dataset").symlink_to(run_dir / "round-2/rollouts/dataset")
    put_labels(tmp_path / "round-2", {"rollouts-2": chains(0, 3).frames}, EPSILON)
    with pytest.raises(EpisodeDataError, match="round 2: labels of other episodes than the 9 in"):
        write_recap_report(tmp_path)


def test_rounds_on_other_states_are_not_compared(tmp_path):
    put_evaluation(tmp_path / "sft-evaluation", evaluation(4, 40))
    put_evaluation(tmp_path / "round-1/evaluation", evaluation(13, 20, first_state=50))
    with pytest.raises(ValueError, match="same initial states"):
        write_recap_report(tmp_path)
