"""Starts a policy server and ends it in order."""

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
