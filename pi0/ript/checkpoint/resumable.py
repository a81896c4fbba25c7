"""A run that can be stopped anywhere and continued: what a script holds of its checkpoints."""

import shutil
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pi0.ript.checkpoint import background
from pi0.ript.checkpoint.files import SnapshotError, published
from pi0.ript.checkpoint.journal import EpisodeJournal
from pi0.ript.checkpoint.launch import Launch
from pi0.ript.checkpoint.resuming import AUTO, find_same_run, settings_hash
from pi0.ript.checkpoint.snapshot import Clock, Stateful, read_progress
from pi0.ript.checkpoint.state import Progress, load_checkpoint, save_checkpoint
from pi0.ript.episode import Rollout
from pi0.ript.interruption import StoppedError, asked_to_stop
from pi0.ript.peers import ALONE, Peers
from pi0.ript.recording import remembering
from pi0.ript.results import lock_directory, new_run_directory
from pi0.ript.rollout import RolloutFunction, rollout

_EPISODES = "episodes"  # the directory, in that of a run, of the episodes that it need not run again
_BEFORE = "before"  # the evaluation whose episodes are kept: a continued run reports it, too


def open_run_directory(config: Any, launch: Launch | None = None) -> tuple[Path, Path | None]:
    """Return the run's directory, from now on this process's own, and the checkpoint to continue from.

    Without `config.resume`, or if no run that can be continued left it, the directory is a new, empty one
    (what was there is moved aside), and the checkpoint None unless a path was given. A run that the launch
    has begun goes on, whatever `config.resume` is.

    Args:
        config: A configuration with `output_dir`, `exp_name` and `resume`.
        launch: The call of torchrun that started this process.

    Raises:
        RunInUseError: A live process has the directory.
        SnapshotError: The checkpoint asked for, or every one of the run, is not valid.
        ChangedSettingsError: It was made with settings that would have another result.
    """
    path, resume = Path(config.output_dir) / config.exp_name, config.resume
    is_restart = launch is not None and launch.has_begun(path)
    lock_directory(path)
    if is_restart and (resume is None or published(path)):
        print(f"{path}: begun by this launch of torchrun, which goes on with it")  # noqa: T201
        resume = AUTO
    can_continue = (path / _EPISODES).exists() or published(path)  # a run of rungs 8 to 12 has neither
    if resume is None or not can_continue:
        new_run_directory(path)
        (path / _EPISODES).mkdir()
    if launch is not None:
        launch.note(path)
    return path, find_same_run(path, config, resume)


class Checkpoints:
    """The checkpoints of one run, and the episodes that it need not run again.

    All processes call every method at the same points.
    """

    def __init__(
        self,
        run_dir: Path,
        checkpoint: Path | None,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sampler: Stateful | None,
        config: Any,
        peers: Peers = ALONE,
    ) -> None:
        """Read where the run stands; models are as they were until `resume`.

        Args:
            run_dir: The run's directory.
            checkpoint: What to continue from, None for nothing; see `open_run_directory`.
            model: The policy, or a learner that has it as `policy`, not wrapped.
            optimizer: The optimizer of its parameters.
            sampler: The sampler of initial states.
            config: The configuration, with `training` (num_train_steps, keep_last, ...); kept in checkpoints.
            peers: The processes that train together.
        """
        self.run_dir, self.model, self.optimizer, self.sampler = run_dir, model, optimizer, sampler
        self.config, self.peers, self.progress = config, peers, Progress()
        self._episodes = run_dir / _EPISODES / settings_hash(config)
        self._checkpoint = checkpoint
        self._saved_at: tuple[int, int] | None = None
        self._clock = Clock(config.training.save_minutes, peers)
        if checkpoint:
            self.progress = Progress(**read_progress(checkpoint))
            self._saved_at = self.progress.position  # until `resume`, there is nothing to save
            episodes = checkpoint.parent / _EPISODES
            if peers.rank == 0 and self._is_of_another_run() and episodes.exists():
                shutil.copytree(episodes, run_dir / _EPISODES, dirs_exist_ok=True)
            peers.gather([])
        self._collected: EpisodeJournal | None = None
        self._sampler_state = self._sampler_position()

    def resume(self) -> Progress:
        """Continue from the checkpoint, if there is one; return where the run stands, which then changes."""
        if self._checkpoint:
            parts = self.model, self.optimizer, self.sampler
            self.progress = load_checkpoint(self._checkpoint, *parts, peers=self.peers, is_verified=True)
            self._sampler_state = self._sampler_position()
            if self._is_of_another_run():
                self._saved_at = None  # not in this run's directory
        return self.progress

    def save(self) -> None:
        """Write a checkpoint after an iteration if it is time for one, after the last, and to stop."""
        progress, training = self.progress, self.config.training
        self._sampler_state = self._sampler_position()
        code = asked_to_stop(self.peers)
        is_last = progress.iteration >= training.num_train_steps
        if code or is_last or progress.iteration % training.save_freq == 0:
            self._write(is_waited_for=bool(code) or is_last, forget=self._finished_episodes())
            code = asked_to_stop(self.peers)  # while the checkpoint was written, too
        if code:
            self._leave(code)

    def stop_if_asked(self) -> None:
        """Write a checkpoint if `save_minutes` are over, or leave with one if a process was asked to stop.

        To be called after optimizer steps.

        Raises:
            StoppedError: The run is over for now, on all processes.
        """
        code = asked_to_stop(self.peers)
        if code or self._clock.is_late():
            self._write(is_waited_for=bool(code))
            code = asked_to_stop(self.peers)  # while the checkpoint was written, too
        if code:
            self._leave(code)

    def rollout(self, name: str) -> RolloutFunction:
        """Return a function that runs episodes as `rollout` does, each once even if the run is interrupted.

        Finished ones are kept in a journal. When a process is asked to stop, episodes are left at their next
        chunk, and all processes leave with a checkpoint.

        Args:
            name: What the episodes are for. Until the next iteration is over they are found by name, initial
                state and seed, so the policy of one name must not change.
        """
        journal = EpisodeJournal(self._episodes / name)
        self._collected = journal

        def run(*arguments: Any, turns: Iterable[int], **options: Any) -> list[Rollout]:
            return rollout(*arguments, turns=self._reproducible(name, turns), **options)

        return remembering(journal, self.stop_if_asked, run)

    def _reproducible(self, name: str, missing: Iterable[int]) -> Iterator[int]:
        """Give numbers of episodes to run; refuse if the policy has learned from this collection already."""
        for number in missing:
            if self.progress.step and name != _BEFORE:
                raise SnapshotError(
                    f"an episode of {self._episodes / name} is gone, and the policy has changed since; "
                    "continue from the checkpoint before (--resume PATH)"
                )
            yield number

    def _is_of_another_run(self) -> bool:
        """Return whether the checkpoint to continue from is in another directory than this run's."""
        return bool(self._checkpoint) and self._checkpoint.parent.resolve() != self.run_dir.resolve()

    def _sampler_position(self) -> dict[str, Any] | None:
        return self.sampler.state_dict() if self.sampler else None

    def _write(self, *, is_waited_for: bool, forget: Collection[Path] = ()) -> None:
        """Write a checkpoint, unless the present position is that of the last one; then forget episodes."""
        if self._saved_at == self.progress.position:
            background.wait()
            return
        # An iteration under way is continued with the episodes that it has collected.
        episodes = self._collected.files() if self._collected and self.progress.step else []
        save_checkpoint(
            self.model,
            self.optimizer,
            self.progress.iteration,
            self.config,
            self.run_dir,
            progress=self.progress,
            sampler_state=self._sampler_state,
            episodes=episodes,
            peers=self.peers,
            keep_last=self.config.training.keep_last,
            after=partial(_remove, forget),
            in_background=not is_waited_for,
        )
        self._saved_at = self.progress.position
        self._clock.restart()

    def _finished_episodes(self) -> list[Path]:
        """Return the journals of iterations that are over, for which there is no use once that is saved."""
        return [journal for journal in self._episodes.glob("*") if journal.name != _BEFORE]

    def _leave(self, code: int) -> None:
        background.wait()
        if self.peers.rank == 0:
            where = f"iteration {self.progress.iteration}, optimizer step {self.progress.step}"
            print(f"stopped at {where}; continue with --resume")  # noqa: T201
        raise StoppedError(code)


def _remove(journals: Iterable[Path]) -> None:
    for journal in journals:
        shutil.rmtree(journal)
