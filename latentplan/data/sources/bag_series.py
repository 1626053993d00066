"""The messages of a bag's topics as series over time, without the images themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from latentplan.data import ros_images
from latentplan.data.sources import bag_messages
from latentplan.data.sources.bag_files import Bag, Received
from latentplan.data.sources.bag_messages import COMMANDS, COMPRESSED, IMAGE, JOINT_STATE
from latentplan.data.sources.bag_timeline import Series, later
from latentplan.errors import SourceError, unknown
from latentplan.types import Array

TAILS = ("compressed", "image_raw", "image", "image_color", "image_rect", "image_rect_color")


@dataclass(frozen=True)
class Topics:
    """The topics and joints that are read."""

    cameras: Mapping[str, str]  # topic of each, by the key of its images
    joint_states: str
    joints: tuple[str, ...]  # in the order of every (J,)
    finger: str = ""  # joint of the gripper
    command: str = ""  # empty: none
    recorded: bool = False  # whether times are the recorder's instead of the messages'


class Recording(NamedTuple):
    """The series of a bag; times are in ns and increase."""

    cameras: dict[str, Series]  # when each image was recorded, ns
    shapes: dict[str, tuple[int, ...]]  # (h, w, 3) of each camera's first image
    joints: Series  # (M, 2, J): rad, and rad/s or NaN if a message has none
    finger: Series  # (M, 1): m or rad
    command: Series  # (M, C)
    control: str  # joint_position, joint_velocity, twist; empty if the messages do not define it
    repeated: int  # messages left out because their time is not later than the one before


def cameras(bag: Bag, wanted: tuple[str, ...]) -> dict[str, str]:
    """Return the topics of images by their key; without any in `wanted`, all in the bag.

    `wanted` are topics or NAME=TOPIC; without a name, `/arm/front/image_raw` is `arm_front`.
    """
    kinds = (IMAGE, COMPRESSED)
    found: dict[str, str] = {}
    for text in wanted or sorted(t for t, kind in bag.topics.items() if kind in kinds):
        name, _, topic = text.rpartition("=")
        _check(bag, "images", topic, kinds)
        key = name or _key(topic)
        if key in found or key in ("q", "dq", "gripper"):
            raise SourceError(
                f"{bag.path}: {topic} and {found.get(key, 'the joints')} would both be {key!r}; "
                "set images to those that you want, as NAME=TOPIC"
            )
        found[key] = topic
    return found


def joint_states(bag: Bag, wanted: str) -> str:
    """Return the topic of joint states: `wanted`, or the only one; SourceError else."""
    if wanted:
        _check(bag, "joint_states", wanted, (JOINT_STATE,))
        return wanted
    found = [topic for topic, kind in bag.topics.items() if kind == JOINT_STATE]
    if len(found) != 1:
        raise SourceError(
            f"{bag.path}: found {len(found)} topics of {JOINT_STATE}, need one; set joint_states; "
            f"topics: {_shown(bag.topics)}"
        )
    return found[0]


def first_joints(bag: Bag, topic: str, *, finger: str) -> tuple[str, ...]:
    """Return the joints in the first message of `topic`, in its order, without the gripper's."""
    for said in bag.messages([topic]):
        names = tuple(name for name in said.message.name if name != finger)
        if names:
            return names
    raise SourceError(f"{bag.path}: {topic} names no joint")


def record(bag: Bag, topics: Topics) -> Recording:
    """Return the series of `topics`; SourceError if a topic is missing or of another type."""
    for topic in topics.cameras.values():
        _check(bag, "images", topic, (IMAGE, COMPRESSED))
    _check(bag, "joint_states", topics.joint_states, (JOINT_STATE,))
    if topics.command:
        _check(bag, "command", topics.command, tuple(COMMANDS))
    said = _Collector(bag, topics)
    listened = {*topics.cameras.values(), topics.joint_states, topics.command} - {""}
    for received in bag.messages(sorted(listened)):
        said.add(received)
    return said.recording()


def pixels(bag: Bag, received: Received) -> Array:
    """Return the image (h, w, 3) uint8 in a message; SourceError if it cannot be decoded."""
    where = f"{bag.path}: {received.topic}"
    decode = {IMAGE: ros_images.pixels, COMPRESSED: ros_images.decompressed}
    return decode[bag.topics[received.topic]](where, received.message)


def time(bag: Bag, received: Received, *, recorded: bool) -> int:
    """Return the time of measurement of a message, ns; SourceError if it is 0."""
    stamp = None if recorded else bag_messages.stamp(received.message)
    if stamp == 0:
        raise SourceError(
            f"{bag.path}: {received.topic} has stamps of 0; set clock=recorded to take the times "
            "at which messages were recorded"
        )
    return received.recorded if stamp is None else stamp


class _Collector:
    """The values of messages so far, by topic."""

    def __init__(self, bag: Bag, topics: Topics) -> None:
        self._bag, self._topics = bag, topics
        self._keys = {topic: key for key, topic in topics.cameras.items()}
        self._rows: dict[str, list[tuple[int, Any]]] = {
            name: [] for name in (*topics.cameras, "/joints", "/finger", "/command")
        }
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._control: str | None = None
        self._strangers: set[str] = set()

    def add(self, received: Received) -> None:
        bag, topics, topic = self._bag, self._topics, received.topic
        where = f"{bag.path}: {topic}"
        if topic in self._keys:
            key = self._keys[topic]
            if key not in self._shapes:
                self._shapes[key] = pixels(bag, received).shape
            at = time(bag, received, recorded=topics.recorded)
            self._rows[key].append((at, received.recorded))
        if topic == topics.joint_states:
            self._measured(where, received)
        if topic == topics.command:
            kind = bag.topics[topic]
            command = bag_messages.command(where, kind, received.message, joints=topics.joints)
            if command is not None:
                if command.control != (self._control or command.control):
                    raise SourceError(f"{where}: commands {self._control} and {command.control}")
                self._control = command.control
                # Its stamp is when it is due, not when it was sent, and usually 0.
                self._rows["/command"].append((received.recorded, command.values))

    def _measured(self, where: str, received: Received) -> None:
        topics, message = self._topics, received.message
        names = list(message.name)
        at = time(self._bag, received, recorded=topics.recorded)
        q = bag_messages.ordered(where, topics.joints, names, values=message.position)
        if q is None:
            self._strangers.update(names)
        else:
            dq = None
            if len(message.velocity):
                dq = bag_messages.ordered(where, topics.joints, names, values=message.velocity)
            self._rows["/joints"].append((at, [q, np.full(len(q), np.nan) if dq is None else dq]))
        if topics.finger in names:
            width = bag_messages.ordered(where, [topics.finger], names, values=message.position)
            self._rows["/finger"].append((at, width))

    def recording(self) -> Recording:
        bag, topics = self._bag, self._topics
        for name, row, wanted in (
            ("joints", "/joints", ", ".join(topics.joints)),
            ("finger", "/finger", topics.finger),
        ):
            if wanted and not self._rows[row]:
                found = ", ".join(sorted(self._strangers)) or "none"
                raise SourceError(
                    f"{bag.path}: {topics.joint_states} never has {wanted}; found {found}; "
                    f"set {name}"
                )
        series = {name: _series(rows) for name, rows in self._rows.items()}
        return Recording(
            cameras={key: series[key] for key in topics.cameras},
            shapes={key: self._shapes[key] for key in topics.cameras},
            joints=series["/joints"],
            finger=series["/finger"],
            command=series["/command"],
            control=self._control or "",
            repeated=sum(len(rows) - len(series[k].stamps) for k, rows in self._rows.items()),
        )


def _series(rows: list[tuple[int, Any]]) -> Series:
    stamps = np.array([at for at, _ in rows], np.int64)
    kept = later(stamps)
    return Series(stamps[kept], np.array([value for _, value in rows])[kept])


def _check(bag: Bag, field: str, topic: str, kinds: tuple[str, ...]) -> None:
    """Raise SourceError unless `bag` has messages of one of `kinds` on `topic`."""
    if topic not in bag.topics:
        raise SourceError(f"{bag.path}: {field}: {unknown('topic', topic, bag.topics)}")
    if bag.topics[topic] not in kinds:
        raise SourceError(
            f"{bag.path}: {field}: {topic} holds {bag.topics[topic]}, need {' or '.join(kinds)}; "
            f"topics: {_shown(bag.topics)}"
        )


def _shown(topics: Mapping[str, str]) -> str:
    return ", ".join(f"{topic} ({kind})" for topic, kind in sorted(topics.items())) or "none"


def _key(topic: str) -> str:
    parts = [part for part in topic.split("/") if part]
    while len(parts) > 1 and parts[-1] in TAILS:
        parts.pop()
    return "_".join(parts)
