"""Makes what README opens with from the directory of a demo run: a figure, and a rollout before and after.

    make demo
    python tools/readme_figure.py pi0/ript/output/demo

Writes docs/images/recap.png and docs/images/before_after.gif: SFT and the published policy from one held-out
state on which, of those in the videos, SFT fails and the published policy succeeds; at half speed.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from pi0.ript.evaluate import EpisodeResult
from pi0.ript.recap.report import figure_beside_filtered
from pi0.ript.recap.run_record import RecapRun, read_recap_run

IMAGES = Path(__file__).parent.parent / "docs/images"
MOST_BYTES = 1_500_000
_HEADER, _COLORS, _SLOWER = 26, 64, 2  # pixels above a tile for its name; colours; times real time


def tiles(file: Path, count: int) -> list[UInt8[np.ndarray, "t h w 3"]]:
    """Return the tiles of a video that `pi0.ript.video.write_grid` wrote, each of them over time."""
    reader: Any = imageio.get_reader(file)
    with reader:
        frames = np.stack([frame for frame in reader])  # noqa: C416 - list() asks for its length: infinite
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    height, width = frames.shape[1] // rows, frames.shape[2] // columns
    places = [(i // columns * height, i % columns * width) for i in range(count)]
    return [frames[:, top : top + height, left : left + width] for top, left in places]


def shown_episode(before: list[EpisodeResult], after: list[EpisodeResult]) -> int:
    """Return the first state on which only the second policy succeeds.

    Raises:
        ValueError: There is none.
    """
    pairs = zip(before, after, strict=True)
    found = [i for i, (first, second) in enumerate(pairs) if second.success and not first.success]
    if not found:
        raise ValueError(
            f"none of the {len(before)} states in the videos is one on which only the published policy "
            "succeeds; make the run with a larger eval.n_video"
        )
    return found[0]


def write_animation(run: RecapRun, path: Path) -> None:
    """Write an animation of SFT beside the published policy."""
    published = run.published or list(run.evaluations)[-1]
    names = {"before: SFT": "SFT", f"after: {published}": published}
    count = _number_in_video(run)
    episodes = [list(run.evaluations[name].episodes[:count]) for name in names.values()]
    place = shown_episode(*episodes)
    parts = [tiles(run.videos[name], count)[place] for name in names.values()]
    length = max(map(len, parts))
    frames = []
    for time in range(length):
        pair = [part[min(time, len(part) - 1)] for part in parts]
        sheet = Image.new("RGB", (sum(x.shape[1] for x in pair), pair[0].shape[0] + _HEADER), "white")
        left = 0
        for name, image in zip(names, pair, strict=True):
            ImageDraw.Draw(sheet).text((left + 6, 5), name, "black", ImageFont.load_default(14))
            sheet.paste(Image.fromarray(image), (left, _HEADER))
            left += image.shape[1]
        frames.append(sheet.quantize(_COLORS))
    hold = 12 * [frames[-1]]
    rate = imageio.get_reader(run.videos["SFT"]).get_meta_data()["fps"]
    frames[0].save(
        path,
        save_all=True,
        append_images=[*frames[1:], *hold],
        duration=_SLOWER * 1000 / rate,
        loop=0,
        optimize=True,
    )


def _number_in_video(run: RecapRun) -> int:
    """Return how many episodes the videos of a run with one task show."""
    import yaml

    settings = yaml.safe_load((run.directory / "experiment_cfg/config.yaml").read_text())
    return settings["eval"]["n_video"]


def main() -> int:
    """Write both files; return an exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="directory of the run")
    parser.add_argument("--output", type=Path, default=IMAGES, help="directory of the images")
    options = parser.parse_args()
    run = read_recap_run(options.run)
    figure = figure_beside_filtered(run)
    if figure is None:
        sys.exit(f"error: {options.run}: expected rounds of RECAP and of filtered imitation, found none")
    options.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output / "recap.png")
    animation = options.output / "before_after.gif"
    write_animation(run, animation)
    sizes = {file.name: file.stat().st_size for file in (options.output / "recap.png", animation)}
    print(json.dumps(sizes))
    return 0 if max(sizes.values()) <= MOST_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
