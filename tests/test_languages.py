"""A text in Chinese says what the English one says: equal commands, code, figures, links, sections.

Words are nobody's here; what is written in digits, in code or as a link must be the same in each section.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAIRS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (ROOT, ROOT / "docs")
    for path in folder.glob("*.zh-CN.md")
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"(?:^|\s+)#(?!!).*$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"<[^<>\n]*>")
_INLINE = re.compile(r"(`+)(.+?)\1")
_LINK = re.compile(r"\]\(([^)\s]*)\)")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
Marks = dict[str, Counter[str]]


def commands(text: str, language: str) -> str:
    """A block of code as it is, but what is said in its comments and which names are left open."""
    if language in ("bash", "sh"):
        text = _PLACEHOLDER.sub("<>", text)
    return "\n".join(line.rstrip() for line in _COMMENT.sub("", text).splitlines() if line.strip())


def marks(section: str) -> Marks:
    """What of a section does not depend on the language."""
    blocks = Counter(commands(text, language) for language, text in _FENCE.findall(section))
    prose = _FENCE.sub("", section)
    links = Counter(link.replace(".zh-CN.md", ".md") for link in _LINK.findall(prose))
    prose = _LINK.sub("]", prose)
    inline = Counter(code for _, code in _INLINE.findall(prose))
    prose = _INLINE.sub("", prose)
    return {
        "blocks of code": blocks,
        "links": links,
        "code": inline,
        "figures": Counter(_NUMBER.findall(prose.replace("zh-CN", ""))),
        "lines that begin as": Counter(re.findall(r"^(?:\* |\||!\[|\d+\. )", prose, re.MULTILINE)),
    }


def sections(text: str) -> list[tuple[str, str]]:
    """The text in parts by its headings: how deep a heading is, and the part with it."""
    text = _FENCE.sub(lambda match: re.sub("^#", "\0#", match[0], flags=re.MULTILINE), text)
    parts = re.split(r"^(?=#+ )", text, flags=re.MULTILINE)
    return [(re.match("#*", part)[0], part.replace("\0", "")) for part in parts]  # type: ignore[index]


def differences(english: str, chinese: str) -> list[str]:
    """What one has and the other lacks, a line each."""
    ours, theirs = sections(english), sections(chinese)
    if [level for level, _ in ours] != [level for level, _ in theirs]:
        first, second = ([part.partition("\n")[0] for _, part in parts] for parts in (ours, theirs))
        return [f"headings: {first} and {second}"]
    found = []
    for (_, part), (_, other) in zip(ours, theirs, strict=True):
        heading, here, there = part.partition("\n")[0], marks(part), marks(other)
        for kind, values in here.items():
            found += [f"{heading}: {kind}: only in English: {value!r}" for value in values - there[kind]]
            found += [f"{heading}: {kind}: only in Chinese: {value!r}" for value in there[kind] - values]
    return found


@pytest.mark.parametrize("chinese", PAIRS)
def test_commands_and_figures_are_those_of_the_english_text(chinese):
    english = chinese.replace(".zh-CN.md", ".md")
    assert differences(*((ROOT / name).read_text() for name in (english, chinese))) == []


def test_every_text_that_is_meant_to_be_in_chinese_is():
    assert set(PAIRS) >= {f"{name}.zh-CN.md" for name in ("README", "docs/guide", "docs/stages")}


@pytest.mark.parametrize("chinese", PAIRS)
def test_both_begin_with_a_link_to_each_other(chinese):
    first, second = ROOT / chinese, ROOT / chinese.replace(".zh-CN.md", ".md")
    for text, other in ((first, second), (second, first)):
        head = "\n".join(text.read_text().splitlines()[:6])
        assert f"]({other.name})" in head


PAGE = """# Page

At 35% of 1,000 states see [x](docs/x.md), `a b` and

```bash
run --now 3   # twice
```
"""


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("35%", "36%", "figures: only in English: '35'"),
        ("--now", "--then", "blocks of code: only in Chinese: 'run --then 3'"),
        ("`a b`", "`a c`", "code: only in English: 'a b'"),
        ("docs/x.md", "docs/y.md", "links: only in Chinese: 'docs/y.md'"),
        ("# Page", "# Page\n\n## More", "headings: "),
        ("\nAt", "\n* At", "lines that begin as: only in Chinese: '* '"),
    ],
)
def test_a_difference_is_noticed(old, new, found):
    assert any(found in line for line in differences(PAGE, PAGE.replace(old, new)))


def test_words_comments_and_the_language_of_a_link_may_differ():
    other = PAGE.replace("twice", "两次").replace("At", "在").replace("docs/x.md", "docs/x.zh-CN.md")
    assert differences(PAGE, other) == []
