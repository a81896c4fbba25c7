"""RECAP: SFT, a value function, then rounds of rollouts, values, advantages and policy; or RIPT, as rung 13.

Parent: 13_train_production_ready.py
Introduces: recap, training, labels, pages, page, recording, scripts, pi0.value, pi0.value_config
Run: python train_ript_pi0_final.py --config_path configs/demo.yaml

Started again it goes on where it stopped: what is finished and still fits the configuration is skipped. With
a configuration of RIPT (pi0/ript/config/*.yaml) it trains as rung 13 does, number by number.
"""

from dataclasses import asdict
from pathlib import Path

import torch

from pi0.ript.checkpoint import lock_directory
from pi0.ript.config import parse_config, save_config
from pi0.ript.distributed import cleanup_distributed, setup_distributed
from pi0.ript.interruption import cleanup_on_exit, setup_signal_handlers
from pi0.ript.monitoring import monitor_memory
from pi0.ript.recap import RECAP, Recap, RecapConfig
from pi0.ript.recap.budget import print_budget
from pi0.ript.recap.endings import clear_endings
from pi0.ript.recap.report import write_recap_report
from pi0.ript.recap.summary import write_summary
from pi0.ript.run_logging import close_run_logging, init_wandb, log_metrics, setup_run_logging
from pi0.ript.scripts.train_ript_pi0 import main as train_ript


@clear_endings()
def train_recap(config: RecapConfig) -> None:
    torch.set_num_threads(1)
    world = setup_distributed(config)
    run_dir = Path(config.output_dir) / config.exp_name
    world.on_main(lock_directory, run_dir)
    world.on_main(save_config, config, run_dir)
    setup_run_logging(run_dir, world.rank)
    init_wandb(config, run_dir, world.rank)
    recap = Recap(config, run_dir, world)
    world.on_main(print_budget, recap)
    cleanup_on_exit(recap)
    setup_signal_handlers()

    data = {"demonstrations": recap.demonstrations()}
    policy = sft = recap.supervised(data["demonstrations"])
    value = pretrained = recap.pretrained_value(sft, data["demonstrations"])
    evaluations = {"SFT": recap.evaluation("sft-evaluation", sft)}
    for number in range(1, config.rounds + 1):
        # Collect
        data[f"rollouts-{number}"] = recap.rollouts(number, policy)
        data.pop(f"rollouts-{number - config.rollouts.keep_rounds}", None)
        # Label
        value = recap.value(
            number, sft, pretrained if config.value.start_from == "pretrained" else value, data
        )
        labels = recap.advantages(number, sft, value, data)
        recap.require_gates(value, labels)
        # Improve
        policy = recap.policy(number, sft if config.finetuning.start_from == "sft" else policy, labels, data)
        # Report
        evaluations[f"round {number}"] = recap.evaluation(f"round-{number}/evaluation", policy)
        log_metrics(recap.metrics(number) | monitor_memory(), number)
        if recap.stages.num_made:
            world.on_main(write_recap_report, run_dir, recap.stages.names)
    world.on_main(recap.publish, policy)
    if config.baselines:
        rivals = {
            "more SFT": recap.more_supervised(sft, data["demonstrations"]),
            "SFT on successes": recap.successes_only(sft, data),
        }
        evaluations |= {
            name: recap.evaluation(f"{Path(p.stage).parent}/evaluation", p) for name, p in rivals.items()
        }

    world.on_main(write_summary, run_dir, asdict(config), evaluations)
    world.on_main(write_recap_report, run_dir, recap.stages.names)
    recap.close()
    close_run_logging()
    cleanup_distributed()


if __name__ == "__main__":
    settings = parse_config(resumes=True, algorithms={"recap": RECAP})
    run = train_recap if isinstance(settings, RecapConfig) else train_ript
    run(settings)
