"""The errors that a message explains: of what was given, of the disk; and how a script ends with one."""

import errno
import os
import sys
from pathlib import Path
from types import TracebackType

_MAKE_ROOM = "make room, then start the same command again"
_OTHER_PLACE = "let this user write there, or choose another place (output_dir)"
_REMEDIES = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EFBIG: _MAKE_ROOM,
    errno.EROFS: _OTHER_PLACE,
    errno.EACCES: _OTHER_PLACE,
    errno.EIO: "look after the disk, then start the same command again",
    errno.ESTALE: "look after the file server, then start the same command again",
}
"""What to do about an error of the disk; the command is right, and so is the program."""


class UnusableError(ValueError):
    """What was given cannot be used; the message says why and what to do, so that no traceback is shown."""

    explains_itself = True


def disk_remedy(error: BaseException) -> str | None:
    """Return what to do about an error of the disk: it is full, cannot be written, or a directory is gone."""
    if not isinstance(error, OSError):
        return None
    if error.errno == errno.ENOENT and error.filename and not Path(error.filename).parent.exists():
        return "its directory is gone, or was never there: put it back, then start the same command again"
    return _REMEDIES.get(error.errno or 0)


def _open_closed_streams() -> None:
    """Have what was started without a standard stream (`>&-`) write it to nowhere.

    Otherwise the next file that is opened has its number, and gets what is written to the stream.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: PTH123, SIM115 - as long as the process


def say_errors_in_one_line(script: str) -> None:
    """From now on, end without a traceback where the message alone explains it, and on Ctrl+C.

    That is where the class of the error has a true `explains_itself`, and for what `disk_remedy` knows.
    """
    _open_closed_streams()
    otherwise = sys.excepthook

    def say_why(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        remedy = disk_remedy(error)
        if issubclass(kind, KeyboardInterrupt):
            sys.stderr.write(f"{script}: interrupted\n")
        elif getattr(kind, "explains_itself", False):
            sys.stderr.write(f"{script}: error: {error}\n")
        elif remedy is not None:
            sys.stderr.write(f"{script}: error: {error}; {remedy}\n")
        else:
            otherwise(kind, error, trace)

    sys.excepthook = say_why
