"""The policy server with many clients, with departing, malformed and unwelcome ones, and at its end."""

import asyncio
import signal
import subprocess
import sys
import threading
import time

import aiohttp
import numpy as np
import pytest
import torch
from conftest import TASKS, toy_policy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_serving import observation, talk

from pi0.ript.commands.serve import main
from pi0.ript.serving.access import Access, read_access
from pi0.ript.serving.limits import ServingLimits
from pi0.ript.serving.running import start_server
from pi0.ript.serving.server import PolicyServer
from pi0.ript.serving.wire import pack, unpack

TOKEN = b"0123456789abcdef"


class Gate:
    """Holds the policy's inference until it is opened; counts batches."""

    def __init__(self, policy):
        self.opened, self.begun, self.sizes = threading.Event(), threading.Event(), []
        sample = policy.sample_actions

        def held(batch, **options):
            self.sizes.append(len(batch["task"]))
            self.begun.set()
            assert self.opened.wait(20)
            return sample(batch, **options)

        policy.sample_actions = held


async def receive(ws):
    """Return the next answer: a map, a text, or the closing message."""
    message = await ws.receive()
    return unpack(message.data) if message.type is aiohttp.WSMsgType.BINARY else message.data


async def begun(gate):
    await asyncio.get_running_loop().run_in_executor(None, gate.begun.wait, 20)


async def until_waiting(session, url, count):
    """Return once so many requests wait for the policy."""
    async with asyncio.timeout(20):
        while True:
            async with session.get(f"{url}/metrics") as page:
                if f"pi0_serve_waiting {float(count)}" in await page.text():
                    return
            await asyncio.sleep(0.01)


def test_waiting_requests_are_one_batch_and_each_client_gets_what_it_gets_alone():
    policy = toy_policy()
    asked = [
        observation(task=TASKS[i % 2], **{"observation.state": np.full(4, i, np.float32)}) for i in range(5)
    ]

    async def alone(session, url):
        async with session.ws_connect(url) as ws:
            await ws.receive()
            await ws.send_bytes(pack(asked[3]))
            return await receive(ws)

    expected = talk(alone, policy, seed=5)["actions"]
    gate = Gate(policy)

    async def conversation(session, url):
        clients = [await session.ws_connect(url) for _ in asked]
        for ws, one in zip(clients, asked, strict=True):
            await ws.receive()
            await ws.send_bytes(pack(one))
            await begun(gate)  # the first is alone in its batch; the others come while it is inferred
        await until_waiting(session, url, 4)
        gate.opened.set()
        return [await receive(ws) for ws in clients]

    answers = talk(conversation, policy, seed=5, limits=ServingLimits(max_batch=3))
    assert gate.sizes == [1, 3, 1]
    assert [answer["policy_timing"]["batch_size"] for answer in answers] == [1, 3, 3, 3, 1]
    assert np.allclose(answers[3]["actions"], expected, atol=1e-5)
    assert not np.allclose(answers[2]["actions"], answers[3]["actions"], atol=1e-3)


def test_a_bad_request_in_a_batch_is_refused_alone():
    policy = toy_policy()
    gate = Gate(policy)
    bad = observation(**{"observation.state": np.full(4, np.nan, np.float32)})

    async def conversation(session, url):
        clients = [await session.ws_connect(url) for _ in range(3)]
        for ws, one in zip(clients, [observation(), bad, observation()], strict=True):
            await ws.receive()
            await ws.send_bytes(pack(one))
            await begun(gate)
        await until_waiting(session, url, 2)
        gate.opened.set()
        return [await receive(ws) for ws in clients]

    first, second, third = talk(conversation, policy)
    assert gate.sizes == [1, 2, 1, 1]
    assert "expected finite numbers" in second
    assert first["actions"].shape == third["actions"].shape == (8, 3)


def test_pings_are_answered_during_inference_and_a_departed_clients_request_is_dropped():
    policy = toy_policy()
    gate = Gate(policy)

    async def conversation(session, url):
        async with session.ws_connect(url, autoping=False) as first, session.ws_connect(url) as leaving:
            await first.receive()
            await leaving.receive()
            await first.send_bytes(pack(observation()))
            await begun(gate)
            await leaving.send_bytes(pack(observation()))
            await first.ping(b"there?")
            pong = await first.receive()
            await leaving.close()
            gate.opened.set()
            answer = await receive(first)
            async with session.get(f"{url}/metrics") as page:
                return pong, answer, await page.text()

    pong, answer, metrics = talk(conversation, policy)
    assert (pong.type, bytes(pong.data)) == (aiohttp.WSMsgType.PONG, b"there?")
    assert answer["actions"].shape == (8, 3)
    assert gate.sizes == [1], "the departed client's request was inferred"
    assert 'pi0_serve_requests_total{outcome="dropped"} 1.0' in metrics


def test_a_full_queue_is_busy_and_a_late_answer_a_timeout_and_both_may_ask_again():
    policy = toy_policy()
    gate = Gate(policy)

    async def conversation(session, url):
        clients = [await session.ws_connect(url) for _ in range(3)]
        for ws in clients:
            await ws.receive()
            await ws.send_bytes(pack(observation()))
            await begun(gate)
            await asyncio.sleep(0.05)
        busy = await receive(clients[2])
        late = [await receive(ws) for ws in clients[:2]]
        async with session.get(f"{url}/healthz") as health:
            stuck = health.status, await health.text()
        gate.opened.set()
        await asyncio.sleep(0.3)
        await clients[2].send_bytes(pack(observation()))
        again = await receive(clients[2])
        async with session.get(f"{url}/healthz") as health, session.get(f"{url}/metrics") as page:
            return busy, late, stuck, again, health.status, await page.text()

    limits = ServingLimits(max_queue=1, timeout_s=0.5)
    busy, late, stuck, again, health, metrics = talk(conversation, policy, limits=limits)
    assert busy == "Busy: 1 requests wait already; ask again later"
    assert late == ["Timeout: no actions within 0.5 s"] * 2
    assert stuck[0] == 503
    assert "the policy has been at one batch" in stuck[1]
    assert (again["actions"].shape, health) == ((8, 3), 200)
    for outcome, count in {"busy": 1, "timeout": 2, "answered": 1, "failed": 0}.items():
        assert f'pi0_serve_requests_total{{outcome="{outcome}"}} {float(count)}' in metrics
    assert "pi0_serve_waiting 0.0" in metrics


def test_a_client_that_sends_far_ahead_of_a_refusal_leaves_no_connection_behind():
    bad = observation(**{"observation.state": np.zeros(5, np.float32)})  # refused by inference

    async def conversation(session, url):
        for _ in range(2):  # as many as may be connected
            ws = await session.ws_connect(url)
            await ws.receive()
            for _ in range(12):
                await ws.send_bytes(pack(bad))
            assert "expected" in await receive(ws)
            await ws.close()
        async with session.ws_connect(url) as ws:
            await ws.receive()
            await ws.send_bytes(pack(observation()))
            return await receive(ws)

    answer = talk(conversation, limits=ServingLimits(max_clients=1))
    assert answer["actions"].shape == (8, 3)


def test_the_time_of_a_request_begins_when_it_comes():
    policy = toy_policy()
    gate = Gate(policy)

    async def conversation(session, url):
        async with session.ws_connect(url) as ws:
            await ws.receive()
            for _ in range(3):  # the second and third wait for the first's answer
                await ws.send_bytes(pack(observation()))
            start = time.monotonic()
            said = [await receive(ws) for _ in range(3)]
            took = time.monotonic() - start
            gate.opened.set()
            return said, took

    said, took = talk(conversation, policy, limits=ServingLimits(timeout_s=1.0))
    assert said == ["Timeout: no actions within 1 s"] * 3
    assert took < 2.5


def test_what_inference_raises_and_actions_that_are_not_finite_are_told(caplog):
    async def conversation(session, url):
        async with session.ws_connect(url) as ws:
            await ws.receive()
            await ws.send_bytes(pack(observation()))
            return await receive(ws), (await ws.receive()).data

    policy = toy_policy()
    policy.model.action_out_proj.bias.data.fill_(torch.nan)
    assert talk(conversation, policy) == (
        "FloatingPointError: the policy's actions are not finite, so none are sent", 1011,
    )  # fmt: skip
    policy.sample_actions = lambda batch, **options: (_ for _ in ()).throw(MemoryError("no memory is left"))
    assert talk(conversation, policy) == ("MemoryError: no memory is left", 1011)
    said = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert said == ["the policy's actions are not finite, so none are sent", "no memory is left"], (
        "whoever serves"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "x" * 50}, "task: expected at most 40 characters, found 50"),
        (
            {"observation.images.front": np.zeros((100, 8, 3), np.uint8)},
            "expected 1 to 64 elements along each",
        ),
        ({"observation.images.front": np.zeros((0, 8, 3), np.uint8)}, "expected 1 to 64 elements along each"),
    ],
)
def test_limits_on_images_and_prompts(change, said):
    async def conversation(session, url):
        async with session.ws_connect(url) as ws:
            await ws.receive()
            await ws.send_bytes(pack(observation() | change))
            return await receive(ws)

    limits = ServingLimits(max_image_side=64, max_prompt_characters=40)
    assert said in talk(conversation, limits=limits)


def test_an_image_that_is_a_line_is_an_image():
    async def conversation(session, url):
        async with session.ws_connect(url) as ws:
            await ws.receive()
            await ws.send_bytes(
                pack(observation(**{"observation.images.front": np.zeros((2000, 1, 3), np.uint8)}))
            )
            return await receive(ws)

    assert talk(conversation)["actions"].shape == (8, 3)


def test_more_clients_than_may_connect_are_told():
    async def conversation(session, url):
        async with session.ws_connect(url) as ws:
            await ws.receive()
            async with session.get(url) as second:
                full = second.status, await second.text()
        await asyncio.sleep(0.1)
        async with session.ws_connect(url) as ws:
            return full, unpack((await ws.receive()).data)["policy"]

    full, policy = talk(conversation, limits=ServingLimits(max_clients=1))
    assert full == (503, "1 clients are connected already\n")
    assert policy == "pi0"


# Bad input --------------------------------------------------------------------------------------------------

GOOD = pack(observation())


@st.composite
def damaged(draw):
    """A good message with bytes changed, cut or added, or any bytes at all."""
    kind = draw(st.sampled_from(["any", "flip", "cut", "add"]))
    if kind == "any":
        return draw(st.binary(max_size=200))
    if kind == "cut":
        return GOOD[: draw(st.integers(0, len(GOOD) - 1))]
    if kind == "add":
        return GOOD + draw(st.binary(min_size=1, max_size=20))
    changed = bytearray(GOOD)
    for place in draw(
        st.lists(st.integers(0, 200), min_size=1, max_size=4)
    ):  # where the names and shapes are
        changed[place if draw(st.booleans()) else len(GOOD) - 1 - place] ^= draw(st.integers(1, 255))
    return bytes(changed)


def test_a_thousand_malformed_messages_end_in_a_line_each_and_the_server_goes_on():
    server = PolicyServer(toy_policy())
    refused = []

    @settings(
        max_examples=1000, deadline=None, database=None, derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )  # fmt: skip
    @given(damaged())
    def read(message):
        said = None
        try:
            server.reader.read(message)
        except ValueError as error:
            said = str(error)
        if said is not None:
            assert "\n" not in said
            assert len(said) < 1000
            refused.append(message)

    read()
    assert len(refused) > 500

    async def conversation(session, url):
        said = []
        for message in refused[:50]:
            async with session.ws_connect(url) as ws:
                await ws.receive()
                await ws.send_bytes(message)
                said.append((await receive(ws), (await ws.receive()).data))
        async with session.ws_connect(url) as ws:
            await ws.receive()
            await ws.send_bytes(GOOD)
            return said, await receive(ws)

    said, answer = talk(conversation)
    assert all(isinstance(text, str) and code == 1011 for text, code in said)
    assert answer["actions"].shape == (8, 3)


def test_a_message_of_very_many_values_is_refused_soon():
    with pytest.raises(ValueError, match="expected at most 10000 values"):
        unpack(b"\xdd" + (2**20).to_bytes(4, "big") + b"\xc0" * 2**20)


# Access -----------------------------------------------------------------------------------------------------


def test_a_token_is_demanded_of_clients_and_of_metrics_and_not_of_health():
    async def conversation(session, url):
        async def status(path="/", **headers):
            async with session.get(url + path, headers=headers) as response:
                return response.status

        async with session.ws_connect(url, headers={"Authorization": f"Api-Key {TOKEN.decode()}"}) as ws:
            metadata = unpack((await ws.receive()).data)
        return metadata["policy"], [
            await status(),
            await status(Authorization="Api-Key wrong"),
            await status(Authorization=TOKEN.decode()),
            await status(Authorization="Basic " + TOKEN.decode()),
            await status("/metrics"),
            await status("/metrics", Authorization=f"Bearer {TOKEN.decode()}"),
            await status("/healthz"),
        ]

    said = talk(conversation, access=Access(TOKEN))
    assert said == ("pi0", [401, 401, 401, 401, 401, 200, 200])


def test_other_machines_need_a_token_and_tls(tmp_path, capsys):
    token = tmp_path / "token"
    token.write_bytes(TOKEN + b"\n")
    toy_policy().save_pretrained(tmp_path / "policy")
    for host in ("0.0.0.0", "::", "192.168.1.7", "robot-server"):
        with pytest.raises(ValueError, match=r"which needs --token-file, --tls-cert and --tls-key"):
            read_access(host, token, None, None)
    assert main([str(tmp_path / "policy"), "--host", "0.0.0.0"]) == 2
    assert "can be reached from other machines" in capsys.readouterr().err
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        assert read_access(host, token, None, None).token == TOKEN
    for text in (b"", b"short", b"with a space in its middle", "äöü".encode() * 10):
        token.write_bytes(text)
        with pytest.raises(ValueError, match="--token-file: expected a line of at least 16 visible"):
            read_access("localhost", token, None, None)
    with pytest.raises(ValueError, match=r"--token-file: cannot read .*No such file"):
        read_access("localhost", tmp_path / "none", None, None)
    with pytest.raises(ValueError, match="expected both or none"):
        read_access("localhost", None, token, None)
    with pytest.raises(ValueError, match="are no certificate and key"):
        read_access("localhost", None, token, token)


@pytest.fixture
def certificate(tmp_path):
    """A certificate of this machine and its key, made by openssl."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    )
    try:
        subprocess.run([*command.split(), "-keyout", key, "-out", cert], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return cert, key


def test_tls_and_token_together(certificate, tmp_path):
    (tmp_path / "token").write_bytes(TOKEN)
    access = read_access("0.0.0.0", tmp_path / "token", *certificate)

    async def conversation(session, url):
        url = url.replace("http", "https")
        headers = {"Authorization": f"Api-Key {TOKEN.decode()}"}
        async with session.ws_connect(url, headers=headers, ssl=False) as ws:
            await ws.receive()
            await ws.send_bytes(pack(observation()))
            return (await receive(ws))["actions"].shape

    assert talk(conversation, access=access) == (8, 3)


# The end ----------------------------------------------------------------------------------------------------


def test_at_the_end_what_was_accepted_is_answered_and_the_rest_refused_by_name():
    policy = toy_policy()
    gate = Gate(policy)
    order = []

    async def conversation(session, url):
        clients = [await session.ws_connect(url) for _ in range(3)]
        for ws in clients:
            await ws.receive()
        for ws in clients[:2]:
            await ws.send_bytes(pack(observation()))
            await begun(gate)
        await until_waiting(session, url, 1)

        async def talk_on():
            await asyncio.sleep(0.3)  # the server is stopping
            await clients[2].send_bytes(pack(observation()))
            order.append(await receive(clients[2]))
            gate.opened.set()
            for ws in clients[:2]:
                order.append(await receive(ws))
            for ws in clients:
                order.append((await ws.receive()).data)

        return asyncio.create_task(talk_on())

    async def run():
        running = await start_server(PolicyServer(policy), "127.0.0.1", 0)
        async with aiohttp.ClientSession() as session, asyncio.timeout(20):
            talking = await conversation(session, f"http://127.0.0.1:{running.port}")
            await running.stop()
            await talking

    asyncio.run(run())
    assert order[0] == "Stopping: the server is about to end; ask again when it is back"
    assert [one["actions"].shape for one in order[1:3]] == [(8, 3)] * 2
    assert order[3:] == [1001] * 3


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_soon_though_a_client_is_connected(number, tmp_path):
    toy_policy().save_pretrained(tmp_path)
    command = [
        sys.executable,
        "-m",
        "pi0.ript.commands.serve",
        str(tmp_path),
        "--port",
        "0",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    async def conversation(address):
        async with aiohttp.ClientSession() as session, session.ws_connect(address) as ws:
            await ws.receive()
            process.send_signal(number)
            return (await ws.receive()).data

    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[2].rstrip(",")
        start = time.monotonic()
        assert asyncio.run(conversation(address)) == 1001
        _, said = process.communicate(timeout=20)
        assert time.monotonic() - start < 20
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert said.splitlines() == [f"pi0-serve: {number.name}: answering what was accepted, then ending"]
