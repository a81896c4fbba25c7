"""Supervised training: optimizer steps, validation, evaluation, checkpoints, the final model."""

import contextlib
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pi0 import PI0Policy
from pi0.ript.distributed import World, limit_threads, setup_distributed
from pi0.ript.interruption import StoppedError, setup_signal_handlers, stop_requested
from pi0.ript.monitoring import monitor_memory, profile_window
from pi0.ript.progress import print_above, progress_bar
from pi0.ript.report import write_report
from pi0.ript.results import write_evaluation
from pi0.ript.run_logging import close_run_logging, init_wandb, log_metrics, setup_run_logging
from pi0.ript.supervised.parts import make_parts, samples_per_step
from pi0.ript.supervised.run_layout import open_run, publish_model, write_processor, write_settings
from pi0.ript.supervised.settings import SupervisedSettings
from pi0.ript.supervised.simulation import Simulation, make_environment, require_acts
from pi0.ript.supervised.training_state import TrainingState
from pi0.ript.training.optimization import learning_rate_factor, make_optimizer
from pi0.ript.training.steps import NonFiniteLossError

_TRAINING, _VALIDATION = 0, 1  # keep their draws apart


class Training:
    """A run, made or found; `run` brings it to its end."""

    def __init__(self, settings: SupervisedSettings, world: World | None = None) -> None:
        """Prepare everything; what is wrong is said before any step is made.

        Raises:
            ValueError, CheckpointError, RunInUseError: Settings, data or weights cannot be used.
        """
        self.world = world or setup_distributed(settings.device, **asdict(settings.distributed))
        self.batch_size = samples_per_step(settings, self.world)
        self.settings = settings = replace(settings, batch_size=self.batch_size)
        self.run_dir, found = self.world.on_main(open_run, settings)
        self.world.on_main(write_settings, self.run_dir, settings, self.world.size)
        setup_run_logging(self.run_dir, self.world.rank)
        init_wandb(settings, self.run_dir, self.world.rank)
        self.parts = self.world.first(make_parts, settings, self.world)
        model, data = self.parts.objective.model, self.parts.data
        limit_threads(model)
        self.world.on_main(write_processor, self.run_dir, model, data.sets, settings, self.parts.reward)
        self.learner = self.world.wrap(self.parts.objective.learner())
        self.optimizer = make_optimizer(model, settings.optimizer)
        self.state = TrainingState(self.run_dir, settings, model, self.optimizer, data.train, self.world)
        if found is not None:
            self.state.resume(found)
        self.simulation = self._simulation()

    def run(self) -> Path:
        """Train to the last step and return the run's directory, which then holds the final model.

        Raises:
            StoppedError: The process was asked to stop; a checkpoint is written.
            NonFiniteLossError: A loss or gradient is not finite; the last checkpoint stays.
        """
        settings, progress = self.settings, self.state.progress
        setup_signal_handlers()
        profile = profile_window(settings.profile_steps, self.run_dir, self.world.rank)
        bar = progress_bar(
            total=settings.steps,
            initial=progress.step,
            unit="step",
            desc=settings.policy.type,
            disable=self.world.rank > 0,
        )
        with bar:
            self._report()
            while progress.step < settings.steps:
                row = self._step()
                progress.recent.append(row)
                bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
                bar.update()
                profile.step()
                self._save_or_stop()
                self._report()
        profile.close()
        self._finish()
        return self.run_dir

    # Steps --------------------------------------------------------------------------------------------------

    def _step(self) -> dict[str, float]:
        """Make an optimizer step and return its figures."""
        settings, progress, objective = self.settings, self.state.progress, self.parts.objective
        objective.model.train()
        key, parts = (settings.seed, _TRAINING, progress.step), settings.gradient_accumulation_steps
        sums = torch.zeros(len(objective.figures), device=objective.model.device)
        for _ in self.world.micro_batches(self.learner, np.arange(parts * self.world.size), 1):
            found = objective.sums(self.learner, next(self.parts.data.train), key, is_training=True)
            self.world.backward(found[0] / self.batch_size)
            sums += found.detach()
        factor = learning_rate_factor(progress.step, settings.steps, settings.optimizer, settings.scheduler)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        trained = [p for p in objective.model.parameters() if p.requires_grad]
        norm = float(torch.nn.utils.clip_grad_norm_(trained, settings.optimizer.grad_clip_norm))
        if not math.isfinite(norm):
            raise NonFiniteLossError(
                f"step {progress.step}: the norm of the gradient is {norm}; lower optimizer.lr, or look at "
                "the data of this step"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.state.average is not None:
            self.state.average.update()
        progress.step += 1
        return {
            **self._means(sums, self.batch_size),
            "gradient_norm": norm,
            "learning_rate": settings.optimizer.lr * factor,
        }

    def _save_or_stop(self) -> None:
        code = max(codes[0] for codes in self.world.gather([stop_requested()]))
        step, steps = self.state.progress.step, self.settings.steps
        if code or step % self.settings.save_freq == 0 or step == steps:
            self.state.save()
        if code:
            self.world.print(f"stopped after step {step}; the same command goes on from there")
            raise StoppedError(code)

    # Figures ------------------------------------------------------------------------------------------------

    def _report(self) -> None:
        """Measure what is due after the present step, and log a row if one is."""
        progress, settings = self.state.progress, self.settings
        measured: dict[str, Any] = {}
        if self._is_due(settings.val_freq):
            measured |= self._validate()
            self.state.keep_if_best("val_loss", measured["val_loss"])
        if self._is_due(settings.eval_freq):
            measured["success"] = self._evaluate()
            self.state.keep_if_best("success", measured["success"])
        if not measured and not self._is_due(settings.log_freq):
            return
        row = {
            name: float(np.mean([one[name] for one in progress.recent])) for name in _names(progress.recent)
        }
        if progress.recent:
            row["learning_rate"] = progress.recent[-1]["learning_rate"]
        row |= {"epoch": self.parts.data.train.epoch, **measured}
        log_metrics(row | monitor_memory(settings.memory_limit_gb), progress.step)
        if self.world.rank == 0:
            print_above(
                "  ".join(f"{name} {value:.4g}" for name, value in {"step": progress.step, **row}.items())
            )
        progress.recent.clear()

    def _is_due(self, frequency: int) -> bool:
        step = self.state.progress.step
        return frequency > 0 and step > 0 and (step % frequency == 0 or step == self.settings.steps)

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Return the figures on the held-out episodes, at the same noise every time."""
        objective, batches = self.parts.objective, self.parts.data.validation
        assert batches is not None
        objective.model.eval()
        sums = torch.zeros(len(objective.figures), device=objective.model.device)
        learner: nn.Module = objective.learner()  # not DDP's: the processes have different numbers of batches
        with self._published_weights():
            bar = progress_bar(
                batches, unit="batch", desc="validation", leave=False, disable=self.world.rank > 0
            )
            for batch in bar:
                key = (self.settings.seed, _VALIDATION)
                sums += objective.sums(learner, batch, key, is_training=False)
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
        policy.eval()
        with self._published_weights():
            found = self.simulation.evaluate(policy)
        self.world.print(f"step {self.state.progress.step}: {found} success")
        path = self.run_dir / "evaluations" / f"step-{self.state.progress.step}"
        if self.world.rank == 0:
            path.parent.mkdir(exist_ok=True)
            write_evaluation(path, found)
        return found.success_rate

    def _published_weights(self) -> Any:
        return contextlib.nullcontext() if self.state.average is None else self.state.average.applied()

    # Beginning and end --------------------------------------------------------------------------------------

    def _simulation(self) -> Simulation | None:
        settings, model = self.settings, self.parts.objective.model
        if not settings.eval_freq:
            return None
        assert isinstance(model, PI0Policy)
        require_acts(model, make_environment(settings.env, settings.eval), settings.eval.guidance)
        return Simulation(settings.env, settings.eval, settings.seed, self.world)

    def _finish(self) -> None:
        model = self.parts.objective.model
        model.eval()
        with self._published_weights():
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


def _names(rows: list[dict[str, float]]) -> list[str]:
    return list(rows[0]) if rows else []
