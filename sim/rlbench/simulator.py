"""RLBench's own objects: their lazy import, their settings, and their observations as arrays."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from latentplan.data.sources import rlbench_images, rlbench_spec
from latentplan.data.sources.rlbench_spec import CAMERAS
from latentplan.errors import MissingDependency
from latentplan.types import Array

if TYPE_CHECKING:
    from latentplan.sim.rlbench.env import RLBench

INSTALL = (
    "env 'rlbench' needs CoppeliaSim 4.1 (coppeliarobotics.com) at COPPELIASIM_ROOT, which is also "
    "on LD_LIBRARY_PATH and QT_QPA_PLATFORM_PLUGIN_PATH, and then: "
    'pip install "git+https://github.com/stepjam/RLBench.git"'
)
RENDERERS = {"opengl3": "OPENGL3", "opengl": "OPENGL"}


class Library(NamedTuple):
    """The modules of RLBench in use."""

    rlbench: Any
    arms: Any
    grippers: Any
    modes: Any
    exceptions: Any
    observations: Any
    utils: Any
    constants: Any
    errors: Any


def library() -> Library:
    """Import RLBench; MissingDependency if it, PyRep or CoppeliaSim is missing."""
    names = (
        "rlbench.environment",
        "rlbench.action_modes.arm_action_modes",
        "rlbench.action_modes.gripper_action_modes",
        "rlbench.action_modes.action_mode",
        "rlbench.backend.exceptions",
        "rlbench.observation_config",
        "rlbench.utils",
        "pyrep.const",
        "pyrep.errors",
    )
    try:
        return Library(*map(import_module, names))
    except ImportError as e:  # PyRep's message names the missing part of CoppeliaSim
        lacking = "" if e.name in ("rlbench", "pyrep") else f" ({str(e).splitlines()[0]})"
        raise MissingDependency(f"{INSTALL}{lacking}") from None


def action_mode(modules: Library, config: RLBench.Config) -> Any:
    """Return RLBench's action mode of a config."""
    name, settings = {
        "next_joint": ("JointPosition", {"absolute_mode": True}),
        "joint_velocity": ("JointVelocity", {}),
        "next_pose": ("EndEffectorPoseViaIK", {"absolute_mode": True}),
        "keyframe": (
            "EndEffectorPoseViaPlanning",
            {"absolute_mode": True, "collision_checking": config.collisions},
        ),
    }[config.action]
    arm = getattr(modules.arms, name)(**settings)
    return modules.modes.MoveArmThenGripper(arm, modules.grippers.Discrete())


def observation_config(modules: Library, config: RLBench.Config) -> Any:
    """Return RLBench's settings of observations."""
    settings = modules.observations
    every = settings.ObservationConfig(
        **{f"{camera}_camera": _camera(modules, config, camera) for camera in CAMERAS}
    )
    every.set_all_low_dim(True)
    every.gripper_matrix = False  # the pose holds the same
    return every


def _camera(modules: Library, config: RLBench.Config, name: str) -> Any:
    used, depth = name in config.cameras, "depth" in config.images or config.clouds
    return modules.observations.CameraConfig(
        rgb=used and ("rgb" in config.images or not depth),  # one without either is removed
        depth=used and depth,
        point_cloud=False,  # `look` computes it with a stride
        mask=used and "mask" in config.images,
        image_size=(config.image, config.image),
        render_mode=getattr(modules.constants.RenderMode, RENDERERS[config.renderer]),
        masks_as_one_channel=False,  # RLBench's own decoding overflows
        depth_in_meters=True,
    )


def numbers(seen: Any, name: str) -> Array:
    """Return a low-dimensional observation of RLBench as (n,) float64."""
    return np.atleast_1d(np.asarray(getattr(seen, name), np.float64))


def look(seen: Any, camera: str, *, config: RLBench.Config) -> dict[str, Array]:
    """Return a camera's images in an observation of RLBench, by the keys of the spec."""
    found: dict[str, Array] = {}
    rgb, depth, mask = (getattr(seen, f"{camera}_{kind}") for kind in rlbench_spec.IMAGES)
    matrices = {
        kind: np.asarray(seen.misc[f"{camera}_camera_{kind}"], np.float64)
        for kind in ("extrinsics", "intrinsics")
        if config.matrices or config.clouds
    }
    if "rgb" in config.images:
        found[f"{camera}_rgb"] = np.asarray(rgb, np.uint8)
    if "depth" in config.images:
        found[f"{camera}_depth"] = np.asarray(depth, np.float32)
    if "mask" in config.images:  # colours from 0 to 1, as of the renderer
        coded = np.rint(np.asarray(mask, np.float64) * 255).astype(np.uint8)
        found[f"{camera}_mask"] = rlbench_images.handles(coded)
    if config.matrices:
        found |= {f"{camera}_camera_{kind}": matrix for kind, matrix in matrices.items()}
    if config.clouds:
        found[f"{camera}_point_cloud"] = rlbench_images.cloud(
            np.asarray(depth, np.float32)[None],
            extrinsics=matrices["extrinsics"][None],
            intrinsics=matrices["intrinsics"][None],
            stride=config.stride,
        )[0]
    return found
