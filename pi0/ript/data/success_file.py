"""`meta/success.json`: how episodes ended, said after the recording; the frames stay as they were recorded.

It stands above what the set's own columns say. Each entry holds the hash of the states and actions that were
judged, so that a label never passes to other frames. lerobot does not read the file and loads the set as
before; a set that its tools made of this one is labelled anew.

Axes: n frame of the set, e episode.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from pi0.ript.data.frame_set import FrameSet, hash_arrays
from pi0.ript.data.tables import Fault, FrameTable, reason_of
from pi0.ript.files import FORMAT, FormatError, read_versioned_json, write_json

SUCCESS_PATH = Path("meta/success.json")
_AGAIN = "label the set again: pi0-label --overwrite"


def read_success(root: Path, table: FrameTable, faults: list[Fault]) -> dict[int, bool]:
    """Return the labels of episodes by their numbers; none where there is no file.

    Args:
        root: The data set.
        table: Its frames, or those of the episodes that were fetched.
        faults: Labels that are none, or are of other frames than those that are there, added to.
    """
    path, where = root / SUCCESS_PATH, str(SUCCESS_PATH)
    if not path.exists():
        return {}
    try:
        entries = read_versioned_json(path)["episodes"]
        stored = {int(number): (entry["success"], entry["frames"]) for number, entry in entries.items()}
    except FormatError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # no JSON, or another table
        faults.append(Fault(where, f"expected labels by pi0-label, found {reason_of(error)}", _AGAIN))
        return {}
    labels = {}
    for number, digest in _hashes(table.episodes, table.lengths, table.states, table.actions).items():
        success, judged = stored.get(number, (None, digest))
        if judged != digest:
            what = "expected the states and actions that were labelled, found others (or other columns)"
            faults.append(Fault(where, what, _AGAIN, (number,)))
        elif isinstance(success, bool):
            labels[number] = success
        elif number in stored:
            faults.append(Fault(where, f"expected true or false, found {success!r}", _AGAIN, (number,)))
    return labels


def write_success(root: Path, frames: FrameSet, labels: Mapping[int, bool]) -> Path:
    """Write the labels of some episodes of a data set in one step, in place of earlier ones; return the file.

    Args:
        root: The data set.
        frames: All its frames.
        labels: By the numbers of its episodes.
    """
    hashes = _hashes(frames.episodes, frames.lengths, frames.states, frames.actions)
    entries = {str(n): {"success": success, "frames": hashes[n]} for n, success in sorted(labels.items())}
    write_json(root / SUCCESS_PATH, {"format": FORMAT, "episodes": entries})
    return root / SUCCESS_PATH


def _hashes(
    episodes: Int64[np.ndarray, " e"],
    lengths: Int64[np.ndarray, " e"],
    states: Float32[np.ndarray, "n s"],
    actions: Float32[np.ndarray, "n a"],
) -> dict[int, str]:
    """Return the hash of the frames of each episode, by its number."""
    ends = np.cumsum(lengths)
    rows = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    return {n: hash_arrays([states[x], actions[x]]) for n, x in zip(episodes.tolist(), rows, strict=True)}
