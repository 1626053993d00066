"""Episodes of an arm: its task, the planner, and the record of each episode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from latentplan.api import connection as links
from latentplan.api.connection import Connection
from latentplan.api.fit import check_fit
from latentplan.errors import ConfigError, RobotError
from latentplan.evaluation.goals import EVALUATION, image_key
from latentplan.evaluation.video import side_by_side
from latentplan.planning.mpc import MPC
from latentplan.real_robot.link.remote import RemoteRobot
from latentplan.real_robot.loop.local import LocalRobot
from latentplan.real_robot.loop.supervisor import Supervisor
from latentplan.real_robot.motion.hold_position import hold_position, hold_position_while
from latentplan.real_robot.motion.picking import Picking
from latentplan.real_robot.motion.reach import Reach
from latentplan.real_robot.robot import Driver, Robot, View
from latentplan.sim.deformable.scene import Scene
from latentplan.sim.rendering.cameras import Camera
from latentplan.types import Array, Observation, Spec

VIDEO_CAMERA = Camera("front", (1.1, 0.5, 0.8), target=(-0.2, 0.0, 0.3), width=256, height=256)


@dataclass
class Record:
    """What one episode did."""

    actions: int = 0  # that were done: picks, or actions of the arm
    refused: int = 0  # picks that the arm cannot reach
    start: float | None = None  # m from the goal, where that is known; so is `final`
    final: float | None = None
    success: bool | None = None
    interventions: dict[str, int] = field(default_factory=dict)  # of the safety filter, by kind
    fault: str = ""  # why the arm stopped, empty if it did not
    error: float = 0.0  # rad, the largest distance of a joint from its path
    frames: list[Array] = field(default_factory=list)  # of a video

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without the video."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "frames"}


class RobotTask(ABC):
    """A task of an arm; its episodes run on a connected robot."""

    name: str
    settings: Mapping[str, Any]
    fps = 4  # of the video
    on_wait: Callable[[str], None]  # called with a sentence while the arm waits for a goal

    def __init__(self, connection: Connection, settings: Mapping[str, Any]) -> None:
        """Take the connection to the arm, and all settings by section."""
        self.connection = replace(connection, settings=settings)
        self.settings = settings
        self.on_wait = lambda sentence: None

    @contextmanager
    def connected(
        self, *, make: type[LocalRobot] = LocalRobot
    ) -> Iterator[LocalRobot | RemoteRobot]:
        """Give the robot, armed; `make` is the class of one in this process."""
        driver, supervisor = self.here() if self.connection.here else (None, None)
        given: dict[str, Any] = {"driver": driver, "supervisor": supervisor, "make": make}
        with links.connected(self.connection, **given) as robot:
            hold_position_while(robot, lambda: self.prepare(robot))
            yield robot

    def here(self) -> tuple[Driver, Supervisor]:
        """Return driver and supervisor of a simulated arm in this process."""
        return links.build(self.connection)

    @abstractmethod
    def prepare(self, robot: Robot) -> None:
        """Make what is needed of a robot that has just been connected; nothing moves."""

    @abstractmethod
    def attempt(self, robot: LocalRobot | RemoteRobot, index: int, record: Record) -> None:
        """Do episode `index`; RobotError where the arm stops."""

    def episode(self, robot: LocalRobot | RemoteRobot, index: int) -> Record:
        """Return the record of episode `index`; a fault ends it."""
        record, before = Record(), robot.health().interventions
        try:
            self.attempt(robot, index, record)
        except RobotError as e:
            record.fault = str(e)
            return record
        after = robot.health().interventions
        record.interventions = {
            kind: n - before.get(kind, 0) for kind, n in after.items() if n > before.get(kind, 0)
        }
        return record


class Reaching(RobotTask):
    """Points in reach of the arm, one an episode."""

    name = "reach"
    fps = 10

    def __init__(
        self,
        connection: Connection,
        settings: Mapping[str, Any],
        *,
        planner: Any,
        steps: int,
        seed: int,
    ) -> None:
        """Take a planner's class, the actions of an episode at most, and a seed."""
        super().__init__(connection, settings)
        self._planner, self._steps, self._seed = planner, steps, seed

    def here(self) -> tuple[Driver, Supervisor]:
        """Return them with a camera for the video."""
        return links.build(self.connection, cameras=[VIDEO_CAMERA])

    def prepare(self, robot: Robot) -> None:
        """Make the task of this robot's limits."""
        s = self.settings
        self.reach = Reach(
            robot,
            self.connection.arm,
            planner=self._planner(s["planner"]),
            seed=self._seed,
            config=s["reach"],
            mpc=s["mpc"],
        )

    def attempt(self, robot: LocalRobot | RemoteRobot, index: int, record: Record) -> None:
        """Reach the next point."""
        views = [k for k, a in robot.spec.data.observation.items() if len(a.shape) == 3]

        def record_frame(seen: Observation) -> None:
            record.frames += [even(seen[view]) for view in views[:1]]

        reached = self.reach.episode(self.reach.draw(), steps=self._steps, watch=record_frame)
        record.actions, record.success = reached.actions, reached.success
        record.start, record.final = reached.start, reached.final


class Planned(RobotTask):
    """A trained model's plans towards a goal, an image or words: picks, or the arm's actions."""

    def __init__(
        self,
        connection: Connection,
        settings: Mapping[str, Any],
        *,
        name: str,
        agent: MPC,
        scene: Scene | None,
        camera: View | None,
        goal: Observation | str | None,
        steps: int,
        seed: int,
    ) -> None:
        """Take the agent, what lies on a simulated table, and who looks at it.

        The goal is an observation, the words of a task, or what is asked for later.
        """
        super().__init__(connection, settings)
        self.name, self.agent = name, agent
        self.scene, self._camera, self._goal = scene, camera, goal
        self._steps, self._seed = steps, seed
        self._picking: Picking | None = None

    def here(self) -> tuple[Driver, Supervisor]:
        """Return them with the scene."""
        return links.build(self.connection, scene=self.scene)

    def prepare(self, robot: Robot) -> None:
        """Compare the model with the robot; CheckpointError if it does not fit."""
        model, seen = self.agent.model.spec, robot.spec.data
        where = f"run {self.name!r}"
        if model.pick is None:
            check_fit(where, model, replace(seen, env=f"robot {robot.spec.name}"))
            return
        sees = replace(model, observation=seen.observation, privileged=())
        check_fit(where, model, replace(sees, env=f"robot {robot.spec.name}"))
        camera = self._camera or self._calibrated(model)
        self._picking = Picking(
            robot,
            self.connection.arm,
            camera=camera,
            config=self.settings["picking"],
            tracking=self.settings["tracking"],
        )

    def attempt(self, robot: LocalRobot | RemoteRobot, index: int, record: Record) -> None:
        """Go home, look, and do what is planned."""
        key = np.random.SeedSequence(self._seed, spawn_key=(EVALUATION, index, 0))
        start, end, plan = (int(s) >> 1 for s in key.generate_state(3, np.uint64))
        if self._picking is not None:
            self._picking.home()
        goal = self._goal
        if self.scene is not None:
            drawn = None if goal else self.scene.env.goal(seed=end)
            self.scene.reset(seed=start, goal=drawn)
            goal = goal or drawn
        if self.scene is not None and self._goal is None:
            record.start = record.final = self.scene.distance()
        goal = goal or self._asked_for(robot)
        self.agent.reset(seed=plan)
        hold_position_while(robot, lambda: self._set_goal(goal))
        view = image_key(self.agent.model.spec)
        if self._picking is not None:
            hold_position(robot)  # until cameras have seen what lies there now
        for _ in range(self._steps):
            self._record_frame(robot.observe(), goal, view, record)
            self._act(robot, record)
        self._record_frame(robot.observe(), goal, view, record)
        if record.start is not None and self.scene is not None:
            record.final = self.scene.distance()
            record.success = record.final <= self.scene.env.success_threshold

    def _act(self, robot: LocalRobot | RemoteRobot, record: Record) -> None:
        """Plan and do one action."""
        if self._picking is None:
            sent = robot.send(self.agent.act(self._public(robot.observe())))
            self.agent.sent(sent)
            record.actions += 1
            return
        seen = robot.observe()
        action = hold_position_while(robot, lambda: self.agent.act(self._public(seen)))
        picked = self._picking.act(action)
        if picked.refused:
            record.refused += 1
        elif picked.tracked is not None:
            record.actions += 1
            record.error = max(record.error, picked.tracked.error)

    def _set_goal(self, goal: Observation | str) -> None:
        if isinstance(goal, str):
            set_instruction(self.agent, goal)
        else:
            self.agent.goal(self._public(goal))

    def _asked_for(self, robot: LocalRobot | RemoteRobot) -> Observation | str:
        """Return the goal that the node was asked for; wait for one."""
        if isinstance(robot, LocalRobot):
            raise ConfigError("robot.goal: found none; give an image or an instruction")
        if robot.goal is None:
            self.on_wait("waiting for a goal: send an image or words to the node")
        while robot.goal is None:
            hold_position(robot)
        return robot.goal

    def _public(self, observation: Observation) -> Observation:
        spec = self.agent.model.spec
        return {k: v for k, v in observation.items() if k not in spec.privileged}

    def _record_frame(
        self, seen: Observation, goal: Observation | str, view: str | None, record: Record
    ) -> None:
        if view is None:
            return
        text = f"action {record.actions}"
        if self.scene is not None and record.start is not None:
            text += f"   {100 * self.scene.distance():.1f} cm"
        if isinstance(goal, str):
            record.frames.append(even(seen[view]))
        else:
            record.frames.append(side_by_side(seen[view], goal[view], text))

    def _calibrated(self, model: Spec) -> View:
        assert model.pick is not None
        known = {view.name: view for view in self.connection.arm.cameras}
        if model.pick.image not in known:
            found = ", ".join(known) or "none"
            raise ConfigError(
                f"robot {self.connection.robot!r}: the model picks from camera "
                f"{model.pick.image!r}, its file has {found}; say where it is: latentplan calibrate"
            )
        return known[model.pick.image]


def set_instruction(agent: MPC, words: str) -> None:
    """Give an agent a task in words; ConfigError if its model does not take them."""
    try:
        agent.goal(text=words)
    except ConfigError as e:
        raise ConfigError(f"goal: found the words {words!r}; {e}") from None


def even(image: Array) -> Array:
    """Return an image (h, w, 3) whose sides are even numbers of pixels, as video codecs need."""
    height, width = image.shape[:2]
    return image[: height - height % 2, : width - width % 2]
