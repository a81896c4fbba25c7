"""Which files a finished evaluation of pi0-eval has; importing this loads no torch."""

from pathlib import Path

from pi0.errors import UnusableError

SETTINGS = "settings.json"


def require_evaluation(directory: Path) -> None:
    """Raise UnusableError unless pi0-eval has finished an evaluation in this directory."""
    if not all((directory / name).is_file() for name in (SETTINGS, "evaluation.json")):
        raise UnusableError(
            f"--evaluation: expected a finished evaluation of pi0-eval in {str(directory)!r} ({SETTINGS} and "
            "evaluation.json), found none"
        )
