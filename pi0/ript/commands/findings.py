"""What a check of `pi0-doctor` is asked and answers."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Request:
    """What the machine is to be fit for."""

    env: str = "metaworld"
    checkpoint: str | None = None
    output_dir: str = "pi0/ript/output"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Level
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        """Return the line."""
        return f"{self.level:<4}  {self.text}{': ' if self.remedy else ''}{self.remedy}"
