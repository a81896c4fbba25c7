"""Markdown in which text from elsewhere (instructions, names, settings) stays text."""

import re
from collections.abc import Sequence
from typing import Any

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#!|~$&:@])")
_RUNS = re.compile("`+")


def escaped(value: Any) -> str:
    """Return text that Markdown shows as it is, on one line; characters that cannot be seen are replaced.

    Neither a link, a tag, a cell of a table nor a mention comes out of it.
    """
    text = "".join(x if x.isprintable() else "\N{REPLACEMENT CHARACTER}" for x in str(value))
    text = re.sub(r"(?i)\bwww\.", r"www\\.", _SPECIAL.sub(r"\\\1", text))
    return re.sub(r"^(\s*\d*)([-+=]|\.(?=\s|$))", r"\1\\\2", text)  # would begin a list or a heading


def code_block(text: str, language: str = "") -> str:
    """Return a block of code, whatever backquotes are in it."""
    longest = max(map(len, _RUNS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def markdown_table(rows: Sequence[Sequence[Any]]) -> str:
    """Return a header and rows as a table, "" without rows; None is an empty cell."""
    if len(rows) < 2:
        return ""
    header, *body = [["" if x is None else escaped(x) for x in row] for row in rows]
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
