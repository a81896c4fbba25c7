"""A policy behind a websocket: openpi's bytes, equal actions, and what is said about wrong messages."""

import asyncio
import math
import socket

import aiohttp
import numpy as np
import pytest
import torch
from conftest import CAMERA, TASKS, toy_policy

from pi0.ript.commands.serve import main
from pi0.ript.serving.limits import ServingLimits
from pi0.ript.serving.running import start_server
from pi0.ript.serving.server import PolicyServer
from pi0.ript.serving.wire import WireError, pack, unpack

# From the MessagePack specification (spec.md, "Formats"), and openpi's msgpack_numpy for the array.
GOLDEN = [
    (None, "c0"),
    (False, "c2"),
    (True, "c3"),
    (0, "00"),
    (127, "7f"),
    (128, "cc80"),
    (255, "ccff"),
    (256, "cd0100"),
    (65536, "ce00010000"),
    (2**32, "cf0000000100000000"),
    (2**64 - 1, "cfffffffffffffffff"),
    (-1, "ff"),
    (-32, "e0"),
    (-33, "d0df"),
    (-128, "d080"),
    (-129, "d1ff7f"),
    (-32769, "d2ffff7fff"),
    (-(2**31) - 1, "d3ffffffff7fffffff"),
    (1.5, "cb3ff8000000000000"),
    ("", "a0"),
    ("é", "a2c3a9"),
    ("a" * 31, "bf" + "61" * 31),
    ("a" * 32, "d920" + "61" * 32),
    ("a" * 256, "da0100" + "61" * 256),
    (b"", "c400"),
    (b"\x00\xff", "c40200ff"),
    (b"a" * 256, "c50100" + "61" * 256),
    ([1, [2]], "9201" + "9102"),
    ([0] * 16, "dc0010" + "00" * 16),
    ({"a": 1}, "81a16101"),
    ({b"a": None}, "81c40161c0"),
    (
        np.array([[1, 2]], np.uint8),
        "84" "c40b5f5f6e6461727261795f5f" "c3" "c40464617461" "c4020102"
        "c4056474797065" "a37c7531" "c4057368617065" "920102",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), GOLDEN, ids=lambda v: str(v)[:20])
def test_bytes_are_those_of_the_specification(value, expected):
    assert pack(value).hex() == expected
    again = unpack(bytes.fromhex(expected))
    if isinstance(value, np.ndarray):
        assert (again.dtype, again.tolist()) == (value.dtype, value.tolist())
    else:
        assert again == value
        assert type(again) is type(value)


def test_everything_comes_back():
    value = {
        "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        "state": np.array([1.5, np.inf], np.float32),
        "scalar": np.float32(0.1),
        "list": [1, "two", {"three": b"3"}] * 20,
        "big": {"text": "x" * 70_000, "bytes": b"x" * 70_000, **dict.fromkeys(map(str, range(20)))},
    }
    again = unpack(pack(value))
    assert np.array_equal(again["image"], value["image"])
    assert np.array_equal(again["state"], value["state"])
    assert (again["scalar"], again["scalar"].dtype) == (value["scalar"], np.float32)
    assert (again["list"], again["big"]) == (value["list"], value["big"])
    assert unpack(bytes.fromhex("ca3fc00000")) == 1.5, "float 32, which other clients write"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("", "ends at byte 0"),
        ("0000", "1 bytes behind it"),
        ("ddffffffff", "ends at byte 5"),
        ("dfffffffff", "ends at byte 5"),
        ("c6ffffffff00", "ends at byte 6"),
        ("91" * 40 + "c0", "at most 16 levels"),
        ("d40001", "type 0xd4 is not part"),
        ("a2c328", "not UTF-8"),
        ("81" "01" "02", "key of a map, found int"),
    ],
)  # fmt: skip
def test_wrong_bytes_are_refused(message, said):
    with pytest.raises(WireError, match=said):
        unpack(bytes.fromhex(message))


@pytest.mark.parametrize(
    "fields",
    [
        {b"dtype": "|O", b"shape": [1], b"data": b"12345678"},
        {b"dtype": "<f4", b"shape": [2], b"data": b"1234"},
        {b"dtype": "<f4", b"shape": 1, b"data": b"1234"},
        {b"dtype": "no such", b"shape": [1], b"data": b"1234"},
        {b"shape": [1], b"data": b"1234"},
    ],
)
def test_arrays_that_are_none_are_refused(fields):
    with pytest.raises(WireError, match="an array that is none"):
        unpack(pack({b"__ndarray__": True, **fields}))


def test_what_cannot_be_sent_is_an_error():
    for value in ({1, 2}, 2**64, np.array([object()])):
        with pytest.raises(WireError):
            pack(value)
    with pytest.raises(WireError):
        unpack(pack({"a": {"b": 1}})[:-1])


# The server -------------------------------------------------------------------------------------------------


def observation(**changes):
    g = np.random.default_rng(0)
    return {
        CAMERA: g.integers(0, 256, (48, 64, 3), dtype=np.uint8),
        "observation.state": g.normal(size=4).astype(np.float32),
        "task": TASKS[0],
        **changes,
    }


def talk(conversation, policy=None, **settings):
    """Run `conversation(session, url)` against a real server on a free port."""

    async def run():
        server = PolicyServer(policy or toy_policy(), **settings)
        running = await start_server(server, "127.0.0.1", 0)
        try:
            async with aiohttp.ClientSession() as session, asyncio.timeout(30):
                return await conversation(session, f"http://127.0.0.1:{running.port}")
        finally:
            await running.stop()

    return asyncio.run(run())


async def ask(session, url, *messages):
    """Return the metadata and the answers; text for errors."""
    async with session.ws_connect(url) as ws:
        metadata = unpack((await ws.receive()).data)
        answers = []
        for message in messages:
            await (ws.send_str if isinstance(message, str) else ws.send_bytes)(message)
            answer = await ws.receive()
            answers.append(
                answer.data if answer.type is not aiohttp.WSMsgType.BINARY else unpack(answer.data)
            )
        return metadata, answers, (await ws.receive()) if isinstance(answers[-1], str) else None


def test_a_client_gets_the_actions_of_the_policy():
    policy = toy_policy(indicator="embedding")
    torch.nn.init.normal_(policy.model.indicator_embedding.weight)
    first, second = observation(), observation(task=TASKS[1])
    messages = [pack(first), pack(second)]
    metadata, answers, _ = talk(lambda s, url: ask(s, url, *messages), policy, guidance=2.0, seed=7)
    assert metadata["cameras"] == [CAMERA]
    assert (metadata["state_dim"], metadata["action_dim"], metadata["action_horizon"]) == (4, 3, 8)
    generator = torch.Generator().manual_seed(7)
    for one, answer in zip((first, second), answers, strict=True):
        batch = {name: [x] if isinstance(x, str) else torch.from_numpy(x)[None] for name, x in one.items()}
        expected = policy.sample_actions(batch, guidance=2.0, generator=generator)[0].numpy()
        assert np.array_equal(answer["actions"], expected)
        assert 0 < answer["policy_timing"]["infer_ms"] <= answer["server_timing"]["infer_ms"]
    assert "prev_total_ms" not in answers[0]["server_timing"]
    assert math.isfinite(answers[1]["server_timing"]["prev_total_ms"])


def test_openpis_names_and_a_prompt_of_the_server_mean_the_same():
    own = observation()
    named = {"observation/image": own[CAMERA], "observation/state": own["observation.state"]}
    asked = [talk(lambda s, u, o=o: ask(s, u, pack(o)), seed=1, prompt=TASKS[0])[1][0] for o in (own, named)]
    assert np.array_equal(asked[0]["actions"], asked[1]["actions"])


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (lambda o: "hello", "expected a binary message"),
        (lambda o: b"\xc1", "type 0xc1 is not part of the protocol"),
        (lambda o: pack([1]), r"expected an observation .* found list"),
        (lambda o: pack({"observation.state": o["observation.state"]}), r"expected .*front.*found"),
        (lambda o: pack({**o, "gripper": 1}), "found .*gripper"),
        (lambda o: pack({**o, "observation/state": o["observation.state"]}), "found .*observation/state"),
        (lambda o: pack({**o, CAMERA: "x"}), r"front: expected an array, found str"),
        (lambda o: pack({**o, CAMERA: o[CAMERA][0]}), r"front: expected \(batch, 3, height, width\)"),
        (lambda o: pack({**o, "observation.state": np.zeros(5, np.float32)}), r"state: expected .* dim 4"),
        (lambda o: pack({**o, "observation.state": np.full(4, np.nan, np.float32)}), "expected finite"),
        (lambda o: pack({**o, "task": 3}), "task: expected a string"),
    ],
)
def test_what_is_wrong_is_answered_as_text_and_the_connection_closes(message, said):
    _, (answer,), closed = talk(lambda s, url: ask(s, url, message(observation())))
    assert isinstance(answer, str)
    with pytest.raises(ValueError, match=said):
        raise ValueError(answer)
    assert closed.type is aiohttp.WSMsgType.CLOSE
    assert closed.data == 1011


def test_one_clients_error_is_not_anothers_and_long_messages_are_refused():
    async def conversation(session, url):
        async with session.ws_connect(url) as good, session.ws_connect(url) as long:
            await good.receive()
            await long.receive()
            await long.send_bytes(pack(observation(task="x" * 60_000)))
            closed = await long.receive()
            await good.send_bytes(pack(observation()))
            answer = unpack((await good.receive()).data)
        return closed, answer

    closed, answer = talk(conversation, limits=ServingLimits(max_message_mb=0.05))
    assert (closed.type, closed.data) == (aiohttp.WSMsgType.CLOSE, 1009)
    assert answer["actions"].shape == (8, 3)


def test_health_and_browsers():
    async def conversation(session, url):
        async with session.get(f"{url}/healthz") as health:
            healthy = health.status, await health.text()
        async with session.get(url, headers={"Origin": "http://example.org"}) as page:
            return healthy, page.status

    assert talk(conversation) == ((200, "OK\n"), 403)


def test_settings_that_cannot_be(tmp_path, capsys):
    with pytest.raises(ValueError, match="guidance: expected 1 for a policy without indicator, found 2"):
        PolicyServer(toy_policy(), guidance=2.0)
    with pytest.raises(ValueError, match="max_message_mb: expected more than 0, found 0"):
        ServingLimits(max_message_mb=0.0)
    with pytest.raises(ValueError, match="max_batch: expected at least 1, found 0"):
        ServingLimits(max_batch=0)
    with pytest.raises(ValueError, match="timeout_s: expected more than 0, found inf"):
        ServingLimits(timeout_s=math.inf)
    assert ServingLimits(max_wait_ms=0.0, grace_s=0.0)
    assert main([str(tmp_path / "nothing")]) == 2
    assert "CHECKPOINT: no directory at" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["x", "--port", "70000"])
    assert "expected 0 to 65535" in capsys.readouterr().err
    toy_policy().save_pretrained(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main([str(tmp_path), "--port", port, "--device", "cpu"]) == 2
    assert f"port {port} of 127.0.0.1 is in use; choose another" in capsys.readouterr().err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "examples:" in capsys.readouterr().out
