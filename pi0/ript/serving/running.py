"""Starts a policy server and ends it in order."""

import asyncio
import os
import signal
import sys
from dataclasses import dataclass

from aiohttp import web

from pi0.ript.serving.server import CLOSE_S, PolicyServer


@dataclass(frozen=True)
class RunningServer:
    """A server that listens on `port`."""

    server: PolicyServer
    runner: web.AppRunner
    port: int

    async def stop(self) -> None:
        """Listen no more, answer what was accepted (for `grace_s` at most), close the connections."""
        for site in list(self.runner.sites):
            await site.stop()
        await self.server.stop()  # before aiohttp's own end, which reads nothing more from open connections
        await self.runner.cleanup()


async def start_server(server: PolicyServer, host: str, port: int) -> RunningServer:
    """Listen, on a free port for port 0, and return what can be stopped.

    Raises:
        OSError: The port is in use, or the host is not of this machine.
    """
    runner = web.AppRunner(server.application(), shutdown_timeout=CLOSE_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=server.access.tls).start()
    except OSError:
        await server.stop()
        await runner.cleanup()
        raise
    return RunningServer(server, runner, runner.addresses[0][1])


async def serve_until_signal(server: PolicyServer, host: str, port: int) -> int:
    """Serve until SIGINT or SIGTERM; return the exit code of the command."""
    ending: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()
    _end_on_signals(ending)
    running = await start_server(server, host, port)
    secure = "" if server.access.tls is None else "s"
    address = f"[{host}]" if ":" in host else host
    print(  # noqa: T201
        f"serving on ws{secure}://{address}:{running.port}, "
        f"health on http{secure}://{address}:{running.port}/healthz",
        flush=True,
    )
    number = await ending
    await running.stop()
    if server.batcher.is_working:  # a thread that computes cannot be stopped, and Python would wait for it
        os._exit(128 + number)
    return 128 + number


def _end_on_signals(ending: "asyncio.Future[signal.Signals]") -> None:
    """Have SIGINT and SIGTERM set `ending`; a second one ends the process at once."""

    def end(number: signal.Signals) -> None:
        if ending.done():
            os._exit(128 + number)
        sys.stderr.write(f"pi0-serve: {number.name}: answering what was accepted, then ending\n")
        ending.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end, number)
