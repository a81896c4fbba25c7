"""select_action answers another batch, another task, a NaN state or an empty batch with the actions queued for the first (lerobot#1116)."""

import torch
from case_sets import check, end
from conftest import CAMERA, TASKS, toy_policy

policy = toy_policy(n_action_steps=8, chunk_size=8)


def batch(size, task=0):
    return {
        CAMERA: torch.zeros(size, 16, 16, 3, dtype=torch.uint8),
        "observation.state": torch.randn(size, 4, generator=torch.Generator().manual_seed(size)),
        "task": [TASKS[task]] * size,
    }


def attempt(what, second, is_right):
    policy.reset()
    torch.manual_seed(0)
    policy.select_action(batch(2))
    queued = policy._queue[0].clone() if getattr(policy, "_queue", None) else None
    try:
        found = policy.select_action(second)
    except ValueError as error:
        check(True, f"{what}: refused: {str(error)[:80]}")
        return
    check(
        is_right(found, queued),
        f"{what}: {tuple(found.shape)}, the action queued for the first batch: {queued is not None and torch.equal(found, queued)}",
    )


attempt("a batch of 3 after one of 2", batch(3), lambda found, _: len(found) == 3)
attempt(
    "another task, without reset",
    batch(2, 1),
    lambda found, queued: queued is None or not torch.equal(found, queued),
)
attempt("a NaN state", {**batch(2), "observation.state": torch.full((2, 4), float("nan"))}, lambda *_: False)
attempt("an empty batch", {}, lambda *_: False)
attempt(
    "an image from another camera",
    {k.replace("front", "wrist"): v for k, v in batch(2).items()},
    lambda *_: False,
)

end()
