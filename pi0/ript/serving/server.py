"""A websocket server that clients of openpi's policy server can talk to.

The first message is the server's metadata. Then each observation is answered with `actions`, all of a chunk,
and how long it took. What is wrong with an observation is answered with its text, and the connection closes.
`GET /healthz` says OK while the server runs.
"""

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from aiohttp import WSMsgType, web

from pi0 import PI0Policy
from pi0.ript.serving.wire import pack, unpack

STATE, TASK = "observation.state", "task"
_OPENPI = {"observation/state": STATE, "prompt": TASK}  # openpi's names of LIBERO observations
_OPENPI_CAMERAS = ("observation/image", "observation/wrist_image")  # in the order of the policy's cameras


class PolicyServer:
    """Answers observations of one robot each; inference is one at a time, whoever asks."""

    def __init__(
        self,
        policy: PI0Policy,
        *,
        guidance: float = 1.0,
        num_steps: int | None = None,
        prompt: str | None = None,
        seed: int | None = None,
        max_message_mb: float = 16.0,
    ) -> None:
        """Check the settings.

        Args:
            policy: The policy, in evaluation mode.
            guidance: Towards a positive advantage; 1 for policies without an indicator.
            num_steps: Steps of the sampler; None: as the policy's configuration says.
            prompt: The task of clients that name none.
            seed: The seed of the sampling noise; None: other noise in each run.
            max_message_mb: A longer message closes the connection.

        Raises:
            ValueError: The policy cannot be guided, or the limit is not positive.
        """
        if guidance != 1.0 and policy.config.indicator == "none":
            raise ValueError(f"guidance: expected 1 for a policy without indicator, found {guidance}")
        if not max_message_mb > 0:
            raise ValueError(f"max_message_mb: expected more than 0, found {max_message_mb}")
        self.policy, self.guidance, self.num_steps, self.prompt = (
            policy.use_graphs(),
            guidance,
            num_steps,
            prompt,
        )
        self.max_message_bytes = int(max_message_mb * 2**20)
        self.generator = torch.Generator(policy.device)
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)
        cameras = policy.features.present_cameras
        self.names = _OPENPI | dict(zip(_OPENPI_CAMERAS, cameras, strict=False))
        self._inference = ThreadPoolExecutor(1, "inference")

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
            "also_called": self.names,
        }

    def infer(self, message: bytes) -> dict[str, Any]:
        """Return `actions` (chunk_size, action_dim) in raw units and the time that they took.

        Raises:
            ValueError: The message is no observation of this policy; tells the field.
        """
        batch = self._batch(unpack(message))
        start = time.monotonic()
        actions = self.policy.sample_actions(
            batch, guidance=self.guidance, num_steps=self.num_steps, generator=self.generator
        )
        chunk = actions[0].cpu().numpy()
        return {"actions": chunk, "policy_timing": {"infer_ms": 1000 * (time.monotonic() - start)}}

    def _batch(self, observation: Any) -> dict[str, Any]:
        """Return the policy's batch of one observation under its own or openpi's names."""
        if not isinstance(observation, Mapping):
            raise ValueError(f"expected an observation (a map of names), found {type(observation).__name__}")
        named: dict[str, Any] = {
            self.names.get(str(name), str(name)): value for name, value in observation.items()
        }
        if self.prompt is not None:
            named.setdefault(TASK, self.prompt)
        expected = {*self.policy.features.present_cameras, STATE, TASK}
        if set(named) != expected or len(named) < len(observation):
            raise ValueError(
                f"expected {sorted(expected)} (or openpi's names {sorted(self.names)}), found "
                f"{sorted(map(str, observation))}"
            )
        for name in expected - {TASK}:
            if not isinstance(named[name], np.ndarray):
                raise ValueError(f"{name}: expected an array, found {type(named[name]).__name__}")
        # Copied, because torch cannot hold the message's read-only memory.
        return {name: [value] if name == TASK else np.array(value)[None] for name, value in named.items()}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one connection until it closes."""
        if "Origin" in request.headers:  # a web page in somebody's browser must not drive a robot
            raise web.HTTPForbidden(text="browsers are not served\n")
        socket = web.WebSocketResponse(max_msg_size=self.max_message_bytes, compress=False)
        await socket.prepare(request)
        await socket.send_bytes(pack(self.metadata))
        previous = None
        async for message in socket:
            if message.type is WSMsgType.ERROR:  # too long; aiohttp has closed the connection with 1009
                break
            start = time.monotonic()
            try:
                if message.type is not WSMsgType.BINARY:
                    raise ValueError("expected a binary message (MessagePack), found text")
                answer = await asyncio.get_running_loop().run_in_executor(
                    self._inference, self.infer, message.data
                )
            except ValueError as error:
                await socket.send_str(f"{type(error).__name__}: {error}")
                await socket.close(code=1011, message=b"the previous message says what is wrong")
                break
            timing = {"infer_ms": 1000 * (time.monotonic() - start)}
            if previous is not None:
                timing["prev_total_ms"] = previous
            await socket.send_bytes(pack({**answer, "server_timing": timing}))
            previous = 1000 * (time.monotonic() - start)
        return socket

    async def healthz(self, _request: web.Request) -> web.Response:
        """Answer that the server runs."""
        return web.Response(text="OK\n")

    def application(self) -> web.Application:
        """Return the routes."""
        application = web.Application()
        application.router.add_get("/", self.handle)
        application.router.add_get("/healthz", self.healthz)
        return application


async def start_server(server: PolicyServer, host: str, port: int) -> tuple[web.AppRunner, int]:
    """Listen and return what `cleanup()` ends, and the port (a free one for port 0).

    Raises:
        OSError: The port is in use, or the host is not of this machine.
    """
    runner = web.AppRunner(server.application())
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner, runner.addresses[0][1]
