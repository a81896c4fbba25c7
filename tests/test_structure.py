"""What holds the code together: one-way imports, one name for one thing, declared packages, small files."""

import ast
import dataclasses
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from pi0 import FeatureConfig
from pi0.ript.files import path_argument

ROOT = Path(__file__).parent.parent
POLICY_FILES = sorted((ROOT / "pi0").glob("*.py"))


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = f"pi0.{node.module or ''}".rstrip(".") if node.level else node.module
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("file", POLICY_FILES, ids=lambda f: f.name)
def test_the_policy_knows_nothing_of_reinforcement_learning(file):
    assert not {name for name in imported(file) if name.startswith("pi0.ript")}


LIBRARY_FILES = sorted((ROOT / "pi0").rglob("*.py"))


def importers(package: str) -> set[str]:
    """Return the files that import something of pi0/ript/PACKAGE from outside of it."""
    files = [*LIBRARY_FILES, *ROOT.glob("*.py")]
    names = {
        str(file.relative_to(ROOT))
        for file in files
        if any(name.startswith(f"pi0.ript.{package}.") for name in imported(file))
    }
    return {name for name in names if not name.startswith(f"pi0/ript/{package}/")}


def test_products_stand_beside_each_other_and_only_commands_and_scripts_use_them():
    commands = {name for name in importers("recap") | importers("supervised") if "/commands/" in name}
    assert importers("recap") - commands == {"train_ript_pi0_final.py"}
    assert importers("supervised") - commands == {"pi0/ript/scripts/train.py"}


# Names ------------------------------------------------------------------------------------------------------

PARALLEL = {"lerobot_format.py", "openpi_format.py"}
"""Two readers with the same functions: a checkpoint's format chooses the module."""


def public_definitions() -> dict[str, list[Path]]:
    """Return the files that define each public class and function of the library, by its name."""
    files: dict[str, list[Path]] = {}
    for file in LIBRARY_FILES:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                files.setdefault(node.name, []).append(file)
    return files


def test_a_name_stands_for_one_thing():
    twice = {name: files for name, files in public_definitions().items() if len(files) > 1 and name != "main"}
    twice = {name: files for name, files in twice.items() if {file.name for file in files} != PARALLEL}
    assert not twice
    assert len(public_definitions()) > 500, "otherwise nothing was read"


# Packages ---------------------------------------------------------------------------------------------------

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CODE_FILES = [
    *ROOT.glob("*.py"),
    *(f for d in ("pi0", "tools", "benchmarks") for f in (ROOT / d).rglob("*.py")),
]
TEST_FILES = sorted((ROOT / "tests").rglob("*.py"))
STARTED = {"accelerate"}
"""Packages that the code starts as programs, without an import."""


def declared(requirements: Iterable[str]) -> set[str]:
    """Return the names of packages, spelt alike."""
    return {distribution(re.match(r"[\w.-]+", text)[0]) for text in requirements}


def distribution(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_packages(files: Iterable[Path]) -> dict[str, set[str]]:
    """Return the modules of other projects that files import, each with the packages that have it."""
    ours = {
        "pi0",
        *(file.parent.name for file in TEST_FILES if file.name == "__init__.py"),
        *(file.stem for file in [*CODE_FILES, *TEST_FILES] if file not in LIBRARY_FILES),
    }
    modules = {name.partition(".")[0] for file in files for name in imported(file)}
    installed = packages_distributions()
    return {
        module: {distribution(name) for name in installed.get(module, [module])}
        for module in modules - ours - sys.stdlib_module_names
    }


def test_what_the_code_imports_is_declared_and_nothing_else():
    needed, names = imported_packages(CODE_FILES), declared(PROJECT["dependencies"])
    undeclared = {module for module, packages in needed.items() if not packages & names}
    unused = names - STARTED - {name for packages in needed.values() for name in packages}
    assert (undeclared, unused) == (set(), set())
    assert not STARTED - names


def test_what_the_tests_import_is_declared():
    names = declared([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]])
    missing = {m for m, packages in imported_packages(TEST_FILES).items() if not packages & names}
    assert not missing
    assert "pytest" in imported_packages(TEST_FILES), "otherwise nothing was read"


# Files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", LIBRARY_FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_files_are_small(file):
    assert len(file.read_text().splitlines()) <= 320


def test_every_convention_is_documented():
    text = (ROOT / "docs/conventions.md").read_text()
    upstreams_differ = [f.name for f in dataclasses.fields(FeatureConfig)][6:]
    assert upstreams_differ[0] == "epsilon"
    assert not [name for name in upstreams_differ if f"`FeatureConfig.{name}`" not in text]


def test_the_home_directory_is_meant_by_a_tilde_in_every_path_of_a_command_line(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_argument("~/data") == tmp_path / "data"
    assert path_argument("data/~x") == Path("data/~x")
    typed = {file.name for file in LIBRARY_FILES if "type=path_argument" in file.read_text()}
    assert {"stats.py", "advantage.py", "dataset_viz.py", "export.py", "command.py"} <= typed
    assert not [
        file.name for file in LIBRARY_FILES if re.search(r"type=(pathlib\.)?Path\b", file.read_text())
    ]
