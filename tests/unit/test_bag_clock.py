"""Clocks of bags that go back, stamps that are wrong, and what is kept of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_writer import FORMATS, NS, START, Said, at, header, picture, save
from hypothesis import given, settings
from hypothesis import strategies as st

from latentplan.data.sources.bag import Bag
from latentplan.data.sources.bag_clock import OUT, Stream, epochs

pytest.importorskip("rosbags")
CAMERA, JOINTS = "/cam/image_raw", "/joint_states"


def joints(seconds: float, *, stamp: float | None = None, **values: Any) -> Said:
    """Return the joint states at a time, whose position is that time."""
    names = values.get("names", ("a", "b"))
    position = np.asarray(values.get("position", [seconds] * len(names)), np.float64)
    velocity = np.asarray(values.get("velocity", [1.0] * len(names)), np.float64)

    def make(types: Any, ros1: bool) -> Any:
        return types["sensor_msgs/msg/JointState"](
            header=header(types, ros1, at(seconds if stamp is None else stamp)),
            name=list(names),
            position=position,
            velocity=velocity,
            effort=np.zeros(0),
        )

    return Said(at(seconds) + 1_000_000, JOINTS, "sensor_msgs/msg/JointState", make)


def image(seconds: float, *, stamp: float | None = None, topic: str = CAMERA) -> Said:
    """Return the image at a time, whose number is that time in ms."""
    pixels = picture(round(seconds * 1000), height=16, width=16)

    def make(types: Any, ros1: bool) -> Any:
        return types["sensor_msgs/msg/Image"](
            header=header(types, ros1, at(seconds if stamp is None else stamp)),
            height=16,
            width=16,
            encoding="rgb8",
            is_bigendian=0,
            step=48,
            data=pixels.reshape(-1),
        )

    return Said(at(seconds) + 2_000_000, topic, "sensor_msgs/msg/Image", make)


def recording(start: float, stop: float, *, back: float = 0.0) -> list[Said]:
    """Return joints at 100 Hz and images at 10 Hz, whose stamps are `back` s behind."""
    said = [joints(t, stamp=t - back) for t in np.arange(start, stop - 1e-9, 0.01)]
    times = np.arange(start, stop - 1e-9, 0.1) + 0.0004
    return said + [image(t, stamp=t - back) for t in times]


def rows(bag: Bag) -> list[int]:
    return [len(bag.episode(i)) + 1 for i in range(len(bag))]


def check(bag: Bag, *, gap: float = 0.15, age: float = 0.1) -> None:
    """Assert that positions, which are true times, follow each other, and that all is counted."""
    for index in range(len(bag)):
        episode = bag.episode(index)
        steps = np.diff(episode.observations["q"][:, 0])
        assert steps.min() >= 0 and steps.max() <= gap + age + 0.01, (index, steps)
    kept = sum(rows(bag))
    assert sum(c["kept"] for part, c in bag.counts.items() if part.endswith(": rows")) == kept


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("clock", ["header", "recorded"])
def test_a_clock_that_goes_back_begins_an_episode(tmp_path: Path, form: str, clock: str) -> None:
    said = recording(0, 2) + recording(2.5, 5.5, back=2.5)
    bag = Bag(save(tmp_path / f"run.{form}", said), Bag.Config(clock=clock))
    assert rows(bag) == [20, 30]
    check(bag)
    for index, times in enumerate((np.arange(20) / 10, 2.5 + np.arange(30) / 10)):
        episode = bag.episode(index)
        wanted = [picture(round((t + 0.0004) * 1000), height=16, width=16) for t in times]
        np.testing.assert_array_equal(episode.observations["cam"], wanted)
        assert abs(episode.info["start_s"] - times[0]) < 1e-6
    assert any("a clock went back 1 times" in note for note in bag.notes) == (clock == "header")


def test_a_loop_whose_recording_is_as_long_each_time_is_cut(tmp_path: Path) -> None:
    said = [s for i in range(4) for s in recording(i, i + 1, back=i)]
    bag = Bag(save(tmp_path / "run.mcap", said))
    assert rows(bag) == [10] * 4
    check(bag)


def test_a_slow_camera_is_cut_where_the_joints_are(tmp_path: Path) -> None:
    # The second camera has three images in each run, and no stamp of it goes back.
    said = recording(0, 2) + recording(2.5, 4.5, back=2.5)
    said += [image(t, topic="/slow/image_raw") for t in (0.05, 0.15, 0.25)]
    said += [image(t, topic="/slow/image_raw", stamp=t - 2.5) for t in (3.05, 3.15, 3.25)]
    bag = Bag(save(tmp_path / "run.mcap", said), Bag.Config(images=(CAMERA, "/slow/image_raw")))
    assert rows(bag) == [3, 3]
    check(bag)


def test_a_gripper_in_the_same_message_goes_back_with_the_arm(tmp_path: Path) -> None:
    said = recording(0, 1) + recording(1, 2, back=1)
    config = Bag.Config(finger="b", width=4.0, finger_scale=1.0)
    bag = Bag(save(tmp_path / "run.mcap", said), config)
    assert rows(bag) == [10, 10]
    for index in range(2):
        episode = bag.episode(index)
        np.testing.assert_array_equal(episode.observations["q"], episode.observations["gripper"])


@pytest.mark.parametrize("wrong", [1000.0, 2.205, -1000.0, -0.6])
def test_a_wrong_stamp_is_left_out_alone(tmp_path: Path, wrong: float) -> None:
    for topic, said in ((CAMERA, image(1.05, stamp=wrong)), (JOINTS, joints(1.055, stamp=wrong))):
        bag = Bag(save(tmp_path / f"{topic[1:4]}.mcap", [*recording(0, 4), said]))
        assert sum(rows(bag)) == 40 and len(bag) == 1
        counts = bag.counts[f"{topic[1:4]}.mcap: {topic}"]
        assert counts == {"kept": 40 if topic == CAMERA else 400, "with a wrong stamp": 1}
        check(bag)


@pytest.mark.parametrize("ahead", [4.0, -4.0, 100.0])
def test_stamps_that_are_wrong_for_a_while_are_left_out(tmp_path: Path, ahead: float) -> None:
    def stamp(k: int) -> float:
        return k / 10 + 0.0004 + (ahead if k % 40 >= 36 else 0)

    said = [joints(k / 100) for k in range(1000)]
    said += [image(k / 10 + 0.0004, stamp=stamp(k)) for k in range(100)]
    bag = Bag(save(tmp_path / "run.mcap", said))
    assert sum(rows(bag)) == 92
    check(bag)


def test_a_stamp_of_0_is_none_and_repeated_messages_are_counted(tmp_path: Path) -> None:
    said = recording(0, 1) + [image(0.35, stamp=-START / NS), image(0.3004), joints(0.5)]
    bag = Bag(save(tmp_path / "run.mcap", said))
    assert rows(bag) == [10]
    counts = bag.counts[f"run.mcap: {CAMERA}"]
    assert counts == {"kept": 10, "without a stamp": 1, "with a repeated stamp": 1}
    assert bag.counts[f"run.mcap: {JOINTS}"] == {"kept": 100, "with a repeated stamp": 1}
    check(bag)


def test_commands_follow_the_clock_of_the_stamps(tmp_path: Path) -> None:
    def command(seconds: float) -> Said:
        def make(types: Any, ros1: bool) -> Any:
            layout = types["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0)
            data = np.array([seconds, -seconds])
            return types["std_msgs/msg/Float64MultiArray"](layout=layout, data=data)

        return Said(at(seconds), "/commands", "std_msgs/msg/Float64MultiArray", make)

    said = recording(0, 2, back=100) + recording(2.5, 4.5, back=102.5)
    said += [command(t) for t in np.arange(0, 4.6, 0.02)]
    config = Bag.Config(command="/commands", control="joint_position")
    bag = Bag(save(tmp_path / "run.mcap", said), config)
    assert rows(bag) == [20, 20]
    for index in range(2):
        episode = bag.episode(index)
        late = episode.observations["q"][1:, 0] - episode.actions[:, 0]
        assert (np.abs(late) <= 0.025).all()  # the newest command before the next row


FAULTS = st.lists(
    st.tuples(
        st.sampled_from(["drop", "double", "swap", "nan", "stamp", "ahead", "back", "zero"]),
        st.sampled_from([CAMERA, JOINTS]),
        st.integers(0, 99),  # percent of the bag
        st.sampled_from([0.02, 0.08, 0.3, 1.1, 5.0, 1000.0]),  # s
        st.integers(1, 12),  # messages
    ),
    min_size=1,
    max_size=4,
)


def broken(faults: list[tuple[str, str, int, float, int]]) -> list[Said]:
    """Return a recording of 3 s with faults; positions stay the true times."""
    said: list[tuple[str, float, float, bool]] = []  # topic, time, stamp, whether it is NaN
    said += [(JOINTS, t, t, False) for t in np.arange(0, 3, 0.02)]
    said += [(CAMERA, t, t, False) for t in np.arange(0, 3, 0.1) + 0.004]
    said.sort(key=lambda one: one[1])
    for kind, topic, percent, seconds, count in faults:
        here = [i for i, one in enumerate(said) if one[0] == topic]
        first = here[len(here) * percent // 100] if here else 0
        chosen = [i for i in here if i >= first][:count]
        if kind == "drop":
            said = [one for i, one in enumerate(said) if i not in chosen]
        elif kind == "double":
            said += [said[i] for i in chosen]
            said.sort(key=lambda one: one[1])
        elif kind == "swap" and len(chosen) > 1:  # the stamps are right, the order is not
            (t, now, _, nan), (_, later, stamp, _) = said[chosen[0]], said[chosen[1]]
            said[chosen[0]] = (t, later, said[chosen[0]][2], nan)
            said[chosen[1]] = (t, now, stamp, nan)
            said.sort(key=lambda one: one[1])
        elif kind in ("stamp", "zero", "nan"):
            for i in chosen[: count if kind == "nan" else 1]:
                t, time, stamp, nan = said[i]
                stamp = -START / NS if kind == "zero" else stamp
                said[i] = (t, time, stamp + seconds * (kind == "stamp"), nan or kind == "nan")
        elif kind == "ahead":
            for i in chosen:
                t, time, stamp, nan = said[i]
                said[i] = (t, time, stamp + seconds, nan)
        elif kind == "back":  # a restart: all topics
            said = [
                (t, time, stamp - seconds * (i >= first), nan)
                for i, (t, time, stamp, nan) in enumerate(said)
            ]
    lost = [np.nan] * 2
    return [
        image(time, stamp=stamp)
        if topic == CAMERA
        else joints(time, stamp=stamp, **({"position": lost} if bad else {}))
        for topic, time, stamp, bad in said
    ]


@settings(max_examples=15)
@given(FAULTS, st.sampled_from(["mcap", "bag"]))
def test_no_step_crosses_a_gap_or_goes_back_in_time(
    tmp_path_factory: pytest.TempPathFactory, faults: Any, form: str
) -> None:
    said = broken(faults)
    path = save(tmp_path_factory.mktemp("bag") / f"run.{form}", said)
    bag = Bag(path, keys=["q"])
    check(bag)
    for topic in (CAMERA, JOINTS):
        total = sum(one.topic == topic for one in said)
        assert sum(bag.counts[f"run.{form}: {topic}"].values()) == total
    taken = sum(bag.counts[f"run.{form}: rows"].values())
    assert taken == bag.counts[f"run.{form}: {CAMERA}"]["kept"]


TIMES = st.lists(
    st.tuples(st.integers(-5, 40), st.integers(0, 3)), min_size=1, max_size=30
)


@settings(max_examples=60)
@given(TIMES, TIMES)
def test_stamps_increase_within_an_epoch_for_any_streams(first: Any, second: Any) -> None:
    streams = {}
    order = np.random.default_rng(len(first)).permutation(len(first) + len(second))
    for name, times, places in (
        ("a", first, np.sort(order[: len(first)])),
        ("b", second, np.sort(order[len(first) :])),
    ):
        stamps = np.array([t for t, _ in times], np.int64) * NS // 10
        recorded = np.cumsum([step for _, step in times]) * NS // 10
        streams[name] = Stream(stamps, recorded, places)
    found = epochs(streams)
    for name, stream in streams.items():
        epoch = found[name]
        kept = epoch != OUT
        assert kept.any() and (np.diff(epoch[kept]) >= 0).all()
        for number in np.unique(epoch[kept]):
            assert (np.diff(stream.stamps[epoch == number]) > 0).all()
    for name, values in epochs(dict(reversed(streams.items()))).items():
        np.testing.assert_array_equal(values, found[name])
