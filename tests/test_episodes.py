"""Episodes: round trip through lerobot's own loader, labels, crash safety, errors."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import opened

from pi0.ript.data.encoding import default_storage
from pi0.ript.data.records import CollectionInfo, Episode, EpisodeDataError, EpisodeLabels, naming_damage
from pi0.ript.data.writer import EpisodeWriter

INFO = CollectionInfo(fps=20, robot_type="test", storage="image", origin={"made": "here"})


def make_episode(number: int, length: int = 5, size: int = 16) -> Episode:
    rng = np.random.default_rng(number)
    ramp = np.add.outer(np.arange(size), np.arange(size)).astype(np.float32)
    frames = [np.stack([ramp * (1 + c) + 3 * t + number for c in range(3)], -1) for t in range(length)]
    return Episode(
        images={"front": np.stack(frames).clip(0, 255).astype(np.uint8)},
        states=rng.normal(size=(length, 4)).astype(np.float32),
        actions=rng.normal(size=(length, 3)).astype(np.float32),
        labels=EpisodeLabels(
            instruction=f"do thing {number % 2}",
            success=number % 3 != 0,
            task_id=f"suite/thing-{number % 2}",
            initial_state_hash=f"{number:064x}",
            source="operator:test",
            seed=number,
        ),
    )


def publish(directory: Path, episodes: dict[int, Episode], info: CollectionInfo = INFO) -> Path:
    writer = EpisodeWriter(directory, info)
    for number, episode in episodes.items():
        writer.add(number, episode)
    return writer.finalize()


def lerobot_dataset(root: Path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset("local/test", root=root)


def test_lerobot_reads_back_what_was_written_exactly(tmp_path: Path):
    episodes = [make_episode(i, length=3 + i) for i in range(4)]
    root = publish(tmp_path / "set", dict(enumerate(episodes)))
    dataset = lerobot_dataset(root)
    assert (dataset.fps, dataset.num_episodes) == (20, 4)
    assert len(dataset) == sum(map(len, episodes))
    frame = 0
    for number, episode in enumerate(episodes):
        row = dataset.meta.episodes[number]
        assert (row["success"], row["seed"]) == (episode.labels.success, number)
        assert row["initial_state_hash"] == episode.labels.initial_state_hash
        assert row["content_hash"] == episode.content_hash()
        for t in range(len(episode)):
            item = dataset[frame]
            image = (item["observation.images.front"] * 255).round().byte().permute(1, 2, 0)
            assert np.array_equal(image.numpy(), episode.images["front"][t])
            assert np.array_equal(item["observation.state"].numpy(), episode.states[t])
            assert np.array_equal(item["action"].numpy(), episode.actions[t])
            assert bool(item["success"]) == episode.labels.success
            assert item["task"] == episode.labels.instruction
            assert (int(item["episode_index"]), int(item["frame_index"])) == (number, t)
            assert float(item["timestamp"]) == pytest.approx(t / 20)
            frame += 1


def test_lerobot_filters_by_success_and_makes_action_chunks(tmp_path: Path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = publish(tmp_path / "set", {i: make_episode(i) for i in range(4)})
    successes = lerobot_dataset(root).meta.filter_episodes(lambda row: row["success"])
    assert successes == [1, 2]
    chunks = {"action": [0.0, 1 / 20, 2 / 20]}
    dataset = LeRobotDataset("local/test", root=root, episodes=successes, delta_timestamps=chunks)
    item = dataset[4]  # the last frame of episode 1: the chunk is padded
    assert np.array_equal(item["action"][0].numpy(), make_episode(1).actions[4])
    assert item["action_is_pad"].tolist() == [False, True, True]


def test_statistics_are_those_of_all_frames(tmp_path: Path):
    episodes = [make_episode(i, length=3 + i) for i in range(3)]
    stats = lerobot_dataset(publish(tmp_path / "set", dict(enumerate(episodes)))).meta.stats
    actions = np.concatenate([e.actions for e in episodes])
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["action"]["std"], actions.std(0), rtol=1e-5)
    images = np.concatenate([e.images["front"] for e in episodes]) / 255  # at most 8 frames: all
    np.testing.assert_allclose(stats["observation.images.front"]["mean"].ravel(),
                               images.mean((0, 1, 2)), rtol=1e-5)  # fmt: skip


def test_video_storage_is_read_by_lerobot_within_its_compression(tmp_path: Path):
    episodes = [make_episode(i, length=6, size=64) for i in range(2)]
    root = publish(tmp_path / "set", dict(enumerate(episodes)), replace(INFO, storage="video"))
    dataset, arrays = lerobot_dataset(root), opened(root)
    for number, episode in enumerate(episodes):
        for t in range(6):
            image = dataset[6 * number + t]["observation.images.front"].permute(1, 2, 0) * 255
            error = np.abs(image.numpy() - episode.images["front"][t])
            assert error.mean() < 4, "mean absolute error in grey levels"
            assert np.abs(image.numpy() - arrays.episode(number).images["front"][t]).max() <= 1
    assert np.array_equal(arrays.actions, np.concatenate([e.actions for e in episodes]))


def test_the_reader_returns_the_same_arrays_and_labels(tmp_path: Path):
    episodes = [make_episode(i, length=3 + i) for i in range(4)]
    loaded = opened(publish(tmp_path / "set", dict(enumerate(episodes))))
    assert loaded.lengths.tolist() == [3, 4, 5, 6]
    for episode, back in zip(episodes, loaded, strict=True):
        assert back.labels == episode.labels
        assert back.content_hash() == episode.content_hash()


def test_order_of_writing_does_not_matter_and_gaps_close(tmp_path: Path):
    forward = publish(tmp_path / "a", {i: make_episode(i) for i in (2, 5, 9)})
    backward = publish(tmp_path / "b", {i: make_episode(i) for i in (9, 5, 2)})
    a, b = opened(forward), opened(backward)
    assert [labels.seed for labels in a.labels] == [2, 5, 9]
    assert a.collection["content_hash"] == b.collection["content_hash"]
    other = opened(publish(tmp_path / "c", {i: make_episode(i) for i in (2, 5, 8)}))
    assert other.collection["content_hash"] != a.collection["content_hash"]


def test_only_the_kept_episodes_are_published(tmp_path: Path):
    writer = EpisodeWriter(tmp_path / "set", INFO)
    for i in range(4):
        writer.add(i, make_episode(i))
    keep = [i for i, (labels, _) in writer.finished().items() if labels.success]
    assert [labels.seed for labels in opened(writer.finalize(keep)).labels] == [1, 2]


def test_many_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lerobot.datasets.utils.DEFAULT_DATA_FILE_SIZE_IN_MB", 0)
    monkeypatch.setattr("lerobot.datasets.feature_utils.DEFAULT_DATA_FILE_SIZE_IN_MB", 1e-6)
    root = publish(tmp_path / "set", {i: make_episode(i) for i in range(3)})
    assert len(list((root / "data").rglob("*.parquet"))) == 3
    dataset = lerobot_dataset(root)
    assert np.array_equal(dataset[14]["action"].numpy(), make_episode(2).actions[4])
    assert opened(root).num_episodes == 3


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[2])
from test_episodes import INFO, make_episode
from pi0.ript.data.writer import EpisodeWriter
writer = EpisodeWriter(sys.argv[1], INFO)
for number in range(1000):
    writer.add(number, make_episode(number))
    print(number, flush=True)
"""


def test_finished_episodes_survive_a_kill(tmp_path: Path):
    root = tmp_path / "set"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(root), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    last = -1
    while last < 5:
        last = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(EpisodeDataError, match="not finished"):
        opened(root)
    writer = EpisodeWriter(root, INFO)
    finished = writer.finished()
    assert len(finished) >= 6
    assert list(finished) == list(range(len(finished)))
    writer.add(len(finished), make_episode(len(finished)))
    loaded = opened(writer.finalize())
    hashes = [episode.content_hash() for episode in loaded]
    assert hashes == [make_episode(i).content_hash() for i in range(len(finished) + 1)]
    assert len(lerobot_dataset(root)) == 5 * len(hashes)
    assert not list(tmp_path.glob("*.partial"))


def test_a_kill_while_publishing_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    writer = EpisodeWriter(tmp_path / "set", INFO)
    writer.add(0, make_episode(0))
    writer.add(1, make_episode(1))

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pi0.ript.data.publishing._DataFiles.close", interrupt)
        with pytest.raises(KeyboardInterrupt):
            writer.finalize()
    assert not (tmp_path / "set").exists()
    assert opened(EpisodeWriter(tmp_path / "set", INFO).finalize()).num_episodes == 2


def test_errors_name_the_remedy(tmp_path: Path):
    root = publish(tmp_path / "set", {0: make_episode(0)})
    with pytest.raises(EpisodeDataError, match="exists already"):
        EpisodeWriter(root, INFO)
    EpisodeWriter(tmp_path / "other", INFO)
    with pytest.raises(EpisodeDataError, match=r"made='here'.*made='there'"):
        EpisodeWriter(tmp_path / "other", replace(INFO, origin={"made": "there"}))
    with pytest.raises(EpisodeDataError, match="no episode"):
        EpisodeWriter(tmp_path / "other", INFO).finalize()
    with pytest.raises(EpisodeDataError, match="fps"):
        replace(INFO, fps=12.5)
    with pytest.raises(EpisodeDataError, match="no LeRobotDataset: expected"):
        opened(tmp_path / "nothing")
    with pytest.raises(EpisodeDataError, match=r"actions.*frame 1 is not finite"):
        replace(make_episode(0), actions=np.array([[0], [np.nan], [0], [0], [0]], np.float32))
    writer = EpisodeWriter(tmp_path / "mixed", INFO)
    writer.add(0, make_episode(0, size=16))
    writer.add(1, make_episode(1, size=32))
    with pytest.raises(EpisodeDataError, match="one set of cameras"):
        writer.finalize()


def test_a_robot_of_one_dimension(tmp_path: Path):
    one = make_episode(0)
    one = replace(one, states=one.states[:, :1], actions=one.actions[:, :1])
    root = publish(tmp_path / "set", {0: one})
    loaded, item = opened(root).episode(0), lerobot_dataset(root)[2]
    assert loaded.content_hash() == one.content_hash()
    assert item["action"].item() == one.actions[2, 0]


def test_small_images_are_stored_without_loss_by_default():
    assert default_storage(64) == "image"
    assert default_storage(256) == "video"


@pytest.mark.parametrize(
    "error", [PermissionError(13, "no right"), OSError(24, "too many open files"), MemoryError()]
)
def test_an_error_of_the_system_is_not_told_as_damage(tmp_path, error):
    """Its remedy would be to remove a file that is whole."""
    with pytest.raises(type(error)), naming_damage(tmp_path / "episode.parquet"):
        raise error


def test_damage_without_words_is_told_too(tmp_path):
    with pytest.raises(EpisodeDataError, match=r"is damaged \(OSError: \)"), naming_damage(tmp_path / "x"):
        raise OSError
