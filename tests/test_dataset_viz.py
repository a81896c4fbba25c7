"""`pi0-dataset-viz`: the page says what the data set holds; wrong input is one line and exit code 2."""

import html
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import opened
from test_recap_training import chain

from pi0.ript.commands.dataset_viz import main
from pi0.ript.data.records import CollectionInfo
from pi0.ript.data.writer import EpisodeWriter
from pi0.ript.labels.advantages import write_advantages
from pi0.ript.pages import dataset_page

INFO = CollectionInfo(fps=20, robot_type="test", storage="image", origin={"operator": "<b>x</b>"})
EPSILON = {"suite/0": 0.25, "suite/1": -0.5}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """Five episodes of 4, 5, .. 8 frames; the first and the fourth failed."""
    writer = EpisodeWriter(tmp_path_factory.mktemp("data") / "se&t", INFO)
    for i in range(5):
        writer.add(i, chain(i, 4 + i, success=i % 3 > 0))
    return writer.finalize()


@pytest.fixture
def dataset(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / original.name))


@pytest.fixture
def drawn(monkeypatch) -> list[tuple]:
    """What the episodes were drawn from: (episode, labels, epsilon)."""
    calls = []
    real = dataset_page.draw_episode

    def draw(episode, labels, epsilon, **options):
        calls.append((episode, labels, epsilon))
        return real(episode, labels, epsilon, **options)

    monkeypatch.setattr(dataset_page, "draw_episode", draw)
    return calls


def plain(page: Path) -> str:
    """What a reader sees, a space between cells."""
    text = re.sub(r"<style>.*?</style>", "", page.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", text)))


def labels_of(dataset: Path) -> np.ndarray:
    """Advantages of the 30 frames, the last one missing, written as the data set's own."""
    advantages = np.round(np.append(np.random.default_rng(0).normal(size=29), np.nan), 6)
    write_advantages(dataset, opened(dataset), advantages, {"epsilon": EPSILON})
    return advantages


def positive_share(advantages: np.ndarray) -> str:
    limits = np.repeat([EPSILON[f"suite/{i % 2}"] for i in range(5)], [4, 5, 6, 7, 8])
    return f"{(advantages > limits).sum() / 29:.1%} of 29 frames positive, 1 without advantage"


def test_facts_and_episodes_are_those_of_the_data_set(dataset, drawn, capsys):
    assert main([str(dataset), "--episodes", "3", "1", "3"]) == 0
    page = dataset.with_name("se&t.html")
    assert capsys.readouterr().out == f"{page}\n"
    text = plain(page)
    assert "episodes 5 2 task(s) success 60.0% 3/5 frames 30 1.5 s at 20 fps cameras 1 front 16x16" in text
    assert "suite/0 3 2/3 66.7% 6.0 press the button suite/1 2 1/2 50.0% 6.0 open the drawer slowly" in text
    assert "Who acted source episodes success mean length unknown 5 3/5 60.0% 6.0 " in text
    assert (
        "Episodes (2 of 5) 3: failure, 7 steps, suite/1: open the drawer slowly 1: success, 5 steps" in text
    )
    assert '"operator": "<b>x</b>"' in text
    assert "Advantages" not in text
    episodes = opened(dataset)
    assert [len(episode) for episode, _, _ in drawn] == [7, 5]
    assert np.array_equal(drawn[0][0].actions, episodes.episode(3).actions)
    raw = page.read_text()
    assert "<h1>se&amp;t</h1>" in raw
    assert "<b>x" not in raw
    assert raw.count("data:image/png;base64,") == 3
    assert not re.search(r'(src|href)="(?!data:image)', raw), "nothing outside the page"


def test_advantages_are_read_from_the_data_set(dataset, drawn, tmp_path):
    advantages = labels_of(dataset)
    page = tmp_path / "new/page.html"
    assert main([str(dataset), "--output", str(page), "--max-episodes", "2"]) == 0
    text = plain(page)
    assert f"with advantage {29 / 30:.1%}" in text
    assert f"{positive_share(advantages)}; epsilon of suite/0 0.25, epsilon of suite/1 -0.5" in text
    assert [labels.limits(epsilon)[0] for _, labels, epsilon in drawn] == [0.25, -0.5]
    np.testing.assert_allclose(drawn[1][1].advantages, advantages[4:9])
    # A success and a failure of median length, of the task that has both.
    assert "Why a frame is positive: a success beside a failure" in text
    assert "2: success, 6 steps, suite/0" in text
    assert "0: failure, 4 steps, suite/0" in text
    assert page.read_text().count('alt="why ') == 2


def test_values_are_read_from_a_run(dataset, drawn, tmp_path):
    labels_of(dataset)
    rng = np.random.default_rng(1)
    lengths = {"rollouts-1": np.array([4, 5, 6, 7, 8]), "demonstrations": np.array([3, 3])}
    arrays = {f"{name}/lengths": x for name, x in lengths.items()}
    for name, x in lengths.items():
        arrays |= {f"{name}/{k}": rng.uniform(-1, 0, x.sum()) for k in ("values", "returns", "advantages")}
    np.savez(tmp_path / "frames.npz", **arrays)
    (tmp_path / "thresholds.json").write_text('{"suite/0": -0.5, "suite/1": -0.25}')
    assert main([str(dataset), "--values", str(tmp_path), "--episodes", "4"]) == 0
    (_, labels, epsilon), *_ = drawn
    assert set(labels.limits(epsilon)) == {-0.5}
    for kind in ("values", "returns", "advantages"):
        np.testing.assert_array_equal(getattr(labels, kind), arrays[f"rollouts-1/{kind}"][22:])


def test_a_set_without_success_labels_is_shown_on_request(dataset, capsys):
    for path in [*(dataset / "data").rglob("*.parquet"), *(dataset / "meta/episodes").rglob("*.parquet")]:
        pq.write_table(pq.read_table(path).drop_columns("success"), path)
    assert main([str(dataset)]) == 2
    assert re.search(
        r"^pi0-dataset-viz: error: .*expected success labels.*pass --assume-success\n$",
        capsys.readouterr().err,
    )
    assert main([str(dataset), "--assume-success", "--max-episodes", "1"]) == 0
    text = plain(dataset.with_name("se&t.html"))
    assert "success 100.0% 5/5" in text
    assert "Episodes without a success label count as successes here." in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/none"], "no LeRobotDataset: expected meta/info.json in {tmp}/none"),
        (["{set}", "--columns", "action"], "--columns: expected KEY=NAME, found ['action']"),
        (
            ["{set}", "--columns", "action=moves"],
            "called with --columns observation.state=",
        ),
        (["{set}", "--episodes", "0", "5", "-1"], "numbers of its 5 episodes, 0 to 4, found [5, -1]"),
        (["{set}", "--max-episodes", "0"], "--max-episodes: expected at least 1, found 0"),
        (["{set}", "--output", "{tmp}"], "--output: expected a file name, found the directory {tmp}"),
        (["{set}", "--values", "{tmp}"], "--values: expected a frames.npz, found none at {tmp}/frames.npz"),
        (["{set}", "--source", "a"], "--source: names a source in --values, found 'a' without --values"),
        (
            ["{set}", "--values", "{tmp}/two.npz"],
            "found ['a', 'b'] among ['a', 'b', 'c']; choose with --source",
        ),
        (
            ["{set}", "--values", "{tmp}/two.npz", "--source", "c"],
            "expected 'c' with the lengths of the 5 epis",
        ),
    ],
)
def test_wrong_input_is_one_line(dataset, tmp_path, capsys, arguments, message):
    arrays = {}
    for name, lengths in {"a": [4, 5, 6, 7, 8], "b": [4, 5, 6, 7, 8], "c": [30]}.items():
        arrays |= {f"{name}/{kind}": np.zeros(30) for kind in ("values", "returns", "advantages")}
        arrays[f"{name}/lengths"] = np.array(lengths)
    np.savez(tmp_path / "two.npz", **arrays)
    places = {"tmp": tmp_path, "set": dataset}
    assert main([argument.format(**places) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pi0-dataset-viz: error: ")
    assert message.format(**places) in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("*.html"))


def test_stale_advantages_are_refused(dataset, capsys):
    labels_of(dataset)
    path = dataset / "meta/advantages.json"
    path.write_text(path.read_text().replace('": "', '": "1'))
    assert main([str(dataset)]) == 2
    assert "is stale" in capsys.readouterr().err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "\nexamples:\n  pi0-dataset-viz demos/drawer\n" in capsys.readouterr().out
