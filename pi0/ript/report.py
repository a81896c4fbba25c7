"""Rows of metrics on disk, and the page of a run: its rows, its evaluations and their videos."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from pi0.ript.evaluate import Evaluation, compare
from pi0.ript.files import naming_file
from pi0.ript.page import cards, folded, grid, paragraph, plot, table, video, write_page
from pi0.ript.report_plots import Row, draw_plots
from pi0.ript.results import read_evaluation
from pi0.ript.success_table import mean_steps, success_legend, success_rows

_ROWS = "metrics.jsonl"
_LAST_ROWS = 20
_LAST_VIDEOS = 8


def append_row(run_dir: Path, metrics: Row, step: int) -> Path:
    """Add a step's row to RUN_DIR/metrics.jsonl and return the file; the row is then on disk.

    Rows from that step on, which a run has that was resumed at an earlier step, are cut off first, and so is
    a last line that a crash cut short. Otherwise nothing but the last row is read, however many there are.

    Raises:
        ValueError: The file is damaged.
    """
    path = run_dir / _ROWS
    values = {key: v.item() if hasattr(v, "item") else v for key, v in metrics.items()}
    lost = {k: repr(v) for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)}
    row = {"step": step, **values, **dict.fromkeys(lost), **({"non_finite": lost} if lost else {})}
    line = json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n"
    with naming_file(path), path.open("a+b") as file:
        if not _ends_before(step, file):
            file.truncate(sum(length for row, length in _lines(path) if row["step"] < step))
            if not _ends_with_newline(file):  # edited by hand
                file.write(b"\n")
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())
    return path


def _ends_before(step: int, file: BinaryIO) -> bool:
    """Return whether a file of rows is empty or ends with a whole row of an earlier step."""
    end = file.seek(0, os.SEEK_END)
    size, tail = 512, b""
    while tail.count(b"\n") < 2 and len(tail) < end:  # the second newline from behind ends the row before
        size *= 2
        file.seek(max(end - size, 0))
        tail = file.read()
    try:
        return not end or (tail.endswith(b"\n") and json.loads(tail.splitlines()[-1])["step"] < step)
    except (ValueError, KeyError, TypeError):
        return False


def _ends_with_newline(file: BinaryIO) -> bool:
    """Return whether a file is empty or its last byte ends a line."""
    file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
    return file.read(1) in (b"", b"\n")


def read_rows(run_dir: Path) -> list[Row]:
    """Return the rows of RUN_DIR/metrics.jsonl by step, without a last line that a crash cut short.

    Raises:
        ValueError: Another line is not a row, or the steps do not increase.
    """
    return [row for row, _ in _lines(run_dir / _ROWS)]


def _lines(path: Path) -> list[tuple[Row, int]]:
    """Return each row and the bytes of its line."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    rows: list[tuple[Row, int]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.append(({"step": int(row["step"]), **row}, len(line)))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise ValueError(
                f'{path}, line {number}: expected an object with a "step", found {line[:80]!r}; '
                "repair that line, or move the file away to start a new one"
            ) from error
        if number > 1 and rows[-1][0]["step"] <= rows[-2][0]["step"]:
            raise ValueError(f"{path}, line {number}: expected a step above that of the line before")
    return rows


def write_report(
    run_dir: str | Path,
    evaluations: Mapping[str, str] | None = None,
    note: str = "",
    tables: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> Path:
    """Draw RUN_DIR/plots/*.png and write RUN_DIR/report.html with them inside; return the page.

    It shows what is there: metrics.jsonl, evaluations with their videos, and the configuration.

    Args:
        run_dir: The run's directory.
        evaluations: Names of files without their endings, by the names on the page; None: before and after,
            or evaluations/step-N.
        note: Text above the table of success.
        tables: More tables, a header and rows each, by their headings.

    Raises:
        ValueError: A file is damaged, or the first and the last evaluation are of different states.
    """
    run_dir = Path(run_dir)
    rows = read_rows(run_dir)
    places = _training_evaluations(run_dir, rows)
    if evaluations is not None:
        places = {name: (file, None) for name, file in evaluations.items()}
    files = {name: run_dir / f"{file}.json" for name, (file, _) in places.items()}
    shown = {name: read_evaluation(path) for name, path in files.items() if path.exists()}
    steps = {name: step for name, (_, step) in places.items() if step is not None}
    plots = draw_plots(rows, [(steps[name], e) for name, e in shown.items() if name in steps])
    videos = [video(run_dir, files[name].with_suffix(".mp4"), name) for name in shown]
    sections = [
        ("", headline(shown)),
        ("Success", paragraph(note) + success_section(shown)),
        *((heading, table(rows[0], rows[1:])) for heading, rows in (tables or {}).items()),
        ("Plots", grid([plot(run_dir, name, figure) for name, figure in plots.items()])),
        (
            f"Last {_LAST_VIDEOS} videos" if len(videos) > _LAST_VIDEOS else "Videos",
            grid(videos[-_LAST_VIDEOS:]),
        ),
        (f"Last {_LAST_ROWS} rows" if len(rows) > _LAST_ROWS else "Metrics", _table(rows[-_LAST_ROWS:])),
        ("Configuration", configuration(run_dir)),
    ]
    return write_page(run_dir / "report.html", run_dir.resolve().name, sections)


def headline(evaluations: Mapping[str, Evaluation]) -> str:
    """Return the success of one policy, or what the last of several gained on the first, in large figures.

    Raises:
        ValueError: The two were evaluated on different states.
    """
    if not evaluations:
        return ""
    (first_name, first), *_, (name, last) = [*evaluations.items()] * 2
    if first is last:
        return cards([(f"success, {name}", f"{last.success_rate:.1%}", f"{_count(last)} states")])
    change = compare(first, last)
    low, high = (100 * bound for bound in change.interval)
    return cards(
        [
            (
                f"success, {first_name} → {name}",
                f"{first.success_rate:.1%} → {last.success_rate:.1%}",
                f"{_count(first)} → {_count(last)} states",
            ),
            (
                "gained",
                f"{100 * change.difference:+.1f} points",
                f"[{low:+.1f}, {high:+.1f}] paired, p = {change.p_value:.2g}",
            ),
            (
                f"steps to success, {first_name} → {name}",
                f"{mean_steps(first)} → {mean_steps(last)}",
                "mean over the successes of each",
            ),
        ]
    )


def success_section(evaluations: Mapping[str, Evaluation]) -> str:
    """Return the table of success with its legend."""
    if not evaluations:
        return ""
    header, *rows = success_rows(evaluations)
    return table(header, rows) + paragraph(success_legend(evaluations))


def configuration(run_dir: Path) -> str:
    """Return the configuration that a run saved."""
    files = [*sorted((run_dir / "experiment_cfg").glob("*.yaml")), *run_dir.glob("settings.json")]
    return "".join(folded(path.name, path.read_text()) for path in files)


def _table(rows: Sequence[Row]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return table(keys, [[row.get(key) for key in keys] for row in rows])


def _count(evaluation: Evaluation) -> str:
    return f"{evaluation.num_successes}/{evaluation.num_episodes}"


def _training_evaluations(run_dir: Path, rows: Sequence[Row]) -> dict[str, tuple[str, int | None]]:
    """Return the files that evaluations during training have, by name, and at which steps they stand."""
    steps = sorted(int(path.stem.removeprefix("step-")) for path in run_dir.glob("evaluations/step-*.json"))
    # The figures of an iteration are those of the policy before its update.
    end = max((row["step"] for row in rows), default=-1) + 1
    return {
        "before": ("before", 0),
        "after": ("after", end),
        **{f"step {step}": (f"evaluations/step-{step}", step) for step in steps},
    }
