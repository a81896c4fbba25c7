"""Data files hold the episodes in another order than ascending: labels, states and video images are those of other episodes, silently."""

from dataclasses import replace

from case_sets import INFO, check, end, make, np, pa, rewrite

from pi0 import FeatureConfig
from pi0.ript.data.reader import open_set
from pi0.ript.data.settings import DatasetSettings, MixtureSettings
from pi0.ript.data.training_data import make_training_data

CAMERA = "observation.images.front"


def shuffled(table):  # 2, 3, 0, 1
    numbers = np.array(table["episode_index"].to_pylist())
    return table.take(pa.array(np.concatenate([np.flatnonzero(numbers == k) for k in (2, 3, 0, 1)])))


def read(root):
    """Return the frames, and what is in them, decoded."""
    frames = open_set(DatasetSettings(root=str(root)))
    return frames, list(frames)


root = make()
_, true = read(root)
rewrite(root, "data", shuffled)
try:
    _, found = read(root)
    for number in range(4):
        own = len(found[number]) == len(true[number])
        own = own and np.array_equal(found[number].actions, true[number].actions)
        check(own, f"episode {number} has its own actions")
    labels, true_labels = ([episode.labels.success for episode in x] for x in (found, true))
    check(labels == true_labels, f"success labels {labels}, true {true_labels}")
except ValueError as error:
    check("episode" in str(error), f"refused: {error}")

root = make("video", size=64, info=replace(INFO, storage="video"))
frames, _ = read(root)
states, images = frames.states, frames.images[CAMERA][:].astype(int)
rewrite(root, "data", shuffled)
features = FeatureConfig(image_keys=(CAMERA,), state_dim=4, action_dim=3)
for gib in (1.0, 0.0):
    settings = MixtureSettings(
        datasets=[DatasetSettings(root=str(root))], num_workers=0, val_split_ratio=0.0, cache_gib=gib
    )
    try:
        data = make_training_data(settings, features, 1, 18)
    except ValueError as error:
        check("episode" in str(error), f"refused: {error}")
        continue
    batch, own = next(data.train), 0
    pairs = zip(batch[CAMERA].numpy().astype(int), batch["observation.state"].numpy(), strict=True)
    for image, state in pairs:
        at = int(np.flatnonzero((states == state).all(1))[0])
        own += np.abs(image - images[at]).max() <= 2
    check(own == 18, f"training batches, cache_gib={gib}: {own} of 18 states come with their own image")

end()
