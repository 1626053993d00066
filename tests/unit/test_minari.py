"""Minari's data sets, written here in their real layout, read as episodes."""

import numpy as np
import pytest
from minari_writer import BOX, numbers, write

from latentplan.data.sources.minari import Minari
from latentplan.errors import ConfigError, SourceError
from latentplan.types import Label

h5py = pytest.importorskip("h5py")

def test_episodes_come_in_the_order_of_their_numbers(tmp_path):
    source = Minari(write(tmp_path / "door-v0"))
    assert [source.episode(i).seed for i in range(len(source))] == [100, 101, 102, 110]
    episode, (states, actions) = source.episode(3), numbers(10)
    np.testing.assert_array_equal(episode.observations["observation"], states)
    np.testing.assert_array_equal(episode.actions, actions)
    assert episode.rewards.tolist() == [0, 1, 2, 3, 4]
    ends = [(e.terminated, e.truncated) for e in map(source.episode, range(4))]
    assert ends == [(False, True), (True, False), (False, True), (False, True)]
    assert source.spec.action.low == (-2, -3) and source.spec.action.high == (2, 3)


def test_dict_and_tuple_spaces_texts_and_discrete_actions(tmp_path):
    space = {"type": "Discrete", "dtype": "int64", "start": 0, "n": 3}
    write(tmp_path / "door-v0", space=space, nested=True)
    source = Minari(tmp_path / "door-v0" / "data")
    episode = source.episode(0)
    assert set(episode.observations) == {"achieved.position", "_index_1"}
    assert episode.observations["_index_1"].shape == (6,)
    assert episode.actions.tolist() == [[0], [1], [2], [0], [1]]
    assert source.spec.action.low == (0,) and source.spec.action.high == (2,)
    assert episode.labels == (Label("go to the door"),)


def test_bounds_that_a_space_has_not_are_the_datas(tmp_path):
    space = BOX | {"low": [-np.inf, -3.0], "high": [np.inf, 0.5]}
    source = Minari(write(tmp_path / "door-v0", space=space))
    actions = np.concatenate([numbers(i)[1] for i in (0, 1, 2, 10)])
    np.testing.assert_allclose(source.spec.action.low, [actions[:, 0].min(), -3])
    np.testing.assert_allclose(source.spec.action.high, actions.max(0))  # 0.5 is exceeded


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("actions", np.full((5, 2), np.nan), r"episode_1/actions: 10 of 10 numbers are NaN"),
        ("observations", np.zeros((5, 3)), r"episode_1 has unequal lengths"),
        ("observations", np.zeros((6, 4)), r"episode_1/observations: holds float64 rows"),
        ("rewards", None, r"episode_1 has no array 'rewards'; it has actions"),
    ],
)
def test_a_damaged_episode_is_refused_and_the_others_are_read(tmp_path, name, values, says):
    folder = write(tmp_path / "door-v0")
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        del file[f"episode_1/{name}"]
        if values is not None:
            file[f"episode_1/{name}"] = values
    source = Minari(folder)
    with pytest.raises(SourceError, match=says):
        source.episode(1)
    assert len(source.episode(2)) == 5


def test_what_is_no_such_data_set_is_refused(tmp_path):
    with pytest.raises(SourceError, match="no such data set"):
        Minari(tmp_path / "none")
    with pytest.raises(SourceError, match=r"has no data/main_data\.hdf5"):
        Minari(tmp_path)
    folder = write(tmp_path / "door-v0")
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        del file["episode_10/actions"]
        file["episode_10/actions"] = np.zeros((5, 3))
    with pytest.raises(SourceError, match=r"episode_10/actions has shape \(5, 3\)"):
        Minari(folder).episode(3)
    file = folder / "data/main_data.hdf5"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(SourceError, match=r"main_data\.hdf5: damaged"):
        Minari(folder)


def test_an_empty_first_episode_does_not_bar_the_others(tmp_path):
    folder = write(tmp_path / "door-v0")
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        for name, rows in {"actions": (0, 2), "observations": (1, 3), "rewards": (0,)}.items():
            del file[f"episode_0/{name}"]
            file[f"episode_0/{name}"] = np.zeros(rows)
        del file["episode_2/observations"]
    source = Minari(folder)
    with pytest.raises(SourceError, match="episode_0/actions: the episode is empty"):
        source.episode(0)
    with pytest.raises(SourceError, match="episode_2 has no observations"):
        source.episode(2)
    assert [len(source.episode(i)) for i in (1, 3)] == [5, 5]


def test_what_is_not_asked_for_is_not_read(tmp_path):
    folder = write(tmp_path / "door-v0", nested=True)
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        for name in ("episode_0", "episode_1"):
            del file[f"{name}/observations/_index_1"]
        file["episode_0/observations/_index_1/deep"] = np.zeros((6, 0))
    source = Minari(folder, keys=["achieved.position"])
    assert [len(source.episode(i)) for i in range(4)] == [5] * 4
    assert source.notes == []
    with pytest.raises(ConfigError, match="import.keys: '_index_1.deep' cannot be read: it has"):
        Minari(folder, keys=["_index_1.deep"])
