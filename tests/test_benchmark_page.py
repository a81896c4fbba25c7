"""The page of all benchmarks: what is judged, what is shown, and that a benchmark's rows arrive in it."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import figures as benchmark  # noqa: E402
import page  # noqa: E402

from pi0.ript.report_plots import draw_plots  # noqa: E402


def test_the_median_is_judged():
    rows = benchmark.Figures()
    assert rows.add("step", "s", [1, 2, 9], rival="lerobot", theirs=[3, 6, 9], at_least=3).is_met is True
    assert rows.add("step", "s", [1, 2, 9], rival="lerobot", theirs=[3, 6, 9], at_least=3.1).is_met is False
    assert rows.add("start", "s", [4, 5, 90], at_most=5).is_met is True
    assert rows.add("start", "s", [4, 5.1, 6], at_most=5).is_met is False
    assert rows.add("rate", "per s", [4, 5]).is_met is None
    assert rows.add("step", "s", [float("nan")], at_most=5).is_met is False


def test_ratios_that_are_given_are_kept():
    row = benchmark.Figures().add(
        "memory", "MiB", [50], rival="lerobot", theirs=[100], ratios=[0.5], at_most=0.6
    )
    assert list(row.ratios) == [0.5]
    assert row.is_met


def test_rows_come_back_from_the_file_as_they_were(tmp_path):
    rows = benchmark.Figures()
    rows.add("step", "s", [1.5, 2.25], rival="lerobot", theirs=[3, 6], at_least=1.15, limit="1")
    rows.add("report", "MB", [0.25])
    rows.write(tmp_path / "rows.json")
    assert benchmark.read_figures(tmp_path / "rows.json") == rows.rows


def test_the_page_shows_median_and_spread_and_counts_what_is_met(tmp_path):
    rows = benchmark.Figures()
    rows.add("--help", "s", [0.2, 0.1, 0.4], rival="lerobot", theirs=[2, 2, 2], at_least=20)
    rows.add("a run that is done", "s", [3.0], limit="0", at_most=5)
    rows.write(tmp_path / "start.json")
    run = {"commit": "abc", "date": "2026-01-01", "minutes": 0.5}
    (tmp_path / "runs.json").write_text(json.dumps({"start": run, "policy": run}))
    shown = page.page(tmp_path)
    assert "`python benchmarks/start.py`, 0.5 minutes at abc, 2026-01-01" in shown
    assert "1 of 2 targets are met" in shown
    assert (
        "| --help, s | 0.2 (0.1 to 0.4) | lerobot | 2 (2 to 2) | 10 (5 to 20) |  | at least 20 | **no** |"
        in shown
    )
    assert "| a run that is done, s | 3 |  |  |  | 0 | at most 5 | yes |" in shown
    assert page.TITLES["policy"] not in shown


def test_a_figure_of_scaling_is_measured():
    command = [sys.executable, "benchmarks/scaling.py", "--one", "windows", "500"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert json.loads(done.stdout)["seconds"] > 0


def test_many_iterations_are_drawn_as_areas():
    """A bar for each of 10,000 iterations took the report half a minute."""
    for count, are_bars in ((60, True), (61, False)):
        rows = [
            {"step": i, "rollout/attempts": 3, "rollout/groups": 2, "time/iteration_s": 1.5}
            for i in range(count)
        ]
        plots = draw_plots(rows, [])
        for name in ("groups", "time"):
            (axes,) = plots[name].axes
            assert (bool(axes.patches), bool(axes.collections)) == (are_bars, not are_bars)
            assert axes.dataLim.ymax == {"groups": 3, "time": 1.5}[name]
