"""A small env with the state that CALVIN's tasks are tested on."""

import numpy as np

from latentplan.types import ActionSpec, ArraySpec, Spec

SPEC = Spec(
    observation={
        "robot_obs": ArraySpec((15,), "float64"),
        "scene_obs": ArraySpec((24,), "float64"),
    },
    action=ActionSpec((-1.0,) * 7, (1.0,) * 7),
    env="lamps",
    privileged=("scene_obs",),
)


class Lamps:
    """A table with two lamps and two doors that the numbers of an action move."""

    data_spec = SPEC

    def reset(self, *, seed=None, options=None):
        self.scene = np.array(options["scene_obs"])
        self.steps = 0
        return self._seen(), {}

    def step(self, action):
        self.steps += 1
        self.scene[:2] += 0.01 * np.asarray(action[:2])
        for lamp, number in ((4, 2), (5, 3)):
            if action[number]:
                self.scene[lamp] = action[number] > 0
        return self._seen(), 0.0, False, False, {}

    def snapshot(self):
        return self.scene.copy()

    def restore(self, state):
        self.scene = state.copy()
        return self._seen()

    def distance(self, observation, goal):
        raise AssertionError("an evaluation of tasks needs neither distances nor an oracle")

    oracle = distance

    def close(self):
        pass

    def _seen(self):
        return {"robot_obs": np.full(15, float(self.steps)), "scene_obs": self.scene.copy()}

    def task_info(self):
        still = {"current_pos": (0, 0, 0), "current_orn": (0, 0, 0, 1), "contacts": []}
        slow = {"current_lin_vel": (0, 0, 0), "current_ang_vel": (0, 0, 0)}
        return {
            "robot_info": {"uid": 0, "contacts": []},
            "scene_info": {
                "movable_objects": {
                    f"block_{c}": {"uid": uid, **still, **slow}
                    for uid, c in enumerate(("red", "blue", "pink"), 1)
                },
                "fixed_objects": {"table": {"uid": 4, "links": {"base_link": -1}}},
                "doors": {
                    "base__slide": {"current_state": self.scene[0]},
                    "base__drawer": {"current_state": self.scene[1]},
                },
                "lights": {
                    "lightbulb": {"logical_state": int(self.scene[4])},
                    "led": {"logical_state": int(self.scene[5])},
                },
            },
        }
