"""The tasks of robosuite: objects, distances and experts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from latentplan.errors import ConfigError
from latentplan.sim.robosuite import experts
from latentplan.sim.robosuite.env import Robosuite
from latentplan.types import Array, ArraySpec, Observation


class Held(Robosuite):
    """A task with objects to grasp; `grasped` is 1 while the hand holds one of them."""

    def _truth_specs(self) -> dict[str, ArraySpec]:
        grasped = ArraySpec((1,), "float32", "1 while both fingers touch the object")
        return super()._truth_specs() | {"grasped": grasped}

    def _truth(self) -> dict[str, Array]:
        geoms = self._robot.gripper["right"].important_geoms
        # Whole fingers, since Robotiq's hold a cube without contact of both pads.
        fingers = [geoms["left_finger"], geoms["right_finger"]]
        held = any(
            self._env._check_grasp(gripper=fingers, object_geoms=thing) for thing in self._things()
        )
        return super()._truth() | {"grasped": np.array([held], np.float32)}

    @abstractmethod
    def _things(self) -> Sequence[Any]:
        """Return robosuite's objects that can be grasped."""

    def _act(self, move: experts.Move, observation: Observation) -> Array:
        if self.config.robot != experts.ROBOT:
            raise ConfigError(
                f"{type(self).__name__}.robot: found {self.config.robot!r}; the experts are made "
                f"for {experts.ROBOT}"
            )
        base = self._robot.composite_controller.get_controller_base_pose("right")[1]
        return experts.act(move, observation, action=self.data_spec.action, base=base)


class Lift(Held):
    """Lift a cube 4 cm over the table; it lies within 3 cm of the middle, turned at random."""

    name, task, text = "robosuite/Lift", "Lift", "lift the red cube"
    objects = {"cube": "cube_main"}
    episode_length = 100

    def distance(self, observation: Observation, goal: Observation) -> float:
        """Return the distance of the cube from its position in the goal, m."""
        return _apart(observation, goal, "cube")

    def expert(self, observation: Observation, rng: np.random.Generator) -> Array:
        """Return the scripted expert's action (A,)."""
        return self._act(experts.lift(observation), observation)

    def _things(self) -> Sequence[Any]:
        return [self._env.cube]


class Stack(Held):
    """Put the red cube on the green one and release it."""

    name, task, text = "robosuite/Stack", "Stack", "put the red cube on the green cube"
    objects = {"cube_a": "cubeA_main", "cube_b": "cubeB_main"}
    episode_length = 200

    def distance(self, observation: Observation, goal: Observation) -> float:
        """Return the error of cube a's place relative to cube b, against the goal, m."""
        seen, wanted = (o["cube_a"][:3] - o["cube_b"][:3] for o in (observation, goal))
        return float(np.linalg.norm(seen - wanted))

    def expert(self, observation: Observation, rng: np.random.Generator) -> Array:
        """Return the scripted expert's action (A,)."""
        return self._act(experts.stack(observation), observation)

    def _things(self) -> Sequence[Any]:
        return [self._env.cubeA]


class Door(Held):
    """Open a door by 0.3 rad; its latch must be turned by 70 degrees first."""

    name, task, text = "robosuite/Door", "Door", "open the door"
    objects = {"door": "Door_door", "latch": "Door_latch"}
    episode_length = 200

    def distance(self, observation: Observation, goal: Observation) -> float:
        """Return the distance of the handle's axis from its position in the goal, m."""
        return _apart(observation, goal, "latch")

    def expert(self, observation: Observation, rng: np.random.Generator) -> Array:
        """Return the scripted expert's action (A,)."""
        return self._act(experts.open_door(observation), observation)

    def _truth_specs(self) -> dict[str, ArraySpec]:
        return super()._truth_specs() | {
            "hinge": ArraySpec((3,), "float32", "a point of the hinge's axis, m"),
            "joints": ArraySpec((2,), "float32", "angles of hinge and latch, rad"),
        }

    def _truth(self) -> dict[str, Array]:
        data, env = self._data, self._env
        joints = data.qpos[[env.hinge_qpos_addr, env.handle_qpos_addr]]
        hinge = data.xanchor[self._model.joint("Door_hinge").id]
        return super()._truth() | {
            "hinge": hinge.astype(np.float32),
            "joints": joints.astype(np.float32),
        }

    def _things(self) -> Sequence[Any]:
        return [["Door_handle"]]


class NutAssemblySquare(Held):
    """Put the square nut on the square peg."""

    name, task = "robosuite/NutAssemblySquare", "NutAssemblySquare"
    text = "put the square nut on the square peg"
    objects = {"nut": "SquareNut_main", "peg": "peg1"}
    number = 0  # index among robosuite's nuts

    def distance(self, observation: Observation, goal: Observation) -> float:
        """Return the distance of the nut from its position in the goal, m."""
        return _apart(observation, goal, "nut")

    def _things(self) -> Sequence[Any]:
        return [self._env.nuts[self.number]]


class NutAssemblyRound(NutAssemblySquare):
    """Put the round nut on the round peg."""

    name, task = "robosuite/NutAssemblyRound", "NutAssemblyRound"
    text = "put the round nut on the round peg"
    objects = {"nut": "RoundNut_main", "peg": "peg2"}
    number = 1


class NutAssembly(Held):
    """Put both nuts on their pegs."""

    name, task = "robosuite/NutAssembly", "NutAssembly"
    text = "put each nut on its peg"
    objects = {
        "square_nut": "SquareNut_main",
        "round_nut": "RoundNut_main",
        "square_peg": "peg1",
        "round_peg": "peg2",
    }
    episode_length = 500

    def distance(self, observation: Observation, goal: Observation) -> float:
        """Return the mean distance of the nuts from their positions in the goal, m."""
        return _apart(observation, goal, "square_nut", "round_nut")

    def _things(self) -> Sequence[Any]:
        nuts: Sequence[Any] = self._env.nuts
        return nuts


class PickPlaceCan(Held):
    """Put the can into its quarter of the other bin."""

    name, task, text = "robosuite/PickPlaceCan", "PickPlaceCan", "put the can into its bin"
    objects = {"can": "Can_main", "target": "VisualCan_main"}

    def distance(self, observation: Observation, goal: Observation) -> float:
        """Return the distance of the can from its position in the goal, m."""
        return _apart(observation, goal, "can")

    def _things(self) -> Sequence[Any]:
        return [thing for thing in self._env.objects if thing.name == "Can"]


class PickPlace(Held):
    """Put milk, bread, cereal and can into their quarters of the other bin."""

    name, task, text = "robosuite/PickPlace", "PickPlace", "put each object into its bin"
    objects = {
        "milk": "Milk_main",
        "bread": "Bread_main",
        "cereal": "Cereal_main",
        "can": "Can_main",
    }
    episode_length = 1000

    def distance(self, observation: Observation, goal: Observation) -> float:
        """Return the mean distance of the objects from their positions in the goal, m."""
        return _apart(observation, goal, *self.objects)

    def _things(self) -> Sequence[Any]:
        things: Sequence[Any] = self._env.objects
        return things


class Wipe(Robosuite):
    """Wipe the dirt, a line of 100 marks, off the table; the hand is a sponge."""

    name, task, text = "robosuite/Wipe", "Wipe", "wipe the dirt off the table"
    objects: Mapping[str, str] = {}
    episode_length = 500
    APART = 0.005  # m, robosuite's distance between marks

    def distance(self, observation: Observation, goal: Observation) -> float:
        """Return the excess length of the line of dirt over the goal's, m; at least 0."""
        left, wanted = (float(o["marks"][:, 3].sum()) for o in (observation, goal))
        return self.APART * max(left - wanted, 0.0)

    def _marks(self) -> list[Any]:
        marks: list[Any] = self._env.model.mujoco_arena.markers
        return marks

    def _truth_specs(self) -> dict[str, ArraySpec]:
        shape = (len(self._marks()), 4)
        return {"marks": ArraySpec(shape, "float32", "x, y, z in m; 1 where dirty, 0 where wiped")}

    def _truth(self) -> dict[str, Array]:
        wiped = {id(mark) for mark in self._env.wiped_markers}
        bodies = [self._model.body(mark.root_body).id for mark in self._marks()]
        dirty = [[id(mark) not in wiped] for mark in self._marks()]
        return {"marks": np.hstack([self._data.xpos[bodies], dirty]).astype(np.float32)}


def _apart(observation: Observation, goal: Observation, *keys: str) -> float:
    """Return the mean distance of objects from their positions in the goal, m."""
    gaps = [np.linalg.norm(observation[key][:3] - goal[key][:3]) for key in keys]
    return float(np.mean(gaps))
