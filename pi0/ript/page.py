"""Self-contained HTML pages of one style: cards, tables, figures inside the page, videos beside it."""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from pi0.ript.files import write_text

BLUE, ORANGE, GREEN, GREY, PALE = "#2f6fb0", "#e07b39", "#3a9a5b", "#6b7785", "#c3ccd5"
"""The colours of all figures."""

_TEMPLATE = Path(__file__).with_name("page.html")
_WIDEST = 900  # pixels; a wider figure is scrolled on a phone, or its letters would be too small


def write_page(path: Path, title: str, sections: Sequence[tuple[str, str]]) -> Path:
    """Write a page of (heading, HTML) sections, leaving out those without content, and return it.

    `title` is text; whoever reads the file meanwhile sees a whole page.
    """
    body = "".join(
        f"<section>{f'<h2>{html.escape(heading)}</h2>' if heading else ''}{content}</section>\n"
        for heading, content in sections
        if content
    )
    write_text(path, Template(_TEMPLATE.read_text()).substitute(title=html.escape(title), body=body))
    return path


def cards(values: Sequence[tuple[str, str, str]]) -> str:
    """Return (label, figure, detail) texts as large figures in a row."""
    parts = (tuple(map(html.escape, card)) for card in values)
    inside = "".join(f"<div><small>{a}</small><b>{b}</b><small>{c}</small></div>" for a, b, c in parts)
    return f'<div class="figures">{inside}</div>' if values else ""


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, wraps: bool = False) -> str:
    """Return a table in a box that scrolls, "" without rows; with `wraps` the last column has long texts."""
    numbers = {i for row in rows for i, value in enumerate(row) if isinstance(value, int | float)}

    def line(tag: str, values: Sequence[Any]) -> str:
        cells = (html.escape("" if value is None else _text(value)) for value in values)
        kinds = (' class="number"' if i in numbers else "" for i in range(len(values)))
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    lines = [line("th", header), *(line("td", row) for row in rows)]
    inside = "".join(f"<tr>{cells}</tr>" for cells in lines)
    kind = "scroll wraps" if wraps else "scroll"
    return f'<div class="{kind}"><table>{inside}</table></div>' if rows else ""


def new_axes(
    count: int = 1, size: tuple[float, float] = (5.2, 3.2), most_columns: int = 1
) -> tuple[Any, list[Any]]:
    """Return a matplotlib figure and its axes, so many of a size in inches each, row by row.

    The letters of a figure of the usual size can be read on a phone.
    """
    from matplotlib.figure import Figure  # takes seconds; and no pyplot, which would keep a global state

    columns = min(most_columns, count)
    rows = math.ceil(count / columns)
    figure = Figure((columns * size[0], rows * size[1]), dpi=130, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    for place in axes[:count]:
        set_style(place)
    return figure, axes[:count]


def set_style(axes: Any) -> None:
    """Give matplotlib axes the grid and the frame that all figures have."""
    axes.grid(axis="y", color="#e4e9ee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def image(figure: Any, name: str, caption: str = "", path: Path | None = None) -> str:
    """Return a matplotlib figure as a PNG inside the page, and write that to `path` as well, if given."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    if path is not None:
        path.write_bytes(buffer.getvalue())
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    kind = ' class="wide"' if figure.get_figwidth() * figure.dpi > _WIDEST else ""
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure{kind}><img alt="{html.escape(name)}" src="{source}">{below}</figure>'


def plot(run_dir: Path, name: str, figure: Any | None, caption: str = "") -> str:
    """Write a figure to RUN_DIR/plots/NAME.png and return it for the page; "" for None."""
    if figure is None:
        return ""
    path = run_dir / "plots" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    return image(figure, name, caption, path)


def video(page_dir: Path, path: Path, caption: str) -> str:
    """Return a player of a file in the page's directory or below; "" where there is none."""
    if not path.exists():
        return ""
    source = html.escape(quote(path.relative_to(page_dir).as_posix()))
    link = f'<a href="{source}">{html.escape(caption)}</a>'
    return f'<div>{link}<video controls muted playsinline preload="metadata" src="{source}"></video></div>'


def grid(parts: Sequence[str]) -> str:
    """Return parts side by side where there is room."""
    inside = "".join(parts)
    return f'<div class="plots">{inside}</div>' if inside else ""


def paragraph(text: str) -> str:
    """Return text as a paragraph; "" without text."""
    return f"<p>{html.escape(text)}</p>" if text else ""


def folded(summary: str, text: str) -> str:
    """Return preformatted text that a click unfolds."""
    return f"<details><summary>{html.escape(summary)}</summary><pre>{html.escape(text)}</pre></details>"


def pairs(figures: Mapping[str, Any]) -> str:
    """Return figures as "name value" pairs in one line, nested ones in parentheses."""
    return ", ".join(f"{name} {_text(value)}" for name, value in figures.items())


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({pairs(value)})"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
