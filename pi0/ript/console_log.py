"""The console's output in a log file: whole lines, and of a progress bar its last state."""

import contextlib
import io
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

_LINE_END_OR_CURSOR_UP = re.compile(r"(\n|\x1b\[1?A)")
_ERASE_LINE = "\x1b[2K"
_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class LogFile:
    """Whole lines of several streams in one file."""

    def __init__(self, path: Path):
        self.lock = threading.RLock()  # a signal handler may print in the middle of a print
        self._path = path
        self._file: TextIO | None = path.open("a", 1, encoding="utf-8", errors="backslashreplace")
        self._held: list[str] = []

    def hold(self, line: str) -> None:
        """Keep a progress bar's line until the next whole line; it may yet be drawn again."""
        self._held.append(line)

    def take_back(self) -> str:
        """Return the line that the cursor moves up to, as one that is drawn again."""
        return (self._held.pop() if self._held else "") + "\r"

    def write(self, *lines: str) -> None:
        """Append lines; when the file cannot be written, say so once on the console and go on without."""
        lines, self._held = (*self._held, *lines), []
        if self._file is not None and lines:
            try:
                self._file.write("".join(f"{line}\n" for line in lines))
            except OSError as error:
                self._file = None
                print(f"{self._path}: no longer written ({error})", file=sys.stderr)  # noqa: T201

    def close(self) -> None:
        """Write what is held and close."""
        self.write()
        if self._file is not None:
            self._file.close()
            self._file = None


class _TeeIO(io.TextIOBase):
    """A console stream that also goes to a log file, without the redraws of progress bars.

    Of a line that is drawn again and again the file gets the last state. A console that goes away (a closed
    terminal, a broken pipe) ends the output to the console, not the program.
    """

    def __init__(self, console: Any, log: LogFile):
        self._console = console
        self._console_gone = False
        self._log = log
        self._line = ""  # not ended yet; at most its last two states, with a carriage return between them
        self.last_line = ""
        """The last whole line that says something."""

    def write(self, text: str) -> int:
        """Write to both and return the number of characters."""
        with self._log.lock:
            self._to_console(text, flush="\n" in text)
            for part in _LINE_END_OR_CURSOR_UP.split(text):
                if part == "\n":
                    self._end_line()
                elif part.startswith("\x1b") and part.endswith("A"):
                    self._line = self._log.take_back()
                else:
                    self._line = "\r".join((self._line + part).split("\r")[-2:])
        return len(text)

    def finish(self) -> None:
        """Log a line that has not ended as it stands."""
        if self._line:
            self._end_line()

    def _end_line(self) -> None:
        *before, last = self._line.split("\r")
        text = _TERMINAL_CODE.sub("", last or (before or [""])[-1])
        self.last_line = text.strip() or self.last_line
        if not before and _ERASE_LINE not in self._line:
            self._log.write(text)
        elif text.strip():
            self._log.hold(text)
        self._line = ""

    def flush(self) -> None:
        """Flush the console; the file is flushed at every line."""
        self._to_console("", flush=True)

    def _to_console(self, text: str, flush: bool) -> None:
        if self._console_gone:
            return
        try:
            try:
                self._console.write(text)
            except UnicodeEncodeError:
                self._console.write(text.encode(self.encoding, "replace").decode(self.encoding))
            if flush:
                self._console.flush()
        except (OSError, ValueError) as error:
            self._console_gone = True
            self._let_go()
            self._log.write(f"the console is gone ({error}); what follows is in this file only")

    def _let_go(self) -> None:
        """Have what waits in the console's buffer go nowhere, or Python ends with an error of its own."""
        with contextlib.suppress(OSError, ValueError):
            number = self._console.fileno()
            if number in (1, 2):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)

    def isatty(self) -> bool:
        """Return whether the console is a terminal."""
        return not self._console_gone and not self._console.closed and self._console.isatty()

    def fileno(self) -> int:
        """Return the console's file descriptor; what is written to that is not logged."""
        return self._console.fileno()

    def writable(self) -> bool:
        """Return True."""
        return True

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The console's."""
        return self._console.encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._console, name)
