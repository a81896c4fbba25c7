"""RIPT with a record: per-process log files, metrics as JSON lines, plots, a report, Weights & Biases.

Parent: 10_train_with_distributed.py
Introduces: pi0.ript.run_logging, console_log, run_status, wandb_run, report, report_plots, page
Run: python 11_train_with_logging.py --config_path pi0/ript/config/minimal_test.yaml

The run's directory has train_rank0.log, metrics.jsonl and report.html. W&B is off unless
logging.use_wandb=true, and then offline unless logging.wandb_mode=online.
"""

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pi0.ript.config import TrainConfig, parse_config, save_config
from pi0.ript.distributed import cleanup_distributed, get_model_from_ddp, setup_distributed
from pi0.ript.environments import get_environment
from pi0.ript.evaluate import evaluate
from pi0.ript.groups import InitialStateDataset, collect_groups, heldout_states
from pi0.ript.loss import adamw_settings, make_learner
from pi0.ript.report import write_report
from pi0.ript.results import new_run_directory, one_line, write_evaluation, write_results
from pi0.ript.rollout import GuidedPolicy
from pi0.ript.run_logging import PhaseTimer, close_run_logging, init_wandb, log_metrics, setup_run_logging
from pi0.ript.starting_policy import starting_policy
from pi0.ript.windows import shuffled_batches, with_progress


def main(config: TrainConfig) -> None:
    seed, algo = config.training.seed, config.algo
    world = setup_distributed(config.device, **asdict(config.distributed), num_groups=algo.data_batch_size)
    world.require_shared(f"{config.output_dir}/{config.exp_name}", config.warm_start_dir)
    run_dir = world.on_main(new_run_directory, Path(config.output_dir) / config.exp_name)
    world.on_main(save_config, config, run_dir)
    setup_run_logging(run_dir, world.rank, write_report)
    init_wandb(config, run_dir, world.rank)
    environment = get_environment(**asdict(config.task))
    simulators = environment.make()
    options = {
        "cache": config.warm_start_dir,
        "seed": seed,
        "device": world.device(config.device),
        **asdict(config.policy),
    }
    policy = world.first(starting_policy, config.policy_path, environment, **options)
    learner = world.wrap(make_learner(policy, algo))
    optimizer = torch.optim.AdamW(learner.parameters(), **adamw_settings(algo))
    states = InitialStateDataset(simulators, config.dataset.num_init_states)
    drawn_states = world.portion(states.shuffled(seed))
    heldout = heldout_states(simulators, config.eval.first_state, config.eval.rollouts_per_task, states)
    evaluation = partial(evaluate, simulators, states=heldout, num_recorded=config.eval.n_video, peers=world)
    before = evaluation(policy=GuidedPolicy(policy))
    world.on_main(write_evaluation, run_dir / "before", before)

    world.print("✓ 训练正常启动 / training started")
    metrics = []
    for iteration in range(config.training.num_train_steps):
        start = time.monotonic()
        timer = PhaseTimer()
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
            peers=world,
        )
        windows = collection.windows(policy.config.chunk_size, config.dataset.max_windows_per_episode)
        timer.split("collect")
        # Improve
        policy.train()
        losses = []
        windows_per_step = algo.micro_batch_size * algo.gradient_accumulation_steps
        steps = shuffled_batches(len(windows), windows_per_step, algo.num_epochs, seed=(seed, iteration))
        for step, window_ids in enumerate(with_progress(steps, losses)):
            total = torch.zeros((), device=policy.device)
            for micro_batch in world.micro_batches(learner, window_ids, algo.micro_batch_size):
                loss = learner(windows.batch(micro_batch), seed=(seed, iteration, step)) / len(window_ids)
                world.backward(loss)  # of loss * world.size: DDP averages gradients, and a sum is wanted
                total += loss.detach()
            torch.nn.utils.clip_grad_norm_(learner.parameters(), algo.grad_norm_clip)
            optimizer.param_groups[0]["lr"] = algo.lr * (1 - step / len(steps))
            optimizer.step()
            optimizer.zero_grad()
            losses.append(world.sum(total))
        policy.eval()
        world.require_equal(get_model_from_ddp(learner))
        timer.split("improve")
        # Report
        drawn_states.move_past(len(collection.tried))
        metrics.append(
            {
                "iteration": iteration,
                **collection.metrics(),
                "train/windows": len(windows),
                "train/loss": float(np.mean(losses)) if losses else None,
                "time/iteration_s": round(time.monotonic() - start, 1),
                **timer.metrics(),
            }
        )
        world.print(one_line(metrics[-1]))
        log_metrics(metrics[-1], iteration)

    improved = GuidedPolicy(policy, config.eval.cfg_guidance_scale)
    after = evaluation(policy=improved)
    simulators.close()
    world.on_main(write_results, run_dir, asdict(config), metrics, before, after, policy)
    world.on_main(write_report, run_dir)
    close_run_logging()
    cleanup_distributed()


if __name__ == "__main__":
    main(parse_config())
