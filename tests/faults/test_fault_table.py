"""The table of faults is complete, and names tests that are there."""

import ast
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from faults import fault_table
from faults.fault_table import CASES, DOCUMENT, KINDS, MORE, ROOT


@cache
def functions(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_kind_of_the_matrix_has_its_cases():
    assert sum(number for _, number in KINDS.values()) == 113
    counted = Counter(case.kind for case in CASES)
    assert {kind: counted[kind] for kind in KINDS} == {kind: number for kind, (_, number) in KINDS.items()}
    assert counted.keys() == KINDS.keys() | MORE.keys()


def test_every_case_has_an_oracle_and_a_test_or_a_reason():
    for case in CASES:
        assert case.fault, case
        assert case.how, case
        assert case.oracle, case
        assert bool(case.tests) != bool(case.not_shown), case
        assert not (case.fake and case.not_shown), case
        assert "yet" not in case.not_shown.split(), case
    assert len({(case.kind, case.fault) for case in CASES}) == len(CASES)


def test_the_tests_of_the_table_are_there_and_none_here_is_without_a_row():
    named = {tuple(node.partition("[")[0].split("::")) for node in fault_table.nodes()}
    missing = [pair for pair in named if pair[1] not in functions(ROOT / pair[0])]
    assert not missing
    here = {
        (str(file.relative_to(ROOT)), name)
        for file in (ROOT / "tests/faults").glob("test_*.py")
        for name in functions(file)
        if name.startswith("test_") and file != Path(__file__)
    }
    assert here
    assert not here - named


def test_the_document_has_the_table():
    text = DOCUMENT.read_text()
    assert fault_table.document(text) == text, "python tests/faults/fault_table.py document"


@pytest.mark.slow
def test_pytest_finds_every_test_of_the_table():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "slow or not slow"]
    done = subprocess.run(
        [*command, *fault_table.nodes()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
