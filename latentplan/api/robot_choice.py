"""The task of an arm with the planner for it, chosen from what a caller names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latentplan import config, registry
from latentplan.api import connection as links
from latentplan.api import goals
from latentplan.api.connection import Connection
from latentplan.api.load import assemble, check_names
from latentplan.api.load import choose as choose_parts
from latentplan.api.robot_tasks import Planned, Reaching, RobotTask, set_instruction
from latentplan.data import image_files
from latentplan.errors import ConfigError, ShapeError
from latentplan.evaluation.goals import image_key
from latentplan.planning.mpc import MPC
from latentplan.real_robot.motion.picking import Picking
from latentplan.real_robot.motion.reach import Reach
from latentplan.real_robot.motion.tracking import Tracking
from latentplan.sim.deformable.env import Deformable
from latentplan.sim.deformable.scene import env_of, lay
from latentplan.sim.rendering import cameras
from latentplan.training import checkpoint
from latentplan.types import Observation, Spec

PICKS = 20  # actions of an episode of picks; as in the evaluation of a run
REACHING = 100  # actions of an episode of reach, at most


def choose(
    connection: Connection,
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
) -> RobotTask:
    """Return the task with all that plans for it; a LatentplanError where something does not fit.

    Without a `run` it is reach.
    """
    sections = links.sections(connection.backend)
    presets: dict[str, Any] = {}
    if connection.backend is not None and not connection.here:
        presets["backend"] = links.real_time(connection.backend)
    if goal is not None and goal_text:
        raise ConfigError("robot.goal_text: found together with an image; give one of them")
    if run is None:
        if goal is not None or goal_text:
            raise ConfigError("robot.goal: is for a run; the task reach draws its points itself")
        planner = planner or "cem"
        return _reach(connection, sections, presets, planner, steps or REACHING, seed, overrides)
    check_names(planner=planner, objective=objective)
    found = checkpoint.load(checkpoint.find(run), device=device)
    parts = choose_parts(found.model, planner=planner, objective=objective)
    env = _env_config(found.spec)
    if env is not None and connection.backend == "sim":
        presets["backend"] = {"scene": found.spec.env, **presets.get("backend", {})}
    if env is not None:
        known = {"drag": env.drag, "workspace": env.workspace, "surface": env.radius}
        presets["picking"] = known
    sections |= {**parts.sections, "picking": Picking.Config, "tracking": Tracking.Config}
    settings = config.load(
        sections, preset={**presets, **parts.presets}, overrides=overrides
    )
    if found.spec.pick is not None:
        links.check_control(settings, "a run with picks")
    image = None if goal is None else read_goal(goal, found.spec)
    agent = assemble(found, parts, settings, seed=seed)
    if goal_text:
        set_instruction(agent, goal_text)
    scene, camera = _scene(connection, settings)
    return Planned(
        connection,
        settings,
        name=run,
        agent=agent,
        scene=scene,
        camera=camera,
        goal=image or goal_text or None,
        steps=steps or PICKS,
        seed=seed,
    )


def _scene(connection: Connection, settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the scene that a simulated arm works on, if it is here, and the camera above it."""
    if connection.backend != "sim" or not settings["backend"].scene:
        return None, None
    if connection.here:
        scene = lay(settings["backend"].scene)
        return scene, scene.cameras()[0]
    return None, cameras.of(env_of(settings["backend"].scene)[1])["top"]  # the node has the scene


def _reach(
    connection: Connection,
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
    links.check_control(settings, "the task reach")
    return Reaching(connection, settings, planner=make, steps=steps, seed=seed)


def _env_config(spec: Spec) -> Any:
    """Return the settings of the env that a model's picks come from; None where it has no picks."""
    if spec.pick is None or spec.env not in registry.names("env"):
        return None
    env = registry.get("env", spec.env)
    return env.Config() if issubclass(env, Deformable) else None


def read_goal(file: str, spec: Spec) -> Observation:
    """Return the observation of an image file, or at a place DATA.zarr:EPISODE[:STEP].

    Raises ConfigError or ShapeError unless it is one of the model's.
    """
    recorded = goals.of_place(file)
    if recorded is not None:
        return goals.read_by(spec, recorded)
    key = image_key(spec)
    if key is None:
        raise ConfigError("robot.goal: found an image, but this model has no images")
    with image_files.opened(file, where=f"robot.goal {file}", error=ConfigError) as image:
        pixels = image_files.rgb(image, where=f"robot.goal {file}", error=ConfigError)
    height, width, _ = spec.observation[key].shape
    if pixels.shape[:2] != (height, width):
        found = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise ShapeError(
            f"robot.goal {file}: found {found} pixels, the model needs {width} x {height}; take it "
            "with the camera that the model was trained with"
        )
    return {key: pixels}
