"""The ladder of training scripts: show a step, carry an edit of the loop forward, write docs/stages*.md.

python tools/ladder.py diff 9 10      the diff of two rungs, and the modules that the second introduces
python tools/ladder.py carry 8        merge what changed in rung 8 since the last commit into the later rungs
python tools/ladder.py stages         write docs/stages.md and stages.zh-CN.md from the real diffs
"""

import argparse
import ast
import difflib
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parent.parent
SCRIPTS = {
    "8": "8_train_with_epochs.py",
    "9": "9_train_with_config.py",
    "10": "10_train_with_distributed.py",
    "11": "11_train_with_logging.py",
    "12": "12_train_with_dataset.py",
    "13": "13_train_production_ready.py",
    "final": "train_ript_pi0_final.py",
}
INSTALLED = ROOT / "pi0/ript/scripts/train_ript_pi0.py"
"""The loop of rung 13, for those who have the package without a checkout."""
LANGUAGES = ("", ".zh-CN")  # what stands before the .md of a text
LIBRARY = ROOT / "pi0" / "ript"


@dataclass(frozen=True)
class Rung:
    """One script of the ladder."""

    name: str

    @property
    def path(self) -> Path:
        """Where it is."""
        return ROOT / SCRIPTS[self.name]

    @cached_property
    def source(self) -> str:
        """Its text."""
        return self.path.read_text()

    @cached_property
    def docstring(self) -> str:
        """Its header."""
        return ast.get_docstring(ast.parse(self.source)) or ""

    def header(self, field: str) -> str:
        """Return a field of the header: Parent, Introduces or Run."""
        line = re.search(rf"^{field}: (.+(?:\n +.+)*)$", self.docstring, re.MULTILINE)
        if not line:
            raise ValueError(f"{self.path.name}: the docstring has no line '{field}: ...'")
        return " ".join(line[1].split())

    @property
    def introduces(self) -> tuple[str, ...]:
        """The modules that this rung introduces, by their dotted names; the first rung stands on the core."""
        if self.name == "8":
            return ()
        names = self.header("Introduces").split(", ")
        return tuple(name if name.startswith("pi0.") else f"pi0.ript.{name}" for name in names)


@dataclass(frozen=True)
class Entry:
    """A place of the reading path: what to open for a rung, and why."""

    rung: str
    path: Path
    function: str
    """Its name, or Class.method."""
    reason: str

    @property
    def num_lines(self) -> int:
        """How long the file is."""
        return len(self.path.read_text().splitlines())

    @property
    def is_there(self) -> bool:
        """Whether the file defines a function, method or class of that name."""
        body: list[ast.stmt] = ast.parse(self.path.read_text()).body
        for name in self.function.split("."):
            definitions = [
                node
                for node in body
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name
            ]
            if not definitions:
                return False
            body = definitions[0].body
        return True

    def line(self, page: dict[str, str]) -> str:
        """Return it as a line of Markdown, seen from docs/, in the words of a page."""
        link = f"[{self.path.relative_to(LIBRARY)}](../{self.path.relative_to(ROOT)})"
        return page["open"].format(link=link, lines=self.num_lines, **vars(self))


RUNGS = {name: Rung(name) for name in SCRIPTS if (ROOT / SCRIPTS[name]).exists()}
STEPS = list(zip(list(RUNGS.values()), list(RUNGS.values())[1:], strict=False))


def module_files(module: str) -> list[Path]:
    """Return the source files of a module or package."""
    path = ROOT.joinpath(*module.split("."))
    return sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


@cache
def imported_modules(path: Path) -> frozenset[str]:
    """Return the dotted names of this project's modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from package import module` takes nothing of the package's own file.
            names |= members if all(map(_exists, members)) else {node.module, *members}
    return frozenset(name for name in names if name.split(".")[0] == "pi0" and _exists(name))


def closure(path: Path) -> set[str]:
    """Return all modules of this project that a file imports, directly or through others."""
    modules: set[str] = set()
    waiting = [path]
    while waiting:
        for module in imported_modules(waiting.pop()):
            if module not in modules:
                modules.add(module)
                waiting += module_files(module) if _is_leaf_package(module) else [_file(module)]
    return modules


def step_diff(parent: Rung, child: Rung) -> list[str]:
    """Return the unified diff of two scripts."""
    a, b = parent.source.splitlines(), child.source.splitlines()
    return list(difflib.unified_diff(a, b, parent.path.name, child.path.name, lineterm=""))


def changed_lines(parent: Rung, child: Rung) -> tuple[list[str], list[str]]:
    """Return the non-blank lines that a step adds and removes."""
    lines = [line for line in step_diff(parent, child) if not line.startswith(("+++", "---"))]
    added = [line[1:] for line in lines if line.startswith("+") and line[1:].strip()]
    removed = [line[1:] for line in lines if line.startswith("-") and line[1:].strip()]
    return added, removed


def notes(language: str = "") -> dict[str, str]:
    """Return the sections of ladder_notes.md: why each rung's lines are there, and the words of the page."""
    text = (ROOT / f"tools/ladder_notes{language}.md").read_text()
    parts = re.split(r"^## (\S+)\n", text, flags=re.MULTILINE)
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def named_lines(section: str) -> dict[str, str]:
    """Return the texts of a section of lines "* `name`: text", by name."""
    return dict(re.findall(r"^\* `(.+?)`[:：] ?(.+)$", section, re.MULTILINE))


def reading_path(language: str = "") -> list[Entry]:
    """Return what to open for each rung, in order, from ladder_notes.md."""
    section = notes(language)["reading"]
    lines = re.findall(r"^\* (\S+) `(.+?)` `(.+?)`[:：] ?(.+)$", section, re.MULTILINE)
    return [Entry(rung, LIBRARY / file, function, reason) for rung, file, function, reason in lines]


def _reading(entries: list[Entry], page: dict[str, str]) -> list[str]:
    """Return the reading path as it stands at the beginning of docs/stages.md."""
    first = [entry for entry in entries if entry.rung == "8"]
    counted = {
        "files": len({_file(module) for module in closure(RUNGS["8"].path)}),
        "first": len(first),
        "lines": sum(entry.num_lines for entry in first),
    }
    later = [f"* {entry.rung}: {entry.line(page)}" for entry in entries if entry.rung != "8"]
    return [
        f"## {page['begin']}\n",
        page["read"].format(link=f"(../{RUNGS['8'].path.name})", **counted) + "\n",
        *(f"{number}. {entry.line(page)}" for number, entry in enumerate(first, 1)),
        f"\n{page['later']}\n",
        *later,
        f"\n## {page['steps']}\n",
    ]


def _docstring(rung: Rung, sections: dict[str, str]) -> str:
    """Return a script's header, its title and text as the notes translate them, if they do."""
    title, fields, text = rung.docstring.split("\n\n", 2)
    told = sections.get(f"header-{rung.name}")
    if told is not None:
        title, text = told.split("\n\n", 1)
    return f"{title}\n\n{fields}\n\n{text}"


def stages(language: str = "") -> str:
    """Return docs/stages.md: the reading path; every step with its real diff, its modules and the reasons."""
    sections = notes(language)
    page, summaries = named_lines(sections["page"]), named_lines(sections.get("modules", ""))
    headers = {name: _docstring(rung, sections) for name, rung in RUNGS.items()}
    parts = [
        f"# {page['title']}\n\n{page['other']}\n\n{page['about']}\n",
        *_reading(reading_path(language), page),
        page["table"],
        "|---|---|---|---|",
    ]
    for i, rung in enumerate(RUNGS.values()):
        is_step = i > 0 and rung.name != "final"
        step = "+{} / -{}".format(*map(len, changed_lines(*STEPS[i - 1]))) if is_step else ""
        title = headers[rung.name].splitlines()[0]
        parts.append(
            f"| [{rung.name}](../{rung.path.name}) | {title} | {len(rung.source.splitlines())} | {step} |"
        )
    first = RUNGS["8"]
    parts += [
        f"\n{page['heading'].format(step=first.name, header=headers['8'])}\n",
        sections["8"],
        f"\n```python\n{first.source.rstrip()}\n```",
    ]
    for parent, child in STEPS:
        told = {m: summaries.get(m) or _summary(m) for m in child.introduces}
        modules = [page["module"].format(module=m, summary=summary) for m, summary in told.items()]
        diff = "\n".join(step_diff(parent, child))
        title = page["step"].format(parent=parent.name, child=child.name)
        code = f"```diff\n{diff}\n```"
        if child.name == "final":  # another algorithm: there is nothing to compare
            title, code = child.name, f"```python\n{child.source.rstrip()}\n```"
        heading = page["heading"].format(step=title, header=headers[child.name])
        parts += [f"\n{heading}\n", *modules, f"\n{sections[child.name]}\n\n{code}"]
    return "\n".join(parts) + "\n"


def carry(first: str) -> int:
    """Merge the uncommitted change of a rung into every later one; return how many need a hand.

    The final script has another loop, and is left alone.
    """
    names = [name for name in RUNGS if name != "final"]
    later = [*(RUNGS[name].path for name in names[names.index(first) + 1 :]), INSTALLED]
    base = _committed(RUNGS[first])
    conflicts = 0
    with tempfile.TemporaryDirectory() as directory:
        old, new = Path(directory) / "old", Path(directory) / "new"
        old.write_text(base)
        new.write_text(RUNGS[first].source)
        for path in later:
            merged = subprocess.run(["git", "merge-file", str(path), str(old), str(new)], cwd=ROOT)
            conflicts += merged.returncode != 0
            print(f"{path.name}: {'merged' if merged.returncode == 0 else 'conflicts, mend it by hand'}")
    return conflicts


def show(parent: Rung, child: Rung) -> None:
    """Print a step: the diff of the scripts, then the modules that it introduces."""
    print("\n".join(step_diff(parent, child)))
    for module in child.introduces:
        for path in module_files(module):
            print(f"\n{'=' * 100}\n{path.relative_to(ROOT)}\n{'=' * 100}\n{path.read_text().rstrip()}")


def _exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _is_leaf_package(module: str) -> bool:
    """Return whether all files of a package belong to one rung."""
    return any(module in rung.introduces for rung in RUNGS.values())


def _summary(module: str) -> str:
    text = ast.get_docstring(ast.parse(_file(module).read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def _committed(rung: Rung) -> str:
    command = ["git", "show", f"HEAD:{rung.path.name}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    diff = commands.add_parser("diff", help="show a step")
    diff.add_argument("parent", choices=list(RUNGS))
    diff.add_argument("child", choices=list(RUNGS))
    loops = [name for name in RUNGS if name != "final"]
    commands.add_parser("carry", help="merge an edit forward").add_argument("rung", choices=loops)
    commands.add_parser("stages", help="write docs/stages.md and stages.zh-CN.md")
    options = parser.parse_args()
    if options.command == "diff":
        show(RUNGS[options.parent], RUNGS[options.child])
        return 0
    if options.command == "carry":
        return carry(options.rung)
    for language in LANGUAGES:
        (ROOT / f"docs/stages{language}.md").write_text(stages(language))
    return 0


if __name__ == "__main__":
    sys.exit(main())
