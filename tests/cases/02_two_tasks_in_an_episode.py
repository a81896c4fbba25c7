"""An episode with two instructions: the policy reads the frame's, everything about values the first (OpenTau#326)."""

from case_sets import check, column, end, make, np, rewrite

from pi0 import FeatureConfig
from pi0.ript.data.reader import open_set
from pi0.ript.data.settings import DatasetSettings
from pi0.ript.labels.mixture import Mixture
from pi0.ript.labels.sources import Source

root = make()


def two(table):
    names = ("episode_index", "frame_index", "task_index")
    rows = zip(*(table[name].to_pylist() for name in names), strict=True)
    return column(table, "task_index", [int(place >= 2) if e == 3 else task for e, place, task in rows])


def both(table):  # a set made elsewhere: no task_id
    table = table.drop_columns(["task_id"])
    return column(table, "tasks", [*table["tasks"].to_pylist()[:3], ["do thing 0", "do thing 1"]])


rewrite(root, "data", two)
rewrite(root, "meta/episodes", both)
try:
    frames = open_set(DatasetSettings(root=str(root)))
except ValueError as error:
    check(any(word in str(error) for word in ("task", "instruction")), f"refused: {error}")
else:
    trained = frames.frame_instructions()[-6:]
    source = Source("s", frames)
    features = FeatureConfig(image_keys=("observation.images.front",), state_dim=4, action_dim=3)
    valued = Mixture([source], features, 1).batch(np.arange(12, 18))["task"]
    grouped = source.frame_tasks()[-6:]
    check(trained == ["do thing 0"] * 2 + ["do thing 1"] * 4, f"pi0-train's prompts {trained}")
    check(trained == valued, f"pi0-train's prompts {trained}, pi0-advantage's and RECAP's {valued}")
    check(trained == grouped, f"instructions {trained}, tasks of the per-task thresholds {grouped}")

end()
