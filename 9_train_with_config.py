"""RIPT with a configuration: YAML files, overrides on the command line, checked before any work.

Parent: 8_train_with_epochs.py
Introduces: pi0.ript.config
Run: python 9_train_with_config.py --config_path pi0/ript/config/minimal_test.yaml

Everything that can be set, with its default, is in pi0/ript/config/schema.py. Overrides are `algo.lr=2e-5`.
"""

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pi0.ript.config import TrainConfig, parse_config, save_config
from pi0.ript.environments import get_environment
from pi0.ript.evaluate import evaluate
from pi0.ript.groups import InitialStateDataset, collect_groups, heldout_states
from pi0.ript.loss import adamw_settings, make_learner
from pi0.ript.results import new_run_directory, one_line, write_evaluation, write_results
from pi0.ript.rollout import GuidedPolicy
from pi0.ript.starting_policy import starting_policy
from pi0.ript.windows import batches, shuffled_batches, with_progress


def main(config: TrainConfig) -> None:
    seed, algo = config.training.seed, config.algo
    run_dir = new_run_directory(Path(config.output_dir) / config.exp_name)
    save_config(config, run_dir)
    environment = get_environment(**asdict(config.task))
    simulators = environment.make()
    options = {
        "cache": config.warm_start_dir,
        "seed": seed,
        "device": config.device,
        **asdict(config.policy),
    }
    policy = starting_policy(config.policy_path, environment, **options)
    learner = make_learner(policy, algo)
    optimizer = torch.optim.AdamW(learner.parameters(), **adamw_settings(algo))
    states = InitialStateDataset(simulators, config.dataset.num_init_states)
    drawn_states = states.shuffled(seed)
    heldout = heldout_states(simulators, config.eval.first_state, config.eval.rollouts_per_task, states)
    evaluation = partial(evaluate, simulators, states=heldout, num_recorded=config.eval.n_video)
    before = evaluation(policy=GuidedPolicy(policy))
    write_evaluation(run_dir / "before", before)

    print("✓ 训练正常启动 / training started")
    metrics = []
    for iteration in range(config.training.num_train_steps):
        start = time.monotonic()
        # Collect
        collection = collect_groups(
            simulators,
            algo.acting_policy(policy, iteration),
            drawn_states,
            num_groups=algo.data_batch_size,
            group_size=algo.rloo_batch_size,
            max_attempts=algo.max_sampling_attempts,
            seed=(seed, iteration),
            render_every=config.dataset.window_stride,
        )
        windows = collection.windows(policy.config.chunk_size, config.dataset.max_windows_per_episode)
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
    main(parse_config())
