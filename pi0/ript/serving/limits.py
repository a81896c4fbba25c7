"""What a policy server accepts: sizes, numbers and times, each with a default and a range."""

import math
from dataclasses import dataclass, fields

MAX_WAITING_PER_CLIENT = 2
"""Requests of one connection that are read before their turn; what follows waits in the network."""


@dataclass(frozen=True)
class ServingLimits:
    """Bounds of `pi0-serve`; a value out of its range is a ValueError that names it."""

    max_message_mb: float = 16.0
    """A longer message closes its connection with code 1009."""
    max_image_side: int = 2048
    """Pixels; a larger image is refused."""
    max_prompt_characters: int = 2000
    """A longer task is refused."""
    max_batch: int = 8
    """Requests that are inferred together at most; 1: one at a time."""
    max_wait_ms: float = 0.0
    """How long a free policy waits for a batch to fill; 0: it takes what is there."""
    max_queue: int = 64
    """Requests that wait for the policy; another is answered `Busy`."""
    max_clients: int = 64
    """Connections; another is refused with status 503."""
    timeout_s: float = 60.0
    """A request without an answer by then is answered `Timeout`."""
    grace_s: float = 5.0
    """When the server is asked to end: how long accepted requests may still take."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        may_be_zero = {"max_wait_ms", "grace_s"}
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in may_be_zero else 1 if field.type is int else None
            if not (math.isfinite(value) and (value >= least if least is not None else value > 0)):
                expected = "more than 0" if least is None else f"at least {least}"
                raise ValueError(f"{field.name}: expected {expected}, found {value}")
