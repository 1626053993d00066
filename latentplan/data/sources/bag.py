"""Bags of ROS 1 and ROS 2 as episodes: cameras, joint states and commands on one clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from latentplan import budget
from latentplan import config as settings
from latentplan.data.sources import (
    bag_files,
    bag_series,
    bag_spec,
    bag_topics,
    observation_keys,
)
from latentplan.data.sources.bag_series import Recorded, Recording
from latentplan.data.sources.bag_timeline import Series, mean_held, newest, sampled, stretches
from latentplan.data.sources.bag_topics import Topics
from latentplan.data.sources.floats import float32
from latentplan.errors import ConfigError, SourceError, check_range
from latentplan.types import Array, Episode, Spec

CONTROLS = ("", "joint_position", "joint_velocity")
FRAMES = ("", "world", "base", "tool")
CLOCKS = ("header", "recorded")
GAPS = ("cut", "drop")
NS = 1e9  # in a second


class _Short(SourceError):
    """A bag with fewer than two rows, such as the last file of a recording that was split."""


class _Part(NamedTuple):
    """An episode without its images, and the times of those."""

    bag: int
    stamps: dict[str, Array]  # (L + 1,) ns, of each camera's images
    recorded: dict[str, Array]  # (L + 1,) ns
    observations: dict[str, Array]
    actions: Array  # (L, A)
    info: dict[str, float]


class Bag:
    """A Source of a bag (.bag, .mcap, .db3, a ROS 2 bag's folder), or of a folder of them.

    Rows are the images of the first camera (without cameras: joint states), `rate` a second. Each
    row has the newest joint state and the newest image of every other camera up to that time. If
    one is older than `age`, or an image is missing, there is a gap: the bag is cut into several
    episodes, or such rows are left out of one. It is also cut where its clocks go back. `counts`
    has the messages of each topic, and the rows, that are kept or left out by reason.

    `q` (rad), `dq` (rad/s; if it is sent) and `gripper` (m; if `finger` is set) have the
    order of `joints`. An action is the command: the newest position by the next row, or the mean
    velocity until then; without a topic, the joints' next positions. A gripper adds its next width,
    0 closed to 1 open. Rewards are zero.
    """

    @dataclass(frozen=True)
    class Config:
        """The topics that are read, and their clock."""

        images: tuple[str, ...] = ()  # topics or NAME=TOPIC, the first the clock; none: all
        joint_states: str = ""  # topic; empty: the only one of that type
        joints: tuple[str, ...] = ()  # names, in the order of q; none: as in the first message
        finger: str = ""  # joint of the gripper; empty: there is none
        finger_scale: float = 2.0  # m of width for a metre (or a radian) of that joint
        width: float = 0.0  # m between the fingers when open; needed with finger
        command: str = ""  # topic of actions; empty: the joints' next positions
        control: str = ""  # of a command without joint names: joint_position or joint_velocity
        frame: str = ""  # frame of a commanded twist: world, base or tool
        rate: float = 0.0  # rows a second; 0: the first camera's
        age: float = 0.1  # s, the largest age of a joint state or image beside the row's image
        hold: float = 0.5  # s for which a command holds
        gap: float = 1.5  # times 1 / rate between two rows from which on there is a gap
        gaps: str = "cut"  # cut into episodes at gaps, or drop such rows
        clock: str = "header"  # header: times in the messages; recorded: times of the recorder

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            for name, known in (
                *(("control", CONTROLS), ("frame", FRAMES)),
                *(("gaps", GAPS), ("clock", CLOCKS)),
            ):
                if getattr(self, name) not in known:
                    allowed = ", ".join(filter(None, known))
                    found = getattr(self, name)
                    raise ConfigError(f"Bag.{name}: found {found!r}, allowed are {allowed}")
            check_range("Bag.finger_scale", self.finger_scale, 1e-6, 1e3)
            check_range("Bag.width", self.width, 1e-3 if self.finger else 0, 10)
            check_range("Bag.rate", self.rate, 0, 1000)
            check_range("Bag.age", self.age, 0, 10)
            check_range("Bag.hold", self.hold, 0, 100)
            check_range("Bag.gap", self.gap, 1.05, 100)

    def __init__(
        self,
        path: Path | str,
        config: Config | None = None,
        *,
        keys: Sequence[str] | None = None,
    ) -> None:
        """Read all but the images; SourceError if there is no bag, or none is whole.

        Of several bags, a damaged one counts as an episode, whose reading raises; one with fewer
        than two rows is left out.
        """
        self.path, self.config, self._keys = Path(path), config or self.Config(), keys
        self.settings: dict[str, Any] = {"format": "bag", **settings.to_values(self.config)}
        self.notes: list[str] = []
        self.counts: dict[str, dict[str, int]] = {}
        self._files = bag_files.find(self.path)
        self._topics: Topics | None = None
        self._spec: Spec | None = None
        self._parts: list[_Part | SourceError] = []
        for index, file in enumerate(self._files):
            try:
                self._parts += self._read(index, file)
            except SourceError as e:
                self._parts.append(e)
        whole = [part for part in self._parts if isinstance(part, _Part)]
        if not whole:
            errors = [part for part in self._parts if isinstance(part, SourceError)]
            raise errors[0]
        self.notes += [str(part) for part in self._parts if isinstance(part, _Short)]
        self._parts = [part for part in self._parts if not isinstance(part, _Short)]
        assert self._spec is not None
        spec = bag_spec.bounded(self._spec, [part.actions for part in whole])
        self.spec: Spec = observation_keys.restricted(spec, keys)

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self._parts)

    def episode(self, index: int) -> Episode:
        """Return one episode; SourceError if an image is damaged or of another size."""
        part = self._parts[index]
        if isinstance(part, SourceError):
            raise part
        seen = part.observations | self._images(part)
        return Episode(
            observations={key: seen[key] for key in self.spec.observation},
            actions=part.actions,
            rewards=np.zeros(len(part.actions), np.float32),
            truncated=True,
            info=part.info,
        )

    def _read(self, index: int, file: Path) -> list[_Part]:
        """Return the episodes of one bag."""
        with bag_files.opened(file) as bag:
            topics = self._topics or self._chosen(bag)
            recorded = bag_series.record(bag, topics, keys=self._keys)
            spec, dt = self._described(bag, topics, recorded)
        if self._spec is None:
            self._topics, self._spec = topics, spec
        elif not recorded.velocities or "dq" not in self._spec.observation:
            spec = bag_spec.without_velocities(spec)
            self._spec = bag_spec.without_velocities(self._spec)
        found = bag_spec.difference(self._spec, spec)
        if found:
            raise SourceError(f"{file}: {found}")
        return self._cut(index, recorded, dt * NS)

    def _chosen(self, bag: bag_files.Bag) -> Topics:
        c = self.config
        topic = bag_topics.joint_states(bag, c.joint_states)
        cameras = bag_topics.cameras(bag, c.images)
        known = ["q", "dq", *(["gripper"] if c.finger else []), *cameras]
        observation_keys.chosen(known, self._keys)
        joints = c.joints
        if not joints:
            joints, unplaced = bag_topics.first_joints(bag, topic, finger=c.finger)
            if unplaced:
                self.notes.append(
                    f"{bag.path.name}: the joints {', '.join(unplaced)} are left out: they have "
                    "no finite position"
                )
        return Topics(
            cameras=cameras,
            joint_states=topic,
            joints=joints,
            finger=c.finger,
            command=c.command,
            recorded=c.clock == "recorded",
        )

    def _described(
        self, bag: bag_files.Bag, topics: Topics, recorded: Recorded
    ) -> tuple[Spec, float]:
        """Return the spec of a bag, with open bounds, and the time between rows, s."""
        c, file = self.config, bag.path
        steps = np.concatenate([np.diff(part.clock) for part in recorded.parts])
        if not len(steps):
            first = next(iter(topics.cameras.values()), topics.joint_states)
            advice = f"; {bag_series.without(bag, first)}" if topics.cameras else ""
            raise _Short(
                f"{file}: {first} has fewer than two images or joint states, which give the rows"
                f"{advice}"
            )
        own = float(np.median(steps)) / NS
        if c.rate * own > 1.05:
            raise SourceError(
                f"{file}: Bag.rate: {c.rate} is more than the {1 / own:.1f} a second that the "
                "first camera has (without any: the joint states); lower it"
            )
        dt = 1 / c.rate if c.rate else round(own, 4)
        before = self._spec.dt if self._spec else None
        if before is not None and abs(dt - before) < 0.05 * before:
            dt = before  # clocks differ a little
        action = bag_spec.action(
            file, topics, recorded, control=c.control, frame=c.frame, dt=dt
        )
        return Spec(bag_spec.observations(topics, recorded), action, dt=dt), dt

    def _cut(self, index: int, recorded: Recorded, dt: float) -> list[_Part]:
        """Return the episodes of the bag number `index`, with rows `dt` ns apart."""
        c, counts = self.config, Counter[str]()
        found: list[_Part] = []
        total = gaps = 0
        for recording in recorded.parts:
            stamps = recording.clock
            at = stamps[sampled(stamps, dt)] if c.rate else stamps
            lacking = self._lacking(recording, at)
            kept = np.flatnonzero(~np.any(list(lacking.values()), axis=0))
            pieces = stretches(kept, at, gap=c.gap * dt)
            if c.gaps == "drop":
                pieces = [kept] if len(kept) > 1 else []
            for what, without in lacking.items():
                counts[f"without {what}"] += int(without.sum())
            counts["alone between gaps"] += len(kept) - sum(map(len, pieces))
            total, gaps = total + len(at), gaps + int((np.diff(at) > c.gap * dt).sum())
            since = recording.start - recorded.parts[0].start - int(stamps[0])
            found += [self._part(index, recording, at[piece], since=since) for piece in pieces]
        self._note(self._files[index], recorded, total, found, counts=counts, gaps=gaps)
        if not found:
            raise self._nothing(self._files[index], recorded, total, counts)
        return found

    def _lacking(self, recording: Recording, at: Array) -> dict[str, Array]:
        """Return by name which of the rows `at` (N,), ns, lack a thing; each is named once."""
        c, topics = self.config, self._topics
        assert topics is not None
        age = c.age * NS
        needed = [("joint state", driver.series, age) for driver in recording.drivers]
        cameras = list(recording.cameras.items())[1:]
        needed += [(f"image of {key}", series, age) for key, series in cameras]
        needed += [("gripper", recording.finger, age)] if topics.finger else []
        needed += [("command", recording.command, c.hold * NS)] if topics.command else []
        found = {name: np.zeros(len(at), bool) for name, _, _ in needed}
        complete = np.ones(len(at), bool)
        for name, series, limit in needed:
            without = newest(series.stamps, at, age=limit) < 0
            found[name] |= without & complete
            complete &= ~without
        return found

    def _part(self, index: int, recording: Recording, at: Array, *, since: int) -> _Part:
        """Return the episode with rows at `at` (L + 1,), ns, of the bag number `index`."""

        def values(series: Series) -> Array:
            found = series.values[newest(series.stamps, at, age=np.inf)]
            return np.asarray(found, np.float64)

        assert self._spec is not None and self._topics is not None
        joints = np.empty((len(at), 2, len(self._topics.joints)), np.float32)
        for driver in recording.drivers:
            joints[:, :, driver.joints] = values(driver.series)
        observations = {"q": joints[:, 0], "dq": joints[:, 1]}
        convention = self._spec.action.convention
        assert convention is not None
        if not self._topics.command:
            actions = joints[1:, 0]
        elif convention.control == "joint_position":
            actions = values(recording.command)[1:]
        else:
            actions = mean_held(recording.command, at)
        if self._topics.finger:
            width = values(recording.finger) * self.config.finger_scale
            observations["gripper"] = float32(width)
            share = np.clip(width[1:] / self.config.width, 0, 1)
            actions = np.concatenate([actions, share], axis=1)
        shown = {k: newest(s.stamps, at, age=np.inf) for k, s in recording.cameras.items()}
        return _Part(
            bag=index,
            stamps={key: recording.cameras[key].stamps[rows] for key, rows in shown.items()},
            recorded={key: recording.cameras[key].values[rows] for key, rows in shown.items()},
            observations=observations,
            actions=np.ascontiguousarray(actions, np.float32),
            info={"bag": float(index), "start_s": float((at[0] + since) / NS)},
        )

    def _images(self, part: _Part) -> dict[str, Array]:
        """Return the images (L + 1, h, w, 3) of an episode by camera."""
        assert self._topics is not None
        file, topics = self._files[part.bag], self._topics
        keys = {t: key for key, t in topics.cameras.items() if key in self.spec.observation}
        if not keys:
            return {}
        count = len(part.actions) + 1
        shapes = {key: (count, *self.spec.observation[key].shape) for key in keys.values()}
        budget.claim(f"{file}: images", bytes=sum(map(prod, shapes.values())))
        found = {key: np.empty(shape, np.uint8) for key, shape in shapes.items()}
        # Rows with the image of a time: several if one camera is slower.
        wanted = {key: _rows(part.recorded[key], part.stamps[key]) for key in keys.values()}
        recorded = np.concatenate([part.recorded[key] for key in keys.values()])
        start, stop = int(recorded.min()), int(recorded.max()) + 1
        with bag_files.opened(file) as bag:
            for received in bag.messages(sorted(keys), start=start, stop=stop):
                key = keys[received.topic]
                at = bag_series.time(received, recorded=topics.recorded)
                rows = wanted[key].pop((received.recorded, at), None)
                if rows is None:
                    continue
                image = bag_series.pixels(bag, received)
                if image.shape != found[key].shape[1:]:
                    raise SourceError(
                        f"{file}: {received.topic}: an image is {image.shape}, the first was "
                        f"{found[key].shape[1:]}"
                    )
                found[key][rows] = image
        left = {key: len(rows) for key, rows in wanted.items() if rows}
        if left:
            raise SourceError(f"{file}: changed while it was read; images missing: {left}")
        return found

    def _note(
        self,
        file: Path,
        recorded: Recorded,
        rows: int,
        found: list[_Part],
        *,
        counts: Counter[str],
        gaps: int,
    ) -> None:
        """Add notes on what was left out of a bag, and why."""
        kept = sum(len(part.actions) + 1 for part in found)
        self.counts[f"{file.name}: rows"] = {"kept": kept, **{k: n for k, n in counts.items() if n}}
        for topic, why in recorded.left_out.items():
            total, out = recorded.messages[topic], why.total()
            self.counts[f"{file.name}: {topic}"] = {"kept": total - out, **why}
            if why:
                what = ", ".join(f"{n} {reason}" for reason, n in why.most_common())
                self.notes.append(
                    f"{file.name}: {topic}: {out} of {total} messages left out: {what}"
                )
        if not recorded.velocities and (self._keys is None or "dq" in self._keys):
            self.notes.append(
                f"{file.name}: velocities (dq) are left out: most joint states have none that are "
                "finite"
            )
        reasons = [f"{n} {reason}" for reason, n in counts.items() if n]
        reasons += [f"{gaps} gaps between images"] if gaps else []
        back = len(recorded.parts) - 1
        reasons += [f"a clock went back {back} times"] if back else []
        if reasons:
            self.notes.append(
                f"{file.name}: {kept} of {rows} rows in {len(found)} episodes; {', '.join(reasons)}"
            )

    def _nothing(
        self, file: Path, recorded: Recorded, rows: int, counts: Counter[str]
    ) -> SourceError:
        """Return the error for a bag without an episode."""
        c, topics = self.config, self._topics
        assert topics is not None
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts.items())
        once = [topic for topic in topics.cameras.values() if recorded.messages[topic] == 1]
        advice = "set age, hold, or clock=recorded"
        if once:
            others = ", ".join(t for t in topics.cameras.values() if t not in once)
            advice = (
                f"{', '.join(once)} has a single image for the whole bag; set images to the topics "
                f"without it, images=[{others}]"
            )
        return SourceError(
            f"{file}: no two rows of {rows} belong together: {reasons} (age {c.age} s, hold "
            f"{c.hold} s); {advice}"
        )


def _rows(recorded: Array, stamps: Array) -> dict[tuple[int, int], Array]:
    """Return the rows of each image, by its recorded time and its stamp, both (L + 1,) ns."""
    times = np.stack([recorded, stamps], axis=1)
    each, of_row = np.unique(times, axis=0, return_inverse=True)
    return {
        (int(at[0]), int(at[1])): np.flatnonzero(of_row.reshape(-1) == number)
        for number, at in enumerate(each)
    }
