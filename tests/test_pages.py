"""Every kind of page in a browser: nothing is missing on it, and it can be read on a phone.

`make test-pages` runs these alone; without Chromium they are skipped.
"""

import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Tab, headless_tab
from conftest import METAWORLD, metaworld_policy, opened
from test_episodes import make_episode, publish
from test_recap_report import EPSILON, whole_run
from test_recap_training import chain
from test_run_logging import a_run
from test_supervised import settings as supervised_settings
from test_video import episode

from pi0.ript import interruption
from pi0.ript.commands.dataset_viz import main as dataset_viz
from pi0.ript.config import TrainConfig, save_config
from pi0.ript.config.schema import EnvironmentSettings, EvalSettings
from pi0.ript.data.records import CollectionInfo
from pi0.ript.data.writer import EpisodeWriter
from pi0.ript.distributed import World
from pi0.ript.evaluate import EpisodeResult, Evaluation
from pi0.ript.evaluation_settings import EvaluationConfig
from pi0.ript.labels.advantages import write_advantages
from pi0.ript.policy_evaluation import evaluate_policy
from pi0.ript.recap.report import write_recap_report
from pi0.ript.report import write_report
from pi0.ript.results import write_evaluation
from pi0.ript.supervised.trainer import Training

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium")

PHONE, SCREEN = 390, 1200
SMALLEST_LETTERS = 12  # pixels
LOOK = """
(async () => {
    const settled = video => video.readyState > 0 || video.error ? null : new Promise(done => {
        video.onloadedmetadata = video.onerror = done;
        setTimeout(done, 5000);
    });
    const all = selector => [...document.querySelectorAll(selector)];
    all("details").forEach(details => details.open = true);
    await Promise.all(all("video").map(settled));
    const faults = [];
    for (const image of all("img"))
        if (!image.complete || !image.naturalWidth) faults.push(`image ${image.alt} is not loaded`);
    for (const video of all("video"))
        if (!video.videoWidth) faults.push(`video ${video.getAttribute("src")} is not loaded`);
    const width = document.documentElement.scrollWidth;
    if (width > WIDTH) faults.push(`the page is ${width} pixels wide`);
    for (const table of all("table")) {
        const box = table.closest("div");
        if (box === null || getComputedStyle(box).overflowX !== "auto")
            faults.push("a table has no box to be scrolled in");
    }
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const small = new Set();
    while (walker.nextNode()) {
        const size = parseFloat(getComputedStyle(walker.currentNode.parentElement).fontSize);
        const text = walker.currentNode.data.trim();
        if (text && size < SMALLEST) faults.push(`${text.slice(0, 40)} has letters of ${size} pixels`);
    }
    const boxes = all(".scroll").filter(box => box.scrollWidth > box.clientWidth);
    return {faults, images: all("img").length, videos: all("video").length, scrolled: boxes.length};
})()
"""


def look(tab: Tab, page: Path, width: int) -> dict:
    """What is on a page in a window of this width; its faults are those of the page and of the console."""
    tab.open(page, width)
    found = tab.evaluate(LOOK.replace("WIDTH", str(width)).replace("SMALLEST", str(SMALLEST_LETTERS)))
    found["faults"] += tab.complaints()
    return found


@pytest.fixture(scope="module")
def tab(tmp_path_factory) -> Iterator[Tab]:
    with headless_tab(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


# The pages --------------------------------------------------------------------------------------------------


def evaluation(num_successes: int, *, shown: bool = True) -> Evaluation:
    """Twenty episodes of two tasks, two of them in the video."""
    episodes = tuple(EpisodeResult(f"suite/{i // 10}", str(i), i < num_successes, 9 + i) for i in range(20))
    return Evaluation(0, episodes, (episode(True, 8), episode(False, 8)) if shown else ())


def rung(directory: Path) -> Path:
    run_dir = directory / "a-run-with-quite-a-long-name_of_an_experiment-2025-11-28T11-09-00"
    run_dir.mkdir()
    save_config(TrainConfig(exp_name=run_dir.name), run_dir)
    a_run(run_dir, 30)
    for name, num_successes in (("before", 4), ("after", 13)):
        write_evaluation(run_dir / name, evaluation(num_successes))
    return write_report(run_dir)


def recap(directory: Path) -> Path:
    run_dir = whole_run(directory / "run")
    write_evaluation(directory / "real", evaluation(4))
    for video in run_dir.rglob("evaluation.mp4"):
        shutil.copy(directory / "real.mp4", video)
    return write_recap_report(run_dir)


def pi0_train(directory: Path) -> Path:
    """A run whose simulator is replaced by results."""

    class Results:
        num_successes = iter((4, 9, 13))

        def evaluate(self, policy: object, path: Path) -> Evaluation:
            result = evaluation(next(self.num_successes))
            path.parent.mkdir(exist_ok=True)
            write_evaluation(path, result)
            return result

        def close(self) -> None:
            pass

    root = publish(directory / "demos", {i: make_episode(i, length=3 + i) for i in range(5)})
    config = supervised_settings(str(root), directory, val_freq=3, eval_freq=2)
    handlers = {number: signal.getsignal(number) for number in interruption._SIGNALS}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Training, "_simulation", lambda self: Results())
            return Training(config, World()).run() / "report.html"
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def pi0_eval(directory: Path) -> Path:
    policy = metaworld_policy()
    for name in ("first", "second"):
        policy.save_pretrained(directory / name)
    limits = {"max_episode_length": 10, "num_parallel_envs": 2, "num_workers": 0}
    evaluate_policy(
        EvaluationConfig(
            policy_path=str(directory / "first"),
            compare=str(directory / "second"),
            task=EnvironmentSettings("metaworld", list(METAWORLD), **limits),
            eval=EvalSettings(rollouts_per_task=1),
            device="cpu",
            output_dir=str(directory / "eval"),
        )
    )
    return directory / "eval/report.html"


def pi0_dataset_viz(directory: Path) -> Path:
    writer = EpisodeWriter(directory / "set", CollectionInfo(20, "test", "image", {"operator": "a person"}))
    for i in range(5):
        writer.add(i, chain(i, 4 + i, success=i % 3 > 0))
    episodes = opened(writer.finalize())
    advantages = np.linspace(-0.4, 0.6, int(episodes.lengths.sum()))
    write_advantages(directory / "set", episodes, advantages, {"epsilon": EPSILON})
    assert dataset_viz([str(directory / "set")]) == 0
    return directory / "set.html"


def labelling(directory: Path) -> Path:
    writer = EpisodeWriter(directory / "set", CollectionInfo(20, "test", "image", {}))
    for i in range(5):
        episode = chain(i, 4 + i, success=i % 3 > 0)
        text = f"{episode.labels.instruction}, then put everything back where it was"
        writer.add(i, replace(episode, labels=replace(episode.labels, instruction=text)))
    writer.finalize()
    assert dataset_viz([str(directory / "set"), "--label"]) == 0
    return directory / "set-label.html"


HAS = {  # images, videos
    rung: (5, 2),
    recap: (7, 4),
    pi0_train: (4, 3),
    pi0_eval: (0, 2),
    pi0_dataset_viz: (9, 0),
    labelling: (0, 1),
}


@pytest.fixture(scope="module", params=HAS, ids=lambda make: make.__name__)
def kind_and_page(request, tmp_path_factory):
    return request.param, request.param(tmp_path_factory.mktemp(request.param.__name__))


@pytest.mark.sim
@pytest.mark.parametrize("width", [PHONE, SCREEN])
def test_a_page_is_whole_and_can_be_read(tab, kind_and_page, width):
    kind, page = kind_and_page
    found = look(tab, page, width)
    assert found["faults"] == []
    assert (found["images"], found["videos"]) == HAS[kind]
    if width == PHONE:
        assert found["scrolled"] > 0, "no table is too wide for a phone: the page does not show that it fits"


def test_faults_of_a_page_are_seen(tab, tmp_path):
    """Otherwise a page without faults would say nothing."""
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    page = tmp_path / "page.html"
    page.write_text(
        '<meta name="viewport" content="width=device-width"><img alt="a" src="missing.png">'
        '<video src="broken.mp4"></video><video src="missing.mp4"></video><p style="font-size: 11px">tiny</p>'
        '<table><tr><td style="min-width: 500px">wide</table>'
        '<script>console.error("said"); null.thrown</script>'
    )
    faults = look(tab, page, PHONE)["faults"]
    expected = (
        *("image a is not", "video broken.mp4 is not", "video missing.mp4 is not", "tiny has letters of 11"),
        *("the page is 5", "a table has no box", "said", "TypeError", "ERR_FILE_NOT_FOUND"),
    )
    for text in expected:
        assert any(text in fault for fault in faults), (text, faults)
    page.write_text('<meta name="viewport" content="width=device-width"><p>nothing wrong')
    assert look(tab, page, PHONE)["faults"] == [], "those of the page before are forgotten"
