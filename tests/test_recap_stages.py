"""Stages: made once, skipped while they fit, continued, and refused or made again when they do not."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pi0.ript.files import FORMAT, hash_files
from pi0.ript.recap.stages import STATE, Inputs, Kind, StageName, Stages, StaleStageError

FIRST, SECOND = StageName(Kind.VALUE), StageName(Kind.VALUE, round=1)


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Recipe:
    a: Text
    n: int = 1
    num_workers: int = field(default=2, metadata={"result": "same"})


class Work:
    """Two stages, the second made from the first; counts how often each is made."""

    def __init__(self, directory: Path, **options):
        self.stages, self.made = Stages(directory, **options), []
        self.crash_in = ""

    def stage(self, name: StageName, recipe: Recipe, **inputs):
        def make(settings: Recipe, read: Inputs, work: Path):
            assert (settings, read) == (recipe, inputs)
            self.made.append(str(name))
            (work / "part").write_text("half")
            if self.crash_in == str(name):
                raise KeyboardInterrupt
            (work / "deep").mkdir()
            (work / "deep/file").write_text(settings.a.text + "".join(a.hash for a in read.values()))
            return {"length": len(settings.a.text), "list": (1, 2)}

        return self.stages.run(name, recipe, inputs, make)

    def both(self, text: str = "x", other: str = "y", **options):
        first = self.stage(FIRST, Recipe(Text(text), **options))
        return first, self.stage(SECOND, Recipe(Text(other), **options), source=first)


def test_stages_have_the_directories_of_version_0_1_0():
    names = {
        "demonstrations": StageName(Kind.DEMONSTRATIONS),
        "sft": StageName(Kind.POLICY),
        "sft-evaluation": StageName(Kind.EVALUATION),
        "value": StageName(Kind.VALUE),
        "round-12/policy": StageName(Kind.POLICY, 12),
        "round-1/evaluation": StageName(Kind.EVALUATION, 1),
        "baseline-more-sft/policy": StageName(Kind.POLICY, rival="more-sft"),
        "baseline-more-sft/evaluation": StageName(Kind.EVALUATION, rival="more-sft"),
    }
    assert {name: str(stage) for name, stage in names.items()} == {name: name for name in names}


def test_a_stage_is_made_once_and_says_what_it_was_made_from(tmp_path):
    work = Work(tmp_path)
    first, second = work.both()
    assert (first.figures, first.path) == ({"length": 1, "list": [1, 2]}, tmp_path / "value")
    assert (second.kind, second.round) == (Kind.VALUE, 1)
    again = Work(tmp_path)
    assert again.both() == (first, second)
    assert again.made == []
    record = json.loads((tmp_path / STATE).read_text())["stages"]["round-1/value"]
    assert record["inputs"] == {"source": {"stage": "value", "hash": first.hash}}
    assert record["settings"] == {"a": {"text": "y"}, "n": 1}
    assert record["output"] == {"path": "round-1/value", "hash": hash_files(second.path)}
    assert set(record["code"]) >= {"source"}
    assert not list(tmp_path.rglob("*.partial"))


def test_the_hash_is_of_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    first = hash_files(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert hash_files(tmp_path) != first
    (tmp_path / "b").rename(tmp_path / "a")
    assert hash_files(tmp_path) == first
    file = hash_files(tmp_path / "a")
    assert file != first
    (tmp_path / "a").write_text("2")
    assert hash_files(tmp_path) != first
    assert hash_files(tmp_path / "a") != file


def test_labels_that_were_added_to_a_data_set_do_not_count_and_a_stage_of_labels_does(tmp_path):
    for name in ("dataset", "labels"):
        (tmp_path / name / "meta").mkdir(parents=True)
    (tmp_path / "dataset/meta/info.json").write_text("{}")
    first = hash_files(tmp_path)
    (tmp_path / "dataset/meta/advantages.json").write_text("{}")
    assert hash_files(tmp_path) == first
    assert hash_files(tmp_path / "dataset") != hash_files(tmp_path / "labels")
    (tmp_path / "labels/meta/advantages.json").write_text("{}")
    assert hash_files(tmp_path) != first


def test_an_interrupted_stage_goes_on_in_its_directory(tmp_path):
    work = Work(tmp_path)
    work.crash_in = "value"
    with pytest.raises(KeyboardInterrupt):
        work.both()
    assert (tmp_path / "value.partial/part").exists()
    (tmp_path / "value.partial/kept").write_text("finished episode")
    Work(tmp_path).both()
    assert (tmp_path / "value/kept").exists()


def test_an_interrupted_stage_of_other_settings_is_refused_or_made_again(tmp_path):
    work = Work(tmp_path)
    work.crash_in = "value"
    with pytest.raises(KeyboardInterrupt):
        work.both()
    (tmp_path / "value.partial/kept").write_text("finished episode")
    with pytest.raises(
        StaleStageError, match=r"value\.partial was made from[\s\S]*a\.text: made with 'x', now"
    ):
        Work(tmp_path).both("other")
    Work(tmp_path, on_stale="redo").both("other")
    assert not (tmp_path / "value/kept").exists()
    assert (tmp_path / "value.partial.1/kept").exists(), "the old one is kept"


def test_settings_that_change_no_result_are_not_in_the_record(tmp_path):
    first = Work(tmp_path).both()
    again = Work(tmp_path)
    assert again.both(num_workers=8) == first
    assert again.made == []


def test_a_record_of_an_earlier_version_is_compared_by_the_settings_that_it_has(tmp_path):
    first = Work(tmp_path).both()
    state = json.loads((tmp_path / STATE).read_text())
    for record in state["stages"].values():
        del record["format"], record["settings"]["n"]
    (tmp_path / STATE).write_text(json.dumps(state))
    assert Work(tmp_path).both(n=7) == first
    with pytest.raises(StaleStageError, match=r"a\.text: made with 'x', now 'z'"):
        Work(tmp_path).both("z")
    for record in state["stages"].values():
        record["format"] = FORMAT
    (tmp_path / STATE).write_text(json.dumps(state))
    with pytest.raises(StaleStageError, match="n: made with None, now 1"):
        Work(tmp_path).both()


def test_a_crash_before_the_directory_has_its_name_costs_nothing(tmp_path):
    first, second = Work(tmp_path).both()
    second.path.rename(second.path.with_name("value.partial"))
    again = Work(tmp_path)
    assert again.both() == (first, second)
    assert again.made == []


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("z", "y"), "a.text: made with 'x', now 'z'"),
        (("x", "z"), "a.text: made with 'y', now 'z'"),
    ],
)
def test_other_settings_are_refused(tmp_path, texts, said):
    Work(tmp_path).both()
    with pytest.raises(StaleStageError, match="use on_stale=redo") as error:
        Work(tmp_path).both(*texts)
    assert said in str(error.value)


def test_on_request_a_stale_stage_is_made_again_and_what_follows_from_it(tmp_path, capsys):
    Work(tmp_path).both()
    again = Work(tmp_path, on_stale="redo")
    again.both("longer")
    assert again.made == ["value", "round-1/value"]
    assert "input source: made from value" in capsys.readouterr().out
    assert (tmp_path / "value.1/deep/file").read_text() == "x", "the old one is kept"
    unchanged = Work(tmp_path)
    unchanged.both("longer")
    assert unchanged.made == []


def test_changed_and_foreign_files_are_refused(tmp_path):
    first, _ = Work(tmp_path).both()
    (first.path / "deep/file").write_text("edited")
    with pytest.raises(StaleStageError, match="its files have been changed"):
        Work(tmp_path).both()
    (tmp_path / "round-3/value").mkdir(parents=True)
    with pytest.raises(StaleStageError, match=r"recap_state\.json does not know it"):
        Work(tmp_path).stage(StageName(Kind.VALUE, 3), Recipe(Text("x")))


def test_a_lost_artefact_is_made_again_and_what_was_made_from_it_stays(tmp_path):
    first, second = Work(tmp_path).both()
    (first.path / "deep/file").unlink()
    for file in ("part", "deep"):
        target = first.path / file
        target.unlink() if target.is_file() else target.rmdir()
    first.path.rmdir()
    again = Work(tmp_path)
    assert again.both() == (first, second)
    assert again.made == ["value"]
