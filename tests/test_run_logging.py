"""A run's record: log files, metrics that survive a resume, W&B that never stops training, the report."""

import io
import json
import logging
import re
import subprocess
import sys
import threading
import time
import types
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from pi0.ript import report, run_logging, wandb_run
from pi0.ript.evaluate import EpisodeResult, Evaluation, compare, wilson_interval
from pi0.ript.report import append_row, read_rows, write_report
from pi0.ript.report_plots import draw_plots
from pi0.ript.results import read_evaluation
from pi0.ript.run_logging import (
    PhaseTimer,
    _TeeIO,
    close_run_logging,
    init_wandb,
    log_metrics,
    setup_run_logging,
)


class Terminal(io.StringIO):
    """What a program would find as its console."""

    encoding = "utf-8"

    def isatty(self):
        return True

    def fileno(self):
        return 7


class Lost(Terminal):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


@pytest.fixture
def console():
    """Terminals that `begin` puts in place of pytest's streams, which change between set-up and test."""
    before = sys.stdout, sys.stderr
    streams = types.SimpleNamespace(out=Terminal(), err=Terminal())
    yield streams
    close_run_logging()
    if sys.stdout is streams.out:  # pytest -s
        sys.stdout, sys.stderr = before


def begin(console, run_dir: Path, rank: int = 0, report=None) -> Path:
    sys.stdout, sys.stderr = console.out, console.err
    return setup_run_logging(run_dir, rank, report)


def logged(path: Path) -> list[str]:
    """The file's lines after the one that announces it."""
    return path.read_text(encoding="utf-8").splitlines()[1:]


# The console and its copy


def test_console_and_file_get_the_same(tmp_path, console):
    path = begin(console, tmp_path / "run", 3)
    assert path == tmp_path / "run/train_rank3.log"
    assert console.out.getvalue().startswith(f"✓ 日志文件创建: {path}")
    print("to stdout", end="")
    print("to stderr", file=sys.stderr)
    print(" and on\n\nlast")
    sys.stdout.write("not ended")
    assert logged(path) == ["to stderr", "to stdout and on", "", "last"], "whole lines, at once"
    close_run_logging()
    assert sys.stdout is console.out
    assert sys.stderr is console.err
    print("after")
    assert console.out.getvalue().endswith("to stdout and on\n\nlast\nnot endedafter\n")
    assert console.err.getvalue() == "to stderr\n"
    assert logged(path) == ["to stderr", "to stdout and on", "", "last", "not ended"]


def test_the_console_stays_what_it_is(tmp_path, console):
    begin(console, tmp_path)
    assert isinstance(sys.stdout, _TeeIO)
    assert sys.stdout.isatty()
    assert sys.stdout.encoding == "utf-8"
    assert sys.stdout.fileno() == 7
    assert sys.stdout.getvalue() == console.out.getvalue(), "what else it has"


def test_a_second_run_replaces_the_first_and_a_file_is_continued(tmp_path, console):
    first = begin(console, tmp_path / "a")
    print("one")
    second = setup_run_logging(tmp_path / "b", 0)
    print("two")
    setup_run_logging(tmp_path / "a", 0)
    print("three")
    close_run_logging()
    close_run_logging()
    assert [line for line in logged(first) if "日志" not in line] == ["one", "three"]
    assert logged(second) == ["two"]
    assert console.out.getvalue().count("two") == 1


def test_a_progress_bar_leaves_one_line(tmp_path, console):
    path = begin(console, tmp_path)
    for number in tqdm(range(50), desc="steps", mininterval=0):
        if number == 20:
            print("between")
        if number == 30:
            tqdm.write("above the bar", file=sys.stderr)
    for _ in tqdm(range(50), desc="passing", mininterval=0, leave=False):
        pass
    print("end")
    assert console.err.getvalue().count("\r") > 80
    lines = logged(path)
    assert [re.sub(r"\|.*", "", line) for line in lines] == ["between", "above the bar", "steps: 100%", "end"]
    assert "50/50" in lines[2]


def test_nested_progress_bars_leave_a_line_each(tmp_path, console):
    path = begin(console, tmp_path)
    for _ in tqdm(range(3), desc="outer", mininterval=0):
        for _ in tqdm(range(20), desc="inner", mininterval=0, leave=False):
            pass
    print("end")
    lines = logged(path)
    assert len(lines) <= 3
    assert [line for line in lines if line.startswith("outer: 100%")]
    assert lines[-1] == "end"


def test_an_interrupted_progress_bar_shows_how_far_it_came(tmp_path, console):
    path = begin(console, tmp_path)
    sys.stderr.write("\r 10%\r 20%\x1b[0m")
    close_run_logging()
    assert logged(path) == [" 20%"]


@pytest.mark.parametrize("reason", ["Broken pipe", "closed file"])
def test_output_goes_on_in_the_file_when_the_console_is_gone(tmp_path, console, reason):
    if reason == "Broken pipe":
        console.out = Lost()
    else:
        console.out.close()
    path = begin(console, tmp_path)
    print("still here")
    sys.stdout.flush()
    assert not sys.stdout.isatty()
    lines = path.read_text().splitlines()
    assert lines[0].startswith("the console is gone")
    assert reason in lines[0]
    assert "日志文件创建" in lines[1]
    assert lines[2:] == ["still here"]


def test_a_console_without_chinese_letters_is_no_obstacle(tmp_path, console):
    raw = io.BytesIO()
    console.out = io.TextIOWrapper(raw, encoding="ascii")
    path = begin(console, tmp_path)
    assert b"? ??????: " in raw.getvalue()
    assert "✓ 日志文件创建" in path.read_text(encoding="utf-8")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_does_not_stop_the_console(tmp_path, console):
    (tmp_path / "train_rank0.log").symlink_to("/dev/full")
    begin(console, tmp_path)
    print("on")
    assert console.out.getvalue().endswith("\non\n")
    assert console.err.getvalue().count("no longer written") == 1


def test_threads_do_not_mix_their_lines(tmp_path, console):
    path = begin(console, tmp_path)
    texts = [letter * 300 for letter in "abcd"]

    def work(text: str) -> None:
        for _ in range(200):
            sys.stdout.write(text + "\n")

    threads = [threading.Thread(target=work, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(logged(path)) == sorted(texts * 200)


def test_what_logging_handlers_write_is_copied(tmp_path, console):
    early = logging.StreamHandler(console.err)  # holds the console from before, as libraries' handlers do
    logger = logging.getLogger("test_run_logging")
    logger.addHandler(early)
    try:
        path = begin(console, tmp_path)
        logger.warning("from a logger")
        close_run_logging()
        assert early.stream is console.err
    finally:
        logger.removeHandler(early)
    text = path.read_text()
    assert text.count("from a logger\n") == 1
    assert console.err.getvalue().count("from a logger\n") == 1


def test_warnings_and_an_uncaught_exception_are_in_the_file(tmp_path):
    code = (
        "import sys; from pi0.ript.run_logging import setup_run_logging; setup_run_logging(sys.argv[1], 0); "
        "import warnings; warnings.warn('careful'); print('half a line', end=''); {}['lost key']"
    )
    process = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert process.returncode == 1
    lines = logged(tmp_path / "train_rank0.log")
    assert lines[0].endswith("UserWarning: careful")
    assert "Traceback (most recent call last):" in lines
    assert lines[-2:] == ["KeyError: 'lost key'", "half a line"]
    assert "KeyError: 'lost key'" in process.stderr


# Rows of metrics


def test_rows_are_json_lines(tmp_path, console):
    begin(console, tmp_path)
    log_metrics({"iteration": 0, "train/loss": None, "rollout/success": np.float32(0.5)}, 0)
    log_metrics({"iteration": 1, "train/loss": float("nan"), "peak": np.float64("-inf")}, 1)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert rows == [
        {"step": 0, "iteration": 0, "train/loss": None, "rollout/success": 0.5},
        {
            "step": 1,
            "iteration": 1,
            "train/loss": None,
            "peak": None,
            "non_finite": {"train/loss": "nan", "peak": "-inf"},
        },
    ]
    assert console.out.getvalue().count("✓ 训练指标正常记录") == 1


def test_a_resumed_run_repeats_and_omits_no_row(tmp_path, console):
    for first, end in ((0, 6), (3, 5), (5, 7)):
        begin(console, tmp_path)
        for step in range(first, end):
            log_metrics({"run": first}, step)
    assert [(row["step"], row["run"]) for row in read_rows(tmp_path)] == [
        *((step, 0) for step in range(3)),
        *((step, 3) for step in (3, 4)),
        *((step, 5) for step in (5, 6)),
    ]


def test_a_line_that_a_crash_cut_short_is_replaced(tmp_path, console):
    file = tmp_path / "metrics.jsonl"
    whole = '{"step": 0, "x": 1}\n{"step": 1, "x": 2}\n'
    for torn in ('{"step": 2, "x"', "{", "\0\0\0", '{"step": 2, "x": 3}'):
        file.write_text(whole + torn)
        begin(console, tmp_path)
        log_metrics({"x": 3}, 2)
        assert file.read_text() == whole + '{"step": 2, "x": 3}\n', torn
    file.write_text(whole.rstrip("\n"))  # as editors leave it
    log_metrics({"x": 3}, 2)
    assert file.read_text() == whole + '{"step": 2, "x": 3}\n'


@pytest.mark.parametrize("damage", ["not json\n", "{}\n", '{"step": 0}\n', '"step"\n', '{"step": null}\n'])
def test_damaged_metrics_are_refused_before_work(tmp_path, console, damage):
    text = '{"step": 0}\n' + damage + '{"step": 2}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: expected"):
        begin(console, tmp_path)
    assert sys.stdout is console.out, "nothing was begun"
    assert (tmp_path / "metrics.jsonl").read_text() == text
    setup_run_logging(tmp_path, 1)  # has no part in that file


def test_other_ranks_log_no_metrics(tmp_path, console):
    begin(console, tmp_path, 1)
    init_wandb(Config(), tmp_path, 1)
    log_metrics({"x": 1}, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["train_rank1.log"]
    assert "W&B" not in console.out.getvalue()


def test_metrics_need_a_run():
    with pytest.raises(RuntimeError, match="setup_run_logging"):
        log_metrics({}, 0)
    with pytest.raises(RuntimeError, match="setup_run_logging"):
        init_wandb(Config(), ".", 0)


def test_the_report_follows_a_long_run_and_costs_little(tmp_path, console, monkeypatch):
    clock, drawn = [0.0], []

    def draw(run_dir: Path) -> None:
        drawn.append(len(read_rows(run_dir)))
        clock[0] += 2

    monkeypatch.setattr(run_logging.time, "monotonic", lambda: clock[0])
    begin(console, tmp_path, report=draw)
    for step in range(20):
        clock[0] += 10
        log_metrics({}, step)
    assert drawn == [4, 9, 14, 19], "after 30 s; then 40 s or more lie between two that take 2 s"


def test_a_run_that_draws_its_own_page_is_left_alone(tmp_path, console, monkeypatch):
    """As RECAP's, whose report.html is no plot of rows."""
    clock = [0.0]
    monkeypatch.setattr(run_logging.time, "monotonic", lambda: clock[0])
    begin(console, tmp_path)
    clock[0] = 1000.0
    log_metrics({"train/loss": 1.0}, 0)
    names = ["metrics.jsonl", "run_status.json", "train_rank0.log"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_phases(monkeypatch):
    times = iter([10.0, 12.0, 13.0, 16.0])
    monkeypatch.setattr(run_logging.time, "monotonic", lambda: next(times))
    timer = PhaseTimer()
    assert timer.metrics() == {}
    assert [timer.split("collect"), timer.split("improve"), timer.split("collect")] == [2.0, 1.0, 3.0]
    assert timer.metrics() == {"time/collect_s": 5.0, "time/improve_s": 1.0}


# W&B


@dataclass(frozen=True)
class Logging:
    use_wandb: bool = True
    wandb_project: str = "project"
    wandb_entity: str | None = None
    wandb_mode: str = "online"
    on_event: str | None = None
    stalled_after_s: float = 1800.0


@dataclass(frozen=True)
class Config:
    exp_name: str = "experiment"
    logging: Logging = field(default_factory=Logging)


class FakeWandb(types.ModuleType):
    """Fails, or hangs, where it is told to."""

    def __init__(self, fail: str = "", hang: str = ""):
        super().__init__("wandb")
        self.fail, self.hang = fail, hang
        self.calls: list[str] = []
        self.rows: list[tuple] = []
        self.arguments: dict = {}
        self.stdin_is_a_terminal = None

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.hang:
            time.sleep(5)
        if name == self.fail:
            raise ConnectionError("no route to host")

    def Settings(self, **settings):  # noqa: N802
        return settings

    def init(self, **arguments):
        self.arguments = arguments
        self.stdin_is_a_terminal = sys.stdin.isatty()
        self._called("init")
        run_id = arguments["id"] or "new1"
        return types.SimpleNamespace(
            id=run_id, url=f"https://w/{run_id}", dir="d/files", log=self._log, finish=self._finish
        )

    def _log(self, row, step, commit):
        self._called("log")
        assert commit
        self.rows.append((step, row))

    def _finish(self):
        self._called("finish")


def run_with(fake, console, monkeypatch, run_dir, steps, config=None):
    monkeypatch.setitem(sys.modules, "wandb", fake)
    begin(console, run_dir)
    init_wandb(config or Config(), run_dir, 0)
    for step in steps:
        log_metrics({"loss": step / 2, "absent": None}, step)
    close_run_logging()


def test_wandb_gets_config_and_rows(tmp_path, console, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Terminal())
    fake = FakeWandb()
    run_with(fake, console, monkeypatch, tmp_path, range(2))
    assert fake.calls == ["init", "log", "log", "finish"]
    assert fake.rows == [(0, {"loss": 0.0}), (1, {"loss": 0.5})]
    assert fake.arguments["config"]["logging"]["wandb_project"] == "project"
    assert fake.arguments["name"] == "experiment"
    assert fake.arguments["settings"]["finish_timeout"] > 0
    assert not fake.stdin_is_a_terminal, "it could ask"
    assert sys.stdin.isatty(), "and others still can"
    assert "✓ WandB初始化成功" in console.out.getvalue()
    assert "https://w/new1" in console.out.getvalue()


def test_wandb_resumes_its_run_without_repeating_steps(tmp_path, console, monkeypatch):
    first, second = FakeWandb(), FakeWandb()
    run_with(first, console, monkeypatch, tmp_path, range(4))
    run_with(second, console, monkeypatch, tmp_path, range(2, 6))
    saved = json.loads((tmp_path / "wandb_config.json").read_text())
    assert saved == {"project": "project", "entity": None, "run_id": "new1", "last_step": 5}
    assert first.arguments["id"] is None
    assert second.arguments["id"] == "new1"
    assert second.arguments["resume"] == "allow"
    assert [step for step, _ in first.rows + second.rows] == list(range(6))
    other = FakeWandb()
    config = Config(logging=Logging(wandb_project="another"))
    run_with(other, console, monkeypatch, tmp_path, range(2), config)
    assert other.arguments["id"] is None
    assert len(other.rows) == 2


@pytest.mark.parametrize("what", ["init", "log", "finish"])
@pytest.mark.parametrize("how", ["fail", "hang"])
def test_wandb_never_stops_the_training(tmp_path, console, monkeypatch, what, how):
    for limit in ("_START_S", "_LOG_S", "_FINISH_S"):
        monkeypatch.setattr(wandb_run, limit, 0.05)
    monkeypatch.setattr(wandb_run, "_GRACE_S", 0.0)
    fake = FakeWandb(**{how: what})
    start = time.monotonic()
    run_with(fake, console, monkeypatch, tmp_path, range(3))
    assert time.monotonic() - start < 4
    assert [row["step"] for row in read_rows(tmp_path)] == [0, 1, 2]
    reason = "ConnectionError: no route to host" if how == "fail" else "no answer within"
    assert console.err.getvalue().count("warning: W&B is off") == 1
    assert f"({what}: {reason}" in console.err.getvalue()
    assert fake.calls.count(what) == 1
    assert fake.calls[-1] == what, "not asked again"


def test_rows_that_wandb_refused_are_sent_after_a_resume(tmp_path, console, monkeypatch):
    run_with(FakeWandb(fail="log"), console, monkeypatch, tmp_path, range(3))
    second = FakeWandb()
    run_with(second, console, monkeypatch, tmp_path, range(4))
    assert [step for step, _ in second.rows] == [0, 1, 2, 3]


@pytest.mark.parametrize("changes", [{"use_wandb": False}, {"wandb_mode": "disabled"}])
def test_wandb_can_be_off(tmp_path, console, monkeypatch, changes):
    fake = FakeWandb()
    run_with(fake, console, monkeypatch, tmp_path, range(2), Config(logging=replace(Logging(), **changes)))
    assert not fake.calls
    assert "W&B disabled\n" in console.out.getvalue()
    assert len(read_rows(tmp_path)) == 2


def test_a_missing_wandb_is_one_warning(tmp_path, console, monkeypatch):
    run_with(None, console, monkeypatch, tmp_path, range(2))
    assert console.err.getvalue().count("ModuleNotFoundError") == 1
    assert len(read_rows(tmp_path)) == 2


@pytest.mark.slow
def test_the_real_wandb(tmp_path):
    """Offline twice, with one run id; then online without a key, which neither asks nor fails."""
    pytest.importorskip("wandb")
    code = f"""
import sys; import time; sys.path.insert(0, {str(Path(__file__).parent)!r})
from dataclasses import replace
from test_run_logging import *
for mode, step in (("offline", 0), ("offline", 1), ("online", 2)):
    setup_run_logging(sys.argv[1], 0)
    init_wandb(replace(Config(), logging=replace(Logging(), wandb_mode=mode)), sys.argv[1], 0)
    log_metrics({{"loss": 0.5}}, step)
    close_run_logging()
    time.sleep(1.1)  # W&B names a directory by the second
"""
    environment = {"PATH": "", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "PYTHONPATH": "."}
    run_dir = tmp_path / "run"
    process = subprocess.run(
        [sys.executable, "-c", code, run_dir], env=environment, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    run_id = json.loads((run_dir / "wandb_config.json").read_text())["run_id"]
    assert process.stdout.count(f"✓ WandB初始化成功 / W&B ready: offline, run {run_id}") == 2
    assert len(list(run_dir.glob(f"wandb/offline-run-*{run_id}/*.wandb"))) == 2
    assert process.stderr.count("warning: W&B is off") == 1
    assert "No API key configured" in process.stderr
    assert [row["step"] for row in read_rows(run_dir)] == [0, 1, 2]


# The report


def a_run(run_dir: Path, num_rows: int) -> None:
    for step in range(num_rows):
        row = {
            "iteration": step,
            "rollout/success": 0.25 + step / 40,
            "rollout/groups": 3,
            "rollout/attempts": 5,
            "rollout/advantage_std": 0.4,
            "train/loss": None if step == 1 else 0.5,
            "time/collect_s": 2.0,
            "time/improve_s": 1.0,
            "time/iteration_s": 4.0,
        }
        append_row(run_dir, row, step)


def write_evaluation(path: Path, num_successes: int) -> None:
    episodes = tuple(EpisodeResult("a/b", str(i), i < num_successes, 9) for i in range(20))
    path.write_text(json.dumps(Evaluation(0, episodes).to_dict()))


@pytest.mark.parametrize("num_rows", [1, 30])
def test_report_shows_the_whole_run(tmp_path, num_rows):
    a_run(tmp_path, num_rows)
    write_evaluation(tmp_path / "before.json", 4)
    write_evaluation(tmp_path / "after.json", 13)
    (tmp_path / "before.mp4").touch()
    (tmp_path / "experiment_cfg").mkdir()
    (tmp_path / "experiment_cfg/config.yaml").write_text("exp_name: <b>bold</b>\n")
    text = write_report(tmp_path).read_text()
    plots = sorted(path.stem for path in (tmp_path / "plots").iterdir())
    assert plots == ["advantage", "groups", "loss", "success", "time"]
    assert text.count("data:image/png;base64,") == 5
    assert not re.search(r'(src|href)="(?!data:|before\.mp4)', text), "nothing outside the page but the video"
    assert "20.0%" in text
    assert "4/20 → 13/20 states" in text
    assert "+45.0 points" in text
    change = compare(*(read_evaluation(tmp_path / f"{name}.json") for name in ("before", "after")))
    assert f"<td>after</td><td>13/20 65.0% [43.3, 81.9]</td><td>{change}</td><td>9-0</td>" in text
    assert 'src="before.mp4"' in text
    assert "&lt;b&gt;bold" in text
    assert text.count("<tr>") == (1 + 2) + (1 + min(num_rows, 20)), "of both tables"
    assert f'<td class="number">{num_rows - 1}</td>' in text


def test_report_of_a_run_that_has_just_begun(tmp_path):
    assert "data:image" not in write_report(tmp_path).read_text()
    write_evaluation(tmp_path / "before.json", 4)
    assert write_report(tmp_path).read_text().count("data:image") == 1


def drawn(rows, evaluations=()) -> dict:
    """The axes of each figure."""
    return {name: figure.axes[0] for name, figure in draw_plots(rows, evaluations).items()}


def test_time_is_split_without_loss(tmp_path):
    a_run(tmp_path, 3)
    axes = drawn(read_rows(tmp_path))["time"]
    assert axes.get_legend_handles_labels()[1] == ["collect", "improve", "other"]
    assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(3 * 4.0)


def test_success_is_drawn_with_its_interval(tmp_path, monkeypatch):
    a_run(tmp_path, 3)
    for name, count in (("before", 4), ("after", 13)):
        write_evaluation(tmp_path / f"{name}.json", count)
    shown = []
    monkeypatch.setattr(report, "draw_plots", lambda *given: shown.append(given) or {})
    write_report(tmp_path)
    axes = drawn(*shown[0])["success"]
    line, *_ = axes.get_lines()
    assert list(line.get_ydata()) == pytest.approx([25.0, 27.5, 30.0])
    bars = [container[2][0].get_segments()[0] for container in axes.containers]
    assert [bar[0][0] for bar in bars] == [0, 3], "before the first update and after the third"
    np.testing.assert_allclose([y for _, y in bars[1]], [100 * b for b in wilson_interval(13, 20)])


def test_a_supervised_run_has_its_losses_and_its_evaluations_by_step(tmp_path):
    for step in (5, 10, 15):
        measured = {"val_loss": 3.0 - step / 10} if step > 5 else {}
        append_row(tmp_path, {"loss": 2.0 - step / 10, "learning_rate": 1e-4, **measured}, step)
    axes = drawn(read_rows(tmp_path))
    assert axes.keys() == {"loss", "learning_rate"}, "a plot without data is left out"
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes["loss"].get_lines()}
    assert lines["loss"] == [[5, 1.5], [10, 1.0], [15, 0.5]]
    assert lines["val_loss"] == [[10, 2.0], [15, 1.5]], "where it was measured"
    assert axes["loss"].get_xlabel() == "step"
    (tmp_path / "evaluations").mkdir()
    for step, count in ((15, 13), (5, 4)):
        write_evaluation(tmp_path / f"evaluations/step-{step}.json", count)
        (tmp_path / f"evaluations/step-{step}.mp4").touch()
    text = write_report(tmp_path).read_text()
    assert "success, step 5 → step 15" in text
    assert re.findall(r"<td>(step \d+)</td><td>(\d+/20) ", text) == [("step 5", "4/20"), ("step 15", "13/20")]
    assert re.findall(r'<video[^>]* src="([^"]*)"', text) == [
        "evaluations/step-5.mp4",
        "evaluations/step-15.mp4",
    ]
    assert (tmp_path / "plots/success.png").exists(), "drawn though no row has it"
