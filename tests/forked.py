"""Several processes of one run, forked from the test's own, so that nothing is imported again."""

import atexit
import multiprocessing
import multiprocessing.util
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


def together(size: int, directory: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return what the function returns in each of `size` processes that torchrun could have started."""
    directory.mkdir(exist_ok=True)
    environment = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    environment["MASTER_PORT"] = str(free_port())
    context = multiprocessing.get_context("fork")
    processes = []
    for rank in range(size):
        own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = context.Process(target=_run, args=(own, directory / f"{rank}.pkl", function, arguments))
        process.start()
        processes.append(process)
    for process in processes:
        process.join(240)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0] * size
    return [pickle.loads((directory / f"{rank}.pkl").read_bytes()) for rank in range(size)]


def _run(environment: dict[str, str], file: Path, function: Callable[..., Any], arguments: Any) -> None:
    os.environ.update(environment)
    try:
        file.write_bytes(pickle.dumps(function(*arguments)))
    except BaseException:  # noqa: BLE001 - whatever it is, the process must end here
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


def end_process(run: Callable[[], None]) -> NoReturn:
    """Run to the end of the process, as the interpreter would."""
    atexit._clear()  # what the test's process has to close, EGL among it, is not this one's
    atexit.register(multiprocessing.util._exit_function)
    code: object = 0
    try:
        run()
    except SystemExit as stop:
        code = stop.code
    except BaseException as error:  # noqa: BLE001 - all of them end a process
        sys.excepthook(type(error), error, error.__traceback__)
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(int(code or 0))  # pyright: ignore[reportArgumentType]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
