"""What an episode is: images, states and actions per frame, labels per episode.

Axes: t frame of an episode, s state dim, a action dim, h w image size.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, UInt8

from pi0.errors import UnusableError
from pi0.ript.files import read_versioned_json

COLLECTION_PATH = Path("meta/collection.json")
IMAGE_PREFIX = "observation.images."
INTERVENTION = "intervention"
"""Column of the frames in which a person acted in place of the policy, to correct it."""
type Images = Mapping[str, UInt8[np.ndarray, "t h w 3"]]


class EpisodeDataError(UnusableError):
    """An episode or a data set cannot be written or read; the message says why and what to do."""


@dataclass(frozen=True)
class EpisodeLabels:
    """What is known of a whole episode. A data set made elsewhere may lack all but the first two.

    The field names are the column names in `meta/episodes`; `instruction` is lerobot's task.
    """

    instruction: str
    success: bool | None
    """None: nobody knows."""
    task_id: str = ""
    """ "suite/name"."""
    initial_state_hash: str = ""
    source: str = ""
    """Who acted: "operator:<name>", or "policy:<hash>"."""
    seed: int = -1
    """Of the episode's own random generator."""

    @property
    def is_success(self) -> bool:
        """Return whether the episode succeeded; raise EpisodeDataError if nobody knows."""
        if self.success is None:
            raise EpisodeDataError(
                f"{self.instruction!r}: expected an episode with a success label, found none"
            )
        return self.success


@dataclass(frozen=True)
class Episode:
    """One finished episode: what was seen before each action, the actions, and how it ended."""

    images: Images
    states: Float32[np.ndarray, "t s"]
    actions: Float32[np.ndarray, "t a"]
    labels: EpisodeLabels

    def __post_init__(self) -> None:
        """Check lengths, dtypes and finiteness."""
        length = len(self.actions)
        for name, values in (("states", self.states), ("actions", self.actions)):
            if values.dtype != np.float32 or values.ndim != 2 or len(values) != length or not length:
                raise EpisodeDataError(
                    f"{name}: expected float32 of shape ({length or 'at least 1'}, d), found "
                    f"{values.dtype} of shape {values.shape}"
                )
            if not np.isfinite(values).all():
                raise EpisodeDataError(
                    f"{name}: frame {np.argwhere(~np.isfinite(values))[0][0]}"
                    " is not finite; leave the episode out"
                )
        for camera, frames in self.images.items():
            if frames.dtype != np.uint8 or frames.ndim != 4 or len(frames) != length:
                raise EpisodeDataError(
                    f"images of {camera!r}: expected uint8 of shape ({length}, h, w, 3), found "
                    f"{frames.dtype} of shape {frames.shape}"
                )

    def __len__(self) -> int:
        """Return the number of frames, which is the number of actions."""
        return len(self.actions)

    def content_hash(self) -> str:
        """Return the SHA-256 (hex) of labels and arrays, the images before any compression."""
        digest = hashlib.sha256(json.dumps(asdict(self.labels), sort_keys=True).encode())
        for name, values in {"state": self.states, "action": self.actions, **self.images}.items():
            digest.update(f"{name} {values.dtype} {values.shape}".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class CollectionInfo:
    """What all episodes of a data set share; two collections continue each other if it is equal."""

    fps: int | float
    """Control rate: policy steps per simulated second."""
    robot_type: str
    storage: str
    """ "image": PNG, exact. "video": H.264, small."""
    origin: dict[str, Any]
    """How the episodes are made (environment, operator, seed ...), as plain JSON values."""

    def __post_init__(self) -> None:
        """Check the values that come from outside."""
        if self.storage not in ("image", "video"):
            raise EpisodeDataError(f"storage: expected 'image' or 'video', found {self.storage!r}")
        if self.fps != int(self.fps) or self.fps < 1:
            raise EpisodeDataError(
                f"fps: lerobot stores whole frames per second, found {self.fps}; choose an action "
                "repeat that gives a whole control rate"
            )


def partial_directory(directory: Path) -> Path:
    """Return where the unfinished collection of a data set lives."""
    return directory.with_name(directory.name + ".partial")


def read_record(path: Path) -> dict[str, Any]:
    """Return labels, content hash and image shapes of one stored, unpublished episode.

    Raises:
        EpisodeDataError: The file is damaged.
    """
    with naming_damage(path):
        metadata = pq.read_schema(path).metadata
        text, digest = metadata[b"episode"], metadata.get(b"sha256")  # without: of version 0.1.0
        if digest is not None and hashlib.sha256(text).hexdigest() != digest.decode():
            raise ValueError("its labels have another hash")
        return json.loads(text)


def record_metadata(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what `read_record` reads, as metadata of a parquet file, whose pages alone have checksums."""
    text = json.dumps(record)
    return {"episode": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def read_columns(path: Path) -> pa.Table:
    """Return the columns of one stored, unpublished episode, as they were written to the bit.

    Raises:
        EpisodeDataError: The file is damaged.
    """
    record = read_record(path)
    with naming_damage(path):
        table = pq.read_table(path, page_checksum_verification=True)
        if len(table) != record["length"]:
            raise ValueError(f"it has {len(table)} of {record['length']} frames")
        return table


def require_training_states(root: Path, allowed: str) -> str | None:
    """Return what is to be said of a data set that cannot tell its states; None where there is nothing.

    `allowed` is the setting that allows others than training states, for the message.

    Raises:
        EpisodeDataError: The data set says that its rollouts begin from states on which policies are judged.
    """
    file = root / COLLECTION_PATH
    origin = (read_versioned_json(file) if file.exists() else {}).get("origin", {})
    kind = {"heldout": "held-out", "validation": "validation"}.get(origin.get("states_of"))
    if kind is not None:
        raise EpisodeDataError(
            f"{root}: its rollouts begin from {kind} states, on which policies are judged; record "
            f"training states (pi0-eval, eval.states=train), or set {allowed}"
        )
    if "states" in origin and "states_of" not in origin:
        return (
            f"{root}: does not say which states its rollouts begin from; an earlier pi0-eval recorded "
            "held-out ones unless told otherwise, and these cannot judge a policy that learned from them"
        )
    return None


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Raise EpisodeDataError where reading a stored episode fails: its file is damaged."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        # The system's own errors (no right to read, too many open files) and no memory are not the file's.
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno):
            raise
        reason = str(error).partition("\n")[0]
        raise EpisodeDataError(
            f"{path} is damaged ({type(error).__name__}: {reason}); remove it, and start the same command "
            "again: its episode is made again"
        ) from error
