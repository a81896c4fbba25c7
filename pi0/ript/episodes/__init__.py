"""Data sets in whole arrays, for what does not use `pi0.ript.data.reader` yet."""

from pi0.ript.episodes.loading import EpisodeSet, images_gb, load_episodes, load_labels, read_collection

__all__ = ["EpisodeSet", "images_gb", "load_episodes", "load_labels", "read_collection"]
