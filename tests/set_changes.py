"""Ways in which data sets that people have differ from the one that a recorder writes.

A `Change` of `READ` leaves a set whose every frame can be told; one of `REFUSED` makes it contradict itself,
or breaks a file. Changes of the draft come first, those of written files after them.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from small_sets import ACTION, CAMERAS, SIDE, STATE, Draft, Film

type Rng = np.random.Generator


@dataclass(frozen=True)
class Change:
    """A change, where it makes sense."""

    apply: Callable[[Draft, Rng], None] | None = None
    damage: Callable[[Path, Rng], None] | None = None
    """Of the written set."""
    suits: Callable[[Draft], bool] = lambda draft: True
    lines: int = 1
    """That tell of it, at most."""
    is_last: bool = False
    """Takes away what other changes look for."""

    @property
    def name(self) -> str:
        return (self.apply or self.damage).__name__


def has_two(draft: Draft) -> bool:
    return len(draft.numbers()) > 1


def is_video(draft: Draft) -> bool:
    return draft.storage == "video"


def is_image(draft: Draft) -> bool:
    return draft.storage == "image"


def has_long(draft: Draft) -> bool:
    return any(len(draft.of(number)) > 2 for number in draft.numbers())


def any_episode(draft: Draft, rng: Rng) -> int:
    return int(rng.choice(draft.numbers()))


def long_episode(draft: Draft, rng: Rng) -> int:
    return int(rng.choice([number for number in draft.numbers() if len(draft.of(number)) > 2]))


def places(camera: str) -> tuple[str, str, str]:
    return tuple(f"videos/{camera}/{key}" for key in ("file_index", "from_timestamp", "to_timestamp"))


# Read exactly ----------------------------------------------------------------------------------------------


def an_episode_is_gone(draft, rng):
    gone = any_episode(draft, rng)
    draft.rows = [row for row in draft.rows if row["episode_index"] != gone]
    draft.episodes = [row for row in draft.episodes if row["episode_index"] != gone]


def an_episode_is_gone_and_the_others_numbered_anew(draft, rng):
    an_episode_is_gone(draft, rng)
    new = {number: place for place, number in enumerate(draft.numbers())}
    for row in [*draft.rows, *draft.episodes]:
        row["episode_index"] = new[row["episode_index"]]


def frames_are_numbered_anew(draft, rng):
    for place, row in enumerate(
        sorted(draft.rows, key=lambda row: (row["episode_index"], row["frame_index"]))
    ):
        row["index"] = place
    bounds_by_index(draft)


def bounds_by_index(draft):
    for row in draft.episodes:
        index = [frame["index"] for frame in draft.of(row["episode_index"])]
        row["dataset_from_index"], row["dataset_to_index"] = index[0], index[-1] + 1


def bounds_are_places(draft, rng):
    first = 0
    for number in draft.numbers():
        row, length = draft.meta(number), len(draft.of(number))
        row["dataset_from_index"], row["dataset_to_index"] = first, first + length
        first += length


def index_begins_elsewhere(draft, rng):
    for row in draft.rows:
        row["index"] += 1000
    bounds_by_index(draft)


def rows_are_shuffled(draft, rng):
    draft.rows = [draft.rows[i] for i in rng.permutation(len(draft.rows))]


def episodes_lie_in_another_order(draft, rng):
    order = rng.permutation(draft.numbers()).tolist()
    draft.rows = [row for number in order for row in draft.of(number)]


def episodes_have_each_others_numbers(draft, rng):
    old = draft.numbers()
    new = dict(zip(old, rng.permutation(old).tolist(), strict=True))
    for row in [*draft.rows, *draft.episodes]:
        row["episode_index"] = new[row["episode_index"]]


def meta_rows_are_shuffled(draft, rng):
    draft.episodes = [draft.episodes[i] for i in rng.permutation(len(draft.episodes))]


def tasks_are_shuffled(draft, rng):
    draft.tasks = [draft.tasks[i] for i in rng.permutation(len(draft.tasks))]


def tasks_have_other_numbers(draft, rng):
    new = {number: 7 + 3 * place for place, (number, _) in enumerate(reversed(draft.tasks))}
    draft.tasks = [(new[number], text) for number, text in draft.tasks]
    for row in draft.rows:
        row["task_index"] = new[row["task_index"]]


def a_task_has_two_numbers(draft, rng):
    number, text = draft.tasks[0]
    draft.tasks.append((99, text))
    for row in draft.rows[::2]:
        if row["task_index"] == number:
            row["task_index"] = 99


def tasks_are_an_index_of_pandas(draft, rng):
    draft.task_column = "__index_level_0__"


def an_episode_has_two_tasks(draft, rng):
    number = any_episode(draft, rng)
    for place, row in enumerate(draft.of(number)):
        row["task_index"] = draft.tasks[place % 2][0]
    draft.meta(number)["tasks"] = [text for _, text in draft.tasks]


def columns_have_other_names(draft, rng):
    draft.names |= {STATE: "state", ACTION: "actions", CAMERAS[0]: "image"}
    for row in draft.episodes:
        for key in [key for key in row if f"/{CAMERAS[0]}/" in key]:
            row[key.replace(CAMERAS[0], "image")] = row.pop(key)


def there_are_columns_that_nobody_declared(draft, rng):
    draft.extra["subtask"] = lambda count: pa.array([f"step {i}" for i in range(count)])
    draft.extra["action.gripper"] = lambda count: pa.array(np.zeros(count))


def there_are_nested_columns(draft, rng):
    draft.extra["notes"] = lambda count: pa.array([["a", "b"]] * count)
    draft.extra["observation"] = lambda count: pa.array([{"state": i, "y": {"z": "q"}} for i in range(count)])


def times_begin_later(draft, rng):
    for row in draft.rows:
        row["timestamp"] += 5.0


def every_episode_has_its_own_beginning(draft, rng):
    for row in draft.rows:
        row["timestamp"] += 100.0 * row["episode_index"] + 0.3


def times_are_those_of_a_clock(draft, rng):
    draft.types["timestamp"] = pa.float64()
    for row in draft.rows:
        row["timestamp"] += 1_700_000_000.25


def times_jitter(draft, rng):
    for row in draft.rows:
        row["timestamp"] += rng.uniform(-0.48, 0.48) / draft.fps


def there_are_many_files(draft, rng):
    draft.rows_per_file = int(rng.integers(1, 5))


def there_are_many_row_groups(draft, rng):
    draft.rows_per_group = int(rng.integers(1, 4))


def numbers_have_other_types(draft, rng):
    for key in ("frame_index", "episode_index", "task_index"):
        draft.types[key] = [pa.int32(), pa.float64(), pa.uint16()][int(rng.integers(3))]
    draft.types[STATE], draft.types[ACTION] = pa.list_(pa.float64()), pa.large_list(pa.float32())


def only_frames_know_success(draft, rng):
    for row in draft.episodes:
        row.pop("success", None)


def only_meta_knows_success(draft, rng):
    for row in draft.rows:
        row.pop("success", None)


def success_is_said_in_the_last_frame(draft, rng):
    for number in draft.numbers():
        *earlier, last = draft.of(number)
        for row in earlier if "success" in last else ():
            row["success"] = False


def meta_lacks_what_it_need_not_have(draft, rng):
    for row in draft.episodes:
        for key in ("length", "dataset_from_index", "dataset_to_index"):
            row.pop(key, None)


def info_says_more(draft, rng):
    draft.info |= {"robot_type": None, "splits": {"train": "0:9999"}, "total_tasks": 77, "made_by": ["x"]}


def images_have_several_sizes(draft, rng):
    draft.rows_per_file = len(draft.rows) // 2 + 1
    for row in draft.rows[draft.rows_per_file :]:
        row["side"] = 2 * SIDE


def a_video_has_frames_of_nobody(draft, rng):
    for camera, films in draft.films.items():
        number = int(rng.integers(len(films)))
        films[number].codes = [777_000, *films[number].codes, 777_001, 777_002]
        file, *times = places(draft.names.get(camera, camera))
        for row in draft.episodes:
            if row[file] == number:
                row.update({key: row[key] + 1 / draft.fps for key in times})


def a_video_is_of_nobody(draft, rng):
    for films in draft.films.values():
        films.append(Film([888_000, 888_001], draft.fps))


def there_are_other_files(root, rng):
    (root / "README.md").write_text("hello")
    (root / "data/chunk-000/.file-000.parquet.lock").write_text("")
    (root / "meta/episodes.jsonl").write_text("{")


READ = [
    Change(an_episode_is_gone, suits=has_two),
    Change(an_episode_is_gone_and_the_others_numbered_anew, suits=has_two),
    *(
        Change(x)
        for x in (frames_are_numbered_anew, bounds_are_places, index_begins_elsewhere, rows_are_shuffled)
    ),
    *(
        Change(x)
        for x in (episodes_lie_in_another_order, episodes_have_each_others_numbers, meta_rows_are_shuffled)
    ),
    *(Change(x) for x in (tasks_are_shuffled, tasks_have_other_numbers, a_task_has_two_numbers)),
    *(Change(x) for x in (tasks_are_an_index_of_pandas, an_episode_has_two_tasks, columns_have_other_names)),
    *(
        Change(x)
        for x in (there_are_columns_that_nobody_declared, there_are_nested_columns, times_begin_later)
    ),
    *(Change(x) for x in (every_episode_has_its_own_beginning, times_are_those_of_a_clock, times_jitter)),
    *(Change(x) for x in (there_are_many_files, there_are_many_row_groups, numbers_have_other_types)),
    *(
        Change(x)
        for x in (only_frames_know_success, only_meta_knows_success, success_is_said_in_the_last_frame)
    ),
    *(Change(x) for x in (meta_lacks_what_it_need_not_have, info_says_more)),
    Change(images_have_several_sizes, suits=is_image),
    Change(a_video_has_frames_of_nobody, suits=is_video),
    Change(a_video_is_of_nobody, suits=is_video),
    Change(damage=there_are_other_files),
]


# Refused ---------------------------------------------------------------------------------------------------


def lengths_are_swapped(draft, rng):
    one, other = _of_different_length(draft)
    a, b = draft.meta(one), draft.meta(other)
    a["length"], b["length"] = len(draft.of(other)), len(draft.of(one))


def _of_different_length(draft: Draft) -> tuple[int, int]:
    numbers = draft.numbers()
    return next((a, b) for a in numbers for b in numbers if len(draft.of(a)) != len(draft.of(b)))


def have_different_lengths(draft: Draft) -> bool:
    return len({len(draft.of(number)) for number in draft.numbers()}) > 1


def a_length_is_wrong(draft, rng):
    number = any_episode(draft, rng)
    draft.meta(number)["length"] = len(draft.of(number)) + int(rng.choice([-1, 1, 5]))


def bounds_are_late(draft, rng):
    number = any_episode(draft, rng)
    index = [row["index"] for row in draft.of(number)]
    draft.meta(number).update(dataset_from_index=index[0] + 1, dataset_to_index=index[-1] + 2)


def an_index_is_there_twice(draft, rng):
    one, other = rng.choice(len(draft.rows), 2, replace=False)
    draft.rows[one]["index"] = draft.rows[other]["index"]


def two_frames_exchange_their_index(draft, rng):
    rows = draft.of(long_episode(draft, rng))
    rows[0]["index"], rows[1]["index"] = rows[1]["index"], rows[0]["index"]


def a_frame_is_missing(draft, rng):
    row = draft.of(long_episode(draft, rng))[1]
    draft.rows = [x for x in draft.rows if x is not row]


def the_first_frame_is_missing(draft, rng):
    row = draft.of(long_episode(draft, rng))[0]
    draft.rows = [x for x in draft.rows if x is not row]


def the_last_frame_is_missing(draft, rng):
    number = long_episode(draft, rng)
    draft.meta(number)["length"] = len(draft.of(number))  # also where the draft had no lengths
    row = draft.of(number)[-1]
    draft.rows = [x for x in draft.rows if x is not row]


def a_missing_frame_is_covered_up(draft, rng):
    """As if the recorder had dropped it: every number goes on, only the clock tells."""
    rows = draft.of(long_episode(draft, rng))
    for row in rows[1:]:
        row["timestamp"] = rows[0]["timestamp"] + (row["frame_index"] + 1) / draft.fps


def a_frame_is_there_twice(draft, rng):
    draft.rows.append(dict(draft.rows[int(rng.integers(len(draft.rows)))]))


def a_frame_is_of_another_episode(draft, rng):
    number = long_episode(draft, rng)
    draft.of(number)[-1]["episode_index"] = next(x for x in draft.numbers() if x != number)


def a_task_is_unknown(draft, rng):
    for row in draft.of(any_episode(draft, rng)):
        row["task_index"] = 55


def a_task_is_gone(draft, rng):
    number = draft.of(any_episode(draft, rng))[0]["task_index"]
    draft.tasks = [(n, text) for n, text in draft.tasks if n != number]


def a_number_has_two_tasks(draft, rng):
    draft.tasks.append((draft.tasks[0][0], "do something else"))


def meta_names_another_task(draft, rng):
    draft.meta(any_episode(draft, rng))["tasks"] = ["do something else"]


def times_are_of_another_rate(draft, rng):
    for row in draft.rows:
        row["timestamp"] = 3 * row["timestamp"]


def a_time_is_missing(draft, rng):
    draft.rows[int(rng.integers(len(draft.rows)))]["timestamp"] = float("nan")


def a_state_is_not_a_number(draft, rng):
    row = draft.rows[int(rng.integers(len(draft.rows)))]
    row[STATE] = np.array([0, float(rng.choice([np.nan, np.inf])), 0, 0])


def an_action_is_too_large(draft, rng):
    draft.types[ACTION] = pa.list_(pa.float64())
    draft.rows[int(rng.integers(len(draft.rows)))][ACTION] = np.array([0, 0, 1e300])


def success_contradicts_itself(draft, rng):
    number = any_episode(draft, rng)
    for row in draft.of(number):
        row["success"] = True
    draft.meta(number)["success"] = False


def an_episode_is_described_twice(draft, rng):
    draft.episodes.append(dict(draft.episodes[0]))


def an_episode_is_not_described(draft, rng):
    del draft.episodes[int(rng.integers(len(draft.episodes)))]


def an_episode_has_no_frames(draft, rng):
    number = int(rng.choice([row["episode_index"] for row in draft.episodes]))
    draft.rows = [row for row in draft.rows if row["episode_index"] != number]


def totals_are_wrong(draft, rng):
    draft.info[str(rng.choice(["total_frames", "total_episodes"]))] = 1234


def an_image_is_missing(draft, rng):
    draft.rows[int(rng.integers(len(draft.rows)))]["lacks"] = draft.cameras[-1]


def fps_is_wrong(draft, rng):
    draft.info["fps"] = [0, -5, None, "20", float("nan"), True][int(rng.integers(6))]


def the_format_is_older(draft, rng):
    draft.info["codebase_version"] = "v2.1"


def a_pointer_is_a_neighbours(draft, rng):
    camera = str(rng.choice(draft.cameras))
    one, other = draft.meta(draft.numbers()[0]), draft.meta(draft.numbers()[1])
    name = draft.names.get(camera, camera)
    for key in places(name):
        one[key] = other[key]
    one[f"videos/{name}/to_timestamp"] = (
        one[f"videos/{name}/from_timestamp"] + len(draft.of(draft.numbers()[0])) / draft.fps
    )


def two_of_one_length(draft: Draft) -> bool:
    return is_video(draft) and len({len(draft.of(x)) for x in draft.numbers()}) < len(draft.numbers())


def two_pointers_are_exchanged(draft, rng):
    numbers = draft.numbers()
    one, other = next((draft.meta(a), draft.meta(b)) for a in numbers for b in numbers
                      if a < b and len(draft.of(a)) == len(draft.of(b)))  # fmt: skip
    for camera in draft.cameras:
        for key in places(draft.names.get(camera, camera)):
            one[key], other[key] = other[key], one[key]


def an_interval_is_a_frame_late(draft, rng):
    camera = str(rng.choice(draft.cameras))
    file, begin, end = places(draft.names.get(camera, camera))
    # The last one of its file: that of another is late as well, but in the frames of an episode that is gone.
    last = max((row for row in draft.episodes), key=lambda row: (row[file], row[begin]))
    if len(draft.films[camera][int(last[file])].codes) == round(last[end] * draft.fps):
        last[begin], last[end] = last[begin] + 1 / draft.fps, last[end] + 1 / draft.fps
    else:
        last[begin] += 1 / draft.fps


def an_interval_is_too_long(draft, rng):
    camera = str(rng.choice(draft.cameras))
    end = places(draft.names.get(camera, camera))[2]
    draft.meta(any_episode(draft, rng))[end] += 1 / draft.fps


def an_interval_begins_between_frames(draft, rng):
    camera = str(rng.choice(draft.cameras))
    _, begin, end = places(draft.names.get(camera, camera))
    row = draft.meta(any_episode(draft, rng))
    row[begin], row[end] = row[begin] + 0.4 / draft.fps, row[end] + 0.4 / draft.fps


def a_video_is_short(draft, rng):
    camera = str(rng.choice(draft.cameras))
    file, _, end = places(draft.names.get(camera, camera))
    row = draft.meta(any_episode(draft, rng))
    film = draft.films[camera][int(row[file])]
    used = max(round(x[end] * draft.fps) for x in draft.episodes if x[file] == row[file])
    film.codes = film.codes[: used - 1]


def has_no_short_film(draft: Draft) -> bool:
    return is_video(draft) and all(len(film.codes) > 3 for films in draft.films.values() for film in films)


def a_video_has_another_rate(draft, rng):
    camera = str(rng.choice(draft.cameras))
    row = draft.meta(any_episode(draft, rng))
    draft.films[camera][int(row[places(draft.names.get(camera, camera))[0]])].fps = 3 * draft.fps


def a_video_is_gone(root, rng):
    _used_video(root, rng).unlink()


def a_video_is_cut_off(root, rng):
    path = _used_video(root, rng)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _used_video(root: Path, rng: Rng) -> Path:
    """Return a video that an episode points to."""
    rows = pq.ParquetFile(root / "meta/episodes/chunk-000/file-000.parquet").read().to_pylist()
    row = rows[int(rng.integers(len(rows)))]
    key = str(
        rng.choice(sorted(key for key in row if key.endswith("/file_index") and key.startswith("videos/")))
    )
    return root / f"videos/{key.split('/')[1]}/chunk-000/file-{row[key]:03d}.mp4"


def info_is_broken(root, rng):
    path = root / "meta/info.json"
    content = path.read_text()
    path.unlink()
    if broken := ["", content[:-9], "[1]", '{"codebase_version": "v3.0", "fps": 20}'][int(rng.integers(4))]:
        path.write_text(broken)


def a_table_is_broken(root, rng):
    paths = [
        *root.glob("meta/*.parquet"),
        *root.glob("meta/episodes/*/*.parquet"),
        *root.glob("data/*/*.parquet"),
    ]
    path = sorted(paths)[int(rng.integers(len(paths)))]
    path.write_bytes([b"", path.read_bytes()[:-50], b"PAR1 nothing PAR1"][int(rng.integers(3))])


def a_folder_is_gone(root, rng):
    shutil.rmtree(root / str(rng.choice(["data", "meta/episodes", "meta"])))


REFUSED = [
    Change(lengths_are_swapped, suits=have_different_lengths),
    Change(a_length_is_wrong),
    Change(bounds_are_late),
    Change(a_frame_is_there_twice),
    *(Change(x, suits=has_long) for x in (two_frames_exchange_their_index, a_frame_is_missing)),
    *(Change(x, suits=has_long) for x in (the_first_frame_is_missing, the_last_frame_is_missing)),
    Change(an_index_is_there_twice, suits=lambda draft: len(draft.rows) > 1),
    Change(a_missing_frame_is_covered_up, suits=has_long),
    Change(a_frame_is_of_another_episode, suits=lambda draft: has_long(draft) and has_two(draft), lines=2),
    *(Change(x) for x in (a_task_is_unknown, a_number_has_two_tasks, meta_names_another_task)),
    Change(a_task_is_gone, is_last=True),
    Change(times_are_of_another_rate, suits=has_long),
    *(Change(x) for x in (a_time_is_missing, a_state_is_not_a_number, an_action_is_too_large)),
    Change(success_contradicts_itself),
    *(Change(x, is_last=True) for x in (an_episode_is_described_twice, an_episode_is_not_described)),
    Change(an_episode_has_no_frames, suits=has_two, is_last=True),
    *(Change(x) for x in (totals_are_wrong, fps_is_wrong, the_format_is_older)),
    Change(an_image_is_missing, suits=is_image),
    Change(a_pointer_is_a_neighbours, suits=lambda draft: is_video(draft) and has_two(draft)),
    Change(two_pointers_are_exchanged, suits=two_of_one_length),
    *(Change(x, suits=is_video) for x in (an_interval_is_a_frame_late, an_interval_is_too_long)),
    Change(an_interval_begins_between_frames, suits=is_video),
    *(Change(x, suits=has_no_short_film) for x in (a_video_is_short, a_video_has_another_rate)),
    *(Change(damage=x, suits=is_video) for x in (a_video_is_gone, a_video_is_cut_off)),
    *(Change(damage=x) for x in (info_is_broken, a_table_is_broken, a_folder_is_gone)),
]
