"""RIPT for long runs: checkpoints, --resume, signals, guards of memory and of losses, a profiler.

Parent: 12_train_with_dataset.py
Introduces: pi0.ript.checkpoint, interruption, monitoring, recording
Run: python 13_train_production_ready.py --config_path pi0/ript/config/minimal_test.yaml

Stopped at any point, a run continues with --resume and ends as if it had not been stopped.
"""

import time
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader

from pi0.ript.checkpoint import Checkpoints, open_run_directory, this_launch
from pi0.ript.config import TrainConfig, parse_config, save_config
from pi0.ript.dataset import LiberoInitStateDataset, StateSampler, collate_fn_state, drawn
from pi0.ript.distributed import cleanup_distributed, get_model_from_ddp, setup_distributed
from pi0.ript.environments import get_environment
from pi0.ript.evaluate import evaluate
from pi0.ript.groups import collect_groups, heldout_states
from pi0.ript.interruption import cleanup_on_exit, setup_signal_handlers
from pi0.ript.loss import adamw_settings, make_learner
from pi0.ript.monitoring import ProfileWindow, monitor_memory, take_step
from pi0.ript.report import write_report
from pi0.ript.results import one_line, write_evaluation, write_results
from pi0.ript.rollout import GuidedPolicy
from pi0.ript.run_logging import PhaseTimer, close_run_logging, init_wandb, log_metrics, setup_run_logging
from pi0.ript.starting_policy import starting_policy
from pi0.ript.windows import shuffled_batches, with_progress


def main(config: TrainConfig) -> None:
    seed, algo = config.training.seed, config.algo
    world = setup_distributed(config.device, **asdict(config.distributed), num_groups=algo.data_batch_size)
    world.require_shared(f"{config.output_dir}/{config.exp_name}", config.warm_start_dir)
    run_dir, checkpoint = world.on_main(open_run_directory, config, this_launch(world))
    world.on_main(save_config, config, run_dir)
    setup_run_logging(run_dir, world.rank, write_report)
    init_wandb(config, run_dir, world.rank)
    environment = get_environment(**asdict(config.task))
    simulators = environment.make()
    cleanup_on_exit(simulators)
    options = {
        "cache": config.warm_start_dir,
        "seed": seed,
        "device": world.device(config.device),
        **asdict(config.policy),
    }
    policy = world.first(starting_policy, config.policy_path, environment, **options)
    learner = world.wrap(make_learner(policy, algo))
    optimizer = torch.optim.AdamW(learner.parameters(), **adamw_settings(algo))
    states = world.first(
        LiberoInitStateDataset,
        config.task.benchmark_name,
        config.task.task_names,
        config.dataset.num_init_states,
        cache=config.warm_start_dir,
        env=simulators,
    )
    threshold = algo.rollout_skip_threshold if algo.enable_rollout_stats_tracking else 0
    sampler = StateSampler(states, world.size, world.rank, seed, skip_threshold=threshold)
    loader = DataLoader(states, sampler=sampler, collate_fn=collate_fn_state)
    world.print(f"✓ LiberoInitStateDataset创建成功 ({len(states)}个初始状态 / initial states)")
    world.print(f"✓ DataLoader创建成功 / data loader ready: {world.size} process(es), {states.path}")
    drawn_states = drawn(loader, world.print)
    heldout = heldout_states(simulators, config.eval.first_state, config.eval.rollouts_per_task, states)
    evaluation = partial(evaluate, simulators, states=heldout, num_recorded=config.eval.n_video, peers=world)
    setup_signal_handlers()
    model = get_model_from_ddp(learner)
    checkpoints = Checkpoints(run_dir, checkpoint, model, optimizer, sampler, config, peers=world)
    before = evaluation(policy=GuidedPolicy(policy), run=checkpoints.rollout("before"))
    world.on_main(write_evaluation, run_dir / "before", before)

    world.print("✓ 训练正常启动 / training started")
    progress = checkpoints.resume()
    profile = ProfileWindow(config.training.profile_steps, run_dir, world.rank)
    metrics = progress.metrics
    for iteration in range(progress.iteration, config.training.num_train_steps):
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
            run=checkpoints.rollout(f"iteration-{iteration}"),
        )
        windows = collection.windows(policy.config.chunk_size, config.dataset.max_windows_per_episode)
        timer.split("collect")
        # Improve
        policy.train()
        losses = progress.losses  # of the steps made so far; `count` adds to them
        windows_per_step = algo.micro_batch_size * algo.gradient_accumulation_steps
        steps = shuffled_batches(len(windows), windows_per_step, algo.num_epochs, seed=(seed, iteration))
        for step, window_ids in progress.remaining(with_progress(steps, losses)):
            total = torch.zeros((), device=policy.device)
            for micro_batch in world.micro_batches(learner, window_ids, algo.micro_batch_size):
                loss = learner(windows.batch(micro_batch), seed=(seed, iteration, step)) / len(window_ids)
                world.backward(loss)  # of loss * world.size: DDP averages gradients, and a sum is wanted
                total += loss.detach()
            norm = torch.nn.utils.clip_grad_norm_(learner.parameters(), algo.grad_norm_clip)
            optimizer.param_groups[0]["lr"] = algo.lr * (1 - step / len(steps))
            step_loss = world.sum(total)
            is_taken = take_step(optimizer, step_loss, norm)
            progress.count(step_loss, is_taken, config.training.max_nonfinite_steps)
            profile.step()
            checkpoints.stop_if_asked()
        policy.eval()
        world.require_equal(get_model_from_ddp(learner))
        timer.split("improve")
        # Report
        sampler.update(collection)
        metrics.append(
            {
                "iteration": iteration,
                **collection.metrics(),
                "rollout/states_mastered": sampler.num_mastered,
                "train/windows": len(windows),
                "train/loss": float(np.mean(losses)) if losses else None,
                "time/iteration_s": round(time.monotonic() - start, 1),
                **timer.metrics(),
            }
        )
        world.print(one_line(metrics[-1]))
        log_metrics(metrics[-1] | monitor_memory(config.training.memory_limit_gb), iteration)
        progress.finish_iteration()
        checkpoints.save()

    improved = GuidedPolicy(policy, config.eval.cfg_guidance_scale)
    after = evaluation(policy=improved, run=checkpoints.rollout("after"))
    simulators.close()
    world.on_main(write_results, run_dir, asdict(config), metrics, before, after, policy)
    world.on_main(write_report, run_dir)
    close_run_logging()
    cleanup_distributed()


if __name__ == "__main__":
    main(parse_config(resumes=True))
