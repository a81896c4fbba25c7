"""RIPT with epochs: groups of rollouts from one state, leave-one-out advantages, several passes over them.

Parent: none, this is the first rung
Introduces: pi0.ript.starting_policy, groups, rollout, advantage, windows, loss, evaluate
Run: python 8_train_with_epochs.py

On a fresh machine this records demonstrations of a hesitating operator, trains a toy pi0 on them (both are
cached), improves it by RL, and compares both on held-out states. `--env libero` does so on LIBERO.
"""

import argparse
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pi0.errors import say_errors_in_one_line
from pi0.ript.environments import get_environment
from pi0.ript.evaluate import evaluate
from pi0.ript.files import flatten
from pi0.ript.groups import InitialStateDataset, collect_groups, heldout_states
from pi0.ript.loss import AdvantageLoss
from pi0.ript.results import new_run_directory, one_line, write_evaluation, write_results
from pi0.ript.rollout import GuidedPolicy
from pi0.ript.starting_policy import starting_policy
from pi0.ript.windows import batches, shuffled_batches, with_progress


@dataclass
class Task:
    benchmark_name: str = "metaworld"  # or libero, or one of LIBERO's suites; see pi0/ript/environments.py
    num_workers: int = 2  # processes that simulate; the result does not depend on it


@dataclass
class Algo:
    rloo_batch_size: int = 8  # rollouts from each initial state (K)
    data_batch_size: int = 16  # groups of mixed outcome per iteration; the others teach nothing
    max_sampling_attempts: int = 32  # states to try for them
    collection_cfg_scale: float = 2.0  # guidance towards a positive advantage in rollouts
    num_epochs: int = 8  # passes over the windows of an iteration
    micro_batch_size: int = 32  # windows per forward pass
    gradient_accumulation_steps: int = 2  # micro-batches per optimizer step
    lr: float = 1e-3  # at the start of an iteration, falling linearly to 0 at its end
    grad_norm_clip: float = 1.0
    cfg_uncond_weight: float = 0.1  # alpha: weight of the loss with the indicator withheld
    num_draws: int = 2  # noise draws per window


@dataclass
class Dataset:
    num_init_states: int = 200  # training states per task
    window_stride: int = 5  # steps between training windows, besides those where the policy acted


@dataclass
class Training:
    num_train_steps: int = 3  # iterations: collect, then improve
    seed: int = 0


@dataclass
class Eval:
    rollouts_per_task: int = 50  # held-out states; LIBERO has 50
    first_state: int = 0
    cfg_guidance_scale: float = 2.0
    n_video: int = 6  # episodes per task in the video


@dataclass
class AdvancedTrainingConfig:
    """Everything that can be set; the defaults learn the embedded task in minutes on a laptop CPU."""

    exp_name: str = "8_train_with_epochs"
    policy_path: str = "toy"  # trained here on demonstrations; or a pi0 checkpoint
    device: str = "auto"  # a GPU if there is one; or cpu, cuda, cuda:1, ...
    output_dir: str = "pi0/ript/output"
    warm_start_dir: str = "pi0/ript/output/warm_start"  # cache of demonstrations and of toy policies
    task: Task = field(default_factory=Task)
    algo: Algo = field(default_factory=Algo)
    dataset: Dataset = field(default_factory=Dataset)
    training: Training = field(default_factory=Training)
    eval: Eval = field(default_factory=Eval)


def parse_arguments() -> AdvancedTrainingConfig:
    config = AdvancedTrainingConfig()
    parser = argparse.ArgumentParser()
    say_errors_in_one_line(parser.prog)
    parser.add_argument("--env", dest="task.benchmark_name", default=argparse.SUPPRESS)
    for name, default in flatten(asdict(config)).items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"default: {default}")
    for name, value in vars(parser.parse_args()).items():
        section, _, key = name.rpartition(".")
        setattr(getattr(config, section) if section else config, key, value)
    return config


def main(config: AdvancedTrainingConfig) -> None:
    seed, algo = config.training.seed, config.algo
    run_dir = new_run_directory(Path(config.output_dir) / config.exp_name)
    environment = get_environment(**asdict(config.task))
    simulators = environment.make()
    policy = starting_policy(config.policy_path, environment, config.warm_start_dir, seed, config.device)
    learner = AdvantageLoss(policy, algo.cfg_uncond_weight, algo.num_draws)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=algo.lr, betas=(0.9, 0.95), weight_decay=1e-4)
    states = InitialStateDataset(simulators, config.dataset.num_init_states)
    drawn_states = states.shuffled(seed)
    heldout = heldout_states(simulators, config.eval.first_state, config.eval.rollouts_per_task, states)
    evaluation = partial(evaluate, simulators, states=heldout, num_recorded=config.eval.n_video)
    before = evaluation(policy=GuidedPolicy(policy))
    write_evaluation(run_dir / "before", before)

    metrics = []
    for iteration in range(config.training.num_train_steps):
        start = time.monotonic()
        # Collect
        collection = collect_groups(
            simulators,
            GuidedPolicy(policy, algo.collection_cfg_scale if iteration > 0 else 1.0),  # at first: unguided
            drawn_states,
            num_groups=algo.data_batch_size,
            group_size=algo.rloo_batch_size,
            max_attempts=algo.max_sampling_attempts,
            seed=(seed, iteration),
            render_every=config.dataset.window_stride,
        )
        windows = collection.windows(policy.config.chunk_size)
        # Improve
        policy.train()
        losses = []
        windows_per_step = algo.micro_batch_size * algo.gradient_accumulation_steps
        steps = shuffled_batches(len(windows), windows_per_step, algo.num_epochs, seed=(seed, iteration))
        for step, window_ids in enumerate(with_progress(steps, losses)):
            total = torch.zeros((), device=policy.device)
            for micro_batch in batches(window_ids, algo.micro_batch_size):
                loss = learner(windows.batch(micro_batch), seed=(seed, iteration, step)) / len(window_ids)
                loss.backward()
                total += loss.detach()
            torch.nn.utils.clip_grad_norm_(learner.parameters(), algo.grad_norm_clip)
            optimizer.param_groups[0]["lr"] = algo.lr * (1 - step / len(steps))
            optimizer.step()
            optimizer.zero_grad()
            losses.append(total.item())
        policy.eval()
        # Report
        metrics.append(
            {
                "iteration": iteration,
                **collection.metrics(),
                "train/windows": len(windows),
                "train/loss": float(np.mean(losses)) if losses else None,
                "time/iteration_s": round(time.monotonic() - start, 1),
            }
        )
        print(one_line(metrics[-1]))

    improved = GuidedPolicy(policy, config.eval.cfg_guidance_scale)
    after = evaluation(policy=improved)
    simulators.close()
    write_results(run_dir, asdict(config), metrics, before, after, policy)


if __name__ == "__main__":
    main(parse_arguments())
