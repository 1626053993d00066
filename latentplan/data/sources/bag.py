"""Bags of ROS 1 and ROS 2 as episodes: cameras, joint states and commands on one clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from latentplan import config as settings
from latentplan.data.sources import bag_files, bag_series, observation_keys
from latentplan.data.sources.bag_series import Recording, Topics
from latentplan.data.sources.bag_timeline import (
    mean_held,
    newest,
    sampled,
    stretches,
)
from latentplan.errors import ConfigError, SourceError, check_range
from latentplan.types import ActionSpec, Array, ArraySpec, Convention, Episode, Spec

CONTROLS = ("", "joint_position", "joint_velocity")
FRAMES = ("", "world", "base", "tool")
CLOCKS = ("header", "recorded")
GAPS = ("cut", "drop")
NS = 1e9  # in a second


class _Part(NamedTuple):
    """An episode without its images, and the stamps of those."""

    bag: int
    images: dict[str, Array]  # stamps (L + 1,), ns, of each camera's images
    recorded: tuple[int, int]  # ns, of the first and the last of them
    observations: dict[str, Array]
    actions: Array  # (L, A)
    info: dict[str, float]


class Bag:
    """A Source of a bag (.bag, .mcap, .db3, a ROS 2 bag's folder), or of a folder of them.

    Rows are the images of the first camera (without cameras: joint states), `rate` a second. Each
    row has the newest joint state and the newest image of every other camera up to that time. If
    one is older than `age`, or an image is missing, there is a gap: the bag is cut into several
    episodes, or such rows are left out of one. `notes` count them.

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

        Of several bags, a damaged one counts as an episode, whose reading raises.
        """
        self.path, self.config = Path(path), config or self.Config()
        self.settings: dict[str, Any] = {"format": "bag", **settings.to_values(self.config)}
        self.notes: list[str] = []
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
        assert self._spec is not None
        spec = _bounded(self._spec, [part.actions for part in whole])
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
            recording = bag_series.record(bag, topics)
        spec, dt = self._described(file, topics, recording)
        if self._spec is None:
            self._topics, self._spec = topics, spec
        elif spec != self._spec:
            raise SourceError(f"{file}: {_difference(self._spec, spec)}")
        return self._cut(index, recording, dt * NS)

    def _chosen(self, bag: bag_files.Bag) -> Topics:
        c = self.config
        topic = bag_series.joint_states(bag, c.joint_states)
        return Topics(
            cameras=bag_series.cameras(bag, c.images),
            joint_states=topic,
            joints=c.joints or bag_series.first_joints(bag, topic, finger=c.finger),
            finger=c.finger,
            command=c.command,
            recorded=c.clock == "recorded",
        )

    def _described(self, file: Path, topics: Topics, recording: Recording) -> tuple[Spec, float]:
        """Return the spec of a bag, with open bounds, and the time between rows, s."""
        c = self.config
        stamps = _clock(recording)
        own = float(np.median(np.diff(stamps))) / NS if len(stamps) > 1 else np.inf
        if not own < np.inf:
            raise SourceError(f"{file}: has fewer than two images or joint states")
        if c.rate * own > 1.05:
            raise SourceError(
                f"{file}: Bag.rate: {c.rate} is more than the {1 / own:.1f} a second that the "
                "first camera has (without any: the joint states); lower it"
            )
        dt = 1 / c.rate if c.rate else round(own, 4)
        before = self._spec.dt if self._spec else None
        if before is not None and abs(dt - before) < 0.05 * before:
            dt = before  # clocks differ a little
        names = ", ".join(topics.joints)
        size = len(topics.joints)
        observation = {"q": ArraySpec((size,), "float32", f"joint positions, rad: {names}")}
        if np.isfinite(recording.joints.values).all():
            observation["dq"] = ArraySpec((size,), "float32", f"joint velocities, rad/s: {names}")
        if topics.finger:
            meaning = "width between the fingers, m"
            observation["gripper"] = ArraySpec((1,), "float32", meaning)
        observation |= {
            key: ArraySpec(shape, "uint8", f"image, {topics.cameras[key]}")
            for key, shape in recording.shapes.items()
        }
        return Spec(observation, self._action(file, topics, recording, dt), dt=dt), dt

    def _action(self, file: Path, topics: Topics, recording: Recording, dt: float) -> ActionSpec:
        c, names = self.config, ", ".join(topics.joints)
        gripper = "open_is_1" if topics.finger else ""
        control = recording.control or c.control
        if not topics.command:
            control, meaning = "joint_position", f"next joint positions, rad: {names}"
        elif not len(recording.command.stamps):
            raise SourceError(f"{file}: {topics.command} commands none of {names}; set joints")
        elif control == "twist":
            if not c.frame:
                raise SourceError(
                    f"{file}: {topics.command} holds twists; set frame to the one that they are "
                    "in: world, base or tool"
                )
            meaning = "velocity of the end effector, m/s, rad/s"
        elif control:
            unit = {"joint_position": "positions, rad", "joint_velocity": "velocities, rad/s"}
            meaning = f"commanded joint {unit[control]}: {names}"
        else:
            raise SourceError(
                f"{file}: {topics.command} does not define its numbers; set control to "
                "joint_position or joint_velocity"
            )
        if control == "twist":  # a 1 moves by 1 m/s or rad/s for dt s
            convention = Convention("ee_delta", "rotvec", c.frame, dt, dt, gripper)
        else:
            convention = Convention(control, gripper=gripper)
        size = (6 if control == "twist" else len(topics.joints)) + bool(gripper)
        meaning += "; gripper, 0 closed to 1 open" if gripper else ""
        return ActionSpec((0.0,) * size, (0.0,) * size, meaning, convention)

    def _cut(self, index: int, recording: Recording, dt: float) -> list[_Part]:
        """Return the episodes of the bag number `index`, with rows `dt` ns apart."""
        c, file = self.config, self._files[index]
        stamps = _clock(recording)
        rows = sampled(stamps, dt) if c.rate else np.arange(len(stamps))
        at = stamps[rows]
        lacking = {"joint state": newest(recording.joints.stamps, at, age=c.age * NS) < 0}
        for key, series in list(recording.cameras.items())[1:]:
            lacking[f"image of {key}"] = newest(series.stamps, at, age=c.age * NS) < 0
        assert self._topics is not None
        if self._topics.finger:
            lacking["gripper"] = newest(recording.finger.stamps, at, age=c.age * NS) < 0
        if self._topics.command:
            lacking["command"] = newest(recording.command.stamps, at, age=c.hold * NS) < 0
        kept = np.flatnonzero(~np.any(list(lacking.values()), axis=0))
        found = stretches(kept, at, gap=c.gap * dt)
        if c.gaps == "drop" and len(kept) > 1:
            found = [kept]
        missing = np.diff(at) > c.gap * dt
        self._note(file, recording, len(at), found, lacking=lacking, missing=missing)
        if not found:
            counts = ", ".join(f"{n.sum()} without {what}" for what, n in lacking.items())
            raise SourceError(
                f"{file}: no two rows of {len(at)} belong together: {counts} (age {c.age} s, hold "
                f"{c.hold} s); set age, hold, or clock=recorded"
            )
        return [self._part(index, recording, at[part], first=at[0]) for part in found]

    def _part(self, index: int, recording: Recording, at: Array, *, first: int) -> _Part:
        """Return the episode with rows at `at` (L + 1,), ns, of the bag number `index`."""

        def values(name: str) -> Array:
            series = getattr(recording, name)
            found = series.values[newest(series.stamps, at, age=np.inf)]
            return np.asarray(found, np.float64)

        assert self._spec is not None and self._topics is not None
        joints = values("joints").astype(np.float32)
        observations = {"q": joints[:, 0]}
        if "dq" in self._spec.observation:
            observations["dq"] = joints[:, 1]
        convention = self._spec.action.convention
        assert convention is not None
        if not self._topics.command:
            actions = joints[1:, 0]
        elif convention.control == "joint_position":
            actions = values("command")[1:]
        else:
            actions = mean_held(recording.command, at)
        if self._topics.finger:
            width = values("finger") * self.config.finger_scale
            observations["gripper"] = width.astype(np.float32)
            share = np.clip(width[1:] / self.config.width, 0, 1)
            actions = np.concatenate([actions, share], axis=1)
        images, recorded = {}, []
        for key, series in recording.cameras.items():
            shown = newest(series.stamps, at, age=np.inf)
            images[key] = series.stamps[shown]
            recorded += series.values[shown].tolist()
        return _Part(
            bag=index,
            images=images,
            recorded=(min(recorded, default=0), max(recorded, default=0)),
            observations=observations,
            actions=np.ascontiguousarray(actions, np.float32),
            info={"bag": float(index), "start_s": float((at[0] - first) / NS)},
        )

    def _images(self, part: _Part) -> dict[str, Array]:
        """Return the images (L + 1, h, w, 3) of an episode by camera."""
        assert self._topics is not None
        file, topics = self._files[part.bag], self._topics
        keys = {t: key for key, t in topics.cameras.items() if key in self.spec.observation}
        if not keys:
            return {}
        found = {
            key: np.empty((len(part.actions) + 1, *self.spec.observation[key].shape), np.uint8)
            for key in keys.values()
        }
        # Rows with the image of a stamp: several if one camera is slower.
        wanted = {key: _rows(part.images[key]) for key in keys.values()}
        start, last = part.recorded
        with bag_files.opened(file) as bag:
            for received in bag.messages(sorted(keys), start=start, stop=last + 1):
                key = keys[received.topic]
                at = bag_series.time(bag, received, recorded=topics.recorded)
                rows = wanted[key].pop(at, None)
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
        recording: Recording,
        rows: int,
        found: list[Array],
        *,
        lacking: Mapping[str, Array],
        missing: Array,
    ) -> None:
        """Add a note on what was left out of a bag, and why."""
        kept = sum(map(len, found))
        reasons = [f"{n.sum()} without {what}" for what, n in lacking.items() if n.any()]
        if missing.any():
            reasons.append(f"{missing.sum()} gaps between images")
        if recording.repeated:
            reasons.append(f"{recording.repeated} messages not later than the one before")
        if reasons:
            self.notes.append(
                f"{file.name}: {kept} of {rows} rows in {len(found)} episodes; "
                f"{', '.join(reasons)}"
            )


def _clock(recording: Recording) -> Array:
    """Return the times (M,) of rows: of the first camera, else of the joint states."""
    return next(iter(recording.cameras.values()), recording.joints).stamps


def _rows(stamps: Array) -> dict[int, Array]:
    """Return the rows of each stamp in stamps (L + 1,)."""
    each, first = np.unique(stamps, return_index=True)
    return dict(zip(each.tolist(), np.split(np.arange(len(stamps)), first[1:]), strict=True))


def _bounded(spec: Spec, actions: list[Array]) -> Spec:
    """Return `spec` bounded by the smallest and largest action in the data, a gripper by 0, 1."""
    low = np.min([part.min(0) for part in actions], axis=0)
    high = np.max([part.max(0) for part in actions], axis=0)
    convention = spec.action.convention
    if convention is not None and convention.gripper:
        low[-1], high[-1] = 0, 1
    action = ActionSpec(
        tuple(low.tolist()), tuple(high.tolist()), spec.action.meaning, convention
    )
    return Spec(spec.observation, action, dt=spec.dt)


def _difference(first: Spec, other: Spec) -> str:
    """Return in what a bag's spec differs from that of the first bag."""
    for key in {**first.observation, **other.observation}:
        a, b = first.observation.get(key), other.observation.get(key)
        if a != b:
            return f"{key} is {b}, in the first bag {a}"
    if first.action != other.action:
        return f"commands are {other.action.meaning!r}, in the first bag {first.action.meaning!r}"
    return f"rows are {other.dt} s apart, in the first bag {first.dt}; set rate"
