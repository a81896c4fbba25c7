"""How a RECAP run ends that cannot go on: with a message and an exit code, and no traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pi0.ript.checkpoint import ChangedSettingsError, SnapshotError
from pi0.ript.files import FormatError
from pi0.ript.interruption import StoppedError
from pi0.ript.monitoring import NonFiniteLossError
from pi0.ript.recap.budget import BudgetError
from pi0.ript.recap.gates import GateError
from pi0.ript.recap.stages import StaleStageError

_REFUSALS_OF_RECAP = (StaleStageError, GateError, BudgetError)
_REFUSALS = (*_REFUSALS_OF_RECAP, ChangedSettingsError, FormatError, NonFiniteLossError, SnapshotError)


@contextmanager
def exits_with_message() -> Iterator[None]:
    """Say at a stop what is on disk; where the run refuses to go on, exit with its message and code 1."""
    try:
        yield
    except StoppedError:
        sys.stderr.write("\nstopped: what is finished is on disk; the same command goes on from there\n")
        raise
    except _REFUSALS as error:
        sys.exit(f"\nerror: {error}")
