"""The reader of data sets beside a slow oracle: strange sets are read exactly, contradicting ones refused."""

import json
import multiprocessing
import pickle
import shutil
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reader_oracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reader_oracle import Seen
from set_changes import READ, REFUSED
from small_sets import CAMERAS, ENCODINGS, SIDE, Draft, draft, picture, write

from pi0 import FeatureConfig
from pi0.ript.data import images as stored_images
from pi0.ript.data.cache import ImageCache, Recent
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.reader import open_set
from pi0.ript.data.records import EpisodeDataError
from pi0.ript.data.settings import DatasetSettings, MixtureSettings
from pi0.ript.data.statistics import mixture_statistics
from pi0.ript.data.training_data import make_training_data
from pi0.ript.labels.advantages import read_advantages, write_advantages
from pi0.ript.labels.mixture import Mixture
from pi0.ript.labels.settings import RewardConfig
from pi0.ript.labels.sources import Source
from pi0.ript.supervised.window_labels import window_returns

STORAGES = [("image", None), *(("video", encoding) for encoding in ENCODINGS)]


@st.composite
def changed_sets(draw):
    storage, encoding = draw(st.sampled_from(STORAGES))
    made = draft(
        lengths=draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)),
        storage=storage,
        fps=draw(st.sampled_from([20, 10, 29.97, 0.5])),
        num_cameras=draw(st.integers(1, 2)),
        episodes_per_film=draw(st.integers(1, 3)),
        encoding=encoding,
    )
    # Changes are chosen by numbers, not one by one: draws of a list prefer its first entries, and draws of a
    # number prefer a few, so the whole set decides.
    numbers = [draw(st.integers(0, 2**64 - 1)), STORAGES.index((storage, encoding)), len(made.cameras)]
    rng = np.random.default_rng([*numbers, *(row["length"] for row in made.episodes)])
    pools = draw(st.sampled_from([(READ,), (REFUSED,), (READ, READ), (READ, REFUSED), (REFUSED, REFUSED)]))
    changes = [pool[int(rng.integers(len(pool)))] for pool in pools]
    return made, list(dict.fromkeys(changes)), rng


def counting(max_examples: int):
    return settings(max_examples=max_examples, deadline=None, derandomize=True, database=None,
                    suppress_health_check=list(HealthCheck))  # fmt: skip


def check_draw(drawn, counts: Counter) -> None:
    made, changes, rng = drawn
    applied = []
    for change in sorted(changes, key=lambda change: change.is_last):
        if change.suits(made):
            applied.append(change)
            if change.apply:
                change.apply(made, rng)
    with TemporaryDirectory() as folder:
        root = write(made, Path(folder) / "set")
        for change in applied:
            if change.damage:
                change.damage(root, rng)
        faults = [change for change in applied if change in REFUSED]
        counts.update(change.name for change in applied)
        counts["refused" if faults else "read"] += 1
        given_settings = DatasetSettings(root=str(root), data_features_name_mapping=made.mapping())
        if not faults:
            check_read(root, given_settings, made)
            return
        with pytest.raises(EpisodeDataError) as caught:
            open_set(given_settings)
        lines = str(caught.value).splitlines()
        assert 1 <= len(lines) <= sum(change.lines for change in faults), lines
        assert all(str(root) in line and "expected" in line and "found" in line for line in lines), lines


def check_read(root: Path, given_settings: DatasetSettings, made: Draft) -> None:
    """Compare everything that the library makes of a set with what the oracle sees in it."""
    seen = reader_oracle.read(root, made.mapping())
    frames = open_set(given_settings)
    check_frames(frames, seen)
    assert frames.fps == made.fps
    order = np.random.default_rng(0).permutation(len(seen))
    for camera, column in frames.images.items():
        for row in order.tolist():
            assert np.array_equal(column[row], seen[row].images[camera])
    for gib in (0.0, 1.0):
        check_batches(given_settings, seen, gib)
    check_sources(frames, seen)
    check_labels(root, frames, seen)


def check_frames(frames: FrameSet, seen: list[Seen]) -> None:
    assert np.array_equal(frames.states, np.array([x.state for x in seen], np.float32))
    assert np.array_equal(frames.actions, np.array([x.action for x in seen], np.float32))
    assert frames.frame_instructions() == [x.instruction for x in seen]
    assert frames.timestamps.tolist() == [x.timestamp for x in seen]
    assert np.repeat(frames.episodes, frames.lengths).tolist() == [x.episode for x in seen]
    for number, labels in zip(frames.episodes.tolist(), frames.labels, strict=True):
        own = [x for x in seen if x.episode == number]
        assert (labels.success, labels.instruction) == (any(x.success for x in own), own[0].instruction)
    assert list(frames.images) == [camera for camera in CAMERAS if camera in seen[0].images]
    statistics = mixture_statistics([frames], [np.arange(len(seen))])
    own = np.array([x.action for x in seen], np.float64).mean(0)
    assert np.allclose(statistics["action"]["mean"], own, rtol=1e-4, atol=1e-5)


def check_batches(given_settings: DatasetSettings, seen: list[Seen], gib: float) -> None:
    """Compare a batch of all frames, as pi0-train gets it."""
    features = FeatureConfig(image_keys=tuple(seen[0].images), state_dim=4, action_dim=3)
    reading = MixtureSettings(
        datasets=[given_settings], num_workers=0, val_split_ratio=0.0, image_size=SIDE, cache_gib=gib
    )
    data = make_training_data(reading, features, 3, len(seen))
    for _ in range(2):
        batch = next(data.train)
        assert sorted(batch["window"].tolist()) == list(range(len(seen)))
        for i, window in enumerate(batch["window"].tolist()):
            frame = seen[window]
            later = [x for x in seen[window : window + 3] if x.episode == frame.episode]
            chunk = np.array([x.action for x in later + later[-1:] * 2][:3], np.float32)
            assert np.array_equal(batch["action"][i], chunk)
            assert batch["action_is_pad"][i].tolist() == [j >= len(later) for j in range(3)]
            assert np.array_equal(batch["observation.state"][i], np.array(frame.state, np.float32))
            assert batch["task"][i] == frame.instruction
            for camera, image in frame.images.items():
                if image.shape[0] == SIDE:
                    assert np.array_equal(batch[camera][i], image)


def check_sources(frames: FrameSet, seen: list[Seen]) -> None:
    """Compare what RECAP trains on, the tasks of its thresholds and what pages show."""
    source = Source("set", frames, task_ids={"do thing 0": "suite/thing-0"})
    ids = {"do thing 0": "suite/thing-0"}
    assert source.frame_tasks() == [ids.get(x.instruction, x.instruction) for x in seen]
    for place, episode in enumerate(frames):
        own = [x for x in seen if x.episode == frames.episodes[place]]
        for camera, images in episode.images.items():
            same_size = [x.images[f"observation.images.{camera}"].shape == images.shape[1:] for x in own]
            shown = [i for i, is_same in enumerate(same_size) if is_same]
            assert all(
                np.array_equal(images[i], own[i].images[f"observation.images.{camera}"]) for i in shown
            )
    if any(len(frames.image_sizes(camera)) > 1 for camera in frames.images):
        return
    features = FeatureConfig(image_keys=tuple(seen[0].images), state_dim=4, action_dim=3)
    batch = Mixture([source, source], features, 2).batch(np.arange(2 * len(seen)))
    for i, frame in enumerate([*seen, *seen]):
        assert np.array_equal(batch["observation.state"][i], np.array(frame.state, np.float32))
        assert batch["task"][i] == frame.instruction
        assert all(np.array_equal(batch[camera][i], image) for camera, image in frame.images.items())


def check_labels(root: Path, frames: FrameSet, seen: list[Seen]) -> None:
    """Compare what a value function learns of every frame, and whose advantage a file gives to it."""
    expected = []
    for frame in seen:
        own = [x for x in seen if x.episode == frame.episode]
        steps = frame.frame - max(x.frame for x in own)
        expected.append((steps if any(x.success for x in own) else steps - 10) / 20)
    found, _ = window_returns([frames], RewardConfig(C_neg=-10.0, reward_normalizer=20.0))
    assert found.tolist() == expected
    advantages = np.arange(len(seen)) / 10
    path = write_advantages(root, frames, advantages, {})
    assert np.allclose(read_advantages(root, frames), advantages, atol=1e-6)
    keys = list(json.loads(path.read_text()))
    if all(x.timestamp == float(np.float32(x.timestamp)) for x in seen):
        assert keys == [f"{x.episode},{float(x.timestamp)}" for x in seen]
    assert len(set(keys)) == len(seen)


# One thing at a time ----------------------------------------------------------------------------------------


def published(tmp_path: Path, **values) -> Path:
    return write(draft([3, 5, 4], **values), tmp_path / "set")


def columns(root: Path, **changes):
    return open_set(DatasetSettings(root=str(root), **changes)).images


@pytest.mark.parametrize(("storage", "encoding"), STORAGES)
def test_what_fits_the_budget_is_decoded_once_and_the_rest_each_time(
    tmp_path, storage, encoding, monkeypatch
):
    frames = open_set(DatasetSettings(root=str(published(tmp_path, storage=storage, encoding=encoding))))
    (column,) = frames.images.values()
    true = column[:].copy()
    frame = 3 * SIDE * SIDE + 1
    assert frames.keep_images(ImageCache(7.5 * frame / 2**30)) == 7
    decoded, decode = [], type(column)._decode
    monkeypatch.setattr(type(column), "_decode", lambda self, row: decoded.append(row) or decode(self, row))
    for _ in range(3):
        assert np.array_equal(column[np.arange(12)[::-1]], true[::-1])
    counts = Counter(decoded)
    assert max(counts[row] for row in range(7)) == 1, "or less: on the way to another, or with its row group"
    assert [counts[row] for row in range(7, 12)] == [3] * 5


@pytest.mark.parametrize("storage", ["image", "video"])
def test_processes_share_what_one_of_them_decoded(tmp_path, storage):
    frames = open_set(DatasetSettings(root=str(published(tmp_path, storage=storage))))
    (column,) = frames.images.values()
    true = column[:].copy()  # opens the files before the fork
    assert frames.keep_images(ImageCache(1.0), np.arange(2, 12)) == 10
    reads = multiprocessing.get_context("fork").Process(target=lambda: column[3:8])
    reads.start()
    reads.join()
    assert reads.exitcode == 0
    assert [column.kept.lacks(row) for row in (3, 7)] == [False, False]
    assert np.array_equal(column[:], true)
    elsewhere = pickle.loads(pickle.dumps(column))
    assert elsewhere.kept is None
    assert np.array_equal(elsewhere[[5, 1]], true[[5, 1]])


def test_columns_are_indexed_like_arrays(tmp_path):
    (column,) = columns(published(tmp_path)).values()
    true = np.stack([picture(code, CAMERAS[0]) for code in [0, 1, 2, *range(1000, 1005), *range(2000, 2004)]])
    assert (column.shape, len(column), column.dtype) == (true.shape, 12, true.dtype)
    for rows in (slice(2, 9, 3), [4, 4, 0], np.array([11, 3]), true.mean((1, 2, 3)) > 120, slice(0, 0)):
        assert np.array_equal(column[rows], true[rows])
    assert np.array_equal(column[-1], true[-1])
    with pytest.raises(IndexError):
        column[12]


def test_images_of_several_sizes_come_at_their_own_one_by_one_and_at_one_together(tmp_path):
    made = draft([3, 4])
    change = next(change for change in READ if change.name == "images_have_several_sizes")
    change.apply(made, np.random.default_rng(0))
    (column,) = columns(write(made, tmp_path / "set")).values()
    assert column.sizes == ((SIDE, SIDE), (2 * SIDE, 2 * SIDE))
    assert (column[0].shape, column[6].shape) == ((SIDE, SIDE, 3), (2 * SIDE, 2 * SIDE, 3))
    assert column[:].shape == (7, 2 * SIDE, 2 * SIDE, 3)
    assert np.array_equal(column[:][6], column[6])


def test_an_episode_with_a_fault_can_be_left_out_and_is_never_shown(tmp_path):
    made = draft([3, 5, 4], "video")
    made.of(1)[2]["state"] = None
    made.of(1)[2]["observation.state"] = np.full(4, np.nan)
    del made.films[CAMERAS[0]][2].codes[-1]
    root = write(made, tmp_path / "set")
    with pytest.raises(EpisodeDataError, match=r"episode 1: expected finite.*frame 2") as caught:
        open_set(DatasetSettings(root=str(root)))
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(EpisodeDataError, match=r"file-002.mp4: episode 2: expected its frames 0 to 3"):
        open_set(DatasetSettings(root=str(root), excluded_episodes=[1]))
    frames = open_set(DatasetSettings(root=str(root), episodes=[0]))
    assert (frames.selected.tolist(), frames.num_frames) == ([True, False, False], 12)
    images = frames.images[CAMERAS[0]]
    assert images[0].shape == (SIDE, SIDE, 3)
    with pytest.raises(EpisodeDataError, match="left out"):
        images[11]


def test_nothing_that_is_here_is_asked_for_on_the_hub(tmp_path, monkeypatch):
    def ask(*_, **__):
        raise AssertionError("asked the hub")

    monkeypatch.setattr("pi0.ript.data.hub.snapshot_download", ask)
    monkeypatch.setattr("lerobot.datasets.utils.get_repo_versions", ask)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me/set").mkdir(parents=True)
    for settings_ in (
        DatasetSettings(root=str(tmp_path / "me/set")),
        DatasetSettings(repo_id="me/set"),
        DatasetSettings(repo_id="me/other", root=str(tmp_path)),
        DatasetSettings(repo_id="./me/other"),
    ):
        with pytest.raises(EpisodeDataError, match=r"no LeRobotDataset: expected meta/info\.json in"):
            open_set(settings_)
    (tmp_path / "me/set/meta").mkdir()
    with pytest.raises(EpisodeDataError, match=r"meta/info.json: expected a JSON file"):
        open_set(DatasetSettings(repo_id="me/set"))
    with pytest.raises(AssertionError, match="asked the hub"):
        open_set(DatasetSettings(repo_id="me/elsewhere"))


@pytest.mark.parametrize("storage", ["image", "video"])
def test_of_a_set_on_the_hub_only_the_episodes_asked_for_are_fetched(tmp_path, storage, monkeypatch):
    made = draft([3, 5, 4], storage)
    made.rows_per_file = 4  # episode 1 is in the first and the second file
    there, here = write(made, tmp_path / "hub"), tmp_path / "here"
    rows = pq.read_table(there / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    for row, file in zip(rows, (0, 0, 2), strict=True):
        row |= {"data/chunk_index": 0, "data/file_index": file}
    pq.write_table(pa.Table.from_pylist(rows), there / "meta/episodes/chunk-000/file-000.parquet")

    def download(name, *, allow_patterns, revision, **_):
        assert (name, revision) == ("me/set", "v3.0")
        for path in there.rglob("*"):
            name = path.relative_to(there)
            if path.is_file() and any(fnmatch(str(name), pattern) for pattern in allow_patterns or ["*"]):
                (here / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, here / name)
        return str(here)

    monkeypatch.setattr("pi0.ript.data.hub.snapshot_download", download)
    monkeypatch.setattr("lerobot.datasets.utils.get_safe_version", lambda *_: "v3.0")
    frames = open_set(DatasetSettings(repo_id="me/set", episodes=[2]))
    assert (frames.episodes.tolist(), frames.lengths.tolist()) == ([2], [4])
    seen = [frame for frame in reader_oracle.read(there) if frame.episode == 2]
    assert all(np.array_equal(frames.images[CAMERAS[0]][i], x.images[CAMERAS[0]]) for i, x in enumerate(seen))
    assert not (here / "data/chunk-000/file-000.parquet").exists()
    assert open_set(DatasetSettings(repo_id="me/set")).num_frames == 12


def test_damage_that_shows_when_an_image_is_decoded_names_its_place(tmp_path):
    root = published(tmp_path)
    file = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    cells = table.column(CAMERAS[0]).to_pylist()
    cells[4]["bytes"] = b"no image"
    pq.write_table(table.set_column(table.column_names.index(CAMERAS[0]), CAMERAS[0], pa.array(cells)), file)
    frames = open_set(DatasetSettings(root=str(root)))
    frames.keep_images(ImageCache(1.0))
    assert frames.images[CAMERAS[0]][3].shape == (SIDE, SIDE, 3)
    with pytest.raises(
        EpisodeDataError, match=rf"{file}: {CAMERAS[0]}: row 4: expected an image, found 8 bytes"
    ):
        frames.images[CAMERAS[0]][4]


def test_success_is_asked_for_where_it_is_needed(tmp_path):
    made = draft([2, 3])
    for row in [*made.rows, *made.episodes]:
        row.pop("success")
    root = write(made, tmp_path / "set")
    frames = open_set(DatasetSettings(root=str(root)))
    assert [labels.success for labels in frames.labels] == [None, None]
    with pytest.raises(
        EpisodeDataError, match=r"expected success labels.*found none for 2 of 2.*assume_success"
    ):
        frames.successes()
    assert open_set(DatasetSettings(root=str(root), assume_success=True)).successes().all()


def test_frames_whose_times_are_those_of_a_clock_keep_their_own_advantages(tmp_path):
    made = draft([3, 5])
    change = next(change for change in READ if change.name == "times_are_those_of_a_clock")
    change.apply(made, np.random.default_rng(0))
    root = write(made, tmp_path / "set")
    check_labels(root, open_set(DatasetSettings(root=str(root))), reader_oracle.read(root))


# Any set ----------------------------------------------------------------------------------------------------


def test_strange_sets_are_read_exactly_and_contradicting_ones_refused():
    counts = Counter()

    @counting(100)
    @given(changed_sets())
    def draws(drawn):
        check_draw(drawn, counts)

    draws()
    ways = [change.name for change in READ + REFUSED if counts[change.name]]
    print(f"{counts['read']} read, {counts['refused']} refused, changed in {len(ways)} ways")
    assert min(counts["read"], counts["refused"], len(ways)) >= 25, counts


@pytest.mark.slow
def test_two_thousand_sets():
    counts = Counter()

    @counting(2000)
    @given(changed_sets())
    def draws(drawn):
        check_draw(drawn, counts)

    draws()
    print(f"{counts['read']} read, {counts['refused']} refused; {counts}")
    assert not [change.name for change in READ + REFUSED if counts[change.name] < 3]


def test_what_is_not_among_the_last_used_is_closed_and_videos_are():
    """Decoders of 400 files once took gigabytes: what is dropped is freed at once."""
    closed = []
    recent = Recent[int, list](2.0, close=closed.append)
    for number in range(4):
        recent.get(number, lambda number=number: [number])
    assert closed == [[0], [1]]
    assert stored_images._OPEN_VIDEOS._close is stored_images.Video.close
