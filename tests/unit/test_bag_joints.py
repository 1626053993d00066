"""Joint states of several drivers, without velocities, with wheels, and topics of odd images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_writer import Said, at, header, picture, save
from bag_writer import joints as three

from latentplan import cli
from latentplan.api.import_data import import_data
from latentplan.data.sources.bag import Bag
from latentplan.errors import ConfigError, SourceError

pytest.importorskip("rosbags")
NAN = float("nan")


def state(seconds: float, position: dict[str, float], velocity: Any = None) -> Said:
    """Return a joint state; velocities of 1 unless given."""
    velocity = [1.0] * len(position) if velocity is None else velocity

    def make(types: Any, ros1: bool) -> Any:
        return types["sensor_msgs/msg/JointState"](
            header=header(types, ros1, at(seconds)),
            name=list(position),
            position=np.array(list(position.values()), np.float64),
            velocity=np.array(velocity, np.float64),
            effort=np.zeros(0),
        )

    return Said(at(seconds) + 1_000_000, "/joint_states", "sensor_msgs/msg/JointState", make)


def image(seconds: float, *, topic: str = "/cam/image_raw", encoding: str = "rgb8") -> Said:
    pixels = picture(round(seconds * 1000), height=16, width=16)

    def make(types: Any, ros1: bool) -> Any:
        rows = pixels if encoding == "rgb8" else pixels[..., :2]
        return types["sensor_msgs/msg/Image"](
            header=header(types, ros1, at(seconds)),
            height=16,
            width=16,
            encoding=encoding,
            is_bigendian=0,
            step=rows.shape[1] * rows.shape[2],
            data=np.ascontiguousarray(rows).reshape(-1),
        )

    return Said(at(seconds) + 2_000_000, topic, "sensor_msgs/msg/Image", make)


IMAGES = [image(0.1 * i + 0.0004) for i in range(10)]
TIMES = [0.01 * i for i in range(100)]


def opened(tmp_path: Path, said: list[Said], *, keys: Any = None, **values: Any) -> Bag:
    return Bag(save(tmp_path / "run.mcap", said), Bag.Config(**values), keys=keys)


@pytest.mark.parametrize("velocity", [[NAN, NAN], [1.0, NAN], [], [1.0]])
def test_without_finite_velocities_there_is_no_dq_and_it_is_said(
    tmp_path: Path, velocity: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    said = [state(t, {"a": t, "b": -t}, velocity) for t in TIMES]
    bag = opened(tmp_path, IMAGES + said)
    assert list(bag.spec.observation) == ["q", "cam"] and len(bag.episode(0)) == 9
    assert bag.notes == [
        "run.mcap: velocities (dq) are left out: most joint states have none that are finite"
    ]
    if len(velocity) != 2:
        return
    argv = ["import", "bag", str(tmp_path / "run.mcap"), "--out", str(tmp_path / "a.zarr")]
    assert cli.main([*argv, "--workers", "0"]) == 0
    assert "velocities (dq) are left out" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no observation 'dq'"):
        opened(tmp_path, IMAGES + said, keys=["q", "dq"])
    assert not opened(tmp_path, IMAGES + said, keys=["q"]).notes


def test_a_few_nans_leave_out_their_messages_alone(tmp_path: Path) -> None:
    said = [state(t, {"a": NAN if i < 3 else t, "b": t}) for i, t in enumerate(TIMES)]
    said[50] = state(TIMES[50], {"a": TIMES[50], "b": TIMES[50]}, [NAN, NAN])
    bag = opened(tmp_path, IMAGES + said)
    assert list(bag.spec.observation) == ["q", "dq", "cam"]
    counts = bag.counts["run.mcap: /joint_states"]
    assert counts == {
        "kept": 96, "with NaN or infinite numbers": 3, "without finite velocities": 1
    }
    q = bag.episode(0).observations["q"]
    np.testing.assert_allclose(q[:, 0], [0.1, 0.2, 0.3, 0.4, 0.49, 0.6, 0.7, 0.8, 0.9], atol=1e-6)
    assert bag.counts["run.mcap: rows"] == {"kept": 9, "without joint state": 1}
    found = import_data("bag", tmp_path / "run.mcap", out=tmp_path / "a.zarr", workers=0)
    assert found.counts == bag.counts


def test_drivers_of_half_of_the_joints_each_are_joined_by_name(tmp_path: Path) -> None:
    left = [state(t, {"b": t, "a": 10 + t}) for t in TIMES]
    right = [state(t + 0.004, {"d": 30 + t, "c": 20 + t}) for t in TIMES[::2]]
    bag = opened(tmp_path, IMAGES + left + right)
    assert bag.spec.observation["q"].meaning.endswith("b, a, d, c")
    q = opened(tmp_path, IMAGES + left + right, joints=("a", "b", "c", "d")).episode(0)
    newest = np.arange(10)[1:] / 10  # at 0.1004 s: 0.10 of the left, 0.08 of the right
    wanted = np.stack([10 + newest, newest, 20 + newest - 0.02, 30 + newest - 0.02], axis=1)
    np.testing.assert_allclose(q.observations["q"], wanted, atol=1e-5)

    alone = opened(tmp_path, left + right)  # without a camera the slower driver is the clock
    episode = alone.episode(0)
    assert len(episode) == 49 and alone.spec.dt == 0.02
    np.testing.assert_allclose(episode.observations["q"][:, 2] - 30, TIMES[::2], atol=1e-5)
    np.testing.assert_allclose(episode.observations["q"][:, 0], TIMES[::2], atol=1e-5)

    silent = [one for one in right if not 0.3 < (one.recorded - at(0)) / 1e9 < 0.62]
    gap = opened(tmp_path, IMAGES + left + silent)  # 0.4004 is more than 0.1 s after 0.284
    assert [len(gap.episode(i)) + 1 for i in range(len(gap))] == [3, 3]
    assert gap.counts["run.mcap: rows"]["without joint state"] == 4


def test_orders_may_change_and_a_wheel_without_positions_is_left_out(tmp_path: Path) -> None:
    said = [
        state(t, {"a": t, "wheel": NAN, "b": -t} if i % 2 else {"b": -t, "a": t, "wheel": NAN})
        for i, t in enumerate(TIMES)
    ]
    bag = opened(tmp_path, IMAGES + said)
    q = bag.episode(0).observations["q"]
    np.testing.assert_allclose(q[:, 0], -q[:, 1])
    assert bag.spec.observation["q"].meaning == "joint positions, rad: b, a"
    assert bag.notes == [
        "run.mcap: the joints wheel are left out: they have no finite position"
    ]
    with pytest.raises(SourceError, match=r"/joint_states never has a position of wheel"):
        opened(tmp_path, IMAGES + said, joints=("a", "b", "wheel"))


def test_a_wheel_of_a_driver_of_its_own_does_not_bar_the_arm(tmp_path: Path) -> None:
    said = [state(t, {"a": t, "b": -t}) for t in TIMES]
    said += [state(t + 0.002, {"left_wheel": 50 * t}) for t in TIMES]  # turns without bounds
    bag = opened(tmp_path, IMAGES + said)
    assert bag.spec.observation["q"].shape == (3,)
    arm = opened(tmp_path, IMAGES + said, joints=("a", "b"))
    assert arm.spec.observation["q"].shape == (2,) and len(arm.episode(0)) == 9
    assert arm.counts["run.mcap: /joint_states"] == {"kept": 100, "of other joints": 100}


def test_one_bag_without_velocities_takes_them_from_all(tmp_path: Path) -> None:
    for name, velocity in (("1", None), ("2", [NAN, NAN]), ("3", None)):
        said = IMAGES + [state(t, {"a": t, "b": t}, velocity) for t in TIMES]
        save(tmp_path / f"{name}.mcap", said)
    bag = Bag(tmp_path)
    assert list(bag.spec.observation) == ["q", "cam"] and len(bag) == 3
    assert list(bag.episode(0).observations) == ["q", "cam"]


def test_depth_and_latched_images_are_named_with_the_way_out(tmp_path: Path) -> None:
    joints = [state(t, {"a": t, "b": t}) for t in TIMES]
    depth = [image(0.1 * i, topic="/cam/depth/image_raw", encoding="16UC1") for i in range(10)]
    says = r"/cam/depth/image_raw: encoding '16UC1'.*without it, images=\[/cam/image_raw\]"
    with pytest.raises(SourceError, match=says):
        opened(tmp_path, IMAGES + joints + depth)
    assert len(opened(tmp_path, IMAGES + joints + depth, images=("/cam/image_raw",))) == 1
    for keys in (["cam"], ["q"]):  # depth that is not asked for is not looked at
        assert len(opened(tmp_path, IMAGES + joints + depth, keys=keys)) == 1
    for topic in ("/b/image_raw", "/map/image_raw"):  # before and after the camera by name
        with pytest.raises(SourceError, match=rf"{topic}.*images=\[/cam/image_raw\]"):
            opened(tmp_path, [*IMAGES, *joints, image(0.0002, topic=topic)])


def test_the_note_of_a_folder_names_its_bags(tmp_path: Path) -> None:
    save(tmp_path / "x.mcap", [three(0.01 * i, value=lambda n, t: 0.0) for i in range(20)])
    bag = Bag(tmp_path)
    assert bag.counts == {
        "x.mcap: rows": {"kept": 20}, "x.mcap: /joint_states": {"kept": 20}
    }


def test_a_short_last_file_of_a_split_recording_bars_nothing(tmp_path: Path) -> None:
    said = IMAGES + [state(t, {"a": t, "b": t}) for t in TIMES]
    save(tmp_path / "run_0.bag", said)
    save(tmp_path / "run_1.bag", [image(1.0004), *(state(1 + t, {"a": 1, "b": 1}) for t in TIMES)])
    bag = Bag(tmp_path)
    assert len(bag) == 1 and len(bag.episode(0)) == 9
    (note,) = bag.notes
    assert "run_1.bag: /cam/image_raw has fewer than two images" in note
    with pytest.raises(SourceError, match="fewer than two images"):
        Bag(tmp_path / "run_1.bag")
