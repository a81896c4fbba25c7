"""Published checkpoints: how each is evaluated, and the success that was published.

`configs/published` has a file of pi0-eval for each, with the key `published`.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from pi0.errors import UnusableError
from pi0.ript.config.yaml_files import read_yaml

FOLDER = Path(__file__).parents[2] / "configs" / "published"


@dataclass
class PublishedSuccess:
    """A success rate that somebody published of a checkpoint in a suite."""

    suite: str = ""
    success: float = 0.0  # percent
    n_action_steps: int = 0  # of a chunk that were executed; another number is another policy
    episodes: int | None = None  # null: not said
    source: str = ""  # where it can be read

    def __post_init__(self) -> None:
        """Refuse a figure without a source."""
        if not (self.suite and self.source and self.n_action_steps > 0 and 0 <= self.success <= 100):
            raise UnusableError(
                "published: expected suite, success (percent), n_action_steps and source, found "
                f"{asdict(self)}"
            )

    def __str__(self) -> str:
        """Return the rate and what it was measured with."""
        count = "" if self.episodes is None else f"of {self.episodes} episodes, "
        return f"{self.success:.1f}% ({count}{self.n_action_steps} actions a chunk)"


def published_file(policy_path: str) -> Path | None:
    """Return the file of `FOLDER` for a hub repository, whatever the revision; None: there is none."""
    name = policy_path.partition("@")[0]
    for file in sorted(FOLDER.glob("*.yaml")):
        if read_yaml(file).get("policy_path", "").partition("@")[0] == name:
            return file
    return None
