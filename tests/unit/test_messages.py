"""What comes over the link: whatever the bytes, a message or the package's own error."""

from __future__ import annotations

import json
import socket
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentplan.errors import RobotError
from latentplan.real_robot.link import messages
from latentplan.real_robot.link.messages import LENGTHS, Channel, Message, decode, one_line

HUGE = st.sampled_from([2**31, 2**63, 2**64, 10**30, -1])
SHAPES = st.lists(st.integers(0, 5) | HUGE | st.none() | st.booleans() | st.floats(), max_size=12)
DTYPES = st.sampled_from(["float32", "float64", "uint8", "object", "<U9", "O", "float128", ""])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
ARRAYS = st.dictionaries(st.text(max_size=4), st.tuples(DTYPES, SHAPES) | JSON, max_size=3)
HEADS = st.fixed_dictionaries({}, optional={"kind": JSON, "values": JSON, "arrays": ARRAYS | JSON})
VALID = Message("command", {"sequence": 3}, {"action": np.arange(8.0), "rgb": np.zeros((2, 2, 3))})


def sound(text: bytes, body: bytes) -> None:
    """Check that decoding gives a message whose arrays lie in the body, or a RobotError."""
    try:
        message = decode(text, body)
    except RobotError as e:
        assert "\n" not in str(e) and len(str(e)) < 400
    else:
        assert isinstance(message.kind, str) and isinstance(message.values, dict)
        assert sum(array.nbytes for array in message.arrays.values()) == len(body)


@settings(max_examples=100, deadline=None)
@given(head=HEADS, body=st.binary(max_size=64))
def test_any_head_is_a_message_or_a_robot_error(head: Any, body: bytes) -> None:
    sound(json.dumps(head).encode(), body)


@settings(max_examples=100, deadline=None)
@given(text=st.binary(max_size=200), body=st.binary(max_size=16))
def test_any_bytes_are_a_message_or_a_robot_error(text: bytes, body: bytes) -> None:
    sound(text, body)


@settings(max_examples=100, deadline=None)
@given(at=st.integers(0, 10**6), new=st.binary(max_size=4), cut=st.integers(0, 4))
def test_a_message_with_changed_bytes(at: int, new: bytes, cut: int) -> None:
    data = VALID.encode()
    at %= len(data)
    data = data[:at] + new + data[at + cut :]
    a, b = socket.socketpair()
    channel = Channel(b)
    try:
        a.sendall(data)
        a.close()
        for message in channel.heard():
            assert isinstance(message, Message)
    except RobotError as e:
        assert "\n" not in str(e)
    finally:
        channel.close()


@pytest.mark.parametrize(
    "head",
    [
        {"kind": "a", "values": {}, "arrays": {"x": ["float32", [2**64]]}},
        {"kind": "a", "values": {}, "arrays": {"x": ["uint8", [0, 2**64]]}},
        {"kind": "a", "values": {}, "arrays": {"x": ["uint8", [2**13] * 8]}},
        {"kind": "a", "values": {}, "arrays": {"x": ["uint8", [True]]}},
        {"kind": "a", "values": {}, "arrays": {"x": [["float32"], [1]]}},
        {"kind": "a", "values": [], "arrays": {}},
        {"kind": None, "values": {}, "arrays": {}},
        {"kind": "a", "values": {"x": float("nan")}, "arrays": {}},
        {"kind": "a", "values": {"x": float("inf")}, "arrays": {}},
    ],
)
def test_what_is_no_message_is_a_robot_error(head: Any) -> None:
    with pytest.raises(RobotError, match="connection: not a message"):
        decode(json.dumps(head).encode(), b"\0")
    with pytest.raises(RobotError, match="connection: not a message"):
        decode(b'{"kind": "a", "values": {"x": 1e999}, "arrays": {}}', b"")


@pytest.mark.parametrize("text", [b"[" * messages.HEAD, b"[" + b"{}," * 21_000 + b"{}]"])
def test_a_head_takes_little_memory(text: bytes) -> None:
    """A head may be 64 KiB; its objects are at most some fifty times as large."""
    assert len(text) <= messages.HEAD
    tracemalloc.start()
    sound(text, b"")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * messages.HEAD


@pytest.mark.parametrize("lengths", [(messages.HEAD + 1, 0), (0, 1025), (2**32 - 1, 2**32 - 1)])
def test_a_message_that_is_too_long_is_refused_by_its_first_bytes(lengths: tuple[int, int]) -> None:
    a, b = socket.socketpair()
    a.sendall(LENGTHS.pack(*lengths))
    with pytest.raises(RobotError, match=r"a message of \d+ bytes"):
        list(Channel(b, body=1024).heard())
    a.close()


def test_a_flood_is_read_by_portions_and_slowed_down() -> None:
    a, b = socket.socketpair()
    channel = Channel(b, body=1024)
    a.setblocking(False)
    one, sent = Message("health", {"id": 1}).encode(), 0
    for _ in range(50):  # the channel's socket is read once for every eight messages
        try:
            while True:
                sent += a.send(one * 1000)
        except BlockingIOError:
            pass
        assert len(list(channel.heard(8))) == 8
    assert sent < 1 << 21  # what the kernel and the channel hold
    a.close()
    channel.close()


def test_a_peer_that_does_not_read_is_given_up() -> None:
    a, b = socket.socketpair()
    channel = Channel(b, waiting=1 << 16)
    reply = Message("reply", {"error": "x" * 1000})
    with pytest.raises(RobotError, match="the other side does not read"):
        for _ in range(10_000):
            channel.tell(reply)
    a.close()
    channel.close()


def test_a_large_message_may_wait_but_others_not_for_ever() -> None:
    a, b = socket.socketpair()
    channel = Channel(b, waiting=1 << 16)
    image = Message("observation", {}, {"rgb": np.zeros((1000, 1000, 3), np.uint8)})
    channel.tell(image)
    channel.tell(Message("reply"))
    with pytest.raises(RobotError, match="does not read"):
        channel.tell(image)
    channel.refuse_delay(10.0)
    with pytest.raises(RobotError, match="has not read for 0 s"):
        channel.refuse_delay(0)
    a.close()
    channel.close()


def test_a_message_byte_by_byte_must_end_in_time() -> None:
    a, b = socket.socketpair()
    channel = Channel(b)
    channel.refuse_delay(0)
    with pytest.raises(RobotError, match="no complete message within 0 s"):
        channel.refuse_delay(0, silence=True)
    for byte in VALID.encode()[:20]:
        a.send(bytes([byte]))
        assert not list(channel.heard())
    with pytest.raises(RobotError, match="no complete message within 0 s"):
        channel.refuse_delay(0)
    a.send(VALID.encode()[20:])
    (message,) = channel.heard()
    assert message.values == {"sequence": 3}
    channel.refuse_delay(0)
    a.close()
    channel.close()


def test_what_cannot_be_sent_is_said() -> None:
    with pytest.raises(RobotError, match="message goal: .* bytes of values .* send less"):
        Message("goal", {"text": "x" * messages.HEAD}).encode()
    with pytest.raises(RobotError, match="message reply: .* every number must be finite"):
        Message("reply", {"age": np.inf}).encode()


def test_words_of_a_peer_become_one_line() -> None:
    assert one_line("stop\n\x1b[2J now\ud800" + "x" * 1000).startswith("stop  [2J now ")
    assert len(one_line("x" * 10**6)) == messages.TEXT
