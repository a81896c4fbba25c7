"""Rows of metrics on disk, and the plots and the page made of them."""

import base64
import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, BinaryIO

from pi0.ript.files import write_text
from pi0.ript.report_plots import draw_plots

Row = Mapping[str, Any]

_ROWS = "metrics.jsonl"
_LAST_ROWS = 20
_PAGE = Template(Path(__file__).with_name("page.html").read_text())  # RECAP's pages use it too


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
    with path.open("a+b") as file:
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


def write_report(run_dir: str | Path) -> Path:
    """Draw RUN_DIR/plots/*.png and write RUN_DIR/report.html with them inside; return the page.

    It shows what is there: metrics.jsonl, before.json and after.json with their videos, results.json, and the
    configuration in experiment_cfg/.
    """
    run_dir = Path(run_dir)
    rows = read_rows(run_dir)
    evaluations = {name: _read(run_dir / f"{name}.json") for name in ("before", "after")}
    plots = draw_plots(run_dir / "plots", rows, evaluations)
    sections = [
        ("", _figures(evaluations, _read(run_dir / "results.json"))),
        ("Plots", "".join(f'<img alt="{p.stem}" src="{_embedded(p)}">' for p in plots)),
        ("Videos", "".join(_video(run_dir / f"{name}.mp4") for name in evaluations)),
        (f"Last {_LAST_ROWS} rows" if len(rows) > _LAST_ROWS else "Metrics", _table(rows[-_LAST_ROWS:])),
        ("Configuration", _configuration(run_dir)),
    ]
    classes = {"Plots": "plots", "Videos": "plots", "": "figures"}
    body = "".join(
        f'{f"<h2>{title}</h2>" if title else ""}<div class="{classes.get(title, "scroll")}">{content}</div>'
        for title, content in sections
        if content
    )
    page = run_dir / "report.html"
    write_text(page, _PAGE.substitute(title=html.escape(run_dir.resolve().name), body=body, style=""))
    return page


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _figures(evaluations: Mapping[str, Mapping[str, Any]], results: Mapping[str, Any]) -> str:
    """Return the success on held-out states in large figures."""
    cards = []
    for name, e in evaluations.items():
        if e:
            low, high = e["interval"]
            detail = f"{e['num_successes']}/{e['num_episodes']} held-out states [{low:.1%}, {high:.1%}]"
            cards.append(
                f"<div><small>{name}</small><b>{e['success_rate']:.1%}</b><small>{detail}</small></div>"
            )
    if comparison := results.get("comparison"):
        low, high = comparison["interval"]
        cards.append(
            f"<div><small>difference</small><b>{100 * comparison['difference']:+.1f} points</b>"
            f"<small>[{100 * low:+.1f}, {100 * high:+.1f}], p = {comparison['p_value']:.2g}</small></div>"
        )
    return "".join(cards)


def _embedded(image: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()


def _video(path: Path) -> str:
    source = f'<video controls muted src="{path.name}"></video>'
    return f'<div><a href="{path.name}">{path.stem}</a>{source}</div>' if path.exists() else ""


def _table(rows: Sequence[Row]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{html.escape(key)}</th>" for key in keys)
    lines = ["".join(f"<td>{_cell(row.get(key))}</td>" for key in keys) for row in rows]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>" if rows else ""


def _cell(value: Any) -> str:
    return "" if value is None else html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def _configuration(run_dir: Path) -> str:
    """Return the configuration as the run saved it, or else as its results hold it."""
    texts = [path.read_text() for path in sorted((run_dir / "experiment_cfg").glob("*.yaml"))]
    if not texts and (config := _read(run_dir / "results.json").get("config")):
        texts = [json.dumps(config, indent=2)]
    return "".join(f"<pre>{html.escape(text)}</pre>" for text in texts)
