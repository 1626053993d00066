"""Episodes of `latentplan robot`: what is to be done, who plans it, and what came of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from latentplan import config, registry
from latentplan.commands import connect
from latentplan.commands.load import assemble, own_planner
from latentplan.commands.load import choose as choose_parts
from latentplan.commands.plan import check_fit
from latentplan.errors import ConfigError, RobotError, ShapeError
from latentplan.evaluation.protocol import EVALUATION, image_key
from latentplan.evaluation.video import side_by_side
from latentplan.planning.mpc import MPC
from latentplan.real_robot.link.remote import RemoteRobot
from latentplan.real_robot.loop.local import LocalRobot
from latentplan.real_robot.loop.supervisor import Supervisor
from latentplan.real_robot.motion.hold_position import meanwhile, stand
from latentplan.real_robot.motion.picking import Picking
from latentplan.real_robot.motion.reach import Reach
from latentplan.real_robot.motion.tracking import Tracking
from latentplan.real_robot.robot import Driver, Robot, View
from latentplan.sim.deformable.env import Deformable
from latentplan.sim.deformable.scene import Scene, env_of, lay
from latentplan.sim.rendering import cameras
from latentplan.sim.rendering.cameras import Camera
from latentplan.training import checkpoint
from latentplan.types import Array, Observation, Spec

PICKS = 20  # actions of an episode of picks; as in the evaluation of a run
REACHING = 100  # actions of an episode of reach, at most
FILM = Camera("front", (1.1, 0.5, 0.8), target=(-0.2, 0.0, 0.3), width=256, height=256)


@dataclass
class Record:
    """What one episode came to."""

    actions: int = 0  # that were done: picks, or actions of the arm
    refused: int = 0  # picks that the arm cannot reach
    start: float | None = None  # m from the goal, where that is known; so is `final`
    final: float | None = None
    success: bool | None = None
    interventions: dict[str, int] = field(default_factory=dict)  # of the safety filter, by kind
    trip: str = ""  # why the arm stopped, empty where it did not
    error: float = 0.0  # rad, the largest distance of a joint from its path
    frames: list[Array] = field(default_factory=list)  # of a film

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without the film."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "frames"}


class Task(ABC):
    """What an arm is to do; episodes of it are done on a connected robot."""

    name: str
    settings: Mapping[str, Any]
    fps = 4  # of the film

    def __init__(self, way: connect.Way, settings: Mapping[str, Any]) -> None:
        """Take the way to the arm, and all settings by section."""
        self.way = replace(way, settings=settings)
        self.settings = settings

    @contextmanager
    def connected(
        self, *, make: type[LocalRobot] = LocalRobot
    ) -> Iterator[LocalRobot | RemoteRobot]:
        """Give the robot, armed; `make` is the class of one in this process."""
        driver, supervisor = self.here() if self.way.here else (None, None)
        given: dict[str, Any] = {"driver": driver, "supervisor": supervisor, "make": make}
        with connect.connected(self.way, **given) as robot:
            meanwhile(robot, lambda: self.prepare(robot))
            yield robot

    def here(self) -> tuple[Driver, Supervisor]:
        """Return driver and supervisor of a simulated arm in this process."""
        return connect.build(self.way)

    @abstractmethod
    def prepare(self, robot: Robot) -> None:
        """Make what is needed of a robot that has just been connected; nothing moves."""

    @abstractmethod
    def attempt(self, robot: LocalRobot | RemoteRobot, index: int, record: Record) -> None:
        """Do episode `index`; RobotError where the arm stops."""

    def episode(self, robot: LocalRobot | RemoteRobot, index: int) -> Record:
        """Return what episode `index` came to; a trip ends it."""
        record, before = Record(), robot.health().interventions
        try:
            self.attempt(robot, index, record)
        except RobotError as e:
            record.trip = str(e)
            return record
        after = robot.health().interventions
        record.interventions = {
            kind: n - before.get(kind, 0) for kind, n in after.items() if n > before.get(kind, 0)
        }
        return record


class Reaching(Task):
    """Points in reach of the arm, one an episode."""

    name = "reach"
    fps = 10

    def __init__(
        self, way: connect.Way, settings: Mapping[str, Any], *, planner: Any, steps: int, seed: int
    ) -> None:
        """Take a planner's class, the actions of an episode at most, and a seed."""
        super().__init__(way, settings)
        self._planner, self._steps, self._seed = planner, steps, seed

    def here(self) -> tuple[Driver, Supervisor]:
        """Return them with a camera for the film."""
        return connect.build(self.way, cameras=[FILM])

    def prepare(self, robot: Robot) -> None:
        """Make the task of this robot's limits."""
        s = self.settings
        self.reach = Reach(
            robot,
            self.way.arm,
            planner=self._planner(s["planner"]),
            seed=self._seed,
            config=s["reach"],
            mpc=s["mpc"],
        )

    def attempt(self, robot: LocalRobot | RemoteRobot, index: int, record: Record) -> None:
        """Reach the next point."""
        views = [k for k, a in robot.spec.data.observation.items() if len(a.shape) == 3]

        def film(seen: Observation) -> None:
            record.frames += [even(seen[view]) for view in views[:1]]

        reached = self.reach.episode(self.reach.draw(), steps=self._steps, watch=film)
        record.actions, record.success = reached.actions, reached.success
        record.start, record.final = reached.start, reached.final


class Planned(Task):
    """A trained model's plans towards a goal, a picture or words: picks, or the arm's actions."""

    def __init__(
        self,
        way: connect.Way,
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
        super().__init__(way, settings)
        self.name, self.agent = name, agent
        self.scene, self._camera, self._goal = scene, camera, goal
        self._steps, self._seed = steps, seed
        self._picking: Picking | None = None

    def here(self) -> tuple[Driver, Supervisor]:
        """Return them with the scene."""
        return connect.build(self.way, scene=self.scene)

    def prepare(self, robot: Robot) -> None:
        """Hold the model against what the robot sees and does; CheckpointError where it differs."""
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
            self.way.arm,
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
        meanwhile(robot, lambda: self._tell(goal))
        view = image_key(self.agent.model.spec)
        if self._picking is not None:
            stand(robot)  # until cameras have seen what lies there now
        for _ in range(self._steps):
            self._film(robot.observe(), goal, view, record)
            self._act(robot, record)
        self._film(robot.observe(), goal, view, record)
        if record.start is not None and self.scene is not None:
            record.final = self.scene.distance()
            record.success = record.final <= self.scene.env.success_threshold

    def _act(self, robot: LocalRobot | RemoteRobot, record: Record) -> None:
        """Plan and do one action."""
        if self._picking is None:
            robot.send(self.agent.act(self._public(robot.observe())))
            record.actions += 1
            return
        seen = robot.observe()
        action = meanwhile(robot, lambda: self.agent.act(self._public(seen)))
        picked = self._picking.act(action)
        if picked.refused:
            record.refused += 1
        elif picked.tracked is not None:
            record.actions += 1
            record.error = max(record.error, picked.tracked.error)

    def _tell(self, goal: Observation | str) -> None:
        if isinstance(goal, str):
            tell(self.agent, goal)
        else:
            self.agent.goal(self._public(goal))

    def _asked_for(self, robot: LocalRobot | RemoteRobot) -> Observation | str:
        """Return the goal that the node was asked for; wait for one."""
        if isinstance(robot, LocalRobot):
            raise ConfigError("--goal: none given, and nothing else says what shall be seen")
        if robot.goal is None:
            print("waiting for a goal: send a picture or words to the node", flush=True)
        while robot.goal is None:
            stand(robot)
        return robot.goal

    def _public(self, observation: Observation) -> Observation:
        spec = self.agent.model.spec
        return {k: v for k, v in observation.items() if k not in spec.privileged}

    def _film(
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
        known = {view.name: view for view in self.way.arm.cameras}
        if model.pick.image not in known:
            found = ", ".join(known) or "none"
            raise ConfigError(
                f"--robot {self.way.robot}: the model picks from camera {model.pick.image!r}, its "
                f"file has {found}; say where it is: latentplan calibrate"
            )
        return known[model.pick.image]


def choose(
    way: connect.Way,
    *,
    run: str | None,
    steps: int | None,
    goal: str | None,
    goal_text: str = "",
    planner: str | None,
    objective: str,
    seed: int,
    device: str,
    overrides: Sequence[str],
) -> Task:
    """Return the task with all that plans for it; a LatentplanError where something does not fit.

    Without a `run` it is reach.
    """
    sections = connect.sections(way.backend)
    presets: dict[str, Any] = {}
    if way.backend is not None and not way.here:
        presets["backend"] = connect.real_time(way.backend)
    if goal is not None and goal_text:
        raise ConfigError("--goal-text: found together with --goal; give one of them")
    if run is None:
        if goal is not None or goal_text:
            raise ConfigError("--goal: is for --run; reach draws points by itself")
        planner = planner or "cem"
        return _reach(way, sections, presets, planner, steps or REACHING, seed, overrides)
    planner = planner or own_planner(checkpoint.find(run))
    parts = choose_parts(planner=planner, objective=objective)
    found = checkpoint.load(checkpoint.find(run), device=device)
    env = _env_config(found.spec)
    if env is not None and way.backend == "sim":
        presets["backend"] = {"scene": found.spec.env, **presets.get("backend", {})}
    if env is not None:
        known = {"drag": env.drag, "workspace": env.workspace, "surface": env.radius}
        presets["picking"] = known
    sections |= {**parts.sections, "picking": Picking.Config, "tracking": Tracking.Config}
    settings = config.load(
        sections, preset={**presets, **parts.presets}, overrides=overrides
    )
    if found.spec.pick is not None:
        connect.check_control(settings, "--run with picks")
    picture = None if goal is None else read_goal(goal, found.spec)
    agent = assemble(found, parts, settings, seed=seed)
    if goal_text:
        tell(agent, goal_text)
    scene, camera = None, None
    if way.backend == "sim" and settings["backend"].scene:
        if way.here:
            scene = lay(settings["backend"].scene)
            camera = scene.cameras()[0]
        else:  # the node has the scene
            camera = cameras.of(env_of(settings["backend"].scene)[1])["top"]
    return Planned(
        way,
        settings,
        name=run,
        agent=agent,
        scene=scene,
        camera=camera,
        goal=picture or goal_text or None,
        steps=steps or PICKS,
        seed=seed,
    )


def tell(agent: MPC, words: str) -> None:
    """Let an agent do a task; ConfigError for words that say nothing to it."""
    try:
        agent.goal(task=words)
    except ConfigError as e:
        raise ConfigError(f"goal: found the words {words!r}; {e}") from None


def _reach(
    way: connect.Way,
    sections: dict[str, type],
    presets: dict[str, Any],
    planner: str,
    steps: int,
    seed: int,
    overrides: Sequence[str],
) -> Reaching:
    preset = config.resolve("planner", planner)
    make = registry.get("planner", preset.base)
    # What suits the task, then what the preset says beside its planner's defaults.
    values = {**preset.values, "planner": Reach.PLANNER | preset.values.get("planner", {})}
    known = {**sections, "planner": make.Config, "reach": Reach.Config, "mpc": MPC.Config}
    values = {section: value for section, value in values.items() if section in known}
    settings = config.load(known, preset={**presets, **values}, overrides=overrides)
    connect.check_control(settings, "--task reach")
    return Reaching(way, settings, planner=make, steps=steps, seed=seed)


def _env_config(spec: Spec) -> Any:
    """Return the settings of the env that a model's picks come from; None where it has no picks."""
    if spec.pick is None or spec.env not in registry.names("env"):
        return None
    env = registry.get("env", spec.env)
    return env.Config() if issubclass(env, Deformable) else None


def read_goal(file: str, spec: Spec) -> Observation:
    """Return the observation of a picture file; ConfigError unless it has the model's size."""
    from PIL import Image, UnidentifiedImageError

    key = image_key(spec)
    if key is None:
        raise ConfigError("--goal: a picture, but this model sees none")
    try:
        with Image.open(Path(file)) as opened:
            pixels = np.asarray(opened.convert("RGB"))
    except (OSError, UnidentifiedImageError) as e:
        raise ConfigError(f"--goal {file}: not a picture that can be read ({e})") from None
    height, width, _ = spec.observation[key].shape
    if pixels.shape[:2] != (height, width):
        found = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise ShapeError(
            f"--goal {file}: found {found} pixels, the model needs {width} x {height}; take it "
            "with the camera that the model was trained with"
        )
    return {key: pixels}


def even(picture: Array) -> Array:
    """Return a picture (h, w, 3) whose sides are even numbers of pixels, as films want them."""
    height, width = picture.shape[:2]
    return picture[: height - height % 2, : width - width % 2]
