"""Supervised training: optimizer steps, validation, evaluation, checkpoints, the final model."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pi0 import PI0Policy
from pi0.ript.checkpoint import this_launch
from pi0.ript.checkpoint.snapshot import trained_parameters
from pi0.ript.distributed import World, setup_distributed
from pi0.ript.environments import get_environment
from pi0.ript.interruption import StoppedError, setup_signal_handlers, until_stopped
from pi0.ript.kept_prefixes import keep_prefixes
from pi0.ript.machines import require_same_files
from pi0.ript.monitoring import ProfileWindow, monitor_memory
from pi0.ript.progress import print_above, progress_bar
from pi0.ript.report import write_report
from pi0.ript.run_logging import close_run_logging, init_wandb, log_metrics, setup_run_logging
from pi0.ript.supervised.parts import make_parts, samples_per_step
from pi0.ript.supervised.run_layout import (
    ADVICE,
    begin_again,
    link_checkpoints,
    open_run,
    publish_model,
    write_processor,
    write_settings,
)
from pi0.ript.supervised.settings import SupervisedSettings
from pi0.ript.supervised.simulation import RepeatedEvaluation, require_evaluable
from pi0.ript.supervised.training_state import ModelFiles, data_hashes
from pi0.ript.threads import use_threads
from pi0.ript.training.objectives import prefixed
from pi0.ript.training.optimization import cosine_schedule, make_optimizer, set_learning_rate
from pi0.ript.training.snapshots import Snapshots
from pi0.ript.training.steps import Steps

_TRAINING, _VALIDATION = 0, 1  # keep their draws apart


class Training:
    """A run, made or found; `run` brings it to its end."""

    def __init__(self, settings: SupervisedSettings, world: World | None = None) -> None:
        """Prepare everything; what is wrong is said before any step is made.

        Raises:
            ValueError, SnapshotError, RunInUseError: Settings, data or weights cannot be used.
        """
        self.world = world or setup_distributed(settings.device, **asdict(settings.distributed))
        self.batch_size = samples_per_step(settings, self.world)
        settings = replace(settings, batch_size=self.batch_size)
        self._require_shared(settings)
        launch = this_launch(self.world)
        self.run_dir, checkpoint = self.world.on_main(open_run, settings, launch)
        name = str(self.run_dir.relative_to(Path(settings.output_dir).expanduser()))
        self.settings = settings = replace(settings, exp_name=name)
        self.parts = self.world.first(make_parts, settings, self.world)
        model, data = self.parts.objective.model, self.parts.data
        use_threads(model, settings.policy.threads, beside=settings.dataset_mixture.num_workers)
        self._keep_prefixes()
        self.simulation = self._simulation()
        if settings.overwrite:  # not before: what cannot be trained must not cost the run that is there
            self.world.on_main(begin_again, self.run_dir, launch)
        self.world.on_main(write_settings, self.run_dir, settings, self.world.size, launch)
        setup_run_logging(self.run_dir, self.world.rank, write_report)
        init_wandb(settings, self.run_dir, self.world.rank)
        for note in self.parts.notes:
            self.world.print(note)
        self.world.on_main(write_processor, self.run_dir, model, data.sets, settings, self.parts.reward)
        self.learner = self.world.wrap(self.parts.objective.learner())
        self.optimizer = make_optimizer(model, settings.optimizer)
        self.files = ModelFiles(self.run_dir, settings, self.parts, self.world)
        self.steps = self._steps(checkpoint)
        self.best: dict[str, float] = self.steps.kept.setdefault("best", {})

    def _keep_prefixes(self) -> None:
        settings, model = self.settings, self.parts.objective.model
        if (policy := prefixed(model)) is None:
            return
        keep_prefixes(
            policy,
            settings.policy,
            self.world.print,
            sum(map(len, self.parts.data.training_rows)),
            is_trained=policy is model,
            is_augmented=settings.dataset_mixture.augmentation.enable,
        )

    def _require_shared(self, settings: SupervisedSettings) -> None:
        roots = (data.root for data in settings.dataset_mixture.datasets)
        self.world.require_shared(Path(settings.output_dir) / (settings.exp_name or ""))
        require_same_files(self.world, [root for root in roots if root])

    def _steps(self, checkpoint: Path | None) -> Steps:
        settings, model = self.settings, self.parts.objective.model
        snapshots = Snapshots(
            self.run_dir,
            model,
            self.optimizer,
            settings,
            ADVICE,
            checkpoint,
            peers=self.world,
            save_freq=settings.save_freq,
            save_minutes=settings.save_minutes,
            keep_last=settings.save_total_limit,
            states={"data": self.parts.data.train},
            data=data_hashes(self.parts),
            extra=self.files,
            after_write=partial(link_checkpoints, self.run_dir),
        )
        return Steps(
            settings.steps,
            name=settings.policy.type,
            world=self.world,
            snapshots=snapshots,
            max_nonfinite_steps=settings.max_nonfinite_steps,
        )

    def run(self) -> Path:
        """Train to the last step and return the run's directory, which then holds the final model.

        Raises:
            StoppedError: The process was asked to stop; a checkpoint is written.
            NonFiniteLossError: Several steps in a row had no finite loss; the weights before are kept.
            SnapshotError: A checkpoint could not be written; those before are as they were.
        """
        settings, objective, world = self.settings, self.parts.objective, self.world
        setup_signal_handlers()
        profile = ProfileWindow(settings.profile_steps, self.run_dir, world.rank)
        trained = list(trained_parameters(objective.model).values())
        for step in self.steps:
            self._report()
            objective.model.train()
            key, passes = (settings.seed, _TRAINING, step), settings.gradient_accumulation_steps
            sums = torch.zeros(len(objective.figures), device=objective.model.device)
            for _ in world.micro_batches(self.learner, np.arange(passes * world.size), 1):
                batch = next(self.parts.data.train)
                figures = objective.sums(self.learner, batch, key, is_training=True)
                world.backward(figures[0] / self.batch_size)
                sums += figures.detach()
            norm = torch.nn.utils.clip_grad_norm_(trained, settings.optimizer.grad_norm_clip)
            factor = cosine_schedule(step, settings.steps, settings.optimizer, settings.scheduler)
            set_learning_rate(self.optimizer, factor)
            rates = {"gradient_norm": float(norm), "learning_rate": settings.optimizer.learning_rate * factor}
            if self.steps.accept(self._means(sums, self.batch_size) | rates, norm):
                self.optimizer.step()
                self.files.update_average()
            self.optimizer.zero_grad()
            profile.step()
        self._report()
        profile.close()
        self._finish()
        return self.run_dir

    # Figures ------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        """Measure what is due after the steps so far, and log a row if one is."""
        settings, step, rows = self.settings, self.steps.step, self.steps.rows
        measured: dict[str, Any] = {}
        if self._is_due(settings.val_freq):
            measured |= self._validate()
            self.files.keep_if_best("val_loss", measured["val_loss"], step, self.best)
        if self._is_due(settings.eval_freq):
            measured["success"] = self._evaluate()
            self.files.keep_if_best("success", measured["success"], step, self.best)
        if not measured and not self._is_due(settings.log_freq):
            return
        row: dict[str, Any] = {}
        if rows:
            names = [name for name in rows[-1] if name not in ("step", "learning_rate")]
            row = {name: float(np.mean([made[name] for made in rows])) for name in names}
            row["learning_rate"] = rows[-1]["learning_rate"]
        row |= {"epoch": self.parts.data.train.epoch, **measured}
        log_metrics(row | monitor_memory(settings.memory_limit_gb), step)
        if self.world.rank == 0:
            print_above("  ".join(f"{name} {value:.4g}" for name, value in {"step": step, **row}.items()))
        rows.clear()

    def _is_due(self, frequency: int) -> bool:
        step = self.steps.step
        return frequency > 0 and step > 0 and (step % frequency == 0 or step == self.settings.steps)

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Return the figures on the held-out episodes, at the same noise every time."""
        objective, batches = self.parts.objective, self.parts.data.validation
        assert batches is not None
        sums = torch.zeros(len(objective.figures), device=objective.model.device)
        learner: nn.Module = objective.learner()  # not DDP's: the processes have different numbers of batches
        with self.files.published_weights():
            objective.model.eval()
            bar = progress_bar(
                batches, unit="batch", desc="validation", leave=False, disable=self.world.rank > 0
            )
            for batch in until_stopped(bar, self.world):
                key = (self.settings.seed, _VALIDATION)
                sums += objective.sums(learner, batch, key, is_training=False)
        self.steps.stop_if_asked()
        means = self._means(sums, batches.num_frames)
        return {f"val_{name.removeprefix('train_')}": mean for name, mean in means.items()}

    def _means(self, sums: Float[Tensor, " k"], count: int) -> dict[str, float]:
        """Return the objective's figures, given this process's sums over `count` samples of all processes."""
        totals = np.sum([part[0] for part in self.world.gather([sums.tolist()])], axis=0)
        return dict(zip(self.parts.objective.figures, (totals / count).tolist(), strict=True))

    def _evaluate(self) -> float:
        """Return the success rate in simulation, and write the evaluation."""
        policy = self.parts.objective.model
        assert isinstance(policy, PI0Policy)
        assert self.simulation is not None
        path = self.run_dir / "evaluations" / f"step-{self.steps.step}"
        try:
            with self.files.published_weights():
                policy.eval()
                evaluation = self.simulation.evaluate(policy, path)
        except StoppedError:  # the weights are the training's own again
            self.steps.stop_if_asked()
            raise
        self.world.print(f"step {self.steps.step}: {evaluation} success")
        return evaluation.success_rate

    # Beginning and end --------------------------------------------------------------------------------------

    def _simulation(self) -> RepeatedEvaluation | None:
        settings, model = self.settings, self.parts.objective.model
        if not settings.eval_freq:
            return None
        assert isinstance(model, PI0Policy)
        environment = get_environment(**asdict(settings.task))
        require_evaluable(model, environment, settings.eval.cfg_guidance_scale)
        return RepeatedEvaluation(settings.task, settings.eval, settings.seed, self.world)

    def _finish(self) -> None:
        model = self.parts.objective.model
        model.eval()
        with self.files.published_weights():
            self.world.on_main(publish_model, self.run_dir, model)
        self.world.on_main(write_report, self.run_dir)
        self.world.print(f"model: {self.run_dir}")
        self.close()

    def close(self) -> None:
        """Stop simulators, reading processes and logging."""
        if self.simulation is not None:
            self.simulation.close()
        self.parts.data.train.close()
        close_run_logging()
