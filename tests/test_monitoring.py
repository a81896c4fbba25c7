"""Steps without a finite loss are skipped and counted, memory is measured, the profiler writes its trace."""

import json
import mmap
import signal

import numpy as np
import pytest
import torch

from pi0.ript import interruption, monitoring
from pi0.ript.checkpoint import Progress
from pi0.ript.interruption import stop_requested
from pi0.ript.monitoring import NonFiniteLossError, ProfileWindow, monitor_memory, take_step

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def optimizer():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    weight.grad = torch.ones(3)
    return optimizer


def weight(optimizer):
    return optimizer.param_groups[0]["params"][0]


def test_a_finite_step_is_made_and_counted(optimizer):
    progress = Progress(step=4, losses=[1.0], nonfinite=2)
    progress.count(0.25, take_step(optimizer, 0.25, torch.tensor(1.7)), 3)
    assert torch.equal(weight(optimizer), torch.full((3,), 0.5))
    assert weight(optimizer).grad is None
    assert progress == Progress(step=5, losses=[1.0, 0.25], nonfinite=0)


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (INF, 1.0), (0.5, NAN), (0.5, INF)])
def test_a_step_that_is_not_finite_is_skipped_and_fatal_after_a_few(optimizer, loss, norm, capsys):
    progress = Progress(iteration=6)
    for step in range(2):
        progress.count(loss, take_step(optimizer, loss, torch.tensor(norm)), 3)
        printed = capsys.readouterr().out
        assert f"the loss is {loss}, the norm of its gradient {norm}: no step" in printed
        assert f"iteration 6, optimizer step {step}: skipped on all processes" in printed
    assert torch.equal(weight(optimizer), torch.ones(3))
    assert weight(optimizer).grad is None
    assert progress == Progress(iteration=6, step=2, nonfinite=2)
    with pytest.raises(NonFiniteLossError, match=r"iteration 6, optimizer step 2: .* number 3 in a row"):
        progress.count(loss, take_step(optimizer, loss, torch.tensor(norm)), 3)


def test_memory_is_measured_with_that_of_child_processes(monkeypatch):
    here = monitoring._resident_gb(children=False)
    assert monitor_memory()["memory/rss_gb"] == pytest.approx(monitoring._resident_gb(), abs=0.1)
    ballast = np.frombuffer(mmap.mmap(-1, 256 << 20), np.uint8)  # fresh pages, not freed ones of before
    ballast[:] = 1
    assert monitoring._resident_gb(children=False) - here == pytest.approx(ballast.nbytes / 1e9, abs=0.05)


def test_garbage_is_collected_before_the_limit_stops_the_run(monkeypatch, capfd):
    interruption._request.code = 0
    used = iter([9.5, 8.0, 9.5, 11.0, 11.0, 3.0, 10.9])
    monkeypatch.setattr(monitoring, "_resident_gb", lambda children=True: next(used))
    assert monitor_memory(10.0)["memory/rss_gb"] == 8.0
    assert not stop_requested()
    assert monitor_memory(10.0)["memory/rss_gb"] == 11.0
    assert stop_requested() == 128 + signal.SIGKILL
    message = capfd.readouterr().err
    assert "use 11.00 GB, the simulators 0.00 GB, more than memory_limit_gb=10" in message
    interruption._request.code = 0
    assert monitor_memory(None)["memory/rss_gb"] == 3.0


def test_the_profiler_writes_a_trace_of_the_first_steps(tmp_path):
    profile = ProfileWindow(2, tmp_path, rank=1)
    file = tmp_path / "profiling/trace_rank1.json"
    for step in range(5):
        assert file.exists() is (step >= 3)
        torch.ones(8, 8) @ torch.ones(8, 8)
        profile.step()
    names = [event.get("name") for event in json.loads(file.read_text())["traceEvents"]]
    assert names.count("aten::mm") == 2


def test_the_profiler_can_be_off_or_cut_short(tmp_path):
    ProfileWindow(0, tmp_path).step()
    short = ProfileWindow(9, tmp_path)
    short.step()
    short.close()
    short.close()
    assert (tmp_path / "profiling/trace_rank0.json").exists()
