"""The way from disk to batches and back: data sets are written here, and read by the one reader.

frames = reader.open_set(DatasetSettings(root="demos/drawer"))      checked; images are decoded when asked for
data = training_data.make_training_data(settings, policy.features, policy.config.chunk_size, batch_size=32)
for batch in data.train:                                         endless; its `state_dict()` is the position

A data set is a LeRobotDataset v3. While it is recorded it is two directories, so that finished episodes
survive a kill and the set is either whole or absent:

* `DIR.partial/`: one file per finished episode, each complete or absent, in any order and from any number of
  processes. Opening it again continues.
* `DIR/` after `finalize`: the episodes in the order of their numbers, so the same whatever the number of
  processes, renamed into place in one step.

`success` is a column of the frames (constant over an episode), because that is what every tool of lerobot
carries along (merging, splitting, deleting episodes) and where RECAP trainers look first. All labels,
`success` too, are also columns of `meta/episodes`, one row per episode. `meta/collection.json` says how the
whole set was made and holds the hash of its content. `meta/success.json`, where there is one, says of a set
made elsewhere how its episodes ended (pi0-label), above what its columns say.
"""
