"""The messages of a bag's topics as series over time, without the images themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from latentplan.data import ros_images
from latentplan.data.sources import bag_clock, bag_messages, bag_topics
from latentplan.data.sources.bag_clock import OUT, Stream
from latentplan.data.sources.bag_files import Bag, Received
from latentplan.data.sources.bag_messages import COMPRESSED, IMAGE, NOT_FINITE
from latentplan.data.sources.bag_timeline import Series
from latentplan.data.sources.bag_topics import Topics
from latentplan.errors import SourceError
from latentplan.types import Array

SAME_CLOCK = 5 * 10**8  # ns between the recorder's clock and that of stamps, at most, if they agree
# Why a message is left out, beside the reasons in bag_messages.
NO_STAMP = "without a stamp"
WRONG = "with a wrong stamp"
REPEATED = "with a repeated stamp"
NO_VELOCITY = "without finite velocities"
PART = "of a part of the joints"

# Names of streams, beside the keys of cameras and "/joints ..." of drivers.
FINGER, COMMAND = "/finger", "/command"


class Driver(NamedTuple):
    """The joint states of one of the drivers that share a topic."""

    joints: tuple[int, ...]  # indices in `Topics.joints`
    series: Series  # (M, 2, len(joints)): rad, and rad/s or NaN


class Recording(NamedTuple):
    """The series of a bag between two times at which its clocks go back.

    Times are in ns and increase.
    """

    cameras: dict[str, Series]  # when each image was recorded, ns
    drivers: tuple[Driver, ...]  # each joint has one; the one that sends least often is the first
    finger: Series  # (M, 1): m or rad
    command: Series  # (M, C)
    start: int  # recorded, ns, of the first row

    @property
    def clock(self) -> Array:
        """Return the times (M,) of rows: of the first camera, else of the first driver."""
        return next(iter(self.cameras.values()), self.drivers[0].series).stamps


@dataclass(frozen=True)
class Recorded:
    """What a bag holds on the topics that are read."""

    parts: tuple[Recording, ...]
    shapes: dict[str, tuple[int, ...]]  # (h, w, 3) of the first image of each camera that is read
    control: str  # joint_position, joint_velocity, twist; empty if the messages do not define it
    velocities: bool  # whether there are velocities of all joints
    messages: dict[str, int]  # on each topic
    left_out: dict[str, Counter[str]]  # on each topic, by reason


class _Row(NamedTuple):
    """A message of a stream."""

    stamp: int
    recorded: int
    order: int  # its place in the bag
    value: Any


def record(bag: Bag, topics: Topics, *, keys: Collection[str] | None) -> Recorded:
    """Return the series of `topics`; SourceError if one has no message that can be read.

    Images and velocities are only looked at if they are among the observations `keys` (None: all).
    """
    topics.check(bag)
    collector = _Collector(bag, topics, keys)
    listened = {*topics.cameras.values(), topics.joint_states, topics.command} - {""}
    for order, received in enumerate(bag.messages(sorted(listened))):
        collector.add(order, received)
    return collector.recorded()


def pixels(bag: Bag, received: Received) -> Array:
    """Return the image (h, w, 3) uint8 in a message; SourceError if it cannot be decoded."""
    where = f"{bag.path}: {received.topic}"
    decode = {IMAGE: ros_images.pixels, COMPRESSED: ros_images.decompressed}
    try:
        return decode[bag.topics[received.topic]](where, received.message)
    except SourceError as e:
        raise SourceError(f"{e}; {without(bag, received.topic)}") from None


def without(bag: Bag, topic: str) -> str:
    """Return the advice to leave out a topic of images."""
    others = ", ".join(other for other in bag_topics.of_images(bag) if other != topic)
    return f"set images to the topics without it, images=[{others or 'TOPIC, ...'}]"


def time(received: Received, *, recorded: bool) -> int:
    """Return the time of measurement of a message, ns; 0 if it is not set."""
    stamp = None if recorded else bag_messages.stamp(received.message)
    return received.recorded if stamp is None else stamp


class _Collector:
    """The values of messages so far, by the stream that they belong to."""

    def __init__(self, bag: Bag, topics: Topics, keys: Collection[str] | None) -> None:
        self._bag, self._topics, self._keys = bag, topics, keys
        self._cameras = {topic: key for key, topic in topics.cameras.items()}
        self._rows: dict[str, list[_Row]] = {key: [] for key in topics.cameras}
        self._rows |= {FINGER: [], COMMAND: []}
        self._joints: dict[str, tuple[int, ...]] = {}  # of each driver, as indices
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._control: str | None = None
        self._named: set[str] = set()  # joints
        # Why a message is left out, by its topic and place in the bag; empty: it is not.
        listened = {*self._cameras, topics.joint_states, topics.command} - {""}
        self._why: dict[str, dict[int, str]] = {topic: {} for topic in sorted(listened)}

    def add(self, order: int, received: Received) -> None:
        topic, topics = received.topic, self._topics
        at = time(received, recorded=topics.recorded)
        if topic == topics.command:
            self._commanded(order, received)
        if topic == topics.joint_states or topic in self._cameras:
            self._why[topic][order] = "" if at else NO_STAMP
            if not at:
                return
        if topic == topics.joint_states:
            self._measured(at, order, received)
        elif topic in self._cameras:
            key = self._cameras[topic]
            if key not in self._shapes and (self._keys is None or key in self._keys):
                self._shapes[key] = pixels(self._bag, received).shape
            self._rows[key].append(_Row(at, received.recorded, order, received.recorded))

    def _commanded(self, order: int, received: Received) -> None:
        topic = received.topic
        where, kind = f"{self._bag.path}: {topic}", self._bag.topics[topic]
        joints = self._topics.joints
        command = bag_messages.command(where, kind, received.message, joints=joints)
        self._why[topic][order] = command if isinstance(command, str) else ""
        if isinstance(command, str):
            return
        if command.control != (self._control or command.control):
            raise SourceError(f"{where}: commands {self._control} and {command.control}")
        self._control = command.control
        # Its stamp is when it is due, not when it was sent, and usually 0.
        row = _Row(received.recorded, received.recorded, order, command.values)
        self._rows[COMMAND].append(row)

    def _measured(self, at: int, order: int, received: Received) -> None:
        topics, message = self._topics, received.message
        self._named.update(message.name)
        found = bag_messages.measured(message, topics.joints)
        why = found if isinstance(found, str) else ""
        if not isinstance(found, str):
            # Left out unless the driver of these joints is chosen.
            all_finite = len(found.joints) == len(set(topics.joints) & set(message.name))
            why = PART if all_finite else NOT_FINITE
            value = np.stack([found.positions, found.velocities])
            row = _Row(at, received.recorded, order, value)
            name = f"/joints {found.joints}"
            self._joints[name] = found.joints
            self._rows.setdefault(name, []).append(row)
        if topics.finger:
            width = bag_messages.measured(message, (topics.finger,))
            if not isinstance(width, str):
                self._rows[FINGER].append(_Row(at, received.recorded, order, width.positions))
        self._why[received.topic][order] = why

    def recorded(self) -> Recorded:
        """Return what was collected; SourceError if a topic has nothing that can be read."""
        topics = self._topics
        for topic, key in self._cameras.items():
            if not self._rows[key]:
                raise self._unread(topic)
        chosen = self._drivers()
        velocities = self._velocities(chosen)
        rows = {name: self._rows[name] for name in (*topics.cameras, *chosen, FINGER, COMMAND)}
        streams = {name: _stream(rows[name]) for name in rows}
        epochs = bag_clock.epochs(streams)
        self._account(rows, epochs)
        clock = next(iter((*topics.cameras, *chosen)))
        parts = []
        for epoch in np.unique(epochs[clock][epochs[clock] != OUT]).tolist():
            here = {name: np.flatnonzero(epochs[name] == epoch) for name in rows}
            series = {name: _series(rows[name], here[name]) for name in rows}
            driver = streams[chosen[0]]
            command = _on_clock(series[COMMAND], driver, here[chosen[0]])
            parts.append(
                Recording(
                    cameras={key: series[key] for key in topics.cameras},
                    drivers=tuple(Driver(self._joints[name], series[name]) for name in chosen),
                    finger=series[FINGER],
                    command=command,
                    start=int(streams[clock].recorded[here[clock][0]]),
                )
            )
        return Recorded(
            parts=tuple(parts),
            shapes=self._shapes,
            control=self._control or "",
            velocities=velocities,
            messages={topic: len(why) for topic, why in self._why.items()},
            left_out={topic: _counted(why) for topic, why in self._why.items()},
        )

    def _drivers(self) -> list[str]:
        """Return the streams of the drivers to read, the one that sends least often first."""
        topics = self._topics
        missing = set(range(len(topics.joints)))

        def worth(name: str) -> int:
            return len(missing & {*self._joints[name]}) * len(self._rows[name])

        chosen: list[str] = []
        while missing:
            best = max(self._joints, key=worth, default="")
            if not best or not worth(best):
                names = ", ".join(topics.joints[i] for i in sorted(missing))
                raise self._unread(topics.joint_states, f"a position of {names}", "joints")
            chosen.append(best)
            missing -= {*self._joints[best]}
        if topics.finger and not self._rows[FINGER]:
            raise self._unread(topics.joint_states, f"a position of {topics.finger}", "finger")
        return sorted(chosen, key=lambda name: len(self._rows[name]))

    def _velocities(self, chosen: list[str]) -> bool:
        """Return whether most joint states have velocities; those without are left out if so."""
        if self._keys is not None and "dq" not in self._keys:
            return False
        sent = {
            name: np.array([np.isfinite(row.value[1]).all() for row in self._rows[name]])
            for name in chosen
        }
        if min(values.mean() for values in sent.values()) < 0.5:
            return False
        for name, values in sent.items():
            for row in (self._rows[name][i] for i in np.flatnonzero(~values)):
                self._why[self._topics.joint_states][row.order] = NO_VELOCITY
            self._rows[name] = [self._rows[name][i] for i in np.flatnonzero(values)]
        return True

    def _account(self, rows: dict[str, list[_Row]], epochs: dict[str, Array]) -> None:
        """Note the messages of `rows` that are left out; one that any stream needs is not."""
        topic_of = {**self._topics.cameras, COMMAND: self._topics.command}
        for used in (False, True):
            for name, of_stream in rows.items():
                topic = topic_of.get(name, self._topics.joint_states)
                kept = {row.stamp for row, e in zip(of_stream, epochs[name], strict=True) if e >= 0}
                for row, epoch in zip(of_stream, epochs[name].tolist(), strict=True):
                    if used == (epoch != OUT):
                        repeated = REPEATED if row.stamp in kept else WRONG
                        self._why[topic][row.order] = "" if used else repeated

    def _unread(self, topic: str, what: str = "a message", field: str = "") -> SourceError:
        """Return the error for a topic that never has `what`."""
        why = _counted(self._why[topic])
        if why[NO_STAMP]:
            advice = "set clock=recorded to take the times at which messages were recorded"
            return SourceError(f"{self._bag.path}: {topic} has stamps of 0; {advice}")
        reasons = ", ".join(f"{n} {reason}" for reason, n in why.items())
        found = f"; found {', '.join(sorted(self._named)) or 'none'}" if field else ""
        advice = f"set {field}" if field else without(self._bag, topic)
        return SourceError(
            f"{self._bag.path}: {topic} never has {what} ({reasons or 'empty'}){found}; {advice}"
        )


def _stream(rows: list[_Row]) -> Stream:
    stamps, recorded, order = (
        np.array([row[column] for row in rows], np.int64) for column in range(3)
    )
    return Stream(stamps, recorded, order)


def _series(rows: list[_Row], kept: Array) -> Series:
    stamps = np.array([rows[i].stamp for i in kept], np.int64)
    return Series(stamps, np.array([rows[i].value for i in kept]))


def _on_clock(command: Series, driver: Stream, kept: Array) -> Series:
    """Return commands at the times of stamps, if those are not of the recorder's clock.

    `kept` are the messages of `driver` by which the two clocks are compared.
    """
    stamps, recorded = driver.stamps[kept], np.maximum.accumulate(driver.recorded[kept])
    if not len(kept) or np.median(np.abs(recorded - stamps)) <= SAME_CLOCK:
        return command
    at = command.stamps
    inside = np.interp(at - recorded[0], recorded - recorded[0], stamps - stamps[0])
    times = stamps[0] + np.rint(inside).astype(np.int64)
    # Before and after all joint states both clocks advance alike.
    times += np.minimum(at - recorded[0], 0) + np.maximum(at - recorded[-1], 0)
    return Series(times, command.values)


def _counted(why: dict[int, str]) -> Counter[str]:
    return Counter(filter(None, why.values()))
