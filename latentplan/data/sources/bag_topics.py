"""The topics of a bag that are read: cameras, joint states, a command, and the joints' names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from latentplan.data.sources import bag_messages
from latentplan.data.sources.bag_files import Bag
from latentplan.data.sources.bag_messages import COMMANDS, COMPRESSED, IMAGE, JOINT_STATE
from latentplan.errors import SourceError, unknown

TAILS = ("compressed", "image_raw", "image", "image_color", "image_rect", "image_rect_color")
ALL_DRIVERS = 5 * 10**9  # ns in which every driver has sent its joints


@dataclass(frozen=True)
class Topics:
    """The topics and joints that are read."""

    cameras: Mapping[str, str]  # topic of each, by the key of its images
    joint_states: str
    joints: tuple[str, ...]  # in the order of every (J,)
    finger: str = ""  # joint of the gripper
    command: str = ""  # empty: none
    recorded: bool = False  # whether times are the recorder's instead of the messages'

    def check(self, bag: Bag) -> None:
        """Raise SourceError if `bag` lacks a topic, or it is of another type."""
        for topic in self.cameras.values():
            _check(bag, "images", topic, (IMAGE, COMPRESSED))
        _check(bag, "joint_states", self.joint_states, (JOINT_STATE,))
        if self.command:
            _check(bag, "command", self.command, tuple(COMMANDS))


def cameras(bag: Bag, wanted: tuple[str, ...]) -> dict[str, str]:
    """Return the topics of images by their key; without any in `wanted`, all in the bag.

    `wanted` are topics or NAME=TOPIC; without a name, `/arm/front/image_raw` is `arm_front`.
    """
    found: dict[str, str] = {}
    for text in wanted or of_images(bag):
        name, _, topic = text.rpartition("=")
        _check(bag, "images", topic, (IMAGE, COMPRESSED))
        key = name or _key(topic)
        if key in found or key in ("q", "dq", "gripper"):
            raise SourceError(
                f"{bag.path}: {topic} and {found.get(key, 'the joints')} would both be {key!r}; "
                "set images to those that you want, as NAME=TOPIC"
            )
        found[key] = topic
    return found


def of_images(bag: Bag) -> list[str]:
    """Return the topics of images, sorted."""
    return sorted(topic for topic, kind in bag.topics.items() if kind in (IMAGE, COMPRESSED))


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


def first_joints(bag: Bag, topic: str, *, finger: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the joints in the first seconds of `topic`, and those without a finite position.

    Both are in the order of the first messages and without the gripper's.
    """
    start: int | None = None
    named: dict[str, None] = {}
    placed: set[str] = set()
    for received in bag.messages([topic]):
        start = received.recorded if start is None else start
        names = tuple(name for name in received.message.name if name != finger)
        named.update(dict.fromkeys(names))
        found = bag_messages.measured(received.message, names)
        if not isinstance(found, str):
            placed.update(names[i] for i in found.joints)
        if placed and abs(received.recorded - start) > ALL_DRIVERS:
            break
    if not placed:
        raise SourceError(
            f"{bag.path}: {topic} has no joint with a finite position; found the joints "
            f"{', '.join(named) or 'none'}; set joint_states"
        )
    joints = tuple(name for name in named if name in placed)
    return joints, tuple(name for name in named if name not in placed)


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
