"""A set with columns image, state, actions can be trained on, but its value function leads nowhere (lerobot#1317)."""

import json

from case_sets import WORK, advantage, check, end, short, stats, train_value
from test_data import write_with_lerobot

root = write_with_lerobot(WORK / "own")
mapping = {"observation.images.front": "image", "observation.state": "state", "action": "actions"}
names = f"data_features_name_mapping: {json.dumps(mapping)}"
entry = f"{{root: {root}, assume_success: true, {names}}}"
assert train_value(entry, "value")[0] == 0, "pi0-train takes the names"
file = WORK / "mixture.json"
dataset = {"root": str(root), "assume_success": True, "data_features_name_mapping": mapping}
file.write_text(json.dumps({"datasets": [dataset]}))
found = advantage(WORK / "value/run", "--dataset_mixture", file, "--assume-success")
check(found[0] == 0, f"pi0-advantage --dataset_mixture takes the same names: {short(found)}")
found = stats(root, "--output", WORK / "s.json")
check(
    found[0] == 0 or "data_features_name_mapping" not in found[1],
    f"pi0-stats, which has no such option, does not name data_features_name_mapping as the remedy: {short(found)}",
)
found = train_value(f"{{root: {root}, {names}}}", "value2")
check(
    "load it with assume_success=True" not in found[1],
    f"the remedy is a key of the settings: {short(found)}",
)

end()
