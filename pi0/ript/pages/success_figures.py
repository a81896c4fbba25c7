"""Figures of a RECAP run: success and speed by round."""

from collections.abc import Mapping, Sequence
from typing import Any

from pi0.ript.evaluate import Evaluation
from pi0.ript.page import BLUE, GREY, ORANGE, PALE, new_axes
from pi0.ript.pages.frame_figures import shortened
from pi0.ript.report_plots import draw_interval


def success_figure(evaluations: Mapping[str, Evaluation], others: Mapping[str, Evaluation]) -> Any:
    """Return held-out success of the stages in order and of other policies, with 95% intervals."""
    figure, (axes,) = new_axes()
    _draw_success(axes, evaluations, others)
    axes.set_ylabel("success, %")
    axes.set_title("success on held-out states, 95% intervals")
    return figure


def task_success_figure(evaluations: Mapping[str, Evaluation]) -> Any | None:
    """Return held-out success of each task by stage; None if there is only one task."""
    parts = {name: evaluation.by_task() for name, evaluation in evaluations.items()}
    tasks = list(dict.fromkeys(task for by_task in parts.values() for task in by_task))
    if len(tasks) < 2:
        return None
    figure, axes = new_axes(len(tasks), (3.0, 2.6), most_columns=4)
    for place, task in zip(axes, tasks, strict=True):
        _draw_success(place, {name: by_task[task] for name, by_task in parts.items() if task in by_task}, {})
        place.set_title(shortened(task), fontsize=9, parse_math=False)
    axes[0].set_ylabel("success, %")
    return figure


def steps_figure(evaluations: Mapping[str, Evaluation], others: Mapping[str, Evaluation]) -> Any | None:
    """Return mean steps to success of the stages; None if no episode succeeded."""
    means = {
        name: evaluation.mean_steps_to_success
        for name, evaluation in {**evaluations, **others}.items()
        if evaluation.mean_steps_to_success is not None
    }
    if not means:
        return None
    figure, (axes,) = new_axes()
    colors = [PALE if name in others else BLUE for name in means]
    bars = axes.bar(range(len(means)), list(means.values()), 0.6, color=colors)
    axes.bar_label(bars, [f"{mean:.1f}" for mean in means.values()], fontsize=9)
    _name_ticks(axes, list(means))
    axes.set_title("mean steps to success")
    return figure


def rival_figure(own: Sequence[Evaluation], rival: Sequence[Evaluation], rounds: str) -> Any | None:
    """Return success and steps of RECAP beside filtered imitation by round; None without rounds of both.

    Args:
        own: Of SFT, and after each round of RECAP.
        rival: After each round of filtered imitation, which begins from the same SFT policy.
        rounds: What both have in a round, in words.
    """
    if len(own) < 2 or not rival:
        return None
    figure, (success, steps) = new_axes(2, (4.6, 3.3), most_columns=2)
    for shift, evaluations, color, name in (
        (
            -0.03,
            own,
            BLUE,
            "RECAP: of what succeeded, the frames that went better than its value function expected",
        ),
        (0.03, [own[0], *rival], ORANGE, "filtered imitation: every frame of what succeeded"),
    ):
        places = [number + shift for number in range(len(evaluations))]
        rates = [100 * evaluation.success_rate for evaluation in evaluations]
        success.plot(places, rates, color=color, linewidth=1.6, label=name)
        for place, evaluation in zip(places, evaluations, strict=True):
            draw_interval(success, place, evaluation, fmt="o", color=color)
        means = [evaluation.mean_steps_to_success for evaluation in evaluations]
        steps.plot(
            places, [float("nan") if x is None else x for x in means], "o-", color=color, linewidth=1.6
        )
        beside, above = ((-22, 5), (4, 8)) if shift < 0 else ((8, -13), (4, -14))
        for place, rate, mean in zip(places[1:], rates[1:], means[1:], strict=True):
            look = {"textcoords": "offset points", "color": color, "fontsize": 9}
            success.annotate(f"{rate:.0f}", (place, rate), beside, **look)
            if mean is not None:
                steps.annotate(f"{mean:.1f}", (place, mean), above, **look)
    success.set_ylim(-4, 104)
    success.set_title("success on held-out states, % [95%]", fontsize=10)
    steps.set_title("mean steps of the successes: fewer is faster", fontsize=10)
    for axes in (success, steps):
        axes.set_xticks(range(len(own)), ["SFT", *(f"round {number}" for number in range(1, len(own)))])
        axes.set_xlim(-0.3, len(own) - 0.5)
        axes.margins(y=0.15)
    figure.legend(*success.get_legend_handles_labels(), loc="outside upper left", frameon=False, fontsize=10)
    figure.supxlabel(rounds, fontsize=9, color=GREY)
    return figure


def _draw_success(axes: Any, evaluations: Mapping[str, Evaluation], others: Mapping[str, Evaluation]) -> None:
    everything = list(evaluations.items()) + list(others.items())
    rates = [100 * evaluation.success_rate for evaluation in evaluations.values()]
    axes.plot(range(len(rates)), rates, color=BLUE, linewidth=1.2)
    for place, (_, evaluation) in enumerate(everything):
        rate = 100 * evaluation.success_rate
        color = GREY if place == 0 or place >= len(evaluations) else BLUE
        draw_interval(axes, place, evaluation, fmt="o", color=color)
        axes.annotate(f"{rate:.0f}", (place, rate), (7, -11), textcoords="offset points", fontsize=9)
    axes.set_ylim(-4, 104)
    _name_ticks(axes, [name for name, _ in everything])


def _name_ticks(axes: Any, names: Sequence[str]) -> None:
    slant = {"rotation": 20, "ha": "right"} if sum(map(len, names)) > 42 else {}
    axes.set_xticks(range(len(names)), [shortened(name) for name in names], parse_math=False, **slant)
    axes.set_xlim(-0.5, max(len(names), 2) - 0.5)
