"""Where a data set keeps what, and an episode before it is published."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

COLLECTION_PATH = Path("meta/collection.json")
IMAGE_PREFIX = "observation.images."


def partial_directory(directory: Path) -> Path:
    """Return where the unfinished collection of a data set lives."""
    return directory.with_name(directory.name + ".partial")


def read_record(path: Path) -> dict[str, Any]:
    """Return labels, content hash and image shapes of one stored, unpublished episode."""
    return json.loads(pq.read_schema(path).metadata[b"episode"])
