"""Small LeRobotDatasets v3, written without the library and without lerobot.

A `Draft` is a set before it is written: plain rows that a test can change as it likes (`set_changes.py`).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SIDE = 32
CAMERAS = ("observation.images.front", "observation.images.wrist")
STATE, ACTION = "observation.state", "action"
ENCODINGS = (
    {"g": "2", "preset": "ultrafast"},
    {"g": "12", "preset": "ultrafast"},
    {"g": "12", "bf": "2", "preset": "veryfast"},
)


@dataclass
class Film:
    """A video file: the codes of the frames in it."""

    codes: list[int]
    fps: float


@dataclass
class Draft:
    """A data set before it is written. A frame's code decides what is seen, felt and done in it."""

    storage: str
    fps: float
    cameras: list[str]
    rows: list[dict]
    """Of the frames, in the order on disk."""
    episodes: list[dict]
    """Rows of meta/episodes."""
    tasks: list[tuple[int, str]]
    films: dict[str, list[Film]] = field(default_factory=dict)
    """By camera, in the order of their file_index."""
    encoding: dict[str, str] = field(default_factory=lambda: dict(ENCODINGS[0]))
    rows_per_file: int = 10_000
    rows_per_group: int = 10_000
    names: dict[str, str] = field(default_factory=dict)
    """Columns with another name than lerobot's."""
    types: dict[str, pa.DataType] = field(default_factory=dict)
    """Columns with another type than lerobot's."""
    extra: dict[str, Callable[[int], pa.Array]] = field(default_factory=dict)
    """Further columns of data/, given the number of rows."""
    info: dict = field(default_factory=dict)
    """What meta/info.json has in place of the truth."""
    task_column: str = "task"

    def numbers(self) -> list[int]:
        return sorted({row["episode_index"] for row in self.rows})

    def of(self, episode: int) -> list[dict]:
        """Return the rows of an episode, by frame."""
        return sorted((x for x in self.rows if x["episode_index"] == episode), key=lambda x: x["frame_index"])

    def meta(self, episode: int) -> dict:
        return next(row for row in self.episodes if row["episode_index"] == episode)

    def mapping(self) -> dict[str, str]:
        return {key: name for key, name in self.names.items() if key in (STATE, ACTION, *self.cameras)}


def draft(
    lengths: list[int],
    storage: str = "image",
    fps: float = 20,
    num_cameras: int = 1,
    episodes_per_film: int = 1,
    encoding: dict[str, str] | None = None,
) -> Draft:
    """Return a set without any fault: episodes of these lengths, two tasks in turn, every third a failure."""
    rows, episodes = [], []
    for number, length in enumerate(lengths):
        first = len(rows)
        rows += [
            {
                "episode_index": number,
                "frame_index": t,
                "index": first + t,
                "timestamp": t / fps,
                "task_index": number % 2,
                "success": number % 3 != 0,
                "code": 1000 * number + t,
                "side": SIDE,
            }
            for t in range(length)
        ]
        episodes.append(
            {
                "episode_index": number,
                "tasks": [f"do thing {number % 2}"],
                "length": length,
                "dataset_from_index": first,
                "dataset_to_index": first + length,
                "success": number % 3 != 0,
            }
        )
    made = Draft(
        storage, fps, list(CAMERAS[:num_cameras]), rows, episodes, [(0, "do thing 0"), (1, "do thing 1")]
    )
    made.encoding = dict(encoding or ENCODINGS[0])
    if storage == "video":
        for camera in made.cameras:
            made.films[camera] = []
            for row in made.episodes:
                if row["episode_index"] % episodes_per_film == 0:
                    made.films[camera].append(Film([], fps))
                film = made.films[camera][-1]
                begin = len(film.codes) / fps
                film.codes += [frame["code"] for frame in made.of(row["episode_index"])]
                place = (0, len(made.films[camera]) - 1, begin, len(film.codes) / fps)
                row |= {f"videos/{camera}/{key}": value for key, value in zip(PLACE, place, strict=True)}
                colours = [picture(frame["code"], camera) / 255 for frame in made.of(row["episode_index"])]
                row[f"stats/{camera}/mean"] = np.mean(colours, axis=(0, 1, 2)).reshape(3, 1, 1).tolist()
    return made


PLACE = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")


def vector(code: int, key: str) -> np.ndarray:
    """Return the state or the action of a frame."""
    width = {STATE: 4, ACTION: 3}[key]
    return np.random.default_rng((code, width)).normal(size=width).astype(np.float32)


def picture(code: int, camera: str, side: int = SIDE) -> np.ndarray:
    """Return what a camera sees in a frame: sixteen squares of its own colours."""
    squares = np.random.default_rng((code, CAMERAS.index(camera))).integers(0, 256, (4, 4, 3), np.uint8)
    return np.kron(squares, np.ones((side // 4, side // 4, 1), np.uint8))


def write(draft: Draft, root: Path) -> Path:
    """Write the set; return its root."""
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (root / folder).mkdir(parents=True)
    for number in range(0, max(len(draft.rows), 1), draft.rows_per_file):
        table = _frames(draft, draft.rows[number : number + draft.rows_per_file])
        path = root / f"data/chunk-000/file-{number // draft.rows_per_file:03d}.parquet"
        pq.write_table(table, path, row_group_size=draft.rows_per_group)
    keys = dict.fromkeys(key for row in draft.episodes for key in row)
    columns = {key: [row.get(key) for row in draft.episodes] for key in keys}
    pq.write_table(pa.table(columns), root / "meta/episodes/chunk-000/file-000.parquet")
    numbers, texts = zip(*draft.tasks, strict=True)
    pq.write_table(pa.table({"task_index": numbers, draft.task_column: texts}), root / "meta/tasks.parquet")
    for camera, films in draft.films.items():
        folder = root / "videos" / draft.names.get(camera, camera) / "chunk-000"
        folder.mkdir(parents=True)
        for number, film in enumerate(films):
            _encode(draft, camera, film, folder / f"file-{number:03d}.mp4")
    (root / "meta/info.json").write_text(json.dumps(_info(draft)))
    (root / "meta/stats.json").write_text("{}")
    return root


def _frames(draft: Draft, rows: list[dict]) -> pa.Table:
    columns = {}
    for key in (STATE, ACTION):
        values = [row.get(key, vector(row["code"], key)).tolist() for row in rows]
        columns[draft.names.get(key, key)] = pa.array(
            values, draft.types.get(key, pa.list_(pa.float32(), len(values[0])))
        )
    for key in ("timestamp", "frame_index", "episode_index", "index", "task_index", "success"):
        usual = {"timestamp": pa.float32(), "success": pa.bool_()}.get(key, pa.int64())
        if any(key in row for row in rows):
            columns[key] = pa.array([row.get(key) for row in rows], draft.types.get(key, usual))
    for camera in draft.cameras if draft.storage == "image" else ():
        images = [
            None if row.get("lacks") == camera else _png(picture(row["code"], camera, row["side"]))
            for row in rows
        ]
        cells = [{"bytes": image, "path": f"frame-{i}.png"} for i, image in enumerate(images)]
        columns[draft.names.get(camera, camera)] = pa.array(
            cells, pa.struct({"bytes": pa.binary(), "path": pa.string()})
        )
    return pa.table(columns | {name: values(len(rows)) for name, values in draft.extra.items()})


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def _encode(draft: Draft, camera: str, film: Film, path: Path) -> None:
    with av.open(str(path), "w") as container:
        rate = Fraction(film.fps).limit_denominator(1000)
        stream = container.add_stream("h264", rate, options={"crf": "10", "threads": "1", **draft.encoding})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for code in film.codes:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(code, camera), format="rgb24")))
        container.mux(stream.encode())


def _info(draft: Draft) -> dict:
    shape = {"shape": [SIDE, SIDE, 3], "names": ["height", "width", "channels"]}
    features = {
        draft.names.get(camera, camera): {"dtype": draft.storage, **shape} for camera in draft.cameras
    }
    features |= {draft.names.get(key, key): {"dtype": "float32", "shape": [width], "names": None}
                 for key, width in ((STATE, 4), (ACTION, 3))}  # fmt: skip
    scalars = {"timestamp": "float32", "success": "bool", "frame_index": "int64", "episode_index": "int64",
               "index": "int64", "task_index": "int64"}  # fmt: skip
    features |= {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in scalars.items()}
    return {
        "codebase_version": "v3.0",
        "fps": draft.fps,
        "features": features,
        "total_episodes": len(draft.numbers()),
        "total_frames": len(draft.rows),
        "total_tasks": len(draft.tasks),
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        **draft.info,
    }
