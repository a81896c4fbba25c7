"""The error of whoever gave something that cannot be used, and how a script ends with it."""

import sys
from types import TracebackType


class UnusableError(ValueError):
    """What was given cannot be used; the message says why and what to do, so that no traceback is shown."""

    explains_itself = True


def say_errors_in_one_line(script: str) -> None:
    """From now on, end without a traceback where the message alone explains it, and on Ctrl+C.

    That is where the class of the error has a true `explains_itself`.
    """
    otherwise = sys.excepthook

    def say_why(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.stderr.write(f"{script}: interrupted\n")
        elif getattr(kind, "explains_itself", False):
            sys.stderr.write(f"{script}: error: {error}\n")
        else:
            otherwise(kind, error, trace)

    sys.excepthook = say_why
