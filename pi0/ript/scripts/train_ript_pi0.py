"""The reference trainer: RIPT on a configuration, as short as it can be said; rung 13 gives the same numbers.

    python pi0/ript/scripts/train_ript_pi0.py --config_path pi0/ript/config/minimal_test.yaml

It writes results, videos and the policy as the scripts of the ladder do, under torchrun too, but neither logs
nor checkpoints: for that there is 13_train_production_ready.py.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pi0.ript.config import TrainConfig, parse_config, save_config
from pi0.ript.dataset import LiberoInitStateDataset, StateSampler
from pi0.ript.distributed import World, cleanup_distributed, setup_distributed
from pi0.ript.environments import get_environment
from pi0.ript.evaluate import evaluate
from pi0.ript.groups import collect_groups, heldout_states
from pi0.ript.loss import make_learner
from pi0.ript.results import new_run_directory, one_line, write_evaluation, write_results
from pi0.ript.rollout import GuidedPolicy
from pi0.ript.starting_policy import starting_policy
from pi0.ript.windows import Windows, shuffled_batches


def train(config: TrainConfig) -> None:
    """Improve the policy that the configuration names and write everything to its run directory."""
    if config.resume is not None:
        raise ValueError(
            "resume: the reference trainer keeps no checkpoints; use 13_train_production_ready.py"
        )
    torch.set_num_threads(1)  # a toy model gains nothing from threads
    seed, algo = config.training.seed, config.algo
    world = setup_distributed(config.device, **asdict(config.distributed), num_groups=algo.data_batch_size)
    run_dir = world.on_main(new_run_directory, Path(config.output_dir) / config.exp_name)
    world.on_main(save_config, config, run_dir)
    environment = get_environment(**asdict(config.task))
    env = environment.make()
    options = {"cache": config.warm_start_dir, "seed": seed, "device": world.device(config.device)}
    path, options = config.policy_path, options | asdict(config.policy)
    policy = world.first(starting_policy, path, environment, **options)
    learner = world.wrap(make_learner(policy, algo))
    optimizer = torch.optim.AdamW(learner.parameters(), lr=algo.lr, betas=(0.9, 0.95), weight_decay=1e-4)
    names = config.task.benchmark_name, config.task.task_names
    options = {"cache": config.warm_start_dir, "env": env}
    states = world.first(LiberoInitStateDataset, *names, config.dataset.num_init_states, **options)
    threshold = algo.rollout_skip_threshold if algo.enable_rollout_stats_tracking else 0
    sampler = StateSampler(states, world.size, world.rank, seed, skip_threshold=threshold)
    heldout = heldout_states(env, config.eval.first_state, config.eval.rollouts_per_task, train=states)
    evaluation = partial(evaluate, env, states=heldout, num_recorded=config.eval.n_video, peers=world)
    before = evaluation(policy=GuidedPolicy(policy))
    world.on_main(write_evaluation, run_dir / "before", before)

    metrics: list[dict[str, Any]] = []
    for iteration in range(config.training.num_train_steps):
        collection = collect_groups(
            env,
            GuidedPolicy(policy, algo.collection_cfg_scale if iteration > 0 else 1.0),
            map(states.__getitem__, sampler),
            num_groups=algo.data_batch_size,
            group_size=algo.rloo_batch_size,
            max_attempts=algo.max_sampling_attempts,
            seed=(seed, iteration),
            render_every=config.dataset.window_stride,
            peers=world,
        )
        windows = collection.windows(policy.config.chunk_size)
        policy.train()
        losses = _improve(learner, optimizer, windows, config, iteration, world)
        policy.eval()
        sampler.update(collection)
        row = {"iteration": iteration, **collection.metrics()}
        metrics.append({**row, "train/loss": float(np.mean(losses)) if losses else None})
        world.print(one_line(metrics[-1]))

    after = evaluation(policy=GuidedPolicy(policy, config.eval.cfg_guidance_scale))
    env.close()
    world.on_main(write_results, run_dir, asdict(config), metrics, before, after, policy)
    cleanup_distributed()


def _improve(
    learner: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    windows: Windows,
    config: TrainConfig,
    iteration: int,
    world: World,
) -> list[float]:
    """Take the optimizer steps of one iteration and return the loss of each."""
    seed, algo, losses = config.training.seed, config.algo, []
    step_size = algo.micro_batch_size * algo.gradient_accumulation_steps
    steps = shuffled_batches(len(windows), step_size, algo.num_epochs, seed=(seed, iteration))
    for number, step in enumerate(steps):
        total = torch.zeros(())
        for micro_batch in world.micro_batches(learner, step, algo.micro_batch_size):
            loss = learner(windows.batch(micro_batch), seed=(seed, iteration, number)) / len(step)
            world.backward(loss)
            total += loss.detach().cpu()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), algo.grad_norm_clip)
        optimizer.param_groups[0]["lr"] = algo.lr * (1 - number / len(steps))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(world.sum(total))
    return losses


if __name__ == "__main__":
    train(parse_config())
