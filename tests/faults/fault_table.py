"""The faults that runs have to stand, each with what shows that they do: the table of docs/reliability.md.

python tests/faults/fault_table.py run        run what the table names, slow tests too
python tests/faults/fault_table.py document   write the table into docs/reliability.md
"""

import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = ROOT / "docs/reliability.md"
BEGIN, END = "<!-- the table: written by tests/faults/fault_table.py -->", "<!-- end of the table -->"


class Outcome(StrEnum):
    """What has to come of a fault."""

    EQUAL = "bit-equal, after the restart where it ended"
    LINE = "one error line with its exit code, nothing lost"
    GOES_ON = "goes on, with a notice and a count"
    FALLS_BACK = "falls back, with a notice"


@dataclass(frozen=True)
class Case:
    """A fault and what shows its outcome."""

    kind: int
    fault: str
    how: str
    """The means, real unless `fake` says why not."""
    outcome: Outcome
    oracle: str
    """What a test compares with."""
    tests: tuple[str, ...] = ()
    """Node ids of pytest, below tests/."""
    fake: str = ""
    not_shown: str = ""
    """Why it is not shown here."""


KINDS = {
    1: ("SIGKILL of one rank", 8),
    2: ("SIGKILL of all: a node or its power is lost", 4),
    3: ("SIGTERM to the launcher: preemption", 4),
    4: ("SIGUSR1 to the launcher", 1),
    5: ("a signal to one rank alone", 2),
    6: ("a second signal during the save", 1),
    7: ("a signal to the workers first", 2),
    8: ("less grace than the save takes", 1),
    9: ("a rank hangs", 2),
    10: ("a rank leaves out an exchange", 1),
    11: ("a rank raises", 2),
    12: ("an environment worker is killed", 2),
    13: ("an environment hangs", 2),
    14: ("an environment shows NaN or another shape", 2),
    15: ("all groups are uniform", 3),
    16: ("a rank has nothing to learn from", 1),
    17: ("a loss or gradient that is not finite", 5),
    18: ("advantages without a value", 2),
    19: ("a full disk while saving", 4),
    20: ("a directory that is read-only or vanishes", 2),
    21: ("a file of the newest checkpoint is cut short", 4),
    22: ("a flipped bit", 3),
    23: ("a file of a rank, of random states, or the manifest is missing", 3),
    24: ("left-over and unfinished directories", 3),
    25: ("pruning races publishing", 1),
    26: ("asynchronous saves", 3),
    27: ("exact resume at every position", 12),
    28: ("several interruptions, and a resume past the end", 3),
    29: ("another number of processes", 2),
    30: ("settings, code or data have changed", 4),
    31: ("a foreign checkpoint", 3),
    32: ("torchrun starts a lost process again", 2),
    33: ("a second run in the directory", 2),
    34: ("W&B is offline, fails or hangs", 4),
    35: ("a clock that jumps, a slow rank", 2),
    36: ("a worker without memory", 1),
    37: ("damaged data of RECAP", 4),
    38: ("a stage of RECAP is interrupted", 4),
    39: ("useless values and labels", 2),
}
"""The matrix: kinds, and how many cases each has."""
MORE = {
    41: "whoever else is killed",
    42: "a disk that is full, wherever that shows",
    43: "slow, missing and small surroundings",
    44: "signals at other moments",
    45: "other numbers that are none",
    46: "files of a later version",
}
"""Kinds beyond the matrix, which users or reviews met."""

_KILLED, _SIGNALS, _STALLS = "faults/test_killed.py::", "faults/test_signals.py::", "faults/test_stalls.py::"
_SIMULATORS, _LEARNING = "faults/test_simulators.py::", "faults/test_learning.py::"
_DISKS, _RESUMED = "faults/test_disks.py::", "faults/test_resumed.py::"
_RECAP = "faults/test_recap_stages_killed.py::"
_CHECKPOINT, _PRODUCTION = "test_checkpoint.py::", "test_production.py::"
_DAMAGE = f"{_CHECKPOINT}test_damage_is_named_and_the_checkpoint_before_is_used"
_WEIGHTS = "policy/model-00001-of-00001.safetensors"
_WHOLE = "*the whole run*"
_PHASES = {
    "rollout": "a collection",
    "update": "the optimizer steps",
    "save": "a save",
    "after": "an evaluation",
}
_HERE = "the process kills itself there"


def _killed() -> list[Case]:
    cases = [
        Case(
            1, f"rank {rank}, in {where}", f"SIGKILL, {_HERE}", Outcome.EQUAL,
            f"the other one names it in one line, code 1; {_WHOLE}",
            (f"{_KILLED}test_one_rank_is_killed[{event}-{rank}]",),
        )
        for event, where in _PHASES.items() for rank in (0, 1)
    ]  # fmt: skip
    moments = {"rollout": "in a collection", "update": "in the optimizer steps",
               "write": "when half of a file is written", "publish": "between writing and renaming"}  # fmt: skip
    cases += [
        Case(
            2, moment, "SIGKILL to the process group", Outcome.EQUAL,
            f"finished episodes and the checkpoint before are there; {_WHOLE}",
            (f"{_KILLED}test_all_are_killed_at_once[{event}]",),
        )
        for event, moment in moments.items()
    ]  # fmt: skip
    return cases


def _signalled() -> list[Case]:
    launcher = f"{_SIGNALS}test_torchrun_is_signalled"
    oracle = f"one line says one step for all, a valid checkpoint, no process left; {_WHOLE}"
    cases = [
        Case(
            3, f"in {where}", "SIGTERM to torchrun", Outcome.EQUAL, oracle, (f"{launcher}[SIGTERM-{event}]",)
        )
        for event, where in _PHASES.items()
    ]
    cases += [
        Case(
            4, "in the optimizer steps", "SIGUSR1 to torchrun --signals-to-handle", Outcome.EQUAL, oracle,
            (f"{launcher}[SIGUSR1-update]",),
        ),
        *(
            Case(
                5, f"rank {rank}", "SIGUSR1 to that process", Outcome.EQUAL,
                f"all leave with 138 at one step; {_WHOLE}",
                (f"{_SIGNALS}test_one_rank_is_signalled[{rank}]",),
            )
            for rank in (0, 1)
        ),
        Case(
            6, "SIGTERM again while weights are half written", "two signals 2.5 s apart", Outcome.EQUAL,
            f"leaves at once with 143, the checkpoint before is valid; {_WHOLE}",
            (f"{_SIGNALS}test_a_second_signal_in_the_save_leaves_at_once_and_the_checkpoint_before_is_valid",),
        ),
        Case(
            7, "environment workers", "SIGTERM to the process group", Outcome.EQUAL,
            f"no episode is interrupted, code 143; {_WHOLE}",
            (f"{_SIGNALS}test_a_signal_to_the_group_reaches_environment_workers_and_they_go_on",),
        ),
        Case(
            7, "processes that read data", "SIGTERM to the process group of pi0-train", Outcome.EQUAL,
            "code 143 and a checkpoint",
            ("test_cases.py::test_a_mended_fault_stays_mended[R08_sigterm_to_the_group]",),
        ),
        Case(
            8, "torchrun kills 1 s after SIGTERM, the save takes 30 s",
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=1 and a slow write", Outcome.EQUAL,
            f"the checkpoint before is valid; {_WHOLE}",
            (f"{_SIGNALS}test_a_launcher_that_kills_before_the_save_ends_leaves_the_checkpoint_before",),
        ),
    ]  # fmt: skip
    return cases


def _processes() -> list[Case]:
    stopped = f"{_STALLS}test_a_rank_that_is_stopped_is_named"
    raises = f"{_STALLS}test_a_rank_that_raises_shows_its_traceback_and_the_other_one_line"
    return [
        *(
            Case(
                9, f"in {_PHASES[event]}", "SIGSTOP; distributed.timeout_seconds=8", Outcome.EQUAL,
                f"the other one names the rank and where it waited, one line, code 1; {_WHOLE}",
                (f"{stopped}[{event}-1]",),
            )
            for event in ("update", "rollout")
        ),
        Case(
            10, "one of a run's exchanges", "rank 1 leaves it out", Outcome.LINE,
            "both say that they are out of step and where each is, at the next exchange",
            (f"{_STALLS}test_a_rank_that_leaves_out_an_exchange_is_noticed_at_the_next",
             f"{_STALLS}test_processes_at_different_places_are_named",
             f"{_STALLS}test_who_does_not_answer_is_missing"),
            fake="a program that is right leaves none out: the call is replaced by nothing",
        ),
        *(
            Case(
                11, f"in {_PHASES[event]}", "an exception in rank 1", Outcome.EQUAL,
                f"its traceback, and one line of the other that names it; {_WHOLE}", (f"{raises}[{event}]",),
            )
            for event in ("update", "rollout")
        ),
    ]  # fmt: skip


def _simulators() -> list[Case]:
    lost = f"{_SIMULATORS}test_a_worker_is_lost_and_the_run_is_as_without_it"
    again = "the run says how many episodes are run again and why; its end is that of the undisturbed run"
    return [
        Case(12, "in a collection", "SIGKILL of the worker", Outcome.GOES_ON, again, (f"{lost}[{_a_worker('rollout')}]",)),
        Case(12, "in an evaluation", "SIGKILL of the worker", Outcome.GOES_ON, again, (f"{lost}[{_a_worker('after')}]",)),
        Case(
            13, "while it steps", "SIGSTOP of the worker", Outcome.GOES_ON, again,
            (f"{lost}[SIGSTOP-rollout-did not answer in 5 s]",
             "envs/test_envs_batched.py::test_worker_that_always_dies_is_an_error"),
        ),
        Case(
            13, "while it begins an episode", "SIGSTOP of the worker", Outcome.GOES_ON,
            "it is replaced and asked again; the episode is that of the initial state",
            (f"{_SIMULATORS}test_a_worker_that_hangs_in_reset_is_replaced_and_asked_again",),
        ),
        *(
            Case(
                14, fault, "a simulator that does so twice, or always", Outcome.GOES_ON,
                "the episode is run again and counted, states equal bit for bit; always: one line",
                (f"{_SIMULATORS}test_an_observation_that_is_none_costs_its_episode_another_attempt[{key}]",
                 f"{_SIMULATORS}test_one_that_always_is_ends_the_run_in_one_line[{key}]",
                 f"{_SIMULATORS}test_an_experts_simulation_says_so_too"),
            )
            for key, fault in {"NaN": "NaN in the state", "shape": "a state of another size"}.items()
        ),
        Case(
            36, "more than its RLIMIT_AS", "setrlimit in the worker", Outcome.GOES_ON,
            "code 137, the message says memory; it is replaced as in 12",
            (f"{_SIMULATORS}test_a_worker_without_memory_is_replaced_and_the_message_says_memory",),
        ),
    ]  # fmt: skip


def _a_worker(event: str) -> str:
    """Return the parameters of a test as pytest names them."""
    said = {"rollout": "exit code -9: killed, as the kernel does", "after": "exit code -9: killed"}[event]
    return f"SIGKILL-{event}-{said}"


def _learning() -> list[Case]:
    ever = f"{_LEARNING}test_where_all_episodes_have_one_outcome_no_step_is_made_and_it_is_said"
    skipped = f"{_LEARNING}test_a_step_that_is_not_finite_on_any_rank_is_left_out_on_all"
    bounded = "a bounded number of states, the reason in a line, weights as they were"
    left_out = "skipped on both ranks, which say so; parameters are compared bit for bit after the iteration"
    nowhere = "a model in order has none: the number is put into the loss"
    return [
        Case(15, "all succeed", "a simulator that says so", Outcome.GOES_ON, bounded, (f"{ever}[True]",)),
        Case(15, "all fail", "a simulator that says so", Outcome.GOES_ON, bounded, (f"{ever}[False]",)),
        Case(
            15, "on one rank alone", "a simulator that says so on rank 1", Outcome.GOES_ON,
            "both ranks end; parameters are compared bit for bit",
            (f"{_LEARNING}test_where_one_rank_alone_has_one_outcome_both_go_on_together",),
        ),
        Case(
            16, "an optimizer step of one window on two ranks", "a batch of that size", Outcome.GOES_ON,
            "gradients are those of one process", ("test_distributed.py::test_gradients_are_those_of_one_process[one window-order1]",),
        ),
        *(
            Case(17, fault, "NaN there, once", Outcome.GOES_ON, left_out, (f"{skipped}[{key}]",), fake=nowhere)
            for key, fault in {
                "nan@0:loss:2": "loss on rank 0", "nan@1:loss:2": "loss on rank 1", "both": "loss on both ranks",
                "nan-gradient@1:loss:2": "gradient on rank 1",
            }.items()
        ),
        Case(
            17, "several in a row", "a learning rate of 1e30", Outcome.LINE, "one line, code 1",
            ("test_faults.py::test_a_fault_is_one_line[13: loss not finite]",
             "test_training_steps.py::test_a_few_in_a_row_end_the_training_with_the_weights_before_them"),
        ),
        Case(
            18, "a group of one outcome", "rewards", Outcome.GOES_ON, "advantages are zero, never NaN",
            ("test_advantage.py::test_uniform_groups_are_not_informative",
             "test_advantage.py::test_groups_sum_to_zero_and_do_not_mix"),
        ),
        Case(
            18, "frames without a value", "NaN of a value function", Outcome.LINE, "the gate stops the run by name",
            ("test_recap_advantages.py::test_frames_that_the_value_function_has_no_number_for_stop_at_the_gate",),
        ),
    ]  # fmt: skip


def _disks() -> list[Case]:
    full = f"{_DISKS}test_the_disk_is_full_when_something_is_written"
    with_room = f"one line with the remedy, code 1, nothing unfinished left; with room: {_WHOLE}"
    writers = {
        "weights": "weights",
        "optimizer": "the optimizer",
        "manifest": "the manifest",
        "metrics": "metrics.jsonl",
    }
    cases = [
        Case(19, f"when it writes {what}", "a tmpfs that is filled up at that moment", Outcome.EQUAL, with_room, (f"{full}[{key}]",))
        for key, what in writers.items()
    ]  # fmt: skip
    cases += [
        Case(
            20, "read-only, at the start and in a save", "a tmpfs that is remounted", Outcome.EQUAL,
            f"one line, code 1, the checkpoint before is there; {_WHOLE}",
            (f"{_DISKS}test_the_disk_becomes_read_only[start]", f"{_DISKS}test_the_disk_becomes_read_only[save]"),
        ),
        Case(
            20, "removed while the run goes on", "rm -r", Outcome.LINE, "one line, code 1, never a run in half a directory",
            (f"{_DISKS}test_the_directory_of_the_run_vanishes",),
        ),
        *(
            Case(
                42, f"in rung 13, when it writes {what}", "a tmpfs that is filled up at that moment", Outcome.EQUAL,
                with_room, (f"{full}[{what}]",),
            )
            for what in ("settings", "an evaluation", "a finished episode", "random states", "policy of a checkpoint", "results")
        ),
        Case(
            42, "in rung 13, from the start", "a tmpfs of 2 to 95 % of what the run takes", Outcome.EQUAL, with_room,
            tuple(f"{_DISKS}test_a_disk_that_is_too_small_wherever_it_ends[{share}]" for share in (0.02, 0.1, 0.25, 0.4, 0.6, 0.8, 0.95)),
        ),
        *(
            Case(
                42, f"in pi0-train, when it writes {what}", "a tmpfs that is filled up at that moment", Outcome.LINE,
                "one line with the remedy, code 1, nothing unfinished left; with room the same command ends",
                (f"{_DISKS}test_the_disk_is_full_in_pi0_train[{what}]",),
            )
            for what in ("checkpoint", "model", "metrics")
        ),
        Case(
            42, "any command that has no line of its own for it", "/dev/full", Outcome.LINE, "one line with the remedy",
            (f"{_DISKS}test_a_command_says_in_a_line_that_the_disk_is_full",
             f"{_DISKS}test_errors_of_the_disk_have_a_remedy_and_others_their_traceback"),
        ),
        Case(
            42, "the log file", "/dev/full in its place", Outcome.GOES_ON, "said once, the console goes on",
            ("test_run_logging.py::test_a_full_disk_does_not_stop_the_console",),
        ),
    ]  # fmt: skip
    return cases


def _loaded() -> list[Case]:
    before = "the file is named, loading changes nothing, the checkpoint before is used and said"
    cut = {
        "trainable.safetensors": "trained weights",
        "trainer.pt": "optimizer",
        _WEIGHTS: "policy",
        "checkpoint.json": "manifest",
    }
    flipped = {
        "trainable.safetensors": "trained weights",
        "trainer.pt": "optimizer",
        "rng_rank0.pt": "random states",
    }
    died = f"{_CHECKPOINT}test_a_kill_while_saving_leaves_the_checkpoint_before"
    cases = [
        *(Case(21, what, "the file is cut in half", Outcome.FALLS_BACK, before, (f"{_DAMAGE}[{file}-truncated]",)) for file, what in cut.items()),
        *(Case(22, what, "one bit of the file", Outcome.FALLS_BACK, before, (f"{_DAMAGE}[{file}-one bit]",)) for file, what in flipped.items()),
        Case(23, "file of rank 1", "it is removed", Outcome.FALLS_BACK, before, (f"{_RESUMED}test_each_rank_has_its_own_random_state_again",)),
        Case(23, "random states", "it is removed", Outcome.FALLS_BACK, before, (f"{_DAMAGE}[rng_rank0.pt-missing]",)),
        Case(23, "manifest", "it is removed", Outcome.FALLS_BACK, before, (f"{_DAMAGE}[checkpoint.json-missing]",)),
        Case(
            24, "what an interrupted save left", "made by hand", Outcome.FALLS_BACK, "passed over, and removed by the next save",
            (f"{_CHECKPOINT}test_unfinished_and_foreign_directories_are_no_checkpoints",),
        ),
        Case(
            24, "a link to nothing, newer than the last checkpoint", "made by hand; the newest is found by looking, no pointer says it",
            Outcome.FALLS_BACK, "named, and the one before is used", (f"{_RESUMED}test_a_link_to_nothing_is_passed_over",),
        ),
        Case(24, "a directory without manifest", "SIGKILL before it is written", Outcome.FALLS_BACK, "the one before is used", (f"{died}[no manifest]",)),
        Case(
            25, "keep_last=1", "the directory is looked at before every renaming and removal", Outcome.EQUAL,
            "one valid checkpoint or more at every instant", (f"{_CHECKPOINT}test_there_is_a_valid_checkpoint_at_every_instant",),
        ),
        Case(26, "a crash before the files are on the disk", "SIGKILL before they are flushed", Outcome.FALLS_BACK, "the one before is used", (f"{died}[not flushed]",)),
        Case(
            26, "weights change while they are written", "a step and new states while the writing is held back", Outcome.EQUAL,
            "the files of a save that is waited for", ("test_background.py::test_it_is_of_its_step_although_the_training_has_gone_on",),
        ),
        Case(
            26, "a second save before the first has ended", "saves that are slower than the training", Outcome.EQUAL,
            "one begins when the one before has ended", ("test_background.py::test_the_next_one_begins_when_it_is_finished",),
        ),
    ]  # fmt: skip
    return cases


def _resumed() -> list[Case]:
    exact = f"{_PRODUCTION}test_a_continued_run_is_the_uninterrupted_one"
    positions = (
        "before",
        "first collection",
        "first step",
        "middle of the steps",
        "boundary",
        "second collection",
        "last step",
        "after",
    )
    killed = ("first step", "middle of the steps", "boundary", "last step")
    dead = "the process is not there any more without a chance to write: an exception that nothing catches ends it, so that one process can be compared with many"
    return [
        *(Case(27, f"stopped: {place}", "SIGTERM", Outcome.EQUAL, f"no optimizer step twice; {_WHOLE}", (f"{exact}[{place}-stop]",)) for place in positions),
        *(Case(27, f"gone: {place}", "an exception that nothing catches", Outcome.EQUAL, _WHOLE, (f"{exact}[{place}-kill]",), fake=dead) for place in killed),
        Case(28, "killed four times, once at step 0 of a resumed run", f"SIGKILL, {_HERE}", Outcome.EQUAL, _WHOLE, (f"{_RESUMED}test_a_run_that_is_killed_again_and_again_comes_to_the_same_end",)),
        Case(28, "stopped every five events", "SIGTERM", Outcome.EQUAL, _WHOLE, (f"{_PRODUCTION}test_every_position_in_one_run",)),
        Case(28, "continued past its end", "--resume", Outcome.EQUAL, "a longer run is the whole one; nothing is made again", (f"{_PRODUCTION}test_a_finished_run_can_be_prolonged_but_not_changed",)),
        *(
            Case(
                29, ids, "fewer or more processes", Outcome.GOES_ON,
                "said; no state drawn twice or left out; numbers to rounding",
                (f"{_RESUMED}test_another_number_of_processes_goes_on_and_says_so[{ids}]",),
            )
            for ids in ("2 to 1", "1 to 2")
        ),
        Case(30, "learning rate, number of steps", "another value", Outcome.LINE, "each difference is listed; what changes nothing is allowed", (f"{_CHECKPOINT}test_changed_settings_are_listed_unless_they_change_nothing",)),
        Case(30, "sizes of the model", "another model", Outcome.LINE, "refused by name, nothing has changed", (f"{_CHECKPOINT}test_another_model_is_refused_and_nothing_changes",)),
        Case(30, "versions of the code", "another one in the manifest", Outcome.GOES_ON, "a notice lists them", ("test_training_steps.py::test_other_versions_and_processes_are_a_notice",)),
        Case(30, "data", "another data set in its place", Outcome.LINE, "refused by name", ("test_training_steps.py::test_other_data_are_refused_by_name",)),
        Case(31, "another architecture", "a checkpoint of one", Outcome.LINE, "one line that names what does not fit", ("test_faults.py::test_a_fault_is_one_line[13: misshapen]", "test_faults.py::test_a_fault_is_one_line[13: two cameras]")),
        Case(31, "weights alone", "--resume with another path", Outcome.LINE, "refused; says what is expected", (f"{_CHECKPOINT}test_none_is_the_beginning_and_nothing_valid_an_error",)),
        Case(31, "pickled code", "a pickle in every file that is read", Outcome.LINE, "it is not run", ("test_security.py::test_a_pickle_in_any_file_that_is_read_is_not_run",)),
        *(
            Case(32, f"killed in {_PHASES[event]}", "SIGKILL of rank 1 under torchrun --max-restarts=1", Outcome.EQUAL, f"within one launch, without --resume; {_WHOLE}", (f"{_SIGNALS}test_torchrun_starts_a_lost_process_again_and_the_run_goes_on[{event}]",))
            for event in ("rollout", "update")
        ),
        Case(33, "the first one is alive", "the same command twice", Outcome.LINE, "one line names its process; the first ends undisturbed", (f"{_RESUMED}test_a_second_run_in_the_directory_is_refused_while_the_first_goes_on", f"{_CHECKPOINT}test_a_directory_has_one_writer")),
        Case(33, "the first one is dead", "SIGKILL of the process with the lock", Outcome.EQUAL, "the lock is free, files are kept", (f"{_RESUMED}test_a_lock_whose_owner_was_killed_is_free",)),
    ]  # fmt: skip


def _around() -> list[Case]:
    never, no_network = (
        "test_run_logging.py::test_wandb_never_stops_the_training",
        "no W&B can be reached from here: a module of its name that raises or sleeps",
    )
    kept = "one warning; every row is in metrics.jsonl; not asked again"
    vanished = f"{_DISKS}test_the_log_directory_vanishes_and_the_console_goes_on"
    streams = f"{_DISKS}test_output_streams_are_closed_and_the_run_goes_on"
    return [
        Case(34, "offline, then online without a key", "W&B itself", Outcome.GOES_ON, "one run id, no step twice, no question", ("test_run_logging.py::test_the_real_wandb",)),
        *(
            Case(34, fault, "raises or sleeps", Outcome.GOES_ON, kept, (f"{never}[fail-{what}]", f"{never}[hang-{what}]"), fake=no_network)
            for what, fault in {"init": "it cannot be reached at the start", "log": "the network is lost", "finish": "the end hangs"}.items()
        ),
        Case(35, "an hour back, then two days ahead", "libfaketime, in the run alone", Outcome.EQUAL, _WHOLE, (f"{_STALLS}test_a_clock_that_jumps_changes_nothing",)),
        Case(35, "a rank that is many times slower", "its simulator sleeps", Outcome.GOES_ON, f"the log has how long was waited; {_WHOLE}", (f"{_STALLS}test_a_slow_rank_is_waited_for_and_told",)),
        Case(41, "a process that reads data", "SIGKILL", Outcome.EQUAL, "one line with the remedy, code 1; the model of the undisturbed run, bit for bit", (f"{_KILLED}test_a_process_that_reads_data_is_killed",)),
        Case(41, "torchrun", "SIGKILL", Outcome.EQUAL, f"its processes end by themselves; {_WHOLE}", (f"{_KILLED}test_torchrun_is_killed",)),
        Case(41, "in each step of a save", "SIGKILL", Outcome.FALLS_BACK, "the checkpoint before; the next save clears up", tuple(f"{_CHECKPOINT}test_a_kill_while_saving_leaves_the_checkpoint_before[{step}]" for step in ("half a file", "no manifest", "not flushed", "no name"))),
        Case(41, "pi0-train, before and in a save", "SIGKILL", Outcome.EQUAL, "rows and model of the undisturbed run, bit for bit", tuple(f"test_supervised.py::test_a_killed_run_goes_on_from_what_is_whole[{x}]" for x in ("before a checkpoint", "while one is written"))),
        Case(43, "a slow disk", "a write that takes 3 s", Outcome.EQUAL, f"the other rank waits; {_WHOLE}", (f"{_DISKS}test_a_slow_disk_is_waited_for",)),
        Case(43, "the log file is removed", "unlink", Outcome.GOES_ON, _WHOLE, (vanished,)),
        Case(43, "standard streams are closed", "close, before the start", Outcome.EQUAL, f"no file gets what was meant for them; {_WHOLE}", (f"{streams}[closed]", f"{_DISKS}test_a_signal_writes_into_no_file_where_the_streams_are_closed")),
        Case(43, "the reader of the output leaves", "a broken pipe", Outcome.EQUAL, f"the log file has the rest; {_WHOLE}", (f"{streams}[broken]",)),
        Case(43, "little shared memory", "64 KB at /dev/shm", Outcome.LINE, "one line with the remedy, which works", (f"{_DISKS}test_shared_memory_is_small",)),
        Case(43, "a port that is taken (pi0-serve)", "another server", Outcome.LINE, "one line", ("test_serving.py::test_settings_that_cannot_be",)),
        Case(44, "one signal in a save", "SIGTERM", Outcome.EQUAL, f"the save ends first; {_WHOLE}", (f"{_SIGNALS}test_a_signal_in_a_save_waits_for_it",)),
        Case(44, "Ctrl+C twice", "two SIGINT 2.5 s apart", Outcome.EQUAL, f"leaves at once with 130; {_WHOLE}", (f"{_SIGNALS}test_ctrl_c_twice_leaves_at_once",)),
        Case(44, "in a validation of pi0-train", "SIGTERM", Outcome.EQUAL, "143 and a checkpoint within the grace", ("test_cases.py::test_a_mended_fault_stays_mended[R12_sigterm_in_validation]",)),
        Case(45, "an action that is not finite", "a policy that gives one", Outcome.LINE, "refused before anything moves", ("envs/test_envs_batched.py::test_bad_actions_move_nothing",)),
        Case(46, "everything that a run leaves", "another number of format", Outcome.LINE, "one line says that a later version made it", ("test_old_runs.py::test_what_a_later_version_wrote_is_refused_in_one_line",)),
    ]  # fmt: skip


def _recap() -> list[Case]:
    stage, equal = (
        f"{_RECAP}test_a_stage_that_is_killed_comes_to_the_same_files",
        "hashes of all stages are those of the undisturbed run",
    )
    names = {
        "value": "returns and value function",
        "round-1/value": "value function of a round",
        "round-1/advantages": "advantages",
        "round-1/policy": "policy on labels",
    }
    return [
        Case(37, "an episode that is not published yet", "cut short; a flipped bit", Outcome.LINE, "named, with the remedy", (f"{_RECAP}test_an_episode_that_is_damaged_before_it_is_published_is_named",)),
        Case(37, "files of a finished stage", "edited", Outcome.LINE, "refused by its hash", ("test_recap_stages.py::test_changed_and_foreign_files_are_refused",)),
        Case(37, "a line of metrics", "cut short", Outcome.GOES_ON, "the row is written again; another damage is refused by its line", ("test_run_logging.py::test_a_line_that_a_crash_cut_short_is_replaced", "test_run_logging.py::test_damaged_metrics_are_refused_before_work")),
        Case(37, "a finished episode of the journal", "every seventh byte, one after the other; cut short", Outcome.GOES_ON, "said, and run again; never another episode", (f"{_CHECKPOINT}test_a_damaged_episode_is_said_and_run_again",)),
        *(Case(38, what, "SIGKILL in the middle", Outcome.EQUAL, equal, (f"{stage}[{name}]",)) for name, what in names.items()),
        Case(41, "RECAP, while it records rollouts", "SIGKILL", Outcome.EQUAL, equal, (f"{stage}[round-1/rollouts]",)),
        Case(39, "a value function that says the same of everything", "such values", Outcome.LINE, "the gate stops the run and says what to try", (f"{_RECAP}test_a_value_function_that_says_the_same_of_everything_stops_the_run",)),
        Case(39, "labels that are all positive", "such labels", Outcome.LINE, "the gate stops the run and says what to try", (f"{_RECAP}test_labels_that_are_all_positive_stop_the_run",)),
    ]  # fmt: skip


CASES = sorted(
    [*_killed(), *_signalled(), *_processes(), *_simulators(), *_learning(), *_disks(), *_loaded(), *_resumed(),
     *_around(), *_recap()], key=lambda case: case.kind,
)  # fmt: skip


def nodes() -> list[str]:
    """Return the node ids of all tests of the table, once each."""
    return list(dict.fromkeys(f"tests/{node}" for case in CASES for node in case.tests))


def counts() -> dict[str, int]:
    """Return how many cases of the matrix are shown by real means, by a fake, and not at all."""
    of_matrix = [case for case in CASES if case.kind in KINDS]
    by_fake = sum(bool(case.fake) for case in of_matrix)
    not_shown = sum(bool(case.not_shown) for case in of_matrix)
    return {"real": len(of_matrix) - by_fake - not_shown, "fake": by_fake, "not shown": not_shown}


def lines() -> list[str]:
    """Return the table as Markdown."""
    number = counts()
    written = [
        f"{len(CASES)} cases: the {sum(number.values())} of the matrix, of which {number['real']} are shown by real "
        f"means, {number['fake']} by a stand-in (the row says why) and {number['not shown']} not (the row says why), "
        f"and {len(CASES) - sum(number.values())} more. *The whole run*: "
        "weights, moments of the optimizer, position, evaluations and rows of metrics are, bit for bit, those of a run without the fault.",
        "",
        "| case | by | outcome | shown by |",
        "|---|---|---|---|",
    ]
    for kind, name in {**{kind: name for kind, (name, _) in KINDS.items()}, **MORE}.items():
        written.append(f"| **{kind}. {name}** | | | |")
        written += [_row(case) for case in CASES if case.kind == kind]
    return written


def _row(case: Case) -> str:
    if case.not_shown:
        return f"| {case.fault} | | | not shown: {case.not_shown} |"
    by = f"{case.how} (a stand-in: {case.fake})" if case.fake else case.how
    shown = ", ".join(f"`{node.replace('.py::', '.')}`" for node in _short(case.tests))
    return f"| {case.fault} | {by} | **{case.outcome}**: {case.oracle} | {shown} |"


def _short(tests: tuple[str, ...]) -> list[str]:
    """Return the functions of some tests, without their parameters."""
    return list(dict.fromkeys(node.partition("[")[0] for node in tests))


def document(text: str) -> str:
    """Return the document with the table as it is now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "\n".join([f"{before}{BEGIN}", "", *lines(), "", f"{END}{after}"])


if __name__ == "__main__":
    if sys.argv[1:] == ["document"]:
        DOCUMENT.write_text(document(DOCUMENT.read_text()))
    elif sys.argv[1:] == ["run"]:
        import pytest

        sys.exit(
            pytest.main(["-o", "addopts=--strict-markers", "-n", "2", "--dist", "loadfile", "-rs", *nodes()])
        )
    else:
        sys.exit(__doc__)
