"""A headless Chromium, spoken to by its DevTools protocol over a pair of pipes; no package is needed."""

import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_PATIENCE_S = 60
_FLAGS = [
    *("--headless=new", "--remote-debugging-pipe", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--mute-audio"),
    *(["--no-sandbox"] if os.geteuid() == 0 else []),  # Chromium refuses to have one as root
]


class Tab:
    """A page that is open, with what its console said."""

    def __init__(self, commands: int, answers: int):
        self._commands, self._answers = commands, answers
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def open(self, page: Path, width: int, height: int = 844) -> None:
        """Load a file in a window of this width, a phone's if it is small, and wait until it is whole."""
        self._events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._next()

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, awaited if it is a promise."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"], indent=2))
        return found["result"].get("value")

    def complaints(self) -> list[str]:
        """Return what the console has said since the page was opened: errors, warnings, files not loaded."""
        texts = []
        for event in self._events:
            name, parameters = event["method"], event["params"]
            if name == "Runtime.exceptionThrown":
                texts.append(json.dumps(parameters["exceptionDetails"]))
            elif name == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                texts.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
            elif name == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
                texts.append(json.dumps(parameters["args"]))
        return texts

    def _next(self) -> dict[str, Any]:
        """Return the next message; events are kept too."""
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], _PATIENCE_S)
            part = os.read(self._answers, 1 << 20) if ready else b""
            if not part:
                raise RuntimeError(
                    "Chromium has ended" if ready else f"Chromium is silent for {_PATIENCE_S} s"
                )
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        if "method" in message:
            self._events.append(message)
        return message


@contextmanager
def headless_tab(profile: Path) -> Iterator[Tab]:
    """Start Chromium with a directory of its own, and end it."""
    from_us, commands = os.pipe()
    answers, to_us = os.pipe()
    # It reads its descriptor 3 and writes its descriptor 4.
    script = f'exec 5<&{from_us} 6>&{to_us}; exec 3<&5 4>&6; exec "$@"'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", str(CHROMIUM), *_FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(from_us, to_us),
        stderr=subprocess.DEVNULL,
    )
    os.close(from_us)
    os.close(to_us)
    try:
        yield Tab(commands, answers)
    finally:
        os.close(commands)  # which ends it
        os.close(answers)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
