"""Reading speed and memory on a large video set, beside lerobot's LeRobotDataset with torch's DataLoader.

    python benchmarks/data.py             speed, cold and cached, with 0 and 2 workers (some minutes)
    python benchmarks/data.py --memory    a pass over all frames with cache_gib 0 and 1: memory and numbers
    python benchmarks/data.py --frames 2000 --rounds 1 --batches 5     a quick look

The set has two cameras of 256 pixels and is made once, into .cache/ (40,000 frames: some minutes). Each image
carries its frame's number in black and white squares. Both read it in random order: cold from all frames,
cached from the first 2,000 after a pass over them. Runs alternate; a figure is the median of the rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from figures import Figures, add_figures_option
from tqdm import tqdm

from pi0 import FeatureConfig
from pi0.ript.data.records import CollectionInfo, Episode, EpisodeLabels
from pi0.ript.data.settings import DatasetSettings, MixtureSettings
from pi0.ript.data.training_data import TrainingData, make_training_data
from pi0.ript.data.writer import EpisodeWriter

ROOT = Path(__file__).parent.parent
CAMERAS = ("front", "wrist")
SIZE, LENGTH, FPS = 256, 200, 20
CACHED_FRAMES = 2000
BATCH_SIZE = 32
_BITS, _SQUARE = 20, 8  # of a painted number; pixels
_LEAST = {"cold": 0.9, "cached": 3.0}
_MOST_GIB = 1.3


def painted(number: int, camera: int) -> np.ndarray:
    """Return a picture of a frame, which shows its number and its camera's."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    waves = [np.sin((x * (1 + c) + y * (2 - c)) / 40 + number / (7 + camera)) for c in range(3)]
    image = (127 + 100 * np.stack(waves, -1)).astype(np.uint8)
    for bit in range(_BITS):
        top, left = (_SQUARE * place for place in divmod(bit, 8))
        image[top : top + _SQUARE, left : left + _SQUARE] = 255 * (((number * 2 + camera) >> bit) & 1)
    return image


def read_number(image: np.ndarray) -> tuple[int, int]:
    """Return the number of the frame and of the camera that a picture shows."""
    value = 0
    for bit in range(_BITS):
        top, left = (_SQUARE * place + 2 for place in divmod(bit, 8))
        square = image[top : top + _SQUARE - 4, left : left + _SQUARE - 4]
        value |= int(square.mean() > 127) << bit
    return value // 2, value % 2


def make_set(num_frames: int) -> Path:
    """Return the set's directory; it is made if it is not there."""
    root = ROOT / f".cache/benchmark_data/{num_frames}"
    if root.exists():
        return root
    writer = EpisodeWriter(root, CollectionInfo(FPS, "none", "video", {"made": "benchmarks/data.py"}))
    there = writer.finished()
    for number in tqdm(range(num_frames // LENGTH), unit="episode", desc="benchmark set"):
        if number in there:
            continue
        frames = range(number * LENGTH, (number + 1) * LENGTH)
        images = {name: np.stack([painted(i, c) for i in frames]) for c, name in enumerate(CAMERAS)}
        vectors = np.array(frames, np.float32)[:, None] + np.zeros(8, np.float32)
        labels = EpisodeLabels(f"do thing {number % 10}", success=True)
        writer.add(number, Episode(images, vectors, vectors[:, :7].copy(), labels))
    return writer.finalize()


# Readers ----------------------------------------------------------------------------------------------------


def ours(root: Path, num_frames: int, workers: int, cache_gib: float) -> TrainingData:
    """Return this library's batches of the first frames."""
    dataset = DatasetSettings(root=str(root), episodes=list(range(num_frames // LENGTH)))
    settings = MixtureSettings(
        datasets=[dataset], val_split_ratio=0.0, num_workers=workers, cache_gib=cache_gib
    )
    keys = tuple(f"observation.images.{name}" for name in CAMERAS)
    features = FeatureConfig(image_keys=keys, state_dim=8, action_dim=7)
    return make_training_data(settings, features, 1, BATCH_SIZE)


def lerobots(root: Path, num_frames: int, workers: int) -> torch.utils.data.DataLoader[Any]:
    """Return lerobot's batches of the first frames."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    episodes = list(range(num_frames // LENGTH))
    dataset = LeRobotDataset("local/benchmark", root=root, episodes=episodes, return_uint8=True)
    return torch.utils.data.DataLoader(dataset, BATCH_SIZE, shuffle=True, drop_last=True, num_workers=workers)


def rate(batches: Iterator[Any], count: int) -> float:
    """Return samples per second over some batches, after the first one."""
    next(batches)
    start = time.perf_counter()
    for _ in islice(batches, count):
        pass
    return count * BATCH_SIZE / (time.perf_counter() - start)


def compare(
    root: Path, num_frames: int, rounds: int, batches: int, figures: Figures
) -> Iterator[dict[str, Any]]:
    """Yield a row of rates for each number of workers, cold and cached."""
    for workers in (0, 2):
        for kind, frames in (("cold", num_frames), ("cached", min(CACHED_FRAMES, num_frames))):
            data, loader = ours(root, frames, workers, 1.0), lerobots(root, frames, workers)
            if kind == "cached":
                for _ in islice(data.train, -(-frames // BATCH_SIZE) + 1):
                    pass
                data.train.close()
            runs: dict[str, Callable[[], float]] = {
                "ours": lambda train=data.train: _rate_and_close(train, batches),
                "lerobot": lambda loader=loader: rate(iter(loader), min(batches, len(loader) - 1)),
            }
            rates: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(rounds):
                for name, run in runs.items():
                    rates[name].append(run())
            ratios = [a / b for a, b in zip(rates["ours"], rates["lerobot"], strict=True)]
            name, shown = f"frames read, {kind}, {workers} workers", {"at_least": _LEAST[kind]}
            options = {"rival": "lerobot", "theirs": rates["lerobot"], "ratios": ratios, **shown}
            figures.add(name, "per s", rates["ours"], **options)
            medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
            spread = [round(min(ratios), 2), round(max(ratios), 2)]
            ratio = round(statistics.median(ratios), 2)
            yield {"kind": kind, "workers": workers, **medians, "ratio": ratio, "ratios": spread}


def _rate_and_close(train: Any, batches: int) -> float:
    measured = rate(iter(train), batches)
    train.close()  # its workers would read ahead while the other is measured
    return measured


# Memory -----------------------------------------------------------------------------------------------------


def proportional_gib() -> float:
    """Return the memory of this process and its children, what they share counted once (PSS)."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(process.memory_full_info().pss for process in processes) / 2**30


def one_pass(root: Path, num_frames: int, cache_gib: float) -> dict[str, Any]:
    """Read every frame once with two workers; return the most memory and how many numbers were wrong."""
    data = ours(root, num_frames, 2, cache_gib)
    most, wrong, seen, batches = 0.0, 0, 0, num_frames // BATCH_SIZE
    bar = tqdm(islice(data.train, batches), total=batches, desc=f"cache_gib {cache_gib:g}")
    for number, batch in enumerate(bar):
        windows = batch["window"].tolist()
        for camera, name in enumerate(CAMERAS):
            images = batch[f"observation.images.{name}"].numpy()
            shown = [read_number(image) for image in images]
            wrong += sum(found != (window, camera) for found, window in zip(shown, windows, strict=True))
            seen += len(shown)
        if number % 50 == 0 or number == batches - 1:
            most = max(most, proportional_gib())
    counts = {"kept": data.num_kept, "images": seen, "wrong": wrong}
    return {"cache_gib": cache_gib, "pss_gib": round(most, 3), **counts}


def main() -> int:
    """Print rows of JSON; return 1 if something is not as good as it must be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--frames", type=int, default=40_000, help="of the set (%(default)s)")
    add("--rounds", type=int, default=5, help="of each comparison (%(default)s)")
    add("--batches", type=int, default=40, help=f"of {BATCH_SIZE}, measured in a round (%(default)s)")
    add("--memory", action="store_true", help="measure memory instead of speed")
    add_figures_option(parser)
    add("--one-pass", type=float, metavar="GIB", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    root = make_set(options.frames)
    if options.one_pass is not None:
        print(json.dumps(one_pass(root, options.frames, options.one_pass)))
        return 0
    if not options.memory:
        rows, figures = [], Figures()
        for row in compare(root, options.frames, options.rounds, options.batches, figures):
            rows.append(row)
            print(json.dumps(row), flush=True)
        figures.write(options.figures)
        return int(any(row["ratio"] < _LEAST[row["kind"]] for row in rows))
    passes = []
    for gib in (0.0, 1.0):
        command = [sys.executable, __file__, "--frames", str(options.frames), "--one-pass", str(gib)]
        passes.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
        print(json.dumps(passes[-1]), flush=True)
    more = passes[1]["pss_gib"] - passes[0]["pss_gib"]
    print(json.dumps({"more_gib": round(more, 3), "at_most": _MOST_GIB}))
    return int(more > _MOST_GIB or any(row["wrong"] for row in passes))


if __name__ == "__main__":
    sys.exit(main())
