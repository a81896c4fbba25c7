"""A websocket server that clients of openpi's policy server can talk to.

The first message is the server's metadata. Then each observation is answered with `actions`, all of a chunk,
and how long it took, or with a text that says why not. What is wrong with an observation closes its
connection after that text; `Busy` and `Timeout` do not, and the client may ask again.
`GET /healthz` says OK while the policy answers; `GET /metrics` has counts for Prometheus.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from aiohttp import WSCloseCode, WSMsgType, web

from pi0 import PI0Policy
from pi0.ript.serving.access import Access
from pi0.ript.serving.batching import Answer, Batcher, BusyError, StoppingError
from pi0.ript.serving.limits import MAX_WAITING_PER_CLIENT, ServingLimits
from pi0.ript.serving.metrics import ServingMetrics
from pi0.ript.serving.observations import ObservationReader, ServedRequest, stack
from pi0.ript.serving.wire import pack

type _Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = logging.getLogger(__name__)
_HEARTBEAT_S = 60.0  # a client that is gone without a word is noticed by then
_MAX_TEXT = 2000  # characters of a refusal, which may quote what a client sent
CLOSE_S = 1.0  # how long a client may take to answer that its connection closes


class PolicyServer:
    """Answers observations of one robot each; requests that wait at the same time are inferred together.

    Every connection has noise of its own, so that a client gets the same actions (to rounding) whoever
    asks beside it.
    """

    def __init__(
        self,
        policy: PI0Policy,
        *,
        guidance: float = 1.0,
        num_steps: int | None = None,
        prompt: str | None = None,
        seed: int | None = None,
        limits: ServingLimits | None = None,
        access: Access | None = None,
    ) -> None:
        """Check the settings.

        Args:
            policy: The policy, in evaluation mode.
            guidance: Towards a positive advantage; 1 for policies without an indicator.
            num_steps: Steps of the sampler; None: as the policy's configuration says.
            prompt: The task of clients that name none.
            seed: The seed of each connection's sampling noise; None: other noise in each.
            limits: What is accepted; None: the defaults.
            access: What clients have to bring; None: nothing.

        Raises:
            ValueError: The policy cannot be guided.
        """
        if guidance != 1.0 and policy.config.indicator == "none":
            raise ValueError(f"guidance: expected 1 for a policy without indicator, found {guidance}")
        self.policy, self.guidance, self.num_steps, self.seed = (
            policy.use_graphs(),
            guidance,
            num_steps,
            seed,
        )
        self.limits, self.access = limits or ServingLimits(), access or Access()
        self.reader = ObservationReader(policy, prompt, self.limits)
        self.metrics = ServingMetrics()
        self._connections: set[_Connection] = set()
        self._batcher: Batcher | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """What a client is told first: names, widths and lengths of observations and actions."""
        features, config, robot = self.policy.features, self.policy.config, self.policy.embodiments.chosen
        return {
            **({} if robot is None else {"embodiment": robot}),
            "policy": "pi05" if config.pi05 else "pi0",
            "cameras": list(features.present_cameras),
            "state_dim": features.state_dim,
            "action_dim": features.action_dim,
            "action_horizon": config.chunk_size,
            "n_action_steps": config.n_action_steps,
            "guidance": self.guidance,
            "also_called": self.reader.names,
        }

    @property
    def batcher(self) -> Batcher:
        """What batches the requests, once the server has started."""
        assert self._batcher is not None
        return self._batcher

    def request(self, message: bytes | str, generator: torch.Generator) -> ServedRequest:
        """Return what a message asks, with the next noise of its connection.

        Raises:
            ValueError: The message is no observation of this policy; tells the field.
        """
        if isinstance(message, str):
            raise ValueError("expected a binary message (MessagePack), found text")
        arrays, task = self.reader.read(message)
        shape = (1, self.policy.config.chunk_size, self.policy.config.max_action_dim)
        return ServedRequest(arrays, task, torch.randn(shape, device=generator.device, generator=generator))

    def infer(self, requests: Sequence[ServedRequest]) -> list[Answer | Exception]:
        """Return for each request `actions` (chunk_size, action_dim) in raw units and the time of its batch.

        Raises:
            ValueError: An observation does not fit the policy.
        """
        start = time.monotonic()
        batch, noise = stack(requests)
        chunks = self.policy.sample_actions(
            batch, guidance=self.guidance, num_steps=self.num_steps, noise=noise
        )
        is_finite = chunks.isfinite().flatten(1).all(1).tolist()
        timing = {"infer_ms": 1000 * (time.monotonic() - start), "batch_size": len(requests)}
        return [
            {"actions": chunk, "policy_timing": timing}
            if fine
            else FloatingPointError("the policy's actions are not finite, so none are sent")
            for chunk, fine in zip(chunks.cpu().numpy(), is_finite, strict=True)
        ]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one connection until it closes."""
        if "Origin" in request.headers:  # a web page in somebody's browser must not drive a robot
            raise web.HTTPForbidden(text="browsers are not served\n")
        if len(self._connections) >= self.limits.max_clients:
            raise web.HTTPServiceUnavailable(text=f"{len(self._connections)} clients are connected already\n")
        socket = web.WebSocketResponse(
            max_msg_size=max(1, int(self.limits.max_message_mb * 2**20)),  # 0 would be no limit
            compress=False,
            heartbeat=_HEARTBEAT_S,
            timeout=CLOSE_S,
        )
        connection = _Connection(self, socket)
        self._connections.add(connection)
        self.metrics.clients.set(len(self._connections))
        try:
            await socket.prepare(request)
            await connection.serve()
        finally:
            self._connections.discard(connection)
            self.metrics.clients.set(len(self._connections))
        return socket

    async def healthz(self, _request: web.Request) -> web.Response:
        """Answer that the server runs, or with status 503 that the policy has not answered for long."""
        if self.batcher.seconds_in_work > self.limits.timeout_s:
            stuck = f"the policy has been at one batch for {self.batcher.seconds_in_work:.0f} s\n"
            return web.Response(status=503, text=stuck)
        return web.Response(text="OK\n")

    async def show_metrics(self, _request: web.Request) -> web.Response:
        """Answer with the counts, in Prometheus' text format."""
        return web.Response(body=self.metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})

    def application(self) -> web.Application:
        """Return the routes."""

        @web.middleware
        async def require_token(request: web.Request, handler: _Handler) -> web.StreamResponse:
            is_open = request.path == "/healthz"  # load balancers have no token, and learn nothing else
            if not is_open and not self.access.admits(request.headers.get("Authorization")):
                raise web.HTTPUnauthorized(
                    text="expected the header 'Authorization: Api-Key TOKEN'\n",
                    headers={"WWW-Authenticate": "Api-Key"},
                )
            return await handler(request)

        application = web.Application(middlewares=[require_token])
        application.router.add_get("/", self.handle)
        application.router.add_get("/healthz", self.healthz)
        application.router.add_get("/metrics", self.show_metrics)
        application.on_startup.append(self._start)
        return application

    def new_generator(self) -> torch.Generator:
        """Return the source of a connection's noise."""
        generator = torch.Generator(self.policy.device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator

    async def _start(self, _application: web.Application) -> None:
        self._batcher = Batcher(self.infer, self.limits, self.metrics)

    async def stop(self) -> None:
        """Answer what was accepted, then close the connections with code 1001; anything new is refused."""
        await self.batcher.stop()
        await asyncio.gather(*(connection.close() for connection in self._connections))


@dataclass(eq=False)
class _Connection:
    """One client: reads ahead, so that pings are answered and its leaving is seen while the policy works."""

    server: PolicyServer
    socket: web.WebSocketResponse
    waiting: asyncio.Queue[tuple[float, bytes | str]] = field(
        default_factory=lambda: asyncio.Queue(MAX_WAITING_PER_CLIENT)
    )
    previous_ms: float | None = None
    is_at_work: bool = False

    async def serve(self) -> None:
        """Send the metadata, then answer the messages in their order until the connection closes."""
        self.generator = self.server.new_generator()
        await self.socket.send_bytes(pack(self.server.metadata))
        answers = asyncio.create_task(self._answer_all())
        try:
            async for message in self.socket:
                if message.type is WSMsgType.ERROR:  # too long; aiohttp has closed the connection with 1009
                    break
                read = asyncio.ensure_future(self.waiting.put((time.monotonic(), message.data)))
                await asyncio.wait({read, answers}, return_when=asyncio.FIRST_COMPLETED)
                if answers.done():  # the connection closes, and nobody takes what was read
                    read.cancel()
                    break
        finally:
            if not answers.done():
                for _ in range(self.waiting.qsize() + self.is_at_work):
                    self.server.metrics.count("dropped")
                answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)

    async def close(self) -> None:
        """Close with code 1001, once what was accepted has been answered or refused."""
        for _ in range(100):
            if self.waiting.empty() and not self.is_at_work:
                break
            await asyncio.sleep(0.01)
        await self.socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server ends")

    async def _answer_all(self) -> None:
        while not self.socket.closed:
            since, message = await self.waiting.get()
            self.is_at_work = True
            try:
                outcome, is_last = await self._answer(since, message)
            except ConnectionError:  # the client is gone, which the reading side sees too
                return
            finally:
                self.is_at_work = False
            self.server.metrics.count(outcome)
            self.server.metrics.seconds.observe(time.monotonic() - since)
            if is_last:
                await self.socket.close(
                    code=WSCloseCode.INTERNAL_ERROR, message=b"the previous message says why"
                )

    async def _answer(self, since: float, message: bytes | str) -> tuple[str, bool]:
        """Send actions or a refusal; return the outcome, and whether the connection must close."""
        try:
            answer = await self.server.batcher.ask(self.server.request(message, self.generator), since)
        except BusyError as error:
            return await self._refuse("Busy", error, "busy")
        except TimeoutError as error:
            return await self._refuse("Timeout", error, "timeout")
        except StoppingError as error:
            return await self._refuse("Stopping", error, "stopping")
        except ValueError as error:
            return await self._refuse(type(error).__name__, error, "refused", is_last=True)
        except Exception as error:  # noqa: BLE001  the outermost of a request, which ends in a refusal
            _log.exception("a request failed")
            return await self._refuse(type(error).__name__, error, "failed", is_last=True)
        timing = {"infer_ms": 1000 * (time.monotonic() - since)}
        if self.previous_ms is not None:
            timing["prev_total_ms"] = self.previous_ms
        await self.socket.send_bytes(pack({**answer, "server_timing": timing}))
        self.previous_ms = 1000 * (time.monotonic() - since)
        return "answered", False

    async def _refuse(
        self, name: str, error: Exception, outcome: str, *, is_last: bool = False
    ) -> tuple[str, bool]:
        await self.socket.send_str(f"{name}: {error}"[:_MAX_TEXT])
        return outcome, is_last
