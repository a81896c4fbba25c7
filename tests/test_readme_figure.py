"""What README opens with is made from the directory of a run, and is small."""

import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import readme_figure
from PIL import Image
from test_recap_report import put_evaluation
from test_video import episode

from pi0.ript.evaluate import EpisodeResult, Evaluation
from pi0.ript.recap.run_record import read_recap_run
from pi0.ript.results import write_evaluation

ROOT = Path(__file__).parent.parent


def judged(*successes: bool) -> Evaluation:
    """Four episodes, of which two are in the video."""
    episodes = tuple(EpisodeResult("a", str(i), is_success, 8) for i, is_success in enumerate(successes))
    return Evaluation(0, episodes, tuple(episode(is_success, 8) for is_success in successes[:2]))


@pytest.fixture
def run_dir(tmp_path) -> Path:
    put = {"sft-evaluation": (1, 0, 0, 0), "round-1/evaluation": (1, 1, 0, 0)}
    for place, successes in put.items():
        (tmp_path / place).mkdir(parents=True)
        write_evaluation(tmp_path / place / "evaluation", judged(*map(bool, successes)))
    put_evaluation(tmp_path / "baseline-filtered/round-1/evaluation", judged(True, False, True, False))
    (tmp_path / "experiment_cfg").mkdir()
    (tmp_path / "experiment_cfg/config.yaml").write_text("eval:\n  n_video: 2\n")
    return tmp_path


def test_the_animation_is_of_a_state_that_only_the_published_policy_masters(run_dir, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["readme_figure.py", str(run_dir), "--output", str(run_dir / "images")])
    assert readme_figure.main() == 0
    assert '"before_after.gif": ' in capsys.readouterr().out
    assert (run_dir / "images/recap.png").stat().st_size > 10_000
    assert list(read_recap_run(run_dir).baselines) == ["filtered, round 1"]
    with Image.open(run_dir / "images/before_after.gif") as animation:
        assert animation.n_frames > 1
        sheet = np.asarray(animation.convert("RGB")).astype(int)
    video = imageio.mimread(run_dir / "sft-evaluation/evaluation.mp4")
    height, width = video[0].shape[0], video[0].shape[1] // 2
    assert sheet.shape == (height + 26, 2 * width, 3)
    # The frames around the pictures: red for the failure before, green for the success after.
    before, after = sheet[26 + height // 2, 1], sheet[26 + height // 2, width + 1]
    assert before[0] > 150 > before[1]
    assert after[1] > 120 > after[0]


def test_a_run_without_such_a_state_or_without_the_rival_is_refused(run_dir, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="none of the 2 states in the videos is one on which only"):
        readme_figure.shown_episode(*[list(judged(True, False).episodes)] * 2)
    (run_dir / "baseline-filtered/round-1/evaluation/evaluation.json").unlink()
    monkeypatch.setattr(sys, "argv", ["readme_figure.py", str(run_dir), "--output", str(run_dir / "images")])
    with pytest.raises(SystemExit, match="expected rounds of RECAP and of filtered imitation, found none"):
        readme_figure.main()


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readme_opens_with_them(readme):
    head = (ROOT / readme).read_text().partition("\n## ")[0]
    for name in ("recap.png", "before_after.gif"):
        assert f"](docs/images/{name})" in head
        assert (ROOT / "docs/images" / name).stat().st_size < readme_figure.MOST_BYTES
    assert "python tools/readme_figure.py" in head
