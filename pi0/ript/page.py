"""Self-contained HTML pages: cards, tables, figures inside the page, videos beside it."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from pi0.ript.files import write_text

_TEMPLATE = Path(__file__).with_name("page.html")
_STYLE = """figure { margin: 0 0 1.2rem } figure img { width: auto; max-width: 100% }
figcaption { color: #616e7c; font-size: 13px } h3 { margin: 1.2rem 0 .3rem; font-size: 1rem }
td:first-child, th:first-child, .text td, .text th { text-align: left }
.text td:last-child { white-space: normal }
.scroll { margin: 1rem 0 } summary { cursor: pointer }
"""


def write_page(path: Path, title: str, sections: Sequence[tuple[str, str]]) -> Path:
    """Write a page of (heading, HTML) sections, leaving out those without content, and return it.

    `title` is text; whoever reads the file meanwhile sees a whole page.
    """
    body = "".join(
        f"<section>{f'<h2>{html.escape(heading)}</h2>' if heading else ''}{content}</section>\n"
        for heading, content in sections
        if content
    )
    template = Template(_TEMPLATE.read_text())
    write_text(path, template.substitute(title=html.escape(title), body=body, style=_STYLE))
    return path


def cards(values: Sequence[tuple[str, str, str]]) -> str:
    """Return (label, figure, detail) texts as large figures in a row."""
    parts = (tuple(map(html.escape, card)) for card in values)
    inside = "".join(f"<div><small>{a}</small><b>{b}</b><small>{c}</small></div>" for a, b, c in parts)
    return f'<div class="figures">{inside}</div>' if values else ""


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, is_text: bool = False) -> str:
    """Return a table, "" without rows; with `is_text` all columns are aligned left and the last one wraps."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    lines = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    kind = "scroll text" if is_text else "scroll"
    return f'<div class="{kind}"><table><tr>{head}</tr>{lines}</table></div>' if rows else ""


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def png(figure: Any) -> bytes:
    """Return a matplotlib figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def image(data: bytes, alternative: str, caption: str = "") -> str:
    """Return a PNG inside the page."""
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{html.escape(alternative)}" src="{source}">{below}</figure>'


def video(page_dir: Path, path: Path, caption: str) -> str:
    """Return a player of a file in the page's directory or below; "" where there is none."""
    if not path.exists():
        return ""
    source = html.escape(quote(path.relative_to(page_dir).as_posix()))
    link = f'<a href="{source}">{html.escape(caption)}</a>'
    return f'<div>{link}<video controls muted preload="metadata" src="{source}"></video></div>'


def grid(parts: Sequence[str]) -> str:
    """Return parts side by side where there is room."""
    inside = "".join(parts)
    return f'<div class="plots">{inside}</div>' if inside else ""


def folded(summary: str, text: str) -> str:
    """Return preformatted text that a click unfolds."""
    return f"<details><summary>{html.escape(summary)}</summary><pre>{html.escape(text)}</pre></details>"


def one_line(figures: Mapping[str, Any]) -> str:
    """Return figures as "name value" pairs in one line, nested ones as JSON."""
    return ", ".join(f"{name} {_text(value)}" for name, value in figures.items())


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
