"""Files in robomimic's layout."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

OSC = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
}
V14 = {"controller_configs": OSC | {"control_delta": True}, "control_freq": 20}
V15 = {
    "controller_configs": {
        "type": "BASIC",
        "body_parts": {
            "right": OSC
            | {"input_type": "delta", "input_ref_frame": "base", "gripper": {"type": "GRIP"}}
        },
    },
    "control_freq": 20,
}


@dataclass
class Demo:
    observations: np.ndarray  # (L + 1, 9)
    pictures: np.ndarray  # (L + 1, h, w, 3)
    actions: np.ndarray  # (L, 7)


def demo(number, length=4):
    rng = np.random.default_rng(number)
    return Demo(
        rng.normal(size=(length + 1, 9)),
        rng.integers(0, 256, (length + 1, 6, 5, 3), np.uint8),
        np.append(rng.uniform(-1, 1, (length, 6)), rng.choice([-1.0, 1.0], (length, 1)), axis=1),
    )


def write(path, *, numbers=(0, 1, 2, 9, 10), kwargs=V14, next_obs=True):
    """Write a file with demos of these numbers, and return its path."""
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(
            {"env_name": "Lift", "env_type": 1, "env_kwargs": kwargs}
        )
        for number in numbers:
            d, group = demo(number), data.create_group(f"demo_{number}")
            group.attrs["num_samples"] = len(d.actions)
            group["actions"] = d.actions
            group["states"] = np.zeros((len(d.actions), 32))
            group["rewards"] = np.eye(len(d.actions))[-1]
            group["dones"] = np.eye(len(d.actions), dtype=np.int64)[-1]
            for name, rows in {"obs": slice(None, -1), "next_obs": slice(1, None)}.items():
                if name == "obs" or next_obs:
                    group[f"{name}/object"] = d.observations[rows]
                    group[f"{name}/agentview_image"] = d.pictures[rows]
        names = [f"demo_{n}".encode() for n in numbers]
        file["mask/train"] = np.array(names[::2])
    return path
