"""RECAP: one supervised fit, three times, and a relabelling; a configuration of RIPT trains as rung 13 does.

Parent: 13_train_production_ready.py
Introduces: recap, training, labels, pages, kept_evaluation, guidance, scripts, pi0.needs, pi0.value,
    pi0.value_config, data.normalised, data.statistics
Run: python train_ript_pi0_final.py --config_path configs/demo.yaml

`fit` trains the policy on demonstrations (SFT), the value function, and in every round both again, the policy
on labels: the value function says which frames went better than expected. Every line that makes something is
a stage: started again, the run skips what is finished and still fits the configuration, and goes on.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from pi0.ript.config import parse_config, save_config
from pi0.ript.distributed import World, cleanup_distributed, setup_distributed
from pi0.ript.interruption import cleanup_on_exit, setup_signal_handlers
from pi0.ript.labels.mixture import Mixture
from pi0.ript.monitoring import monitor_memory
from pi0.ript.recap import RECAP, RecapConfig
from pi0.ript.recap import rounds as recap
from pi0.ript.recap.budget import print_budget
from pi0.ript.recap.endings import exits_with_message
from pi0.ript.recap.judging import choose, guidance_on_validation, judge, publish_policy, write_summary
from pi0.ript.recap.report import refresh_recap_report, write_recap_report
from pi0.ript.recap.snapshot_plan import SnapshotPlan
from pi0.ript.results import lock_directory
from pi0.ript.run_logging import close_run_logging, init_wandb, log_metrics, setup_run_logging
from pi0.ript.scripts.train_ript_pi0 import main as train_ript
from pi0.ript.training.objectives import Objective
from pi0.ript.training.optimization import linear_schedule, make_optimizer, set_learning_rate
from pi0.ript.training.settings import Training
from pi0.ript.training.steps import Row


def fit(
    objective: Objective,
    data: Mixture,
    settings: Training,
    key: Sequence[int],
    plan: SnapshotPlan,
    world: World,
) -> list[Row]:
    """Minimise the objective's loss on windows drawn from the data; return the figures of every step."""
    model, learner = objective.model, world.wrap(objective.learner())
    optimizer = make_optimizer(model, settings)
    steps = plan.steps(objective.name, model, optimizer, settings, world)
    model.train()
    for step in steps:
        seed = (*key, step)
        windows = data.draw(settings.batch_size, seed)
        total = torch.zeros(len(objective.figures), device=model.device)
        for micro_batch in world.micro_batches(learner, windows, settings.micro_batch_size):
            # Of a policy: flow matching, with the indicator of each window. Of a value function: the cross
            # entropy of the return of each frame. The loss is the first of the figures.
            figures = objective.sums(learner, data.batch(micro_batch), seed, is_training=True) / len(windows)
            world.backward(figures[0])
            total += figures.detach()
        norm = torch.nn.utils.clip_grad_norm_(learner.parameters(), settings.grad_norm_clip)
        set_learning_rate(optimizer, linear_schedule(step, settings))
        row = dict(zip(objective.figures, map(world.sum, total), strict=True))
        if steps.accept(row | objective.shares(windows, seed), norm):
            optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return steps.rows


@exits_with_message()
def train_recap(config: RecapConfig) -> None:
    torch.set_num_threads(1)  # a toy model gains nothing from threads
    world = setup_distributed(config.device, **asdict(config.distributed))
    run_dir = Path(config.output_dir) / config.exp_name
    world.require_shared(run_dir)
    world.on_main(lock_directory, run_dir)
    world.on_main(save_config, config, run_dir)
    setup_run_logging(run_dir, world.rank)
    init_wandb(config, run_dir, world.rank)
    run = recap.start_run(config, run_dir, world, fit)
    cleanup_on_exit(run)
    world.on_main(print_budget, run)
    setup_signal_handlers()

    demonstrations = recap.obtain_demonstrations(run)
    policy = best = sft = recap.fit_demonstrations(run, demonstrations)
    value = pretrained = recap.fit_value(run, sft, [demonstrations])
    evaluations = {"SFT": judge(run, sft)}
    rollouts = []
    for number in range(1, config.rounds + 1):
        # Collect
        rollouts.append(recap.collect(run, number, policy))
        data = [demonstrations, *rollouts[-config.rollouts.keep_rounds :]]
        # Label
        start = pretrained if config.value.start_from == "pretrained" else value
        value = recap.fit_value(run, sft, data, start, number)
        labels = recap.label(run, number, sft, value, data)
        recap.require_gates(run, value, labels, rollouts)
        # Improve
        start = sft if config.finetuning.start_from == "sft" else policy
        improved = recap.fit_labels(run, number, start, labels, data)
        policy, best = choose(run, policy, best, improved)  # not by the states that are reported
        # Report
        evaluations[f"round {number}"] = judge(run, improved)
        log_metrics(recap.round_metrics(run, number) | monitor_memory(), number)
        if run.stages.num_made:
            world.on_main(write_recap_report, run_dir, run.stages.names)
    guidance = guidance_on_validation(run, best)
    world.on_main(publish_policy, run, best, guidance)
    rivals = recap.fit_rivals(run, sft, data, rollouts[0])
    evaluations |= {name: judge(run, rival) for name, rival in rivals.items()}

    world.on_main(write_summary, run, evaluations, best, guidance)
    world.on_main(refresh_recap_report, run_dir, run.stages.names)
    run.close()
    close_run_logging()
    cleanup_distributed()


if __name__ == "__main__":
    settings = parse_config(resumes=True, algorithms={"recap": RECAP})
    main = train_recap if isinstance(settings, RecapConfig) else train_ript
    main(settings)
