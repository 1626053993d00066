"""Bags, written here in the formats of ROS 1 and ROS 2, read as episodes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_writer import (
    FORMATS,
    JOINTS,
    at,
    compressed,
    image,
    joint,
    joints,
    numbers,
    picture,
    recording,
    save,
    trajectory,
    twist,
)

from latentplan import budget, cli
from latentplan.data.sources import bag_timeline
from latentplan.data.sources.bag import Bag
from latentplan.data.sources.bag_timeline import Series
from latentplan.data.store import ZarrStore
from latentplan.errors import BudgetError, ConfigError, SourceError

pytest.importorskip("rosbags")
ARM: dict[str, Any] = {"joints": JOINTS, "finger": "finger", "width": 0.08}


def opened(path: Path, said: list[Any], **values: Any) -> Bag:
    return Bag(save(path / "run.mcap", said), Bag.Config(**{"joints": JOINTS, **values}))


def positions(times: Any) -> np.ndarray:
    return np.array([[joint(name, t) for name in JOINTS] for t in times], np.float32)


def test_three_formats_give_equal_stores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stores = []
    for form in FORMATS:
        bag = save(tmp_path / f"run.{form}", recording())
        out = tmp_path / f"{form}.zarr"
        argv = ["import", "bag", str(bag), "--out", str(out), "--workers", "0"]
        argv += ["joints=[base, elbow, wrist]", "finger=finger", "width=0.08"]
        assert cli.main(argv) == 0, capsys.readouterr().err
        stores.append(ZarrStore.open(out))
    first, episode = stores[0], stores[0].episode(0)
    for other in stores[1:]:
        assert other.spec == first.spec
        assert dict(other.episode(0).info) == dict(episode.info)
        np.testing.assert_array_equal(other.episode(0).actions, episode.actions)
        for key, values in episode.observations.items():
            np.testing.assert_array_equal(other.episode(0).observations[key], values)

    # What is in it is what was written: the newest joints and pictures at each of the camera's.
    rows = np.arange(20)
    seen, heard = episode.observations, np.floor((rows * 0.05 + 0.004) * 100 + 1e-6) / 100
    np.testing.assert_array_equal(seen["front"], np.stack([picture(i) for i in rows]))
    wrist = np.stack([picture(1000 + i - i % 2) for i in rows])
    np.testing.assert_array_equal(seen["wrist"], wrist)
    np.testing.assert_array_equal(seen["q"], positions(heard))
    np.testing.assert_array_equal(seen["dq"], positions(heard) * np.float32(0.5))
    width = np.array([[2 * joint("finger", t)] for t in heard])
    np.testing.assert_array_equal(seen["gripper"], width.astype(np.float32))
    np.testing.assert_array_equal(episode.actions[:, :3], seen["q"][1:])
    np.testing.assert_allclose(episode.actions[:, 3:], width[1:] / 0.08, atol=1e-6)
    assert first.spec.dt == 0.05 and first.spec.action.convention.control == "joint_position"


def test_gaps_cut_the_episode_or_leave_rows_out_and_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = range(at(0.30), at(0.52))  # joints; the newest are 0.1 s old until 0.394
    lost = range(at(0.70), at(0.90))  # pictures
    said = [
        s
        for s in recording()
        if not (s.topic == "/joint_states" and s.recorded in silent)
        and not (s.topic == "/front/image_raw" and s.recorded in lost)
    ]
    cut = opened(tmp_path, said)
    found = [cut.episode(i) for i in range(len(cut))]
    # Rows are at 0.004, 0.054, ...: none at 0.404 to 0.504, none at 0.704 to 0.854.
    assert [len(e) + 1 for e in found] == [8, 3, 2]
    assert [round(e.info["start_s"], 3) for e in found] == [0, 0.55, 0.9]
    (note,) = cut.notes
    assert "13 of 16 rows in 3 episodes" in note
    assert "3 without joint state" in note and "1 gaps between images" in note
    np.testing.assert_array_equal(found[1].observations["front"][0], picture(11))

    (dropped,) = [Bag(tmp_path / "run.mcap", Bag.Config(joints=JOINTS, gaps="drop")).episode(0)]
    np.testing.assert_array_equal(
        dropped.observations["q"], np.concatenate([e.observations["q"] for e in found])
    )
    out = ["--out", str(tmp_path / "a.zarr")]
    assert cli.main(["import", "bag", str(tmp_path / "run.mcap"), *out, "--workers", "0"]) == 0
    assert note in capsys.readouterr().out


def test_rows_at_a_rate_are_the_nearest_pictures(tmp_path: Path) -> None:
    jitter = np.random.default_rng(0).uniform(-0.01, 0.01, 60)
    times = np.arange(60) / 30 + 0.02 + jitter
    times[0] = 0.02
    said = [joints(0.01 * i) for i in range(220)]
    said += [image(t, "/cam/image_raw", i) for i, t in enumerate(times)]
    source = opened(tmp_path, said, rate=20.0)
    frames = source.episode(0).observations["cam"]
    shown = [next(i for i in range(60) if (picture(i) == f).all()) for f in frames]
    wanted = [int(np.abs(times - t).argmin()) for t in 0.02 + np.arange(len(frames)) / 20]
    assert shown == wanted and source.spec.dt == 0.05
    with pytest.raises(SourceError, match=r"Bag\.rate: 100\.0 is more than the 3\d\.\d a second"):
        Bag(tmp_path / "run.mcap", Bag.Config(rate=100.0))


def test_commands_become_actions(tmp_path: Path) -> None:
    clock = [joints(0.05 * i) for i in range(1, 5)]  # without a camera, joint states are the clock
    told = [trajectory(0.02 * i, [i, 10 + i, 20 + i]) for i in range(12)]
    source = opened(tmp_path, clock + told, command="/arm/joint_trajectory")
    # The newest by the next row: at 0.1, 0.15, 0.2 s those of 0.10, 0.14, 0.20 s.
    assert source.episode(0).actions.tolist() == [[5, 15, 25], [7, 17, 27], [10, 20, 30]]
    assert source.spec.action.convention.control == "joint_position"
    assert source.spec.action.low == (5, 15, 25) and source.spec.action.high == (10, 20, 30)

    told = [trajectory(0.02 * i, [i, 0, -i], velocity=True) for i in range(12)]
    save(tmp_path / "v.bag", clock + told)
    source = Bag(tmp_path / "v.bag", Bag.Config(joints=JOINTS, command="/arm/joint_trajectory"))
    # 0.05 to 0.1 s: 2 for 0.01 s, then 3 and 4 for 0.02 s each.
    np.testing.assert_allclose(source.episode(0).actions[0], [3.2, 0, -3.2], atol=1e-6)
    assert source.spec.action.convention.control == "joint_velocity"

    save(tmp_path / "n.db3", clock + [numbers(0.02 * i, [i, 0, 1]) for i in range(12)])
    config = Bag.Config(joints=JOINTS, command="/arm/commands", control="joint_velocity")
    np.testing.assert_allclose(Bag(tmp_path / "n.db3", config).episode(0).actions[0], [3.2, 0, 1])
    with pytest.raises(SourceError, match=r"does not define its numbers; set control"):
        Bag(tmp_path / "n.db3", Bag.Config(joints=JOINTS, command="/arm/commands"))

    save(tmp_path / "t.mcap", clock + [twist(0.02 * i, np.arange(6)) for i in range(12)])
    config = Bag.Config(joints=JOINTS, command="/servo/twist", frame="tool")
    convention = Bag(tmp_path / "t.mcap", config).spec.action.convention
    assert (convention.control, convention.frame) == ("ee_delta", "tool")
    assert convention.position_unit == convention.rotation_unit == 0.05
    with pytest.raises(SourceError, match=r"holds twists; set frame"):
        Bag(tmp_path / "t.mcap", Bag.Config(joints=JOINTS, command="/servo/twist"))


@pytest.mark.parametrize("encoding", ["bgr8", "rgba8", "mono8"])
def test_pictures_of_other_encodings_are_rgb(tmp_path: Path, encoding: str) -> None:
    said = [joints(0.01 * i) for i in range(20)]
    said += [image(0.05 * i + 0.01, "/a/image", i, encoding=encoding) for i in range(3)]
    found = opened(tmp_path, said).episode(0).observations["a"]
    wanted = np.stack([picture(i) for i in range(3)])
    grey = encoding == "mono8"
    np.testing.assert_array_equal(found, wanted[..., :1].repeat(3, 3) if grey else wanted)


def test_jpeg_is_near_and_a_name_may_be_given(tmp_path: Path) -> None:
    said = [joints(0.01 * i) for i in range(20)]
    said += [compressed(0.05 * i + 0.01, "/a/compressed", i, format="jpeg") for i in range(3)]
    found = opened(tmp_path, said, images=("eye=/a/compressed",)).episode(0).observations["eye"]
    assert found.shape == (3, 18, 20, 3)
    noise = np.abs(found[0].astype(float) - picture(0)).mean()
    assert noise < 60 < np.abs(found[0].astype(float) - picture(1)).mean()


def arm(seconds: float, **values: Any) -> list[Any]:
    return [joints(0.01 * i, **values) for i in range(round(seconds * 100))]


FRONT = [image(0.05 * i + 0.01, "/front/image_raw", i) for i in range(4)]


@pytest.mark.parametrize(
    ("said", "values", "says"),
    [
        (arm(0.2) + FRONT, {"images": ("/fornt",)}, r"no topic named.*known: /front/image_ra"),
        (arm(0.2) + FRONT, {"images": ("/joint_states",)}, r"images: /joint_states holds sensor_m"),
        (arm(0.2), {"joint_states": "/arm"}, r"joint_states: no topic named '/arm'"),
        (FRONT, {}, r"found 0 topics of sensor_msgs/msg/JointState.*/front/image_raw \(sensor_"),
        (arm(0.2), {"command": "/joint_states/x"}, r"command: no topic named"),
        (arm(0.2), {"joints": ("base", "knee")}, r"has a position of knee.*found base, elbow, fin"),
        (arm(0.2), {"joints": ("knee",)}, r"never has a position of knee.*set joints"),
        (arm(0.2), {"finger": "thumb", "width": 0.1}, r"never has a position of thumb.*set finger"),
        (arm(0.2, value=lambda n, t: np.nan), {}, r"position of base, elbow, wrist \(20 with NaN"),
        (arm(0.2)[:1], {}, r"fewer than two images or joint states"),
        (
            arm(0.2) + [image(0.05 * i, "/a", i, encoding="mono8", bytes=99) for i in range(3)],
            *({}, r"/a: 99 bytes in rows of 26 are no mono8 of 20x18"),
        ),
        (
            arm(0.2) + [image(0.05 * i, "/a", i, stamp=0) for i in range(3)],
            *({}, r"/a has stamps of 0; set clock=recorded"),
        ),
        (
            arm(0.2) + [image(0.05 * i, "/a", i, stamp=at(60 + i)) for i in range(3)],
            *({}, r"no two rows of 3 belong together: 3 without joint state"),
        ),
        (
            arm(0.2) + [trajectory(0.01, [0] * 3, points=2)],
            *({"command": "/arm/joint_trajectory"}, r"a trajectory of 2 points"),
        ),
        (
            arm(0.2) + [numbers(0.01, [0] * 4)],
            *({"command": "/arm/commands"}, r"4 numbers for the joints base, elbow, wrist"),
        ),
        (
            arm(0.2) + [image(0.05, "/a/image_raw", 0), compressed(0.05, "/a/compressed", 0)],
            *({}, r"/a/image_raw and /a/compressed would both be 'a'; set images"),
        ),
    ],
)
def test_what_does_not_fit_is_one_clear_error(
    tmp_path: Path, said: list[Any], values: dict[str, Any], says: str
) -> None:
    with pytest.raises(SourceError, match=says) as e:
        opened(tmp_path, said, **values)
    assert "\n" not in str(e.value) and "run.mcap" in str(e.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"clock": "wall"}, r"Bag\.clock: found 'wall', allowed are header, recorded"),
        ({"finger": "finger"}, r"Bag\.width: 0\.0 is not within"),
        ({"rate": -1.0}, r"Bag\.rate: -1\.0 is not within"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Bag.Config(**values)


@pytest.mark.parametrize("form", FORMATS)
def test_a_bag_that_was_cut_off_is_one_line_and_others_are_read(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = save(tmp_path / f"run_2.{form}", recording(0.3))
    broken = tmp_path / f"run_10.{form}"
    broken.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(SourceError, match=rf"run_10\.{form}: damaged, or not a bag .* may help"):
        Bag(broken)
    argv = ["import", "bag", str(tmp_path), "--out", str(tmp_path / "a.zarr"), "--workers", "0"]
    assert cli.main(argv) == 2  # what came before it is kept
    told = capsys.readouterr()
    assert f"run_10.{form}: damaged" in told.err.splitlines()[-1]
    with ZarrStore.open(tmp_path / "a.zarr") as store:
        assert len(store) == 1
    assert cli.main([*argv, "--skip-bad"]) == 0
    assert len(ZarrStore.open(tmp_path / "a.zarr")) == 1


@pytest.mark.parametrize("size", [2**64 - 1, 2**63, 2**40])
@pytest.mark.parametrize("record", ["first", "index"])
def test_a_record_of_more_bytes_than_the_file_has_is_damage(
    tmp_path: Path, size: int, record: str
) -> None:
    path = save(tmp_path / "run.mcap", recording())
    content = path.read_bytes()
    index = struct.unpack_from("<Q", content, len(content) - 28)[0]  # in the footer
    start = {"first": 8, "index": index}[record] + 1  # after magic bytes and the kind of record
    path.write_bytes(content[:start] + struct.pack("<Q", size) + content[start + 8 :])
    with pytest.raises(SourceError, match="damaged, or not a bag"):
        Bag(path, Bag.Config(joints=JOINTS))


def test_files_of_macos_are_no_bags(tmp_path: Path) -> None:
    save(tmp_path / "run.mcap", recording(0.5))
    for name in ("._run.mcap", ".DS_Store"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    assert len(Bag(tmp_path)) == 1


def test_states_alone_need_no_pictures(tmp_path: Path) -> None:
    bag, out = save(tmp_path / "run.mcap", recording(0.5)), tmp_path / "a.zarr"
    argv = ["import", "bag", str(bag), "--out", str(out), "--keys", "q", "--workers", "0"]
    assert cli.main(argv) == 0
    assert list(ZarrStore.open(out).episode(0).observations) == ["q"]


def test_a_folder_of_ros_2_is_one_bag(tmp_path: Path) -> None:
    from rosbags.rosbag2 import Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    with Writer(tmp_path / "run", version=9) as writer:
        first = arm(0.2)[0]
        connection = writer.add_connection(first.topic, first.kind, typestore=store)
        for said in arm(0.2):
            raw = store.serialize_cdr(said.make(store.types, False), said.kind)
            writer.write(connection, said.recorded, raw)
    assert len(Bag(tmp_path / "run")) == len(Bag(tmp_path)) == 1


def test_the_description_of_a_folder_may_not_nest_without_end(tmp_path: Path) -> None:
    (tmp_path / "run.mcap").touch()
    (tmp_path / "metadata.yaml").write_text("a: " + "[" * 10_000 + "]" * 10_000)
    with pytest.raises(SourceError, match="damaged, or not a bag .RecursionError"):
        Bag(tmp_path)


def test_the_images_of_an_episode_are_held_to_the_budget(tmp_path: Path) -> None:
    source = Bag(save(tmp_path / "run.mcap", recording()))
    with budget.using(budget.Budget(bytes=18 * 20 * 3)), pytest.raises(BudgetError, match="images"):
        source.episode(0)


def test_the_mean_of_what_holds_between_edges_is_exact() -> None:
    series = Series(np.array([0, 10, 20, 50]), np.array([[1.0], [2.0], [4.0], [8.0]]))
    found = bag_timeline.mean_held(series, np.array([5, 15, 20, 60, 80]))
    np.testing.assert_allclose(found[:, 0], [1.5, 2, (4 * 30 + 8 * 10) / 40, 8])
