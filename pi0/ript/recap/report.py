"""The page of a RECAP run: what each round gained, and what the value function says of the episodes."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pi0.ript import page
from pi0.ript.data.reader import open_set
from pi0.ript.data.records import EpisodeDataError
from pi0.ript.data.settings import DatasetSettings
from pi0.ript.evaluate import Evaluation
from pi0.ript.files import flatten, hash_file, hash_values, library_hash, write_json
from pi0.ript.labels.frames import LabelledFrames
from pi0.ript.pages.episode_figures import WHY, draw_beside, typical_episodes
from pi0.ript.pages.frame_figures import advantage_figure, calibration_figure, positive_text, value_limits
from pi0.ript.pages.success_figures import rival_figure, steps_figure, success_figure, task_success_figure
from pi0.ript.recap.run_record import RecapRun, read_recap_run
from pi0.ript.recap.stages import STATE
from pi0.ript.report import configuration, headline, success_section


def write_recap_report(run_dir: Path, names: Collection[str] | None = None) -> Path:
    """Draw RUN_DIR/plots/*.png, write RUN_DIR/report.html with them inside, and return the page.

    It shows what is there, of the stages `names` if given; a run under way has fewer parts.

    Raises:
        EpisodeDataError: Rollouts or their advantages are damaged, or not of each other.
        ValueError: Another file is damaged, or two rounds were evaluated on different states.
    """
    run = read_recap_run(run_dir, names)
    sections = [
        ("", headline(_headlined(run)) + _choice(run)),
        ("Success by round", _success(run)),
        ("Why a frame is positive: a success beside a failure", _values_over_time(run)),
        ("Advantages", _advantages(run)),
        ("Value function", _calibration(run)),
        ("Videos", page.grid([page.video(run_dir, path, name) for name, path in run.videos.items()])),
        ("Stages", _stages(run)),
        ("Configuration", configuration(run_dir)),
    ]
    return page.write_page(run_dir / "report.html", run_dir.resolve().name, sections)


def refresh_recap_report(run_dir: Path, names: Collection[str]) -> None:
    """Write the page, as `write_recap_report`, unless it is there and would be the same.

    It is made from what the stages and results.json record, from the settings, and by this library.
    """
    records = (run_dir / STATE, run_dir / "results.json", run_dir / "experiment_cfg/config.yaml")
    made_from = {"made_from": hash_values([list(names), *map(hash_file, records), library_hash()])}
    html, file = run_dir / "report.html", run_dir / "plots/made_from.json"
    if html.exists() and file.exists() and json.loads(file.read_text()) == made_from:
        return
    write_recap_report(run_dir, names)
    file.parent.mkdir(exist_ok=True)
    write_json(file, made_from)


def _success(run: RecapRun) -> str:
    if not (run.evaluations or run.baselines):
        return ""
    others = {name: e for name, e in run.baselines.items() if not name.startswith("filtered, ")}
    beside = page.plot(run.directory, "recap_beside_filtered", figure_beside_filtered(run))
    plots = []
    if others or not beside:  # else it shows the same
        plots = [
            page.plot(run.directory, "success", success_figure(run.evaluations, others)),
            page.plot(run.directory, "steps_to_success", steps_figure(run.evaluations, others)),
        ]
    tasks = page.plot(run.directory, "success_by_task", task_success_figure(run.evaluations))
    return beside + page.grid(plots) + tasks + success_section({**run.evaluations, **run.baselines})


def figure_beside_filtered(run: RecapRun) -> Any | None:
    """Return RECAP beside filtered imitation on its own rollouts; None if that was not asked for."""
    rival = [e for name, e in run.baselines.items() if name.startswith("filtered, ")]
    rollouts = run.stages.get("round-1/rollouts", {}).get("figures", {}).get("episodes")
    updates = run.stages.get("round-1/policy", {}).get("figures", {}).get("steps")
    both = (
        f"Both begin from one SFT policy; a round: {rollouts} rollouts of its own policy, {updates} updates."
    )
    shorter = f"\nFiltered imitation was given {len(rival)} rounds, so that the run ends sooner."
    rounds = len(run.evaluations) - 1
    return rival_figure(
        list(run.evaluations.values()), rival, both + (shorter if len(rival) < rounds else "")
    )


def _headlined(run: RecapRun) -> dict[str, Evaluation]:
    """Return the evaluations up to the policy that was published."""
    names = list(run.evaluations)
    end = names.index(run.published) + 1 if run.published in names else len(names)
    return {name: run.evaluations[name] for name in names[:end]}


def _choice(run: RecapRun) -> str:
    """Return which policy was published and which guidance each acts with, and why."""
    rows = [row for name in run.evaluations for row in _validated(run, name)]
    if not rows:
        return ""
    chosen = f"Published: {run.published}. " if run.published else ""
    rule = (
        "Chosen by most successes on validation states, which are neither trained on nor reported; of equal "
        "ones the later round, and in it the guidance of the settings, then the smallest."
    )
    header = ["policy", "guidance", "validation states [95%]", "acts with it"]
    return page.paragraph(chosen + rule) + page.table(header, rows)


def _validated(run: RecapRun, name: str) -> list[list[str]]:
    """Return a row for each guidance that a policy was tried with; SFT has 1."""
    directory = "" if name == "SFT" else f"{name.replace(' ', '-')}/"
    judged = run.stages.get(f"{directory}evaluation", {}).get("settings", {})
    acts_with = judged.get("guidance") or judged.get("eval", {}).get("cfg_guidance_scale", 1.0)
    first, rows = f"{directory}validation" if directory else "sft-validation", []
    for stage, record in run.stages.items():
        if stage != first and not stage.startswith(f"{first}-guidance-"):
            continue
        figures = record["figures"]
        guidance = record["settings"]["eval"]["cfg_guidance_scale"] if directory else 1.0
        low, high = (100 * bound for bound in figures["interval"])
        count = f"{figures['num_successes']}/{figures['num_episodes']} [{low:.0f}, {high:.0f}]%"
        rows.append([name, f"{guidance:g}", count, _where(acts_with, guidance)])
    return rows


def _where(acts_with: Any, guidance: float) -> str:
    if isinstance(acts_with, dict):
        tasks = [task for task, chosen in acts_with.items() if chosen == guidance]
        return f"in {', '.join(tasks)}" if tasks else ""
    return "yes" if acts_with == guidance else ""


def _values_over_time(run: RecapRun) -> str:
    """Return a success and a failure of the newest rollouts that have values."""
    for number in sorted(run.frames, reverse=True):
        source = run.frames[number].get(f"rollouts-{number}")
        if source is not None and (run.rollouts(number) / "meta/info.json").exists():
            return _two_episodes(run, number, source)
    return ""


def _two_episodes(run: RecapRun, number: int, source: LabelledFrames) -> str:
    rollouts, parts = open_set(DatasetSettings(root=str(run.rollouts(number)))), []
    if rollouts.lengths.tolist() != source.lengths.tolist():
        raise EpisodeDataError(
            f"round {number}: labels of other episodes than the {rollouts.num_episodes} in "
            f"{run.rollouts(number)}; compute the advantages again"
        )
    typical = typical_episodes(rollouts)
    figures = draw_beside(
        [(rollouts.episode(index), source.episode(index)) for index in typical],
        run.thresholds[number],
        value_limits([source]),
    )
    for index, figure in zip(typical, figures, strict=True):
        labels = rollouts.labels[index]
        outcome = "success" if labels.is_success else "failure"
        task = labels.task_id or labels.instruction
        caption = (
            f"{outcome}: episode {index} of the rollouts of round {number}, {task}, "
            f"{rollouts.lengths[index]} steps; the {outcome} of median length"
        )
        parts.append(page.plot(run.directory, f"value_{outcome}", figure, caption))
    return page.paragraph(WHY) + page.grid(parts)


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
    plot = page.plot(
        run.directory, "advantages", figure, f"round {newest}; the outermost bars hold what lies beyond"
    )
    return plot + page.table(["round", "source", "labels", "epsilon"], rows, wraps=True)


def _thresholds(epsilon: dict[str, float]) -> str:
    if len(set(epsilon.values())) == 1:
        return f"{next(iter(epsilon.values())):.6g}"
    return page.pairs(epsilon)


def _calibration(run: RecapRun) -> str:
    rounds = {f"round {n}": list(sources.values()) for n, sources in run.frames.items()}
    caption = "All frames of all sources, those that the value function was trained on included."
    plot = page.plot(run.directory, "calibration", calibration_figure(rounds), caption)
    judged = {name: flatten(asdict(calibration)) for name, calibration in run.calibrations.items()}
    keys = list(dict.fromkeys(key for figures in judged.values() for key in figures))
    names = [key.rpartition(".")[2].replace("num_", "held-out ").replace("_", " ") for key in keys]
    rows = [[name, *map(figures.get, keys)] for name, figures in judged.items()]
    return plot + page.table(["value function", *names], rows)


def _stages(run: RecapRun) -> str:
    rows: list[Sequence[Any]] = [
        [name, _duration(stage["seconds"]), page.pairs(stage.get("figures", {}))]
        for name, stage in run.stages.items()
    ]
    if rows:
        rows.append(["all", _duration(sum(stage["seconds"] for stage in run.stages.values())), ""])
    return page.table(["stage", "time", "figures"], rows, wraps=True)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
