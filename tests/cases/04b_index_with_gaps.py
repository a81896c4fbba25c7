"""The column `index` has gaps (episodes deleted and renumbered, frames not): labels of other frames, colliding window numbers, IndexError."""

from case_sets import (
    check,
    column,
    end,
    is_refused,
    make,
    make_episode,
    np,
    rewrite,
    set_info,
    short,
    train,
    train_value,
    without_episode_1,
)

from pi0 import FeatureConfig
from pi0.ript.data.reader import open_set
from pi0.ript.data.settings import DatasetSettings, MixtureSettings
from pi0.ript.data.training_data import make_training_data
from pi0.ript.labels.returns import RewardConfig
from pi0.ript.supervised.window_labels import window_returns

root = make()
second = make("second", episodes={i: make_episode(20 + i, length=6, size=24) for i in range(2)})


def renumbered(table):
    table = without_episode_1(table)
    new = {0: 0, 2: 1, 3: 2}
    return column(table, "episode_index", [new[e] for e in table["episode_index"].to_pylist()])


rewrite(root, "data", renumbered)
rewrite(root, "meta/episodes", renumbered)
set_info(root, total_episodes=3, total_frames=14)

for name, found in {"policy": train(root, "policy"), "value": train_value(root, "value")}.items():
    check(found[0] == 0 or is_refused(found, "index"), f"pi0-train, {name}: {short(found)}")

datasets = [DatasetSettings(root=str(root)), DatasetSettings(root=str(second))]
features = FeatureConfig(image_keys=("observation.images.front",), state_dim=4, action_dim=3)
mixture = MixtureSettings(datasets=datasets, num_workers=0, val_split_ratio=0.0)
try:
    sets = [open_set(dataset) for dataset in datasets]
    data = make_training_data(mixture, features, 1, 26)
    returns, _ = window_returns(sets, RewardConfig(C_neg=-10.0))
except ValueError as error:
    check("index" in str(error), f"mixture refused: {error}")
else:
    batch = next(data.train)
    windows = batch["window"].tolist()
    count = len(set(windows))
    check(count == 26, f"26 frames of two sets have {count} different window numbers")
    states = np.concatenate([frames.states for frames in sets]).tolist()
    own = {tuple(state): returns[at] for at, state in enumerate(states)}
    drawn = zip(windows, batch["observation.state"].tolist(), strict=True)
    wrong = sum(returns[window] != own[tuple(state)] for window, state in drawn)
    check(wrong == 0, f"the value function's target is another frame's return in {wrong} of 26 frames")

end()
