"""The program that measures a GPU, rehearsed on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "tools/gpu_check.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def test_every_section_runs_in_a_rehearsal_and_is_written(tmp_path):
    file = tmp_path / "gpu.json"
    small = ("--device", "cpu", "--size", "tiny", "--repeats", "2", "--batches", "2", "--output", str(file))
    result = run(*small, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    figures = json.loads(file.read_text())
    assert "rehearsal" in figures["device"]
    assert "skipped" in figures["tests"]["last_line"]
    errors = figures["exactness"]["relative_errors"]
    assert errors["float32 again"] == 0
    assert 0 < errors["bfloat16, image encoder float32"] < 0.1
    assert figures["latency"]["eager"]["p50_ms"] > 0
    assert figures["inference of 16 slots"]["chunks_per_s"] > 0
    for name in ("full fine-tuning", "expert-only training"):
        assert figures[name]["samples_per_s"] > 0
        assert "utilisation_of_measured_ceiling" not in figures[name]  # no figure of a GPU


def test_without_a_gpu_one_line_says_so():
    result = run("--only", "ceiling")
    assert result.returncode == 2
    assert "torch finds no GPU; a rehearsal is --device cpu --size tiny" in result.stderr
