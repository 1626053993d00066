"""Data sets in Minari's layout."""

import json

import numpy as np
import pytest

BOX = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-2.0, -3.0], "high": [2.0, 3.0]}


def numbers(episode, length=5):
    rng = np.random.default_rng(episode)
    return rng.normal(size=(length + 1, 3)), rng.uniform(-1, 1, (length, 2)).astype(np.float32)


def write(folder, *, space=BOX, nested=False):
    """Write a data set of four episodes into a new folder, and return that."""
    h5py = pytest.importorskip("h5py")
    data = folder / "data"
    data.mkdir(parents=True)
    (data / "metadata.json").write_text(
        json.dumps({"data_format": "hdf5", "action_space": json.dumps(space)})
    )
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for index in (0, 1, 2, 10):
            states, actions = numbers(index)
            group = file.create_group(f"episode_{index}")
            group.attrs["id"], group.attrs["seed"] = index, 100 + index
            if nested:
                group["observations/achieved/position"] = states
                group["observations/_index_1"] = states[:, 0].astype(np.int64)
                group["observations/mission"] = ["go to the door"] * len(states)
            else:
                group["observations"] = states
            discrete = space["type"] == "Discrete"
            group["actions"] = np.arange(len(actions)) % 3 if discrete else actions
            group["rewards"] = np.arange(len(actions), dtype=np.float64)
            group["terminations"] = np.eye(len(actions), dtype=bool)[-1] & (index == 1)
            group["truncations"] = np.eye(len(actions), dtype=bool)[-1] & (index != 1)
            group["infos"] = ["{}"] * len(states)
    return folder
