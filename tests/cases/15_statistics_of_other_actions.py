"""Statistics of absolute actions for a policy of relative ones, and the reverse: targets of hundreds of sigma are trained on (openpi#814)."""

import json
from dataclasses import replace

from case_sets import WORK, check, end, make, make_episode, np, train
from conftest import toy_policy

from pi0 import PI0Policy, compute_statistics

rng, episodes = np.random.default_rng(0), {}
for i in range(4):
    state = (50 + np.cumsum(rng.normal(0, 0.05, (20, 4)), 0)).astype(np.float32)
    action = (state[:, :3] + rng.normal(0, 0.05, (20, 3))).astype(np.float32)
    episodes[i] = replace(make_episode(i, length=20, size=24), states=state, actions=action)
root = make(episodes=episodes)
states, actions = (
    np.concatenate([getattr(episode, name) for episode in episodes.values()])
    for name in ("states", "actions")
)
numbers = {"absolute": compute_statistics(actions), "relative": compute_statistics(actions - states[:, :3])}


def plain(statistics):
    return {name: statistics[name].tolist() for name in ("mean", "std", "q01", "q99")}


for kind, found in numbers.items():
    content = {"state": plain(compute_statistics(states)), "actions": plain(found)}
    (WORK / f"{kind}.json").write_text(json.dumps({"norm_stats": content}))
for kind, mask in (("relative", (True,) * 3), ("absolute", ())):
    toy = toy_policy({"relative_actions": mask}, tasks=["do thing 0", "do thing 1"], indicator="embedding")
    statistics = {"observation.state": compute_statistics(states), "action": numbers[kind]}
    PI0Policy(toy.config, toy.features, toy.tokenizer, statistics).save_pretrained(WORK / kind)
    other = {"relative": "absolute", "absolute": "relative"}[kind]
    found = train(
        root,
        f"out-{kind}",
        f"policy.pretrained_path={WORK / kind}",
        f"policy.norm_stats_path={WORK / other}.json",
        "policy.tokenizer_max_length=null",
    )
    loss = [line for line in found[1].splitlines() if line.startswith("step 1")]
    words = ("sigma", "statistics of", "std", "norm_stats")
    warned = [line for line in found[1].splitlines() if any(word in line.lower() for word in words)]
    check(
        found[0] == 2 or bool(warned),
        f"a policy of {kind} actions with statistics of {other} ones is refused or warned of: {found[0]!r} {loss}",
    )

end()
