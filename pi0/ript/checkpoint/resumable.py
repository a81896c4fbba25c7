"""A run that can be stopped anywhere and continued: what a script holds of its checkpoints."""

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pi0.ript.checkpoint.files import SnapshotError
from pi0.ript.checkpoint.journal import EpisodeJournal
from pi0.ript.checkpoint.resuming import settings_hash
from pi0.ript.checkpoint.run_directory import EPISODES
from pi0.ript.checkpoint.snapshot import Clock, Stateful, read_progress
from pi0.ript.checkpoint.state import Progress, load_checkpoint, save_checkpoint
from pi0.ript.envs import BatchedEnv, InitialState
from pi0.ript.interruption import StoppedError, asked_to_stop
from pi0.ript.peers import ALONE, Peers
from pi0.ript.recording import remembering
from pi0.ript.rollout import ChunkPolicy, Rollout, RolloutFunction, rollout

_BEFORE = "before"  # the evaluation whose episodes are kept: a continued run reports it, too


class Checkpoints:
    """The checkpoints of one run, and the episodes that it need not run again.

    All processes call every method at the same points.
    """

    def __init__(
        self,
        run_dir: Path,
        found: Path | None,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sampler: Stateful | None,
        config: Any,
        peers: Peers = ALONE,
    ) -> None:
        """Change nothing yet: `resume` continues from the checkpoint that was found.

        Args:
            run_dir: The run's directory, and
            found: the checkpoint to continue from; see `open_run_directory`.
            model: The policy, or a learner that has it as `policy`, not wrapped.
            optimizer: Of its parameters.
            sampler: Of states.
            config: With `training` (num_train_steps, keep_last, save_...); kept in checkpoints.
            peers: The processes that train together.
        """
        self.run_dir, self.model, self.optimizer, self.sampler = run_dir, model, optimizer, sampler
        self.config, self.peers, self.progress = config, peers, Progress()
        self._all_episodes = run_dir / EPISODES
        self._episodes = self._all_episodes / settings_hash(config)
        self._found = found
        self._saved_at: tuple[int, int] | None = None
        self._clock = Clock(config.training.save_minutes, peers)
        if found:
            self.progress = Progress(**read_progress(found))
            self._saved_at = _position(self.progress)
            theirs = found.parent / self._all_episodes.name
            if peers.rank == 0 and found.parent.resolve() != run_dir.resolve() and theirs.exists():
                shutil.copytree(theirs, self._all_episodes, dirs_exist_ok=True)
            peers.gather([])
        self._collected: EpisodeJournal | None = None
        self._sampler_state = self._sampler_position()

    def resume(self) -> Progress:
        """Continue from the checkpoint that was found, if any; return where the run stands, and keep it."""
        if self._found:
            self.progress = load_checkpoint(
                self._found, self.model, self.optimizer, self.sampler, peers=self.peers, is_verified=True
            )
            self._sampler_state = self._sampler_position()
            if self._found.parent.resolve() != self.run_dir.resolve():
                self._saved_at = None  # not in this run's directory
        return self.progress

    def save(self) -> None:
        """Write a checkpoint after an iteration if it is time for one, after the last, and to stop."""
        progress, training = self.progress, self.config.training
        self._sampler_state = self._sampler_position()
        code = asked_to_stop(self.peers)
        if code or progress.iteration % training.save_freq == 0 or self._is_last():
            self._write()
            self._forget_episodes()
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
            self._write()
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

        def run(
            env: BatchedEnv, policy: ChunkPolicy, states: Sequence[InitialState], *rest: Any, **options: Any
        ) -> list[Rollout]:
            self._require_reproducible(name, len(states))
            return rollout(env, policy, states, *rest, **options)

        return remembering(journal, self.stop_if_asked, run)

    def _require_reproducible(self, name: str, num_missing: int) -> None:
        """Refuse to collect with a policy that has learned from this collection already."""
        if self.progress.step and num_missing and name != _BEFORE:
            raise SnapshotError(
                f"{num_missing} episodes of {self._episodes / name} are gone, and the policy has changed "
                "since; continue from the checkpoint before (--resume PATH)"
            )

    def _is_last(self) -> bool:
        return self.progress.iteration >= self.config.training.num_train_steps

    def _sampler_position(self) -> dict[str, Any] | None:
        return self.sampler.state_dict() if self.sampler else None

    def _write(self) -> None:
        """Write a checkpoint, unless the present position is that of the last one."""
        if self._saved_at == _position(self.progress):
            return
        save_checkpoint(
            self.model,
            self.optimizer,
            self.progress.iteration,
            self.config,
            self.run_dir,
            progress=self.progress,
            sampler_state=self._sampler_state,
            episodes=self._needed_episodes(),
            peers=self.peers,
            keep_last=self.config.training.keep_last,
        )
        self._saved_at = _position(self.progress)
        self._clock.restart()

    def _forget_episodes(self) -> None:
        """Remove the episodes of iterations that are over and saved."""
        if self.peers.rank == 0:
            for journal in self._episodes.glob("*"):
                if journal.name != _BEFORE:
                    shutil.rmtree(journal)

    def _needed_episodes(self) -> Collection[Path]:
        """Return the files that an iteration under way is continued with: those of its collection."""
        return self._collected.files() if self._collected and self.progress.step else []

    def _leave(self, code: int) -> None:
        if self.peers.rank == 0:
            where = f"iteration {self.progress.iteration}, optimizer step {self.progress.step}"
            print(f"stopped at {where}; continue with --resume")  # noqa: T201
        raise StoppedError(code)


def _position(progress: Progress) -> tuple[int, int]:
    return progress.iteration, progress.step
