"""The page of a RECAP run: what each round gained, and what the value function says of the episodes.

Axes: none.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pi0.ript import page
from pi0.ript.episodes import EpisodeSet, load_episodes, load_labels
from pi0.ript.evaluate import Evaluation, compare
from pi0.ript.labels.frames import LabelledFrames
from pi0.ript.pages.episode_figures import draw_episode
from pi0.ript.pages.frame_figures import advantage_figure, calibration_figure, positive_text, value_limits
from pi0.ript.pages.success_figures import steps_figure, success_figure, task_success_figure
from pi0.ript.recap.run_record import SFT, RecapRun, read_recap_run


def write_recap_report(run_dir: Path, names: Collection[str] | None = None) -> Path:
    """Draw RUN_DIR/plots/*.png, write RUN_DIR/report.html with them inside, and return the page.

    It shows what is there, of the stages `names` if given; a run under way has fewer parts.

    Raises:
        EpisodeDataError: Rollouts or their advantages are damaged, or not of each other.
        ValueError: Another file is damaged, or two rounds were evaluated on different states.
    """
    run = read_recap_run(run_dir, names)
    (run_dir / "plots").mkdir(exist_ok=True)
    sections = [
        ("", _headline(run)),
        ("Success by round", _success(run)),
        ("Value over time", _values_over_time(run)),
        ("Advantages", _advantages(run)),
        ("Value function", _calibration(run)),
        ("Videos", _videos(run)),
        ("Stages", _stages(run)),
        ("Configuration", _configuration(run_dir)),
    ]
    return page.write_page(run_dir / "report.html", run_dir.resolve().name, sections)


def _headline(run: RecapRun) -> str:
    first = run.evaluations.get(SFT)
    last = run.evaluations[run.last] if run.last else None
    if first is None or last is None:
        only = [(name, e) for name, e in ((SFT, first), (run.last, last)) if e is not None]
        return page.cards([(f"success, {name}", f"{e.success_rate:.1%}", _counted(e)) for name, e in only])
    change = compare(first, last)
    low, high = (100 * bound for bound in change.interval)
    return page.cards(
        [
            (
                f"success, {SFT} → {run.last}",
                f"{first.success_rate:.1%} → {last.success_rate:.1%}",
                f"{_counted(first)} → {_counted(last)} held-out states",
            ),
            (
                "gained",
                f"{100 * change.difference:+.1f} points",
                f"[{low:+.1f}, {high:+.1f}] paired, p = {change.p_value:.2g}",
            ),
            (
                f"steps to success, {SFT} → {run.last}",
                f"{_steps(first)} → {_steps(last)}",
                "mean over the successes of each",
            ),
        ]
    )


def _counted(evaluation: Evaluation) -> str:
    return f"{evaluation.num_successes}/{evaluation.num_episodes}"


def _steps(evaluation: Evaluation) -> str:
    mean = evaluation.mean_steps_to_success
    return "none" if mean is None else f"{mean:.1f}"


def _success(run: RecapRun) -> str:
    if not (run.evaluations or run.baselines):
        return ""
    plots = [
        _plot(run, "success", success_figure(run.evaluations, run.baselines)),
        _plot(run, "steps_to_success", steps_figure(run.evaluations, run.baselines)),
    ]
    tasks = _plot(run, "success_by_task", task_success_figure(run.evaluations))
    return page.grid(list(filter(None, plots))) + tasks + _evaluation_tables(run)


def _evaluation_tables(run: RecapRun) -> str:
    """Return every evaluation in total and, if there are several tasks, by task."""
    first = run.evaluations.get(SFT)
    everything = {**run.evaluations, **run.baselines}
    rows = [
        [name, str(e), "" if first is None or name == SFT else _gain(first, e), _steps(e)]
        for name, e in everything.items()
    ]
    header = ("policy", "success [95%]", f"points over {SFT} [95%, paired]", "steps to success")
    by_task = [e.by_task() for e in everything.values()]
    tasks = dict.fromkeys(task for parts in by_task for task in parts)
    lines = [[t, *(str(parts[t]) if t in parts else None for parts in by_task)] for t in tasks]
    return page.table(header, rows) + page.table(["task", *everything], lines if len(tasks) > 1 else [])


def _gain(first: Evaluation, other: Evaluation) -> str:
    """Return the gain, or that there is none to tell for a policy that met other states."""
    if {e.state for e in first.episodes} != {e.state for e in other.episodes}:
        return "other states"
    return str(compare(first, other))


def _values_over_time(run: RecapRun) -> str:
    """Return a success and a failure of the newest rollouts that have values."""
    for number in sorted(run.frames, reverse=True):
        source = run.frames[number].get(f"rollouts-{number}")
        if source is not None and (run.rollouts(number) / "meta/info.json").exists():
            return _two_episodes(run, number, source)
    return ""


def _two_episodes(run: RecapRun, number: int, source: LabelledFrames) -> str:
    rollouts = load_labels(run.rollouts(number))
    parts = []
    for index in typical_episodes(rollouts):
        labels = rollouts.labels[index]
        outcome = "success" if labels.success else "failure"
        task = labels.task_id or labels.instruction
        figure = draw_episode(
            load_episodes(run.rollouts(number), only=[index])[0],
            source.episode(index),
            run.thresholds[number].get(task),
            value_limits=value_limits([source]),
            num_cameras=1,
        )
        caption = (
            f"{outcome}: episode {index} of the rollouts of round {number}, {task}, "
            f"{rollouts.lengths[index]} steps; the {outcome} of median length"
        )
        parts.append(_plot(run, f"value_{outcome}", figure, caption))
    return "".join(parts)


def typical_episodes(episodes: EpisodeSet) -> list[int]:
    """Return a success and a failure, each of median length, of the first task that has both.

    If no task has both, those of all tasks together; only one if all episodes ended alike.
    """
    tasks = [labels.task_id or labels.instruction for labels in episodes.labels]
    ends = [labels.success for labels in episodes.labels]
    seen = set(zip(tasks, ends, strict=True))
    both = [task for task in dict.fromkeys(tasks) if {(task, True), (task, False)} <= seen]
    chosen = [i for i, task in enumerate(tasks) if not both or task == both[0]]
    found = []
    for end in (True, False):
        ranked = sorted((i for i in chosen if ends[i] is end), key=lambda i: (episodes.lengths[i], i))
        found += ranked[(len(ranked) - 1) // 2 :][:1]
    return found


def _advantages(run: RecapRun) -> str:
    if not run.frames:
        return ""
    newest = max(run.frames)
    figure = advantage_figure(run.frames[newest], run.thresholds[newest])
    rows = [
        [n, name, positive_text(source, run.thresholds[n]), _thresholds(run.thresholds[n])]
        for n, sources in run.frames.items()
        for name, source in sources.items()
    ]
    plot = _plot(run, "advantages", figure, f"round {newest}; the outermost bars hold what lies beyond")
    return plot + page.table(["round", "source", "labels", "epsilon"], rows, is_text=True)


def _thresholds(epsilon: dict[str, float]) -> str:
    if len(set(epsilon.values())) == 1:
        return f"{next(iter(epsilon.values())):.6g}"
    return page.one_line(epsilon)


def _calibration(run: RecapRun) -> str:
    rounds = {f"round {n}": list(sources.values()) for n, sources in run.frames.items()}
    caption = "All frames of all sources, those that the value function was trained on included."
    plot = _plot(run, "calibration", calibration_figure(rounds), caption)
    rows = [[name, *found.to_dict().values()] for name, found in run.calibrations.items()]
    names = [name for found in list(run.calibrations.values())[:1] for name in found.to_dict()]
    header = ["value function", *(name.replace("num_", "held-out ").replace("_", " ") for name in names)]
    return plot + page.table(header, rows)


def _videos(run: RecapRun) -> str:
    places = {**run.evaluation_dirs, **run.baseline_dirs}
    return page.grid(
        [page.video(run.directory, path / "evaluation.mp4", name) for name, path in places.items()]
    )


def _stages(run: RecapRun) -> str:
    rows: list[Sequence[Any]] = [
        [name, _duration(stage["seconds"]), page.one_line(stage.get("figures", {}))]
        for name, stage in run.stages.items()
    ]
    if rows:
        rows.append(["all", _duration(sum(stage["seconds"] for stage in run.stages.values())), ""])
    return page.table(["stage", "time", "figures"], rows, is_text=True)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _configuration(run_dir: Path) -> str:
    files = sorted((run_dir / "experiment_cfg").glob("*.yaml"))
    return "".join(page.folded(path.name, path.read_text()) for path in files)


def _plot(run: RecapRun, name: str, figure: Any | None, caption: str = "") -> str:
    """Write a figure to plots/NAME.png and return it for the page; nothing for None."""
    if figure is None:
        return ""
    data = page.png(figure)
    (run.directory / f"plots/{name}.png").write_bytes(data)
    return page.image(data, name, caption)
