"""RLBench's demos as episodes, in both layouts, against a scene whose geometry is known."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import rlbench_writer as writer
from PIL import Image

from latentplan.api.import_data import import_data
from latentplan.data.sources.rlbench import Rlbench
from latentplan.data.sources.rlbench_spec import actions, keyframes
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, SourceError

SAMPLES = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a task with one demo of six observations, and the arrays written to it."""
    root = tmp_path_factory.mktemp("rlbench")
    drawn = writer.write_demo(root / "reach_target" / "variation3" / "episodes" / "episode0")
    texts = ["reach the ball", "touch it"]
    writer.dump(texts, root / "reach_target" / "variation3" / "variation_descriptions.pkl")
    return root, drawn


@pytest.fixture
def copy(written, tmp_path):
    """Copy the task, to be damaged; return the folder of its episode."""
    shutil.copytree(written[0], tmp_path / "set")
    return tmp_path / "set" / "reach_target" / "variation3" / "episodes" / "episode0"


def rlbench(path, **values):
    return Rlbench(path, Rlbench.Config(**values))


def test_pictures_depth_and_masks_are_what_was_drawn(written):
    root, drawn = written
    episode = Rlbench(root).episode(0)
    for camera, (_, far) in writer.EYES.items():
        assert np.array_equal(episode.observations[f"{camera}_rgb"], drawn[f"{camera}_rgb"])
        assert np.array_equal(episode.observations[f"{camera}_mask"], drawn[f"{camera}_mask"])
        depth = episode.observations[f"{camera}_depth"]
        step = far / (2**24 - 1)
        rounding = np.spacing(np.float32(far))
        assert np.abs(depth - drawn[f"{camera}_depth"]).max() <= step / 2 + rounding
    assert episode.observations["front_mask"].max() == writer.BALL_HANDLE > 2**16


def test_numbers_are_exact(written):
    root, drawn = written
    episode = Rlbench(root).episode(0)
    for name in ("joint_positions", "joint_velocities", "gripper_pose"):
        assert np.array_equal(episode.observations[name], drawn[name])
    assert np.array_equal(episode.observations["gripper_open"][:, 0], drawn["gripper_open"])
    matrices = episode.observations["wrist_camera_extrinsics"]
    assert np.array_equal(matrices[2], writer.pose(writer.EYES["wrist"][0]))


@pytest.mark.parametrize("stride", [1, 3])
def test_clouds_lie_on_the_ball_and_on_the_table(written, stride):
    root, drawn = written
    observations = rlbench(root, clouds=True, stride=stride).episode(0).observations
    for camera in writer.EYES:
        points = observations[f"{camera}_point_cloud"]
        mask = observations[f"{camera}_mask"][:, ::stride, ::stride]
        assert points.shape == (*mask.shape, 3)
        ball = points[mask == writer.BALL_HANDLE]
        gap = np.linalg.norm(ball - drawn["ball"], axis=1) - writer.RADIUS
        assert len(ball) and np.abs(gap).max() < 2e-6
        table = points[mask == writer.TABLE_HANDLE]
        assert len(table) and np.abs(table[:, 2] - writer.TABLE).max() < 2e-6


def test_actions_are_what_came_next(written):
    root, drawn = written
    opened = drawn["gripper_open"][1:, None]
    for action, name in (
        ("next_joint", "joint_positions"),
        ("next_pose", "gripper_pose"),
        ("joint_velocity", "joint_velocities"),
    ):
        source = rlbench(root, action=action, images=("rgb",), cameras=("front",))
        episode, spec = source.episode(0), source.spec.action
        wanted = np.concatenate([drawn[name][1:], opened], axis=1).astype(np.float32)
        assert np.array_equal(episode.actions, wanted)
        assert len(spec.low) == wanted.shape[1]
        assert (wanted >= spec.low).all() and (wanted <= spec.high).all()
        assert spec.convention.gripper == "open_is_1"
        assert source.spec.dt == 0.05
        assert episode.terminated and episode.rewards.tolist() == [0, 0, 0, 0, 1]
    assert (episode.observations.keys() & {"wrist_rgb", "front_depth"}) == set()


def test_keyframes_are_where_the_gripper_changes_or_the_arm_rests():
    speed = np.ones((30, 7))
    speed[0] = speed[12:15] = speed[17] = speed[21] = speed[29] = 0
    speed[16, 3] = 0.05
    opened = np.ones(30)
    opened[8:20] = 0  # closes at 8, opens at 20
    found = keyframes(speed, opened, still=0.1, gap=5)
    # 13, 14 belong to the rest at 12; at 21 the gripper has just moved; 28 would be next to the end
    assert found.tolist() == [8, 12, 17, 20, 29]
    assert keyframes(speed, opened, still=0.1, gap=6).tolist() == [8, 12, 20, 29]
    assert keyframes(np.ones((2, 7)), np.array([1, 0]), still=0.1, gap=5).tolist() == [1]


def test_a_resting_start_is_no_keyframe():
    speed = np.ones((12, 7))
    speed[:7] = 0
    assert keyframes(speed, np.ones(12), still=0.1, gap=5).tolist() == [5, 11]


def test_keyframe_episodes_hold_the_keyframes_alone(written):
    root, drawn = written
    source = rlbench(root, action="keyframe")
    episode = source.episode(0)
    chosen = [0, 3, 5]  # the gripper closes at 3
    assert len(episode) == 2 and source.spec.dt is None
    for name in ("gripper_pose", "front_rgb", "wrist_mask"):
        assert np.array_equal(episode.observations[name], drawn[name][chosen])
    assert np.array_equal(episode.actions[:, :7], drawn["gripper_pose"][[3, 5]].astype(np.float32))
    assert episode.actions[:, 7].tolist() == [0, 0]


def test_actions_of_two_observations():
    state = {"joint_positions": np.array([[1.0], [2]]), "gripper_open": np.array([[0.0], [1]])}
    assert actions("next_joint", state).tolist() == [[2, 1]]


def test_only_chosen_observations_are_read(copy):
    whole = rlbench(copy, clouds=True).episode(0)
    for folder in copy.glob("*_rgb"):
        if folder.name != "front_rgb":
            (folder / "3.png").write_bytes(b"damaged")
    keys = ("front_rgb", "wrist_point_cloud", "gripper_pose")
    source = Rlbench(copy, Rlbench.Config(clouds=True), keys=keys)
    assert tuple(source.spec.observation) == keys and source.spec.privileged == ()
    chosen = source.episode(0)
    assert set(chosen.observations) == set(keys)
    for key in keys:
        assert np.array_equal(chosen.observations[key], whole.observations[key])
    assert np.array_equal(chosen.actions, whole.actions)


def test_labels_are_all_descriptions_over_the_whole_episode(written):
    labels = Rlbench(written[0]).episode(0).labels
    assert [label.text for label in labels] == ["reach the ball", "touch it"]
    assert {(label.task, label.start, label.stop) for label in labels} == {("reach_target", 0, -1)}


def test_descriptions_that_are_something_else_give_the_tasks_name(copy):
    with writer.classes() as made:
        odd = made["Observation"]()
        odd.front_rgb = np.zeros((8, 8, 3), np.uint8)
        writer.dump(odd, copy.parents[1] / "variation_descriptions.pkl")
    assert [label.text for label in Rlbench(copy).episode(0).labels] == ["reach target"]
    (copy.parents[1] / "variation_descriptions.pkl").unlink()
    assert [label.text for label in Rlbench(copy).episode(0).labels] == ["reach target"]


def test_both_layouts_from_any_folder_in_the_order_of_numbers(tmp_path):
    for write, inside in (
        (writer.write_rlbench, "reach_target/variation0"),
        (writer.write_peract, "reach_target/all_variations"),
    ):
        root = write(tmp_path / write.__name__, episodes=11, length=2, size=16)
        (root / inside / "episodes" / ".DS_Store").touch()
        for below in ("", "reach_target", inside, f"{inside}/episodes"):
            demos = Rlbench(root / below).demos
            assert [d.folder.name for d in demos] == [f"episode{i}" for i in range(11)]
            assert {d.task for d in demos} == {"reach_target"}
        one = Rlbench(root / inside / "episodes" / "episode10")
        assert len(one) == 1
        label = one.episode(0).labels[0]
        assert label.task == "reach_target"
    assert label.text == "reach_target number 10" and one.episode(0).info == {"variation": 10}


def test_tasks_with_task_states_of_other_lengths(tmp_path):
    writer.write_rlbench(tmp_path, task="reach_target", episodes=1, length=2, size=16)
    writer.write_rlbench(
        tmp_path, task="stack_wine", episodes=1, length=2, size=16, task_state=8
    )
    source = Rlbench(tmp_path)
    assert source.spec.privileged == ("task_low_dim_state",)
    reach, stack = (source.episode(i).observations["task_low_dim_state"] for i in range(2))
    assert reach.shape == stack.shape == (2, 8)
    assert (reach[:, 3:] == 0).all() and stack[0, 3:].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(SourceError, match="set task_state=8"):
        rlbench(tmp_path, task_state=5).episode(1)
    assert rlbench(tmp_path, task_state=9).episode(1).observations["task_low_dim_state"].shape[
        1
    ] == 9


def test_episodes_go_through_a_store_unchanged(written, tmp_path):
    source = rlbench(written[0], clouds=True, stride=4)
    episode = source.episode(0)
    with ZarrStore.create(tmp_path / "d.zarr", source.spec, settings=source.settings) as store:
        store.append(episode)
    with ZarrStore.open(tmp_path / "d.zarr", spec=source.spec) as store:
        back = store.episode(0)
    for key, value in episode.observations.items():
        assert back.observations[key].dtype == value.dtype
        assert np.array_equal(back.observations[key], value), key
    assert np.array_equal(back.actions, episode.actions)


def test_damage_is_one_error_that_names_the_file(copy):
    def refused(match, **values):
        with pytest.raises(SourceError, match=match) as caught:
            rlbench(copy, **values).episode(0)
        assert "\n" not in str(caught.value)

    image = copy / "front_rgb" / "4.png"
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    refused(r"front_rgb/4\.png: not a whole PNG image")
    image.write_bytes(b"GIF89a, no PNG")
    refused(r"front_rgb/4\.png: not a whole PNG image")
    image.unlink()
    refused(r"front_rgb: holds 5 images, low_dim_obs.pkl has 6 .*; 4.png is missing")
    image.write_bytes(content)
    (copy / "front_rgb" / "6.png").write_bytes(content)
    refused(r"6.png is too much")
    (copy / "front_rgb" / "6.png").unlink()
    Image.open(image).convert("L").save(image)
    refused(r"front_rgb/4\.png: is a PNG of mode L, need RGB")
    image.write_bytes(content)
    rlbench(copy).episode(0)


def test_depth_that_was_resized_is_refused(copy):
    def resize(folder):
        for file in sorted(folder.glob("*.png")):
            Image.open(file).resize((16, 16), Image.Resampling.BILINEAR).save(file)

    one = copy / "wrist_depth" / "2.png"
    content = one.read_bytes()
    Image.open(one).resize((16, 16)).save(one)
    with pytest.raises(SourceError, match=r"wrist_depth/2\.png: is 16 x 16 pixels"):
        Rlbench(copy).episode(0)
    one.write_bytes(content)
    resize(copy / "wrist_depth")
    with pytest.raises(SourceError, match=r"wrist_depth/0\.png: is 16 x 16 .* resized"):
        Rlbench(copy)
    resize(copy / "wrist_rgb"), resize(copy / "wrist_mask")  # alike, but the lens is another's
    with pytest.raises(SourceError, match=r"wrist_depth: .* 16 x 16, .*_intrinsics is of 32 x 32"):
        Rlbench(copy).episode(0)
    assert len(rlbench(copy, images=("rgb",)).episode(0)) == 5


@pytest.mark.parametrize(
    "name, function, match",
    [
        ("joint_positions", lambda v, t: v * np.nan if t > 3 else v, "joint_positions is NaN .*4"),
        ("joint_positions", lambda v, t: v[:5] if t == 1 else v, "joint_positions is not an array"),
        ("joint_positions", lambda v, t: v[:6], "has 6 numbers, robot=panda has 7"),
        ("gripper_open", lambda v, t: None if t else v, "gripper_open is"),
        ("joint_positions", lambda v, t: None, "has no joint_positions, of which action="),
        ("gripper_touch_forces", lambda v, t: "hard", "gripper_touch_forces is not an array"),
        ("misc", lambda v, t: {}, "misc of step 0 has no .*_extrinsics; set matrices=false"),
        (
            "misc",
            lambda v, t: {k: x for k, x in v.items() if "wrist_camera_far" not in k},
            r"misc of step 0 has no wrist_camera_far; .* images=\[rgb,mask\]",
        ),
        (
            "misc",
            lambda v, t: v | {"front_camera_near": 9.0},
            r"front_camera_near is not within \[0, front_camera_far\)",
        ),
        (
            "misc",
            lambda v, t: v | {"front_camera_extrinsics": np.eye(3)},
            r"front_camera_extrinsics has shape \(3, 3\), need \(4, 4\)",
        ),
    ],
)
def test_odd_numbers_are_refused_by_name(tmp_path, name, function, match):
    writer.write_demo(tmp_path / "episode0", length=6, size=16, **{name: function})
    with pytest.raises(SourceError, match=match) as caught:
        Rlbench(tmp_path).episode(0)
    assert str(tmp_path / "episode0" / "low_dim_obs.pkl") in str(caught.value)


def test_old_demos_without_misc_are_read_where_nothing_needs_it(tmp_path):
    drawn = writer.write_demo(tmp_path / "episode0", length=3, size=16, misc=lambda v, t: None)
    episode = rlbench(tmp_path, images=("rgb", "mask"), matrices=False).episode(0)
    assert np.array_equal(episode.observations["front_rgb"], drawn["front_rgb"])


def test_numbers_that_no_action_needs_may_be_missing(tmp_path):
    nothing = {"joint_velocities": lambda v, t: None, "gripper_pose": lambda v, t: None}
    writer.write_demo(tmp_path / "episode0", length=3, size=16, **nothing)
    observations = Rlbench(tmp_path).episode(0).observations
    assert "joint_forces" in observations and not observations.keys() & nothing.keys()
    for action in ("joint_velocity", "next_pose", "keyframe"):
        with pytest.raises(SourceError, match=f"of which action={action} is made"):
            rlbench(tmp_path, action=action)
    writer.write_demo(tmp_path / "episode1", length=3, size=16)
    assert len(Rlbench(tmp_path).episode(1)) == 2  # without what the first has not
    (tmp_path / "episode0").rename(tmp_path / "episode2")
    with pytest.raises(SourceError, match="episode2.* has no joint_velocities, which the set's"):
        Rlbench(tmp_path).episode(1)


def test_damaged_demos_can_be_left_out_of_a_store(tmp_path):
    root = writer.write_peract(tmp_path / "demos", episodes=3, length=3, size=16)
    bad = root / "reach_target" / "all_variations" / "episodes" / "episode1" / "front_rgb" / "1.png"
    bad.write_bytes(bad.read_bytes()[:-40])
    out = tmp_path / "d.zarr"
    with pytest.raises(SourceError, match=r"episode1/front_rgb/1\.png"):
        import_data("rlbench", root, out=out, workers=0)
    with ZarrStore.open(out) as store:
        assert len(store) == 1
    assert import_data("rlbench", root, out=out, workers=0, skip_bad=True).skipped == 1
    with ZarrStore.open(out) as store:
        assert len(store) == 2
        assert store.episode(1).labels[0].text == "reach_target number 2"
        assert store.info()["variation"].tolist() == [0, 2]


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.parametrize("file", ["low_dim_obs.pkl", "../../variation_descriptions.pkl"])
def test_a_pickle_that_would_run_something_is_refused(copy, file, monkeypatch):
    monkeypatch.chdir(copy)
    (copy / file).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(SourceError, match=r"(posix|os)\.system, which is refused"):
        Rlbench(copy).episode(0)
    assert not (copy / "evil").exists()


def test_a_pickle_of_something_else_is_refused(copy):
    writer.dump({"a": 1}, copy / "low_dim_obs.pkl")
    with pytest.raises(SourceError, match="holds no RLBench demo, but a dict"):
        Rlbench(copy)
    with writer.classes() as made:
        demo = made["Demo"]()
        demo._observations = []
        writer.dump(demo, copy / "low_dim_obs.pkl")
    with pytest.raises(SourceError, match="has 0 observations; a demo needs 2"):
        Rlbench(copy)


def test_a_first_demo_that_is_damaged_does_not_hide_the_others(tmp_path):
    root = writer.write_rlbench(tmp_path, episodes=2, length=2, size=16)
    first = root / "reach_target" / "variation0" / "episodes" / "episode0"
    (first / "low_dim_obs.pkl").write_bytes(b"")
    source = Rlbench(root)
    with pytest.raises(SourceError, match="episode0/low_dim_obs.pkl"):
        source.episode(0)
    assert len(source.episode(1)) == 1


def test_demos_of_one_set_need_the_same_size_and_cameras(tmp_path):
    root = writer.write_rlbench(tmp_path, episodes=1, length=2, size=16)
    other = root / "reach_target" / "variation0" / "episodes" / "episode1"
    writer.write_demo(other, length=2, size=24)
    with pytest.raises(SourceError, match=r"episode1/\w+_rgb/0.png: is 24 x 24 .* 16 x 16"):
        Rlbench(root).episode(1)
    shutil.rmtree(other)
    writer.write_demo(other, length=2, size=16)
    shutil.rmtree(other / "front_mask")
    with pytest.raises(SourceError, match="episode1/front_mask: no such folder; choose cameras"):
        Rlbench(root).episode(1)
    assert len(rlbench(root, images=("rgb", "depth")).episode(1)) == 1


def test_folders_without_demos_say_what_is_needed(tmp_path):
    with pytest.raises(SourceError, match="nowhere: no such folder"):
        Rlbench(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="holds no RLBench demo, need TASK/variationN"):
        Rlbench(tmp_path)
    writer.write_rlbench(tmp_path / "train", episodes=1, length=2, size=16)
    with pytest.raises(SourceError, match="there are demos in train: take one of them"):
        Rlbench(tmp_path)
    shutil.copytree(
        tmp_path / "train" / "reach_target" / "variation0",
        tmp_path / "train" / "reach_target" / "all_variations",
    )
    with pytest.raises(SourceError, match="has all_variations and variation0"):
        Rlbench(tmp_path / "train")


@pytest.mark.parametrize(
    "values, match",
    [
        ({"action": "next"}, "Rlbench.action: no action named 'next'"),
        ({"cameras": ("frnt",)}, "Rlbench.cameras: .* did you mean 'front'"),
        ({"images": ("rgb", "rgb")}, "name each once"),
        ({"robot": "pandas"}, "did you mean 'panda'"),
        ({"stride": 0}, "Rlbench.stride"),
        ({"gap": 0}, "Rlbench.gap"),
    ],
)
def test_settings_are_checked(values, match):
    with pytest.raises(ConfigError, match=match):
        Rlbench.Config(**values)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"cameras": ("front", "wrist")}, "has no images of wrist; there are: front: rgb, depth"),
        ({"images": ("mask",)}, "has no front_mask; images there are: front: rgb, depth"),
        ({"images": ("depth",), "cameras": ("wrist",)}, "has no wrist_depth; images there are"),
    ],
)
def test_cameras_and_images_that_no_demo_has_are_listed(copy, values, says):
    for folder in copy.iterdir():
        if folder.is_dir() and folder.name not in ("front_rgb", "front_depth"):
            shutil.rmtree(folder)
    with pytest.raises(SourceError, match=says):
        rlbench(copy, **values)
    assert "front_depth" in rlbench(copy).episode(0).observations
    shutil.rmtree(copy / "front_depth")
    with pytest.raises(SourceError, match="has no front_depth; images there are: front: rgb"):
        rlbench(copy, clouds=True)


def test_state_without_numbers_is_left_out(tmp_path):
    odd = {"task_low_dim_state": lambda v, t: v[:0], "joint_forces": lambda v, t: "strong"}
    writer.write_demo(tmp_path / "episode0", length=3, size=16, **odd)
    keys = ["front_rgb", "gripper_pose", "task_low_dim_state"]
    assert len(Rlbench(tmp_path, keys=keys[:2]).episode(0)) == 2  # joint_forces are not read
    with pytest.raises(ConfigError, match="'task_low_dim_state' cannot be read: it has rows"):
        Rlbench(tmp_path, keys=keys)
    with pytest.raises(SourceError, match="joint_forces is not an array of numbers"):
        Rlbench(tmp_path)
    del odd["joint_forces"]
    writer.write_demo(tmp_path / "episode0", length=3, size=16, **odd)
    source = Rlbench(tmp_path)
    assert "'task_low_dim_state' is left out: it has rows of shape (0,)" in source.notes[0]
    assert "joint_forces" in source.episode(0).observations


@pytest.mark.parametrize("name", ["rlbench_synth", "rlbench_synth_peract"])
def test_the_samples_are_read(name):
    if not (SAMPLES / name).is_dir():
        pytest.skip(f"{SAMPLES / name} is not there")
    source = rlbench(SAMPLES / name, clouds=True)
    for i in range(len(source)):
        observations = source.episode(i).observations
        assert len(observations) == 5 * (3 + 1 + 2) + 8
        # reach_target ends where its target is
        tip = observations["gripper_pose"][-1, :3]
        assert np.linalg.norm(tip - observations["task_low_dim_state"][-1, :3]) < 1e-3
        points = observations["front_point_cloud"].reshape(-1, 3)
        target = observations["task_low_dim_state"][0, :3]
        assert np.linalg.norm(points - target, axis=1).min() < 0.05
