"""robomimic's files, written here in their real layout, read as episodes."""

import json

import numpy as np
import pytest
from robomimic_writer import OSC, V15, demo, write

from latentplan.data.sources.robomimic import Robomimic
from latentplan.errors import SourceError
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


def test_states_alone_are_answered_with_how_to_render_them(tmp_path):
    path = tmp_path / "demo.hdf5"
    with h5py.File(path, "w") as file:
        group = file.create_group("data/demo_1")
        group["states"], group["actions"] = np.zeros((3, 32)), np.zeros((3, 7))
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
        ("obs/agentview_image", None, r"demo_1/obs has no array of numbers 'agentview_image'"),
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


def test_actions_of_another_size_are_refused(path):
    with h5py.File(path, "a") as file:
        del file["data/demo_2/actions"]
        file["data/demo_2/actions"] = np.zeros((4, 8))
    with pytest.raises(SourceError, match=r"demo_2/actions has shape \(4, 8\)"):
        Robomimic(path)
