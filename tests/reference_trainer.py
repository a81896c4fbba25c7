"""RIPT with nothing around it: an independent witness that rung 13 computes what it says.

No processes, checkpoints, guards or logs, and the objective is spelled out instead of imported.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from pi0 import Indicator
from pi0.ript.config import TrainConfig
from pi0.ript.environments import get_environment
from pi0.ript.evaluate import evaluate
from pi0.ript.groups import InitialStateDataset, collect_groups, heldout_states
from pi0.ript.loss import window_draws
from pi0.ript.results import write_results
from pi0.ript.rollout import GuidedPolicy
from pi0.ript.starting_policy import starting_policy
from pi0.ript.windows import batches, shuffled_batches


def train(config: TrainConfig, run_dir: Path) -> None:
    """Improve the policy that the configuration names, and write the results as every rung does."""
    run_dir.mkdir()
    algo, seed, environment = config.algo, config.training.seed, get_environment(**asdict(config.task))
    env = environment.make()
    policy = starting_policy(
        config.policy_path, environment, config.warm_start_dir, seed, **asdict(config.policy)
    )
    optimizer = torch.optim.AdamW(policy.parameters(), lr=algo.lr, betas=(0.9, 0.95), weight_decay=1e-4)
    states = InitialStateDataset(env, config.dataset.num_init_states)
    drawn = states.shuffled(seed)
    heldout = heldout_states(env, config.eval.first_state, config.eval.rollouts_per_task, train=states)
    before, rows = evaluate(env, GuidedPolicy(policy), heldout), []
    for iteration in range(config.training.num_train_steps):
        collection = collect_groups(
            env,
            GuidedPolicy(policy, algo.collection_cfg_scale if iteration else 1.0),
            drawn,
            num_groups=algo.data_batch_size,
            group_size=algo.rloo_batch_size,
            max_attempts=algo.max_sampling_attempts,
            seed=(seed, iteration),
            render_every=config.dataset.window_stride,
        )
        windows, losses = collection.windows(policy.config.chunk_size), []
        step_size = algo.micro_batch_size * algo.gradient_accumulation_steps
        steps = shuffled_batches(len(windows), step_size, algo.num_epochs, seed=(seed, iteration))
        policy.train()
        for number, step in enumerate(steps):
            total = torch.zeros(())
            for part in batches(step, algo.micro_batch_size):
                batch = windows.batch(part)
                key = (seed, iteration, number)
                noise, time = window_draws(policy, part.tolist(), key, algo.num_draws)
                prefix = policy.model.prefix(policy.preprocess(batch))
                # 1[A > 0] L(positive) + alpha L(no indicator), over the windows of the whole step
                drawn_as = {"reduction": "sample", "noise": noise, "time": time, "prefix": prefix}
                none = policy.loss(batch, indicator=Indicator.NONE, **drawn_as)
                better = np.flatnonzero(batch["advantage"].numpy() > 0)
                chosen = better if len(better) else np.arange(1)  # then it is counted with 0
                drawn_as |= {"noise": noise[:, chosen], "time": time[:, chosen]}
                drawn_as["prefix"] = prefix.select(torch.from_numpy(chosen))
                positive = policy.loss(windows.batch(part[chosen]), indicator=Indicator.POSITIVE, **drawn_as)
                factor = float(len(better) > 0)
                loss = (factor * positive.sum() + algo.cfg_uncond_weight * none.sum()) / len(step)
                loss.backward()
                total += loss.detach()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), algo.grad_norm_clip)
            optimizer.param_groups[0]["lr"] = algo.lr * (1 - number / len(steps))
            optimizer.step()
            optimizer.zero_grad()
            losses.append(total.item())
        policy.eval()
        rows.append({"iteration": iteration, **collection.metrics(), "train/windows": len(windows)})
        rows[-1]["train/loss"] = float(np.mean(losses)) if losses else None
    after = evaluate(env, GuidedPolicy(policy, config.eval.cfg_guidance_scale), heldout)
    env.close()
    write_results(run_dir, asdict(config), rows, before, after, policy)
