"""Episodes on disk: demonstrations and rollouts as LeRobotDataset v3, with success labels.

Two directories, so that finished episodes survive a kill and a data set is either whole or absent:

* `DIR.partial/` while collecting: one file per finished episode, each complete or absent, in any
  order and from any number of processes. Opening it again continues.
* `DIR/` after `finalize`: a LeRobotDataset v3 (episodes in the order of their numbers, so the
  same whatever the number of processes), renamed into place in one step.

Where the labels live: `success` is a column of the frames (constant over an episode), because that
is what every tool of lerobot carries along (merging, splitting, deleting episodes) and where RECAP
trainers look first. All labels, `success` too, are also columns of `meta/episodes`, one row per
episode: `LeRobotDataset.meta.episodes[i]["seed"]`, `meta.filter_episodes(lambda e: e["success"])`.
`meta/collection.json` says how the whole set was made and holds the hash of its content.
"""

from pi0.ript.episodes.images import default_storage
from pi0.ript.episodes.loading import EpisodeSet, images_gb, load_episodes, load_labels, read_collection
from pi0.ript.episodes.records import CollectionInfo, Episode, EpisodeDataError, EpisodeLabels
from pi0.ript.episodes.writer import EpisodeWriter

__all__ = [
    "CollectionInfo",
    "Episode",
    "EpisodeDataError",
    "EpisodeLabels",
    "EpisodeSet",
    "EpisodeWriter",
    "default_storage",
    "images_gb",
    "load_episodes",
    "load_labels",
    "read_collection",
]
