"""The data of supervised training: reading, resampling, mixture, split, resume, statistics, augmentation."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import reader_oracle
import torch
from conftest import opened
from omegaconf import OmegaConf
from test_episodes import INFO, make_episode, publish

from pi0 import FeatureConfig
from pi0.ript.data import training_data
from pi0.ript.data.augmentation import augment
from pi0.ript.data.mixture import MixtureOrder, validation_episodes
from pi0.ript.data.reader import open_set
from pi0.ript.data.records import EpisodeDataError
from pi0.ript.data.settings import AugmentationSettings, DatasetSettings, MixtureSettings, check_mixture
from pi0.ript.data.training_data import make_training_data
from pi0.ript.data.windows import action_chunks, chunk_offsets
from pi0.ript.peers import Alone
from pi0.ript.windows import episode_windows

CAMERA = "observation.images.front"
FEATURES = FeatureConfig(image_keys=(CAMERA,), state_dim=4, action_dim=3)


class Process(Alone):
    """One of several that train together."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def turns(self, count):
        raise AssertionError("shares out nothing")

    def gather(self, items: list) -> list[list]:
        raise AssertionError("data needs no exchange")


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Four data sets: 25, 12 and 25 frames (video), and one that lerobot's own writer made."""
    base = tmp_path_factory.mktemp("sets")
    made = {
        "a": publish(base / "a", {i: make_episode(i, length=3 + i) for i in range(5)}),
        "b": publish(base / "b", {i: make_episode(20 + i, length=6, size=24) for i in range(2)}),
        "video": publish(
            base / "video",
            {i: make_episode(i, length=3 + i, size=64) for i in range(5)},
            replace(INFO, storage="video"),
        ),
        "lerobot": write_with_lerobot(base / "lerobot"),
    }
    return {name: str(root) for name, root in made.items()}


def write_with_lerobot(root: Path) -> Path:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {
        "image": {"dtype": "image", "shape": (16, 16, 3), "names": ["height", "width", "channels"]},
        "state": {"dtype": "float32", "shape": (4,), "names": None},
        "actions": {"dtype": "float32", "shape": (3,), "names": None},
    }
    dataset = LeRobotDataset.create("local/own", fps=20, features=features, root=root, use_videos=False)
    for number in range(3):
        episode = make_episode(number)
        for t in range(len(episode)):
            frame = {"image": episode.images["front"][t], "state": episode.states[t]}
            dataset.add_frame({**frame, "actions": episode.actions[t], "task": episode.labels.instruction})
        dataset.save_episode()
    dataset.finalize()
    return root


def mixture(*names: str, **changes) -> MixtureSettings:
    datasets = [DatasetSettings(repo_id=name) for name in names]
    return MixtureSettings(**{"datasets": datasets, "num_workers": 0, "val_split_ratio": 0.0, **changes})


def windows_of(batches) -> list[int]:
    return [w for batch in batches for w in batch["window"].tolist()]


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(a[k] == b[k] if k == "task" else torch.equal(a[k], b[k]) for k in a)


# Reading ----------------------------------------------------------------------------------------------------


def test_batches_have_the_frames_of_the_episodes_with_and_without_a_cache(roots):
    expected = [
        episode_windows(e.images, e.states, e.actions, np.arange(len(e)), e.labels.instruction, 4)
        for e in opened(roots["a"])
    ]
    firsts = np.cumsum([0, *(len(w) for w in expected)])
    for gib in (0.0, 1.0):
        data = make_training_data(mixture(roots["a"], cache_gib=gib), FEATURES, 4, 5)
        assert data.num_kept == (25 if gib else 0)
        for batch in islice(data.train, 5):
            for i, window in enumerate(batch["window"].tolist()):
                episode = int(np.searchsorted(firsts, window, side="right")) - 1
                own = expected[episode].batch(np.array([window - firsts[episode]]))
                for key in (CAMERA, "observation.state", "action", "action_is_pad"):
                    assert torch.equal(batch[key][i], own[key][0])
                assert batch["task"][i] == own["task"][0]


@pytest.mark.parametrize("workers", [0, 2])
def test_video_is_what_the_file_holds_to_the_bit_with_and_without_a_cache(roots, workers):
    true = [frame.images[CAMERA] for frame in reader_oracle.read(Path(roots["video"]))]
    for gib in (0.0, 1e-4, 1.0):  # none, eight frames, all
        settings = mixture(roots["video"], cache_gib=gib, num_workers=workers)
        data = make_training_data(settings, FEATURES, 4, 25)
        assert data.num_kept == {0.0: 0, 1e-4: 8, 1.0: 25}[gib]
        for batch in islice(data.train, 2):
            for image, window in zip(batch[CAMERA].numpy(), batch["window"].tolist(), strict=True):
                assert np.array_equal(image, true[window])


def test_the_cache_is_for_frames_that_are_drawn_often_and_is_shared_by_ranks(roots, monkeypatch):
    settings = mixture(roots["a"], roots["b"], weights=[1.0, 9.0], image_size=16, cache_gib=30 * 1729 / 2**30)
    settings.datasets[1].excluded_episodes = [0]
    for ranks in (1, 2):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        data = make_training_data(settings, FEATURES, 4, 5)
        columns = [frames.images[CAMERA] for frames in data.sets]
        kept = [0 if column.kept is None else column.kept.num_kept for column in columns]
        assert kept == [{1: 25, 2: (15 - 6) * 1729 // 769}[ranks], 6]
        assert [columns[1].kept.lacks(row) for row in range(12)] == [False] * 6 + [True] * 6
        assert data.num_kept == sum(kept)


def test_a_set_of_lerobots_own_writer_is_read_under_its_own_names(roots):
    names = {CAMERA: "image", "observation.state": "state", "action": "actions"}
    settings = mixture(roots["lerobot"])
    settings.datasets[0].data_features_name_mapping = dict(names)
    batch = next(make_training_data(settings, FEATURES, 2, 15).train)
    for i, window in enumerate(batch["window"].tolist()):
        episode, t = make_episode(window // 5), window % 5
        assert np.array_equal(batch[CAMERA][i], episode.images["front"][t])
        assert np.array_equal(batch["observation.state"][i], episode.states[t])
        assert np.array_equal(batch["action"][i, 0], episode.actions[t])


def test_a_policy_takes_the_batches(roots):
    from pi0 import PI0Policy, compute_statistics, toy_config
    from pi0.prompts import PromptTokenizer

    numbers = {"observation.state": 4, "action": 3}
    statistics = {
        k: compute_statistics(np.random.default_rng(0).normal(size=(9, n))) for k, n in numbers.items()
    }
    tokenizer = PromptTokenizer.from_texts(["do thing 0", "do thing 1"])
    policy = PI0Policy(toy_config(tokenizer.vocab_size), FEATURES, tokenizer, statistics)
    data = make_training_data(mixture(roots["a"]), policy.features, policy.config.chunk_size, 4)
    assert torch.isfinite(policy.loss(next(data.train)))


def test_sizes_are_made_equal_and_an_absent_camera_is_black_and_marked(roots):
    settings = mixture(roots["a"], roots["b"])
    with pytest.raises(EpisodeDataError, match=r"same size.*image_size"):
        make_training_data(settings, FEATURES, 2, 4)
    features = replace(FEATURES, image_keys=(CAMERA, "observation.images.wrist"))
    settings.image_size = 32
    settings.datasets[0].data_features_name_mapping = {"observation.images.wrist": None}
    settings.datasets[1].data_features_name_mapping = {"observation.images.wrist": CAMERA}
    batch = next(make_training_data(settings, features, 2, 37).train)
    assert batch[CAMERA].shape == batch["observation.images.wrist"].shape == (37, 32, 32, 3)
    lacks = batch["dataset_index"] == 0
    assert torch.equal(batch["observation.images.wrist_is_pad"], lacks)
    assert not batch["observation.images.wrist"][lacks].any()
    assert torch.equal(batch["observation.images.wrist"][~lacks], batch[CAMERA][~lacks])
    assert f"{CAMERA}_is_pad" not in batch


def test_only_the_asked_episodes_are_drawn(roots):
    settings = mixture(roots["a"])
    settings.datasets[0].episodes, settings.datasets[0].excluded_episodes = [1, 2, 4], [2]
    data = make_training_data(settings, FEATURES, 2, 11)
    assert sorted(windows_of([next(data.train)])) == [3, 4, 5, 6, *range(18, 25)]


# Resampling -------------------------------------------------------------------------------------------------


def picked(row: int, fps: int, freq: float | None, chunk: int, length: int = 100) -> list[float]:
    actions = np.arange(length, dtype=np.float32)[:, None]
    offsets = chunk_offsets(chunk, float(fps), freq)
    ends = np.full(length, length)
    return action_chunks(actions, ends, np.array([row]), offsets, "nearest")[0][0, :, 0].tolist()


def test_action_rows_are_opentaus():
    """Golden: round(row + i / action_freq * fps), halves to even, as OpenTau's reader gives."""
    assert picked(0, 10, 20.0, 10) == [0, 0, 1, 2, 2, 2, 3, 4, 4, 4]
    assert picked(1, 10, 20.0, 6) == [1, 2, 2, 2, 3, 4]
    assert picked(0, 20, 10.0, 6) == [0, 2, 4, 6, 8, 10]
    assert picked(7, 20, None, 3) == [7, 8, 9]
    assert picked(0, 30, 20.0, 5) == [0, 2, 3, 4, 6]


def test_actions_between_frames_and_beyond_the_end():
    actions = np.array([[0], [1], [4], [100]], np.float32)
    ends, offsets = np.array([3, 3, 3, 4], np.int64), chunk_offsets(5, 10.0, 20.0)
    values, is_pad = action_chunks(actions, ends, np.array([1, 3]), offsets, "linear")
    assert values[..., 0].tolist() == [[1, 2.5, 4, 4, 4], [100] * 5]
    assert is_pad.tolist() == [[False] * 4 + [True], [False, False, True, True, True]]
    nearest = action_chunks(actions, ends, np.array([1]), offsets, "nearest")
    assert nearest[0][0, :, 0].tolist() == [1, 4, 4, 4, 4]
    assert nearest[1].tolist() == is_pad[:1].tolist()


def test_a_mixture_resamples_each_set_from_its_own_rate(roots):
    data = make_training_data(mixture(roots["a"], action_freq=10.0), FEATURES, 3, 25)
    batch = next(data.train)
    assert data.sets[0].fps == 20
    first = batch["window"].tolist().index(18)  # of the last episode, of 7 frames
    assert np.array_equal(batch["action"][first], make_episode(4, 7).actions[[0, 2, 4]])


# Mixture ----------------------------------------------------------------------------------------------------


def test_each_frame_comes_once_per_epoch_over_ranks_and_workers(roots):
    parts = []
    for rank in range(2):
        settings = mixture(roots["a"], roots["b"], image_size=16, num_workers=2)
        data = make_training_data(settings, FEATURES, 2, 5, Process(rank, 2), seed=3)
        parts.append(list(islice(data.train, 37)))  # 370 draws of both: ten epochs of 37 frames
        assert data.train.epoch == 10
    assert set(Counter(windows_of(parts[0] + parts[1])).values()) == {10}
    in_order = [w for pair in zip(*parts, strict=True) for w in windows_of(pair)]
    for epoch in range(10):
        assert sorted(in_order[37 * epoch : 37 * (epoch + 1)]) == list(range(37))
    assert in_order[:37] != in_order[37:74]


def test_the_order_depends_on_seed_and_position_alone(roots):
    settings = mixture(roots["a"])
    whole = make_training_data(settings, FEATURES, 2, 8, seed=3)
    expected = [windows_of([batch]) for batch in islice(whole.train, 10)]
    ranks = [make_training_data(settings, FEATURES, 2, 4, Process(r, 2), seed=3).train for r in range(2)]
    assert [windows_of([next(r) for r in ranks]) for _ in range(10)] == expected
    other = make_training_data(settings, FEATURES, 2, 8, seed=4)
    assert [windows_of([batch]) for batch in islice(other.train, 10)] != expected


def test_weights_are_the_observed_frequencies_and_frames_of_a_set_come_equally_often():
    rows = [np.arange(1000), np.arange(50), np.arange(100, 300)]
    weights = [0.2, 0.7, 0.1]
    draws = MixtureOrder(rows, weights, seed=0).draws(0, 20_000)
    observed = np.bincount(draws[:, 0], minlength=3) / len(draws)
    np.testing.assert_allclose(observed, weights, rtol=0.01)
    for number, usable in enumerate(rows):
        counts = Counter(draws[draws[:, 0] == number, 1].tolist())
        assert counts.keys() == set(usable.tolist())
        assert max(counts.values()) - min(counts.values()) <= 1
    # No run of one set: near any position the frequencies are right, too.
    near = np.bincount(draws[5000:6000, 0], minlength=3) / 1000
    np.testing.assert_allclose(near, weights, atol=0.06)


def test_batches_over_ranks_and_workers_have_the_frequencies_of_the_weights(roots):
    settings = mixture(roots["a"], roots["b"], weights=[1.0, 3.0], image_size=16, num_workers=1)
    found = []
    for rank in range(2):
        data = make_training_data(settings, FEATURES, 2, 37, Process(rank, 2))
        found += [batch["dataset_index"] for batch in islice(data.train, 5)]
    share = (torch.cat(found) == 1).float().mean()  # ten epochs of 37 draws; as many as frames: 12 of 37
    assert share == pytest.approx(0.75, abs=0.01)


def test_a_weight_of_zero_leaves_a_set_out_and_one_too_small_is_an_error():
    order = MixtureOrder([np.arange(10), np.arange(10)], [1.0, 0.0], 0)
    assert set(order.draws(0, 50)[:, 0].tolist()) == {0}
    with pytest.raises(EpisodeDataError, match=r"number \[1\].*raise the weight"):
        MixtureOrder([np.arange(10), np.arange(10)], [1.0, 1e-4], 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_gives_the_batches_of_an_uninterrupted_run(roots, workers):
    augmentation = AugmentationSettings(enable=True)
    settings = mixture(roots["a"], num_workers=workers, augmentation=augmentation)
    settings.datasets[0].weight = 2.0
    whole = make_training_data(settings, FEATURES, 2, 4).train
    expected = list(islice(whole, 12))
    begun = make_training_data(settings, FEATURES, 2, 4).train
    list(islice(begun, 5))
    state = json.loads(json.dumps(begun.state_dict()))
    resumed = make_training_data(settings, FEATURES, 2, 4).train
    next(resumed)
    resumed.load_state_dict(state)
    assert all(equal(a, b) for a, b in zip(islice(resumed, 7), expected[5:], strict=True))
    assert resumed.state_dict() == whole.state_dict()


def test_workers_change_neither_the_batches_nor_the_global_generator(roots):
    augmentation = AugmentationSettings(enable=True)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches = [
        list(islice(make_training_data(mixture(roots["a"], num_workers=n, augmentation=augmentation),
                                       FEATURES, 2, 6).train, 6))
        for n in (0, 1, 2)
    ]  # fmt: skip
    assert all(equal(a, b) for other in batches[1:] for a, b in zip(batches[0], other, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_position_in_other_data_is_refused(roots):
    state = make_training_data(mixture(roots["a"]), FEATURES, 2, 4).train.state_dict()
    for other in (mixture(roots["a"], val_split_ratio=0.3), mixture(roots["lerobot"])):
        other.datasets[0].data_features_name_mapping = (
            {}
            if other.val_split_ratio
            else {CAMERA: "image", "observation.state": "state", "action": "actions"}
        )
        with pytest.raises(ValueError, match=r"data position.*resume with those"):
            make_training_data(other, FEATURES, 2, 4).train.load_state_dict(state)


# Split ------------------------------------------------------------------------------------------------------


def test_no_episode_is_on_both_sides_and_other_data_sets_change_nothing(roots):
    alone = make_training_data(mixture(roots["a"], val_split_ratio=0.4), FEATURES, 2, 5)
    both = make_training_data(
        mixture(roots["b"], roots["a"], val_split_ratio=0.4, image_size=16), FEATURES, 2, 5
    )
    held_out = [windows_of(data.validation or []) for data in (alone, both)]
    assert sorted(w - 12 for w in held_out[1] if w >= 12) == sorted(held_out[0])
    trained = set(windows_of(islice(alone.train, 25)))
    assert trained | set(held_out[0]) == set(range(25))
    assert trained.isdisjoint(held_out[0])
    episode_of = np.repeat(np.arange(5), [3, 4, 5, 6, 7])
    assert len({episode_of[w] for w in held_out[0]}) == 2
    assert {episode_of[w] for w in trained}.isdisjoint({episode_of[w] for w in held_out[0]})


def test_validation_covers_each_frame_once_over_the_ranks_in_every_pass(roots):
    settings = mixture(roots["a"], val_split_ratio=0.6, augmentation=AugmentationSettings(enable=True))
    whole = make_training_data(settings, FEATURES, 2, 2).validation
    parts = [make_training_data(settings, FEATURES, 2, 2, Process(r, 3)).validation for r in range(3)]
    assert whole is not None
    found = windows_of(batch for part in parts for batch in part or [])
    assert sorted(found) == sorted(windows_of(whole)) == sorted(set(found))
    assert len(found) == whole.num_frames
    assert [windows_of(whole), sum(len(part or []) for part in parts)] == [windows_of(whole), len(whole)]
    images = opened(roots["a"]).images[CAMERA]
    for batch in whole:  # not augmented
        assert np.array_equal(batch[CAMERA], images[batch["window"].numpy()])


def test_the_split_moves_few_episodes_when_some_are_added():
    few, many = np.arange(100), np.arange(110)
    a, b = (set(x[validation_episodes(x, 0.1, 0)].tolist()) for x in (few, many))
    assert (len(a), len(b)) == (10, 11)
    assert len({n for n in b if n < 100} - a) <= 1
    assert validation_episodes(np.arange(3), 0.05, 0).sum() == 1
    assert not validation_episodes(np.arange(1), 0.5, 0).any()
    assert not validation_episodes(np.arange(3), 0.0, 0).any()


# Augmentation -----------------------------------------------------------------------------------------------


def test_all_cameras_of_a_sample_change_alike_and_the_key_decides():
    image = make_episode(0, size=48).images["front"][0]
    images = {"front": image, "left": image.copy(), "wrist": image.copy()}
    settings = AugmentationSettings(enable=True)
    changed = augment(images, settings, (0, 5, 0))
    assert {x.dtype for x in changed.values()} == {np.dtype(np.uint8)}
    assert np.array_equal(changed["front"], changed["left"])
    assert not np.array_equal(changed["front"], image)
    assert not np.array_equal(changed["front"], changed["wrist"])
    again = augment({"front": image}, settings, (0, 5, 0))
    assert np.array_equal(again["front"], changed["front"])
    for other in ((1, 5, 0), (0, 6, 0), (0, 5, 1)):
        assert not np.array_equal(augment({"front": image}, settings, other)["front"], changed["front"])
    still = AugmentationSettings(True, 1.0, 0.0, 0.0, 0.0, 0.0)
    assert np.array_equal(augment({"front": image}, still, (0, 5, 0))["front"], image)


def test_a_crop_is_a_part_of_the_image_at_full_size():
    ramp = np.broadcast_to(np.arange(40, 240, dtype=np.uint8)[None, :, None], (200, 200, 3)).copy()
    settings = AugmentationSettings(True, 0.5, 0.0, 0.0, 0.0, 0.0)
    lefts = []
    for key in range(8):
        crop = augment({"front": ramp}, settings, (key,))["front"]
        assert crop[100, -1, 0].astype(int) - crop[100, 0, 0] == pytest.approx(100, abs=2)
        assert crop.min() >= 40, "nothing beyond the image comes in"
        lefts.append(int(crop[100, 0, 0]))
    assert max(lefts) - min(lefts) > 30


def test_augmentation_differs_between_passes_over_the_data(roots):
    settings = mixture(roots["a"], augmentation=AugmentationSettings(enable=True))
    data = make_training_data(settings, FEATURES, 2, 25)
    first, second = next(data.train), next(data.train)
    order = [first["window"].argsort(), second["window"].argsort()]
    differs = (first[CAMERA][order[0]] != second[CAMERA][order[1]]).flatten(1).any(1)
    assert differs.float().mean() > 0.9


# Errors -----------------------------------------------------------------------------------------------------


def test_what_is_wrong_with_settings_is_said_at_once():
    bad = MixtureSettings(
        datasets=[DatasetSettings(), DatasetSettings(repo_id="x", advantage="off", weight=1.0)],
        action_freq=0.0,
        vector_resample_strategy="cubic",
        augmentation=AugmentationSettings(crop_scale=2.0),
    )
    with pytest.raises(ValueError, match="dataset_mixture") as error:
        check_mixture(bad)
    for part in ("action_freq", "'cubic'", "weight: expected in all", "datasets[0].repo_id",
                 "datasets[1].advantage", "crop_scale"):  # fmt: skip
        assert part in str(error.value)
    with pytest.raises(ValueError, match="expected one per data set \\(1\\), found 2"):
        check_mixture(replace(mixture("x"), weights=[1.0, 2.0]))


def test_settings_are_structured_configurations(roots):
    given = {
        "datasets": [{"repo_id": roots["a"], "episodes": [0, 1]}, {"root": roots["b"]}],
        "weights": [1.0, 1.0],
        "action_freq": 10,
        "image_resample_strategy": "nearest",
        "vector_resample_strategy": "linear",
    }
    schema = OmegaConf.structured(MixtureSettings)
    OmegaConf.update(
        schema, "datasets", [OmegaConf.structured(DatasetSettings(**x)) for x in given["datasets"]]
    )
    settings = OmegaConf.to_object(
        OmegaConf.merge(schema, {k: v for k, v in given.items() if k != "datasets"})
    )
    assert isinstance(settings, MixtureSettings)
    check_mixture(settings)
    assert settings.datasets[0].episodes == [0, 1]
    assert settings.action_freq == 10.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repo_id": "no/such/directory"}, "no LeRobotDataset.*Correct repo_id or root"),
        (
            {"repo_id": "me/set", "root": "nowhere"},
            "no LeRobotDataset.*hf download --repo-type dataset me/set",
        ),
        ({"episodes": [0, 7]}, "episodes: expected numbers of its episodes, 0 to 4, found \\[7\\]"),
        ({"excluded_episodes": [0, 1, 2, 3, 4]}, "leave none of 5 episodes"),
        ({"data_features_name_mapping": {CAMERA: "picture"}}, "'picture'.*found.*data_features_name_mapping"),
        ({"data_features_name_mapping": {"image": CAMERA}}, "expected keys from.*found \\['image'\\]"),
        ({"data_features_name_mapping": {"action": "observation.state"}}, "action: expected the policy's 3"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(roots, changes, message):
    settings = mixture(roots["a"])
    settings.datasets[0] = replace(settings.datasets[0], **changes)
    with pytest.raises(EpisodeDataError, match=message):
        make_training_data(settings, FEATURES, 2, 4)


def test_a_hub_name_without_network_is_one_clear_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        EpisodeDataError, match=r"nobody/nothing: cannot be loaded.*give its directory as root"
    ):
        open_set(DatasetSettings(repo_id="nobody/nothing"))


def test_an_unfinished_or_repeated_set_is_refused(roots, tmp_path):
    (tmp_path / "set.partial").mkdir()
    with pytest.raises(EpisodeDataError, match="not finished"):
        open_set(DatasetSettings(repo_id=str(tmp_path / "set")))
    with pytest.raises(EpisodeDataError, match=r"datasets\[0\] and datasets\[1\] both hold episode 0"):
        make_training_data(mixture(roots["a"], roots["a"]), FEATURES, 2, 4)


def test_an_incomplete_copy_or_another_format_is_refused_without_asking_the_hub(roots, tmp_path):
    whole = Path(shutil.copytree(roots["video"], tmp_path / "set"))
    frames, video = next(whole.glob("data/*/*.parquet")), next(whole.glob("videos/*/*/*.mp4"))
    shutil.move(video, tmp_path / "aside")
    with pytest.raises(
        EpisodeDataError, match=r"file-00\d.mp4: .*expected a video, found no file; .*make it again"
    ):
        open_set(DatasetSettings(repo_id=str(whole)))
    frames.unlink()
    with pytest.raises(EpisodeDataError, match=r"data: expected frames in .*, found none"):
        open_set(DatasetSettings(repo_id=str(whole)))
    info = json.loads((whole / "meta/info.json").read_text())
    (whole / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v2.1"}))
    with pytest.raises(EpisodeDataError, match=r"found v2\.1; convert it"):
        open_set(DatasetSettings(repo_id=str(whole)))


def test_a_set_below_its_root_is_found(roots):
    frames = open_set(DatasetSettings(repo_id="a", root=str(Path(roots["a"]).parent)), cameras=())
    assert (frames.name, frames.num_frames, frames.images) == (roots["a"], 25, {})


@pytest.mark.parametrize(
    ("raised", "is_lost"),
    [
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (EOFError(), True),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), True),
        (FileNotFoundError("Caught FileNotFoundError in DataLoader worker process 0."), False),
        (RuntimeError("a shape does not fit"), False),
    ],
)
def test_a_reader_that_ends_is_told_from_one_that_raises(raised, is_lost):
    """Killed between a batch's announcement and its memory, it breaks the trainer's connection."""

    def batches():
        yield {"window": 1}
        raise raised

    received = training_data._received(batches())
    assert next(received) == {"window": 1}
    with pytest.raises(RuntimeError if is_lost else type(raised)) as told:
        next(received)
    if is_lost:
        assert training_data.is_of_a_reader(told.value)
    else:
        assert told.value is raised
