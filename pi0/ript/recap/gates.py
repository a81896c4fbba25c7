"""Gates before policy training is paid for: a useless value function or useless labels stop the run."""

from dataclasses import dataclass

from pi0.ript.labels.calibration import Calibration


class GateError(RuntimeError):
    """A figure is too bad to go on with; the message has every such figure and what to try."""


@dataclass
class Gates:
    """The least that the figures must reach; set one to its worst value to open that gate."""

    min_correlation: float = 0.3  # of value and return on held-out episodes
    min_separation: float = 0.6  # of held-out successes from failures (AUC, 0.5 is chance), if there are both
    min_coverage: float = 1.0  # share of frames that have an advantage
    max_fraction_error: float = 0.05  # of the positive share over all ranked frames


@dataclass(frozen=True)
class LabelFigures:
    """What the labels of all sources came to."""

    coverage: float
    positive_fraction: float
    """Share of the ranked frames that are positive."""
    target_fraction: float


def check_gates(calibration: Calibration, labels: LabelFigures, gates: Gates) -> list[str]:
    """Return a line per figure for the log.

    Raises:
        GateError: A figure misses its gate.
    """
    correlation, separation = calibration.correlation, calibration.separation
    checks = [
        (
            "value correlation",
            f"{'none, values are constant' if correlation is None else f'{correlation:.3f}'} on "
            f"{calibration.num_episodes} held-out episodes, at least {gates.min_correlation:g}",
            (-1.0 if correlation is None else correlation) >= gates.min_correlation,
            "train the value function longer or with a higher learning rate, give it more episodes, or use a "
            "form of its own (separate) if the policy's prefix does not show what matters",
        ),
        (
            "value separation",
            f"{'not judged, all ended alike' if separation is None else f'{separation:.3f}'} on "
            f"{calibration.num_episodes} held-out episodes, at least {gates.min_separation:g}",
            separation is None or separation >= gates.min_separation,
            "record more rollouts with both successes and failures, check the success labels, or train the "
            "value function longer",
        ),
        (
            "label coverage",
            f"{labels.coverage:.3f}, at least {gates.min_coverage:g}",
            labels.coverage >= gates.min_coverage,
            "compute the advantages of all sources again, or choose what a missing one counts as",
        ),
        (
            "positive fraction",
            f"{labels.positive_fraction:.3f}, {labels.target_fraction:g} within {gates.max_fraction_error:g}",
            abs(labels.positive_fraction - labels.target_fraction) <= gates.max_fraction_error,
            "values that are equal in many frames give equal advantages: train the value function longer, "
            "and look at the printed percentiles",
        ),
    ]
    failed = [f"{name}: {figure}\n  try: {remedy}" for name, figure, is_ok, remedy in checks if not is_ok]
    if failed:
        raise GateError("policy training would be wasted:\n" + "\n".join(failed))
    return [f"{name}: {figure}" for name, figure, _, _ in checks]
