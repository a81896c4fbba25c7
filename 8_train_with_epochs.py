"""RIPT with epochs: groups of rollouts from one state, leave-one-out advantages, several passes over them.

Parent: none, this is the first rung
Introduces: pi0.ript.warm_start, groups, rollout, advantage, windows, loss, evaluate
Run: python 8_train_with_epochs.py

On a fresh machine this records demonstrations of a hesitating operator, trains a toy pi0 on them (both cached
in outputs/warm_start), improves it by reinforcement learning, and compares both on held-out states. Nothing
is downloaded. `--env libero` does the same on LIBERO; `--help` lists the settings.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch

from pi0.ript.environments import get_environment
from pi0.ript.evaluate import compare, evaluate, table
from pi0.ript.groups import InitialStateDataset, collect_groups, heldout_states
from pi0.ript.loss import AdvantageLoss
from pi0.ript.rollout import GuidedPolicy
from pi0.ript.video import write_grid
from pi0.ript.warm_start import warm_start
from pi0.ript.windows import batches


@dataclass
class AdvancedTrainingConfig:
    """Everything that can be set; the defaults learn the embedded task in minutes on a laptop CPU."""

    env: str = "metaworld"  # or libero; see pi0/ript/environments.py for tasks and demonstrations
    seed: int = 0
    output_dir: str = "outputs/8_train_with_epochs"
    warm_start_dir: str = "outputs/warm_start"  # cache of demonstrations and of policies trained on them
    num_iterations: int = 3  # collect, then improve
    group_size: int = 8  # rollouts from each initial state (K)
    groups_per_iteration: int = 16  # of mixed outcome; groups that all succeed or all fail teach nothing
    max_sampling_attempts: int = 32  # states to try for them
    num_states: int = 200  # training states per task
    num_epochs: int = 8  # passes over the windows of an iteration
    batch_size: int = 32  # windows per micro-batch
    gradient_accumulation_steps: int = 2  # micro-batches per optimizer step
    lr: float = 1e-3  # at the first epoch of an iteration, falling linearly to its last
    max_grad_norm: float = 1.0
    uncond_weight: float = 0.1  # alpha: weight of the loss with the indicator withheld
    guidance: float = 2.0  # towards a positive advantage, in rollouts and in the final evaluation
    num_draws: int = 2  # noise draws per window
    eval_states: int = 50  # held-out states per task; LIBERO has 50
    first_eval_state: int = 0
    num_workers: int = 2  # processes that simulate; the result does not depend on it


def parse_arguments() -> AdvancedTrainingConfig:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for field in fields(AdvancedTrainingConfig):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default, help=" ")
    return AdvancedTrainingConfig(**vars(parser.parse_args()))


def main(config: AdvancedTrainingConfig) -> None:
    torch.set_num_threads(1)  # a toy model gains nothing from threads
    start = time.monotonic()
    environment = get_environment(config.env)
    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    env = environment.make(config.num_workers)
    policy = warm_start(environment.warm_start_spec(config.seed), Path(config.warm_start_dir))
    learner = AdvantageLoss(policy, config.uncond_weight, config.num_draws)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=1e-4)
    states = InitialStateDataset(env, config.num_states)
    drawn_states = states.shuffled(config.seed)
    last = config.first_eval_state + config.eval_states
    heldout = heldout_states(env, range(config.first_eval_state, last), train=states)
    shuffler = np.random.default_rng(config.seed)
    draws = torch.Generator(policy.device).manual_seed(config.seed)
    before = evaluate(env, GuidedPolicy(policy), heldout, num_recorded=6)

    metrics = []
    for iteration in range(config.num_iterations):
        # Collect
        guidance = config.guidance if iteration > 0 else 1.0  # the indicator means nothing before training
        collection = collect_groups(
            env,
            GuidedPolicy(policy, guidance),
            drawn_states,
            num_groups=config.groups_per_iteration,
            group_size=config.group_size,
            max_attempts=config.max_sampling_attempts,
            seed=(config.seed, iteration),
            render_every=environment.render_every,
        )
        windows = collection.windows(policy.config.chunk_size)
        # Improve
        policy.train()
        losses = []
        for epoch in range(config.num_epochs):
            for parameters in optimizer.param_groups:
                parameters["lr"] = config.lr * (1.0 - epoch / config.num_epochs)
            for step in batches(shuffler.permutation(len(windows)), step_size(config)):
                for micro_batch in batches(step, config.batch_size):
                    loss = learner(windows.batch(micro_batch), draws) / len(step)
                    loss.backward()
                    losses.append(loss.item() * len(step) / len(micro_batch))
                torch.nn.utils.clip_grad_norm_(learner.parameters(), config.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        policy.eval()
        # Report
        metrics.append(
            {
                "iteration": iteration,
                "rollout/success": collection.success_rate,
                "rollout/groups": len(collection.kept),
                "rollout/attempts": len(collection.tried),
                "train/windows": len(windows),
                "train/loss": float(np.mean(losses)) if losses else None,
                "time/elapsed_s": round(time.monotonic() - start, 1),
            }
        )
        print(
            "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in metrics[-1].items())
        )

    after = evaluate(env, GuidedPolicy(policy, config.guidance), heldout, num_recorded=6)
    env.close()
    print(table(before, after))
    results = {
        "config": asdict(config),
        "metrics": metrics,
        "before": before.to_dict(),
        "after": after.to_dict(),
        "comparison": compare(before, after).to_dict(),
    }
    (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    write_grid(output_dir / "before.mp4", before.recorded)
    write_grid(output_dir / "after.mp4", after.recorded)
    policy.save_pretrained(output_dir / "policy")
    print(f"results, videos and policy: {output_dir}")


def step_size(config: AdvancedTrainingConfig) -> int:
    return config.batch_size * config.gradient_accumulation_steps


if __name__ == "__main__":
    main(parse_arguments())
