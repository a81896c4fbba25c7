"""Gates before policy training is paid for: a useless value function or useless labels stop the run."""

from dataclasses import dataclass
from enum import StrEnum

from pi0.ript.labels.calibration import Calibration
from pi0.ript.recap.config import Gates

_SIGNIFICANCE = 0.04
"""Less than 0.05, because values of short episodes scatter more than the test assumes."""


class GateError(RuntimeError):
    """A figure is too bad to go on with; the message has every such figure and what to try."""


class Verdict(StrEnum):
    """What the held-out episodes say of a value function."""

    PASSES = "passes"
    FAILS = "fails"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class LabelFigures:
    """What the labels of all sources came to."""

    coverage: float
    positive_fraction: float | None
    """Share of the ranked frames that are positive; None: no frame is ranked."""
    target_fraction: float


def judge_value(calibration: Calibration, gates: Gates) -> Verdict:
    """Return whether a value function knows more of its episodes than the time.

    It passes where chance would in at most 5 % of draws, fails where even the upper end of the interval is
    below what is asked for, and is undecided where the episodes are too few or too alike to tell.
    """
    order = calibration.order
    if gates.min_concordance <= 0 or order is None:
        return Verdict.PASSES
    if order.concordance is None:
        return Verdict.UNDECIDED
    if order.p_value <= _SIGNIFICANCE and order.concordance >= gates.min_concordance:
        return Verdict.PASSES
    is_below = order.upper is not None and order.upper < gates.min_concordance
    return Verdict.FAILS if is_below else Verdict.UNDECIDED


def check_gates(
    calibration: Calibration, labels: LabelFigures, gates: Gates, *, is_improving: bool = False
) -> list[str]:
    """Return a line per figure for the log.

    Args:
        calibration: Of the value function.
        labels: That it gave.
        gates: What the figures must reach.
        is_improving: The policy succeeds more often than a round ago: of its value function is only warned.

    Raises:
        GateError: A figure misses its gate.
    """
    verdict = judge_value(calibration, gates)
    go = is_improving or (verdict is Verdict.UNDECIDED and gates.undecided == "go")
    fraction, target = labels.positive_fraction, labels.target_fraction
    checks = [
        (
            "value function",
            f"{verdict}: {_order(calibration)}, at least {gates.min_concordance:g}"
            + (
                " (the run goes on: " + _reason(is_improving) + ")"
                if go and verdict is not Verdict.PASSES
                else ""
            ),
            verdict is Verdict.PASSES or go,
            "record more rollouts with both successes and failures, train the value function longer, check "
            "the success labels, or use a form of its own (value.form=separate) if the policy's prefix does "
            "not show what matters; gates.undecided=go goes on where the episodes cannot tell",
        ),
        (
            "label coverage",
            f"{labels.coverage:.3f}, at least {gates.min_coverage:g}",
            labels.coverage >= gates.min_coverage,
            "compute the advantages of all sources again, or choose what a missing one counts as",
        ),
        (
            "positive fraction",
            "none: no rollout succeeded"
            if fraction is None
            else f"{fraction:.3f}, {target:g} within {gates.max_fraction_error:g}",
            abs((fraction or 0.0) - target) <= gates.max_fraction_error,
            "more rollouts, more or better demonstrations, or an easier task: there is nothing to imitate"
            if fraction is None
            else "values that are equal in many frames give equal advantages: train the value function "
            "longer, and look at the printed percentiles",
        ),
    ]
    failed = [f"{name}: {figure}\n  try: {remedy}" for name, figure, is_ok, remedy in checks if not is_ok]
    if failed:
        raise GateError("policy training would be wasted:\n" + "\n".join(failed))
    return [f"{name}: {figure}" for name, figure, _, _ in checks]


def _order(calibration: Calibration) -> str:
    order = calibration.order
    if order is None:
        return "not judged, by version 0.1.0"
    episodes = f"{calibration.num_episodes} held-out episodes"
    if order.concordance is None:
        return f"no two of {episodes} differ in their return"
    chance = f"chance comes as far with p = {order.p_value:.3f}"
    return f"concordance {order.concordance:.3f} on {episodes} ({chance})"


def _reason(is_improving: bool) -> str:
    return "the policy is improving" if is_improving else "gates.undecided=go"
