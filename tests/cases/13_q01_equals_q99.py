"""Quantiles that coincide (a gripper closed in under 1 % of the frames) blow normalised values up to 4e8 (VLA-Arena#30)."""

import contextlib
import io
import json
import warnings
from dataclasses import replace

import torch
from case_sets import WORK, check, end, make, make_episode, np, stats
from conftest import CAMERA, TASKS, toy_policy

from pi0 import PI0Policy
from pi0.normalize import Normalizer

rng = np.random.default_rng(0)
actions = rng.normal(size=(400, 7)).astype(np.float32)
actions[:, 6] = -1.0
actions[[50, 200], 6] = 1.0
episodes = {
    i: replace(make_episode(i, length=100), actions=actions[100 * i : 100 * i + 100]) for i in range(4)
}
root = make(episodes=episodes)
found = stats(root, "--output", WORK / "s.json")
names_it = any(word in found[1].lower() for word in ("q01", "quantile", "dimension"))
numbers = json.loads((WORK / "s.json").read_text())["statistics"] if found[0] == 0 else None
for name, q99 in (("q01 == q99", -1.0), ("q99 - q01 = 1e-7", -1.0 + 1e-7)):
    if numbers is None:
        break
    numbers["action"]["q99"][6] = q99
    for epsilon in ("lerobot", "openpi"):
        said = io.StringIO()
        try:
            with (
                warnings.catch_warnings(record=True) as warned,
                contextlib.redirect_stderr(said),
                contextlib.redirect_stdout(said),
            ):
                warnings.simplefilter("always")
                encoded = Normalizer("action", 7, "quantiles", numbers, epsilon).encode(torch.ones(1, 7))
        except ValueError as error:
            check("6" in str(error), f"refused: {error}")
            continue
        largest = float(encoded[0, 6])
        is_right = abs(largest) < 1e3 or bool(warned) or bool(said.getvalue())
        check(is_right, f"{name}, {epsilon}: +1 becomes {largest:.3g} (bounded, refused, or a warning)")
normalization = {"action_normalization": "quantiles", "state_normalization": "quantiles"}
toy = toy_policy({"action_dim": 7, **normalization}, pi05=True, max_action_dim=8, tokenizer_max_length=60)
if numbers is not None:
    numbers["action"]["q99"][6] = -1.0
    with contextlib.suppress(ValueError):
        policy = PI0Policy(toy.config, toy.features, toy.tokenizer, numbers)
        windows = actions[46 : 46 + 2 * policy.config.chunk_size].reshape(2, -1, 7)
        batch = {
            CAMERA: torch.zeros(2, 16, 16, 3, dtype=torch.uint8),
            "observation.state": torch.zeros(2, 4),
            "action": torch.from_numpy(windows),
            "task": list(TASKS),
        }
        loss = policy.loss(batch, generator=torch.Generator().manual_seed(0)).item()
        is_right = loss < 1e4 or names_it
        check(is_right, f"pi05's loss of two windows, one with the gripper closed: {loss:.3g}")

end()
