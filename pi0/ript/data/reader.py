"""The one reader of data sets: finds a LeRobotDataset v3, checks it whole, and gives its frames.

frames = open_set(DatasetSettings(root="demos/drawer"))
frames.states[row], frames.images["observation.images.front"][row]

Nothing that the set says of itself is believed: each of its numbers is compared with the frames.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from pi0.features import ACTION, STATE
from pi0.ript.data.checks import Tables, episode_faults, success_labels, table_faults, total_faults
from pi0.ript.data.columns import UNKNOWN
from pi0.ript.data.footage import find_footage
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.hub import Place, locate
from pi0.ript.data.images import FilmedImages, ImageColumn, StoredImages, find_sizes
from pi0.ript.data.records import COLLECTION_PATH, INTERVENTION, EpisodeDataError, EpisodeLabels
from pi0.ript.data.settings import DatasetSettings
from pi0.ript.data.success_file import read_success
from pi0.ript.data.tables import (
    FETCH_AGAIN,
    Fault,
    column_names,
    fault_lines,
    read_episodes,
    read_frames,
    read_info,
    read_tasks,
    reason_of,
)
from pi0.ript.files import FormatError, read_versioned_json

_OTHER_NAMES = "data_features_name_mapping"


def open_set(settings: DatasetSettings, cameras: Sequence[str] | None = None) -> FrameSet:
    """Return the frames of a data set, from a directory or from the hub.

    Args:
        settings: Which set, which episodes, and how its columns are called.
        cameras: Those whose images will be read, as a batch names them; None: all that there are.

    Raises:
        EpisodeDataError: There is no such set, column or episode, or an episode that is asked for cannot be
            believed; a line for each fault.
    """
    place = locate(settings)
    found, faults = examine(place, settings, cameras)
    if found is None:
        raise EpisodeDataError("\n".join(fault_lines(place.root, faults)))
    faults = [x for x in faults if not x.episodes or any(_is_asked_for(settings, n) for n in x.episodes)]
    if faults:
        raise EpisodeDataError("\n".join(fault_lines(place.root, faults)))
    return found


def examine(
    place: Place, settings: DatasetSettings, cameras: Sequence[str] | None = None
) -> tuple[FrameSet | None, list[Fault]]:
    """Return the frames of a data set, and all its faults, also those of episodes that are not asked for.

    The frames are None if they cannot even be read.

    Raises:
        EpisodeDataError: The settings ask for columns or episodes that the set does not have.
    """
    root, faults = place.root, list[Fault]()
    info = read_info(root, faults)
    if info is None:
        return None, faults
    present = {*info["features"], *column_names(root)}
    names, camera_columns = _columns(settings, cameras, info["features"], present, str(root))
    intervention = settings.data_features_name_mapping.get(INTERVENTION, INTERVENTION)
    tasks, rows = read_tasks(root, faults), read_episodes(root, faults)
    table = read_frames(root, names, intervention if intervention in present else None, place.fetched, faults)
    collection = _read_collection(place, faults)
    if tasks is None or rows is None or table is None or faults:
        return None, faults
    faults += episode_faults(rows, table, place.fetched)
    bad = {episode for fault in faults for episode in fault.episodes}
    tables = Tables(info, tasks, {row["episode_index"]: row for row in rows}, table, names)
    faults += table_faults(tables, bad)
    images = {}
    for camera, column in camera_columns.items():
        found = _images(place, tables, column, bad, faults)
        if found is not None:
            images[camera] = found
    if not faults and place.fetched is None:
        faults += total_faults(tables)
    selected = _selected(settings, table.episodes, tables.rows.keys(), str(root))
    labels = _labels(tables, read_success(root, table, faults), settings.assume_success)
    return _frame_set(str(root), tables, images, selected, collection, labels), faults


def _columns(
    settings: DatasetSettings,
    cameras: Sequence[str] | None,
    features: Mapping[str, Mapping[str, Any]],
    present: Collection[str],
    name: str,
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the columns of state and action, and those of the cameras that the set has.

    A column of corrections that the settings name must be there, too.
    """
    mapping = settings.data_features_name_mapping
    if cameras is None:
        own = {column: key for key, column in mapping.items() if column is not None}
        pictures = [column for column, feature in features.items() if _is_camera(feature)]
        cameras = [key for key in dict.fromkeys([own.get(x, x) for x in pictures] + list(mapping))
                   if key not in (STATE, ACTION, INTERVENTION)]  # fmt: skip
    if cameras:
        require_names(settings, cameras, name)
    wanted = {key: mapping.get(key, key) for key in (*cameras, STATE, ACTION)}
    columns = {key: column for key, column in wanted.items() if column is not None}
    wanted |= {key: mapping[key] for key in (INTERVENTION,) if mapping.get(key) is not None}
    missing = [column for column in wanted.values() if column is not None and column not in present]
    if missing or not {STATE, ACTION} <= columns.keys():
        raise EpisodeDataError(
            f"{name}: expected columns {list(wanted.values())}, found {sorted(present)}. Say "
            f"what they are called in {_OTHER_NAMES}, as {{{STATE}: state}}; null for a camera that it lacks"
        )
    names = {key: columns.pop(key) for key in (STATE, ACTION)}
    return names, columns


def require_names(settings: DatasetSettings, cameras: Sequence[str], name: str) -> None:
    """Raise EpisodeDataError if the settings name columns for what a policy of these cameras lacks.

    That the set lacks it, too (null), is no contradiction.
    """
    known = [*cameras, STATE, ACTION, INTERVENTION]
    named = {key for key, column in settings.data_features_name_mapping.items() if column is not None}
    unknown = sorted(named - set(known))
    if unknown:
        raise EpisodeDataError(f"{name}: {_OTHER_NAMES}: expected keys from {known}, found {unknown}")


def _is_camera(feature: Mapping[str, Any]) -> bool:
    shape, about = feature.get("shape") or [], feature.get("info") or {}
    is_depth = isinstance(about, Mapping) and (about.get("is_depth_map") or about.get("video.is_depth_map"))
    return (
        feature.get("dtype") in ("image", "video")
        and len(shape) == 3
        and 3 in (shape[0], shape[-1])
        and not is_depth
    )


def _is_asked_for(settings: DatasetSettings, episode: int) -> bool:
    is_left_out = episode in (settings.excluded_episodes or ())
    return (settings.episodes is None or episode in settings.episodes) and not is_left_out


def _selected(
    settings: DatasetSettings, episodes: Int64[np.ndarray, " e"], described: Collection[int], name: str
) -> Bool[np.ndarray, " e"]:
    for key in ("episodes", "excluded_episodes"):
        unknown = sorted(set(getattr(settings, key) or ()) - {*episodes.tolist(), *described})
        if unknown and not (key == "excluded_episodes" and settings.episodes is not None):
            raise EpisodeDataError(
                f"{name}: {key}: expected numbers of its episodes, {episodes.min()} to {episodes.max()}, "
                f"found {unknown[:5]}"
            )
    chosen = np.array([_is_asked_for(settings, number) for number in episodes.tolist()])
    if not chosen.any():
        raise EpisodeDataError(f"{name}: episodes, excluded_episodes: leave none of {len(episodes)} episodes")
    return chosen


def _images(
    place: Place, tables: Tables, column: str, bad: set[int], faults: list[Fault]
) -> ImageColumn | None:
    """Return the images of a camera; None if there is none that can be read."""
    if tables.info["features"].get(column, {}).get("dtype") == "video":
        footage = find_footage(place.root, tables, column, bad, faults)
        return FilmedImages(tables.frames, footage, float(tables.info["fps"])) if footage.sizes else None
    sizes = find_sizes(place.root, tables.frames, column, bad, faults)
    return StoredImages(tables.frames, column, sizes) if sizes else None


def _frame_set(
    name: str,
    tables: Tables,
    images: Mapping[str, ImageColumn],
    selected: Bool[np.ndarray, " e"],
    collection: Mapping[str, Any],
    labels: Sequence[EpisodeLabels],
) -> FrameSet:
    table = tables.frames
    instructions, instruction_of = _instructions(tables)
    return FrameSet(
        name=name,
        fps=float(tables.info["fps"]),
        states=table.states,
        actions=table.actions,
        instructions=instructions,
        instruction_of=instruction_of,
        timestamps=table.timestamps,
        episodes=table.episodes,
        lengths=table.lengths,
        labels=tuple(labels),
        images=images,
        selected=selected,
        is_corrected=table.is_corrected,
        dimension_names={
            key: _flat(tables.info["features"].get(column, {}).get("names"))
            for key, column in tables.names.items()
        },
        collection=collection,
    )


def _flat(names: Any) -> tuple[str, ...]:
    """Return names of dimensions, which lerobot has as a list, or as lists by what they are of."""
    if isinstance(names, Mapping):
        lists = [value for value in names.values() if isinstance(value, list)]
        names = [name for values in lists for name in values] if lists else list(names)
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _instructions(tables: Tables) -> tuple[tuple[str, ...], Int64[np.ndarray, " n"]]:
    """Return all instructions, each once, and which of them each frame has."""
    instructions = tuple(dict.fromkeys(tables.tasks.values()))
    places = {task: instructions.index(text) for task, text in tables.tasks.items()}
    present, inverse = np.unique(tables.frames.columns["task_index"], return_inverse=True)
    # A task_index without a task is a fault, of an episode that was not asked for if it comes so far.
    return instructions, np.array([places.get(task, 0) for task in present.tolist()], np.int64)[inverse]


def _labels(tables: Tables, said: Mapping[int, bool], assume_success: bool) -> list[EpisodeLabels]:
    """Return the labels of each episode; `said`: success by number, above what the columns have."""
    names = [x.name for x in fields(EpisodeLabels) if x.name not in ("instruction", "success")]
    texts, text_of = _instructions(tables)
    instructions = [texts[i] for i in text_of[tables.frames.starts]]
    labels = []
    for number, by_frames, instruction in zip(
        tables.frames.episodes.tolist(), success_labels(tables.frames).tolist(), instructions, strict=True
    ):
        row = tables.rows.get(number, {})
        success = said.get(number, row.get("success") if by_frames == UNKNOWN else bool(by_frames))
        if success is None and assume_success:
            success = True
        extra = {name: row[name] for name in names if row.get(name) is not None}
        labels.append(EpisodeLabels(instruction, None if success is None else bool(success), **extra))
    return labels


def _read_collection(place: Place, faults: list[Fault]) -> dict[str, Any]:
    path = place.root / COLLECTION_PATH
    if not path.exists():
        return {}
    try:
        return read_versioned_json(path)
    except FormatError:
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:  # no JSON, or no table
        faults.append(Fault(str(COLLECTION_PATH), f"expected JSON, found {reason_of(error)}", FETCH_AGAIN))
        return {}
