"""robomimic's files, written here in their real layout, read as episodes."""

import json

import numpy as np
import pytest
from robomimic_writer import OSC, V15, demo, write

from latentplan.data.sources.robomimic import Robomimic
from latentplan.errors import ConfigError, SourceError
from latentplan.types import Convention, Label

h5py = pytest.importorskip("h5py")

@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "low_dim.hdf5")


def test_demos_come_in_the_order_of_their_numbers_with_their_last_observation(path):
    source = Robomimic(path)
    assert [source.episode(i).info["demo"] for i in range(len(source))] == [0, 1, 2, 9, 10]
    episode, wanted = source.episode(3), demo(9)
    np.testing.assert_array_equal(episode.observations["object"], wanted.observations)
    np.testing.assert_array_equal(episode.observations["agentview_image"], wanted.pictures)
    np.testing.assert_array_equal(episode.actions, wanted.actions.astype(np.float32))
    assert episode.rewards.tolist() == [0, 0, 0, 1]
    assert episode.terminated and not episode.truncated
    assert source.spec.observation["object"].dtype == "float64"
    assert source.spec.observation["agentview_image"].shape == (6, 5, 3)
    assert source.spec.privileged == ("object",)
    assert source.spec.dt == 0.05


def test_without_next_obs_the_last_action_is_left_out(tmp_path):
    source = Robomimic(write(tmp_path / "a.hdf5", next_obs=False))
    episode, wanted = source.episode(0), demo(0)
    np.testing.assert_array_equal(episode.observations["object"], wanted.observations[:-1])
    assert len(episode) == 3
    assert not episode.terminated and episode.truncated


def test_a_mask_chooses_demos_and_pictures_can_be_turned(path):
    source = Robomimic(path, Robomimic.Config(filter="train", flip=True))
    assert [source.episode(i).info["demo"] for i in range(len(source))] == [0, 2, 10]
    turned = source.episode(1).observations
    np.testing.assert_array_equal(turned["agentview_image"], demo(2).pictures[:, ::-1])
    np.testing.assert_array_equal(turned["object"], demo(2).observations)


def test_an_action_of_the_pose_controller_has_its_units(path, tmp_path):
    known = Convention("ee_delta", "rotvec", "world", 0.05, 0.5, "close_is_+1")
    action = Robomimic(path).spec.action
    assert action.convention == known
    assert action.low == (-1,) * 7 and action.high == (1,) * 7
    newer = Robomimic(write(tmp_path / "v15.hdf5", kwargs=V15)).spec.action.convention
    assert newer == Convention("ee_delta", "rotvec", "base", 0.05, 0.5, "close_is_+1")


def test_a_controller_that_is_unknown_or_of_two_arms_has_no_convention(tmp_path):
    two = {"controller_configs": [OSC, OSC]}
    assert Robomimic(write(tmp_path / "two.hdf5", kwargs=two)).spec.action.convention is None
    spec = Robomimic(write(tmp_path / "none.hdf5", kwargs={})).spec
    assert spec.action.convention is None and spec.dt is None
    actions = np.concatenate([demo(n).actions for n in (0, 1, 2, 9, 10)]).astype(np.float32)
    np.testing.assert_array_equal(spec.action.low, actions.min(0))
    np.testing.assert_array_equal(spec.action.high, actions.max(0))


def test_language_becomes_a_label(path):
    with h5py.File(path, "a") as file:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": ["lift it"]})
        file["data/demo_1"].attrs["ep_meta"] = json.dumps({"lang": "lift the cube"})
    source = Robomimic(path)
    assert source.episode(0).labels == (Label("lift it"),)
    assert source.episode(1).labels == (Label("lift the cube"),)


def test_nested_groups_texts_and_arrays_without_numbers(path):
    """Isaac Lab has groups in obs, and other files things that no store holds."""
    with h5py.File(path, "a") as file:
        for demo_name in file["data"]:
            for part in ("obs", "next_obs"):
                group = file[f"data/{demo_name}/{part}"]
                group["datagen/eef_pose/arm"] = np.zeros((4, 4, 4))
                group["empty"] = np.zeros((4, 0))
                group["sentence"] = ["pick it"] * 4
                group["code"] = np.array([b"abc"] * 4)
                group["complex"] = np.zeros(4, np.complex64)
                group["once"] = 3.0
            file[f"data/{demo_name}/actions_abs/arm"] = np.zeros((4, 7))
    source = Robomimic(path)
    keys = ["agentview_image", "datagen.eef_pose.arm", "object"]
    assert list(source.spec.observation) == keys
    assert source.episode(1).observations["datagen.eef_pose.arm"].shape == (5, 4, 4)
    notes = "\n".join(source.notes)
    for key in ("empty", "sentence", "code", "complex", "once"):
        assert f"{key!r} is left out: it " in notes
        with pytest.raises(ConfigError, match=f"import.keys: '{key}' cannot be read: it"):
            Robomimic(path, keys=[key])
    one = Robomimic(path, keys=["datagen.eef_pose.arm"])
    assert one.notes == [] and list(one.episode(0).observations) == ["datagen.eef_pose.arm"]


def test_another_array_of_actions_is_chosen(path):
    with h5py.File(path, "a") as file:
        for name in file["data"]:
            file[f"data/{name}/actions_abs"] = np.full((4, 7), 5.0)
            file[f"data/{name}/action_dict/abs_pos"] = np.full((4, 3), 2.0)
    source = Robomimic(path, Robomimic.Config(actions="actions_abs"))
    assert (source.episode(0).actions == 5).all() and source.spec.action.convention is None
    assert source.spec.action.high == (5,) * 7
    source = Robomimic(path, Robomimic.Config(actions="action_dict/abs_pos"))
    assert source.episode(0).actions.shape == (4, 3)
    with pytest.raises(SourceError, match="'action_dict' is a group of abs_pos, need an array"):
        Robomimic(path, Robomimic.Config(actions="action_dict"))
    with pytest.raises(SourceError, match=r"has no array 'actons'; it has action_dict, actions, "):
        Robomimic(path, Robomimic.Config(actions="actons"))


def test_a_setting_that_selects_nothing_says_what_there_is(path, tmp_path):
    with h5py.File(path, "a") as file:
        file["mask/empty"] = np.array([], "S8")
    with pytest.raises(SourceError, match="Robomimic.filter: no mask named 'tran'.*empty, train"):
        Robomimic(path, Robomimic.Config(filter="tran"))
    with pytest.raises(SourceError, match="mask/empty names no demo"):
        Robomimic(path, Robomimic.Config(filter="empty"))
    with pytest.raises(ConfigError, match="Robomimic.flip: none of object is an image"):
        Robomimic(path, Robomimic.Config(flip=True), keys=["object"])
    with h5py.File(path, "a") as file:
        del file["mask"]
    with pytest.raises(SourceError, match="Robomimic.filter: the file has no masks"):
        Robomimic(path, Robomimic.Config(filter="train"))


def test_a_first_demo_with_too_few_rows_does_not_describe_the_others(path):
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs/object"]
        file["data/demo_0/obs/object"] = np.zeros((0, 7))
    source = Robomimic(path)
    with pytest.raises(SourceError, match="demo_0/obs/object has 0 rows for 4 actions"):
        source.episode(0)
    assert [len(source.episode(index)) for index in (1, 2, 3, 4)] == [4] * 4


def test_groups_and_arrays_in_one_anothers_place_are_named(path):
    with h5py.File(path, "a") as file:
        del file["data/demo_0"], file["data/demo_1/obs"], file["data/demo_2/rewards"]
        file["data/demo_0"], file["data/demo_1/obs"] = np.zeros(3), np.zeros(3)
        file["data/demo_2/rewards/x"] = np.zeros(3)
        file["data/demo_9"].attrs["ep_meta"] = "{" * 100_000
    source = Robomimic(path)
    for index, says in enumerate(
        (
            "/data has an array in place of the group 'demo_0'",
            "demo_1 has an array in place of the group 'obs'",
            "'rewards' is a group of x, need an array",
            "demo_9.ep_meta: not JSON that can be read",
        )
    ):
        with pytest.raises(SourceError, match=says):
            source.episode(index)
    assert len(source.episode(4)) == 4


def test_states_alone_are_answered_with_how_to_render_them(tmp_path):
    path = tmp_path / "demo.hdf5"
    with h5py.File(path, "w") as file:
        group = file.create_group("data/demo_1")
        group["states"], group["actions"] = np.zeros((3, 32)), np.zeros((3, 7))
    with pytest.raises(SourceError, match=r"no observations; render them.*dataset_states_to_obs"):
        Robomimic(path)
    with h5py.File(path, "a") as file:
        file.create_group("data/demo_1/obs/empty")
    with pytest.raises(SourceError, match=r"no observations; render them.*dataset_states_to_obs"):
        Robomimic(path)


def test_what_is_not_such_a_file_is_refused(tmp_path, path):
    with pytest.raises(SourceError, match="no such file"):
        Robomimic(tmp_path / "missing.hdf5")
    with pytest.raises(SourceError, match=r"is a folder.*low_dim\.hdf5"):
        Robomimic(tmp_path)
    (tmp_path / "text.hdf5").write_text("not at all")
    with pytest.raises(SourceError, match=r"text\.hdf5: damaged, or not an HDF5 file"):
        Robomimic(tmp_path / "text.hdf5")
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SourceError, match=r"cut\.hdf5: damaged"):
        Robomimic(cut)
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(SourceError, match="has no data/demo_N"):
        Robomimic(tmp_path / "other.hdf5")
    with pytest.raises(SourceError, match=r"no mask named 'trian'; did you mean 'train'"):
        Robomimic(path, Robomimic.Config(filter="trian"))


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("actions", np.full((4, 7), np.nan), r"demo_1/actions: 28 of 28 numbers are NaN"),
        ("obs/object", np.zeros((3, 9)), r"demo_1/obs/object has 3 rows for 4 actions"),
        ("obs/object", np.zeros((4, 8)), r"demo_1/obs/object: holds float64 rows of shape \(8,\)"),
        ("next_obs/object", np.full((4, 9), np.inf), r"demo_1/next_obs/object: 36 of 36"),
        ("rewards", np.zeros(3), r"demo_1/rewards has 3 numbers for 4 actions"),
        ("obs/agentview_image", None, r"demo_1/obs has no array 'agentview_image'; it has object"),
    ],
)
def test_a_damaged_demo_is_refused_and_the_others_are_read(path, name, values, says):
    with h5py.File(path, "a") as file:
        del file[f"data/demo_1/{name}"]
        if values is not None:
            file[f"data/demo_1/{name}"] = values
    source = Robomimic(path)
    with pytest.raises(SourceError, match=says) as caught:
        source.episode(1)
    assert str(path) in str(caught.value)
    assert len(source.episode(0)) == 4


@pytest.mark.parametrize("shape", [(4, 8), (0, 7), (4,), (4, 7, 1)])
def test_an_empty_demo_and_actions_of_another_size_spoil_their_episode_alone(path, shape):
    for name in ("demo_2", "demo_0")[: 1 if shape == (4, 8) else 2]:  # the first has the size
        with h5py.File(path, "a") as file:
            del file[f"data/{name}/actions"]
            file[f"data/{name}/actions"] = np.zeros(shape)
        source = Robomimic(path)
        with pytest.raises(SourceError, match=rf"{name}/actions: has shape .*need \(L >= 1, 7\)"):
            source.episode(int(name[-1]))
        assert len(source.episode(1)) == 4
