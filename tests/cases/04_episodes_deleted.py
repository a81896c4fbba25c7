"""A set whose episode 1 was deleted: two loaders disagree, and a local set is looked for on the hub (lerobot#831, #943, #2283)."""

import json

from case_sets import (
    WORK,
    advantage,
    check,
    end,
    is_refused,
    make,
    rewrite,
    set_info,
    short,
    stats,
    train,
    train_value,
    viz,
    without_episode_1,
)

root = make()
rewrite(root, "data", without_episode_1)
rewrite(root, "meta/episodes", without_episode_1)
set_info(root, total_episodes=3, total_frames=14)


def is_of_the_set(outcome):
    said = outcome[1].lower()
    return outcome[0] == 0 or (is_refused(outcome) and "hugging" not in said and "the hub" not in said)


trained = train(root, "policy")
check(is_of_the_set(trained), f"pi0-train works, or refuses it for what it is: {short(trained)}")
counted = stats(root, "--output", WORK / "s.json")
check(is_of_the_set(counted), f"pi0-stats works, or refuses it for what it is: {short(counted)}")
shown = viz(root, "--output", WORK / "page.html")
check(shown[0] == trained[0], f"pi0-dataset-viz takes the set if and only if pi0-train does: {short(shown)}")
shown = viz(root, "--output", WORK / "page.html", "--episodes", 3)
check(
    shown[0] == 0 or "--episodes" not in shown[1],
    f"pi0-dataset-viz --episodes 3, which is there: {short(shown)}",
)

assert train_value(make("whole"), "value")[0] == 0
labelled = advantage(WORK / "value/run", root)
if labelled[0] == 0:
    advantages = json.loads((root / "meta/advantages.json").read_text())
    keys = sorted({int(key.split(",")[0]) for key in advantages})
    check(
        keys == [0, 2, 3],
        f"meta/advantages.json has the episodes of the data, [0, 2, 3]: found {keys}",
    )
else:
    check(is_refused(labelled, "episode"), f"pi0-advantage: {short(labelled)}")

end()
