"""The blocks can be captured whole by torch.compile, without breaks."""

import subprocess
import sys
from pathlib import Path

import torch

TESTS = Path(__file__).parent


def test_blocks_compile_without_graph_breaks_and_change_nothing():
    # In a process of its own: the shape checks of the test suite cannot be compiled.
    result = subprocess.run(
        [sys.executable, __file__], cwd=TESTS.parent, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout == "equal\n"


def main() -> None:
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    from conftest import CAMERA, TASKS, toy_policy

    g = torch.Generator().manual_seed(0)
    batch = {
        CAMERA: torch.rand(2, 3, 64, 64, generator=g),
        "observation.state": torch.randn(2, 4, generator=g),
        "action": torch.randn(2, 8, 3, generator=g),
        "task": TASKS,
    }
    draws = {"noise": torch.randn(1, 2, 8, 8, generator=g), "time": torch.rand(1, 2, generator=g)}
    policy = toy_policy()
    actions = policy.sample_actions(batch, noise=draws["noise"][0])
    policy.loss(batch, **draws).backward()
    gradients = [p.grad for p in policy.model.parameters()]
    policy.zero_grad()
    policy.model.compile_blocks(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(policy.sample_actions(batch, noise=draws["noise"][0]), actions)
    policy.loss(batch, **draws).backward()
    for parameter, expected in zip(policy.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, expected)
    print("equal")


if __name__ == "__main__":
    main()
