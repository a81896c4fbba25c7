"""What holds the code together: one-way dependencies, small files, documented options."""

import ast
import dataclasses
from pathlib import Path

import pytest

from pi0 import FeatureConfig

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


@pytest.mark.parametrize("file", LIBRARY_FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_files_are_small(file):
    assert len(file.read_text().splitlines()) <= 320


def test_every_convention_is_documented():
    text = (ROOT / "docs/conventions.md").read_text()
    upstreams_differ = [f.name for f in dataclasses.fields(FeatureConfig)][6:]
    assert upstreams_differ[0] == "epsilon"
    assert not [name for name in upstreams_differ if f"`FeatureConfig.{name}`" not in text]
