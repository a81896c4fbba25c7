"""What a run is continued with: other numbers of processes, what another left, a lock of the dead."""

import os
import signal

import drifting
import numpy as np
import pytest
import torch

from faults import drills
from faults.drills import forked
from pi0.ript.checkpoint import SnapshotError, find_checkpoint
from pi0.ript.checkpoint.files import published
from pi0.ript.results import lock_directory


def begun(place, name, size):
    """Run the first iteration, and be told to stop in the second's first step."""
    ended = forked(place, name, size=size, fault="SIGTERM@0:update:8")
    assert [one.code for one in ended] == [128 + signal.SIGTERM] * size, ended[0].said[-3000:]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)], ids=["2 to 1", "1 to 2"])
@pytest.mark.slow
def test_another_number_of_processes_goes_on_and_says_so(place, alone, pair, goes_on, before, after):
    """No state is drawn twice or left out; the numbers are those of the whole run to rounding."""
    name = f"processes-{before}-{after}"
    begun(place, name, before)
    outcome, said = goes_on(name, size=after)
    assert f"processes {before} -> {after}" in said
    assert "equal up to rounding" in said
    whole = alone if after == 1 else pair
    assert outcome["sampler"] == whole["sampler"], "the same states have been drawn"
    for row, expected in zip(outcome["rows"], whole["rows"], strict=True):
        assert row["rollout/success"] == expected["rollout/success"]
        assert np.isclose(row["train/loss"], expected["train/loss"], rtol=1e-4)


@pytest.mark.slow
def test_each_rank_has_its_own_random_state_again(place):
    """A checkpoint has one file for each; a run without one of them is not continued from it."""
    begun(place, "random", 2)
    newest = published(place / "random")[-1]
    states = [torch.load(newest / f"rng_rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert states[0].keys() == states[1].keys()
    (newest / "rng_rank1.pt").unlink()
    with pytest.raises(SnapshotError, match=r"rng_rank1\.pt is missing"):
        find_checkpoint(place / "random", str(newest))


def test_a_link_to_nothing_is_passed_over(place, alone, capsys):
    """No pointer says which checkpoint is the newest: it is looked for, and this one leads nowhere."""
    (place / "alone/checkpoint-9").symlink_to(place / "nowhere")
    newest = find_checkpoint(place / "alone", "auto")
    (place / "alone/checkpoint-9").unlink()
    assert newest == place / "alone/checkpoint-2"
    assert f"not used: {place / 'alone/checkpoint-9'}: checkpoint.json is missing" in capsys.readouterr().out


def test_a_lock_whose_owner_was_killed_is_free(place):
    """The kernel frees it; the file still says who had it."""
    run_dir = place / "locked"
    pid = os.fork()
    if pid == 0:
        lock_directory(run_dir)
        (run_dir / "kept").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert f"process {pid} on " in (run_dir / ".lock").read_text()
    lock_directory(run_dir)
    assert f"process {os.getpid()} on " in (run_dir / ".lock").read_text()
    assert (run_dir / "kept").exists()


def test_a_second_run_in_the_directory_is_refused_while_the_first_goes_on(place, alone):
    """Both as users start them; the first one ends as if there had been no second."""

    def meet():
        from faults.test_disks import before

        def second():
            (ended,) = forked(place, "second", "exp_name=shared", size=1)
            (place / "shared.second").write_text(f"{ended.code}\n{ended.said}")

        before("pi0.ript.monitoring", "take_step", 2, second)

    (first,) = forked(place, "shared", size=1, prepare=meet)
    code, _, text = (place / "shared.second").read_text().partition("\n")
    drills.Ended(int(code), text).require_one_line("is being written by process")
    assert first.code == 0, (place / "shared/train_rank0.log").read_text()[-3000:]
    assert drifting.outcome(place / "shared") == alone


def test_a_run_that_is_killed_again_and_again_comes_to_the_same_end(place, alone):
    """In the first collection, in a resumed one at step 0, in the second iteration, and after it."""
    faults = ["SIGKILL@0:rollout:3", "SIGKILL@0:update:1", "SIGKILL@0:publish:2", "SIGKILL@0:after:1"]
    for number, fault in enumerate(faults):
        (ended,) = forked(place, "often", *(["--resume"] if number else []), size=1, fault=fault)
        assert ended.code == -signal.SIGKILL, ended.said[-3000:]
    (ended,) = forked(place, "often", "--resume", size=1)
    assert ended.code == 0
    assert drifting.outcome(place / "often") == alone
