"""Demos in RLBench's and in PerAct's layout, of a drawn scene whose geometry is known.

A ball hovers over a table; five cameras see it. Pictures, depth and masks come from rays, not from
the importer's formulas. Pickles are written under RLBench's class names.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

TABLE, RADIUS = 0.752, 0.06  # m, height of the table, of the ball
TABLE_HANDLE, BALL_HANDLE, FAR_HANDLE = 31, 70_000 + 83, 48  # more than two bytes
NEAR = 0.01
EYES = {  # where a camera is, and its far plane, m
    "left_shoulder": ((-0.3, 0.5, 1.7), 3.2),
    "right_shoulder": ((-0.3, -0.5, 1.7), 3.2),
    "overhead": ((0.0, 0.05, 1.9), 3.3),
    "wrist": ((0.25, 0.02, 1.4), 3.5),
    "front": ((1.3, 0.0, 1.6), 4.5),
}
ROWS, TOUCHES = 7, 6


@contextmanager
def classes() -> Iterator[dict[str, type]]:
    """Give the classes under RLBench's names, importable while the block runs."""
    names = {"Demo": "rlbench.demo", "Observation": "rlbench.backend.observation"}
    before = {m: sys.modules.get(m) for m in ("rlbench", "rlbench.backend", *names.values())}
    made = {name: type(name, (), {"__module__": module}) for name, module in names.items()}
    try:
        for module in before:
            sys.modules[module] = ModuleType(module)
        for name, module in names.items():
            setattr(sys.modules[module], name, made[name])
        yield made
    finally:
        for module, was in before.items():
            if was is None:
                del sys.modules[module]
            else:
                sys.modules[module] = was


def dump(value: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(value, protocol=3))


def pose(eye: tuple[float, float, float]) -> np.ndarray:
    """Return camera -> world (4, 4): z looks at the middle of the table, x left, y up."""
    forward = np.array([0.2, 0.0, TABLE]) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, (0, 0, 1.0))
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([-right, np.cross(right, forward), forward], axis=1)
    matrix[:3, 3] = eye
    return matrix


def lens(size: int) -> np.ndarray:
    focal = size / 2 / np.tan(np.radians(40) / 2)
    return np.array([[-focal, 0, size / 2], [0, -focal, size / 2], [0, 0, 1.0]])


def view(camera: str, ball: np.ndarray, size: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return rgb, depth along the axis in m, and handles of one picture."""
    eye, far = EYES[camera]
    matrix, k = pose(eye), lens(size)
    v, u = np.mgrid[:size, :size]
    local = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones((size, size))], -1)
    rays = local @ matrix[:3, :3].T  # at depth 1, so that the ray's parameter is the depth
    depth = np.full((size, size), far)
    handle = np.full((size, size), FAR_HANDLE)
    table = (TABLE - eye[2]) / np.where(rays[..., 2] < 0, rays[..., 2], -1e-9)
    hit = (table > 0) & (table < depth)
    depth[hit], handle[hit] = table[hit], TABLE_HANDLE
    away = np.subtract(eye, ball)
    a, b, c = (rays**2).sum(-1), rays @ away, away @ away - RADIUS**2
    root = b**2 - a * c
    near = (-b - np.sqrt(np.maximum(root, 0))) / a
    hit = (root > 0) & (near > 0) & (near < depth)
    depth[hit], handle[hit] = near[hit], BALL_HANDLE
    colour = np.select(
        [(handle == BALL_HANDLE)[..., None], (handle == TABLE_HANDLE)[..., None]],
        [np.array([200, 40, 40]), np.array([150, 130, 100])],
        np.array([60, 70, 90]),
    )
    rgb = colour * (1 - 0.1 * depth[..., None]) + rng.normal(0, 2, (size, size, 3))
    return {"rgb": rgb.clip(0, 255).astype(np.uint8), "depth": depth, "mask": handle}


def save_picture(kind: str, values: np.ndarray, file: Path, *, far: float) -> None:
    """Write a PNG as RLBench codes it."""
    coded = values
    if kind == "depth":
        steps = np.floor((values - NEAR) / (far - NEAR) * (2**24 - 1) + 0.5).astype(np.int64)
        coded = np.stack([steps >> 16, steps >> 8 & 255, steps & 255], -1)
    elif kind == "mask":
        coded = np.stack([values & 255, values >> 8 & 255, values >> 16], -1)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coded.astype(np.uint8)).save(file)


def observations(
    length: int, rng: np.random.Generator, *, size: int, kind: type, task_state: int
) -> tuple[list[Any], np.ndarray]:
    """Return T observations of an arm that goes to the ball, closes halfway, and the ball (3,)."""
    ball = np.append(rng.uniform(-0.1, 0.25, 2), TABLE + 0.1)
    start, end = rng.uniform(-0.1, 0.1, (2, ROWS)) + np.array([0, 0, 0, -1.5, 0, 1.5, 0])
    found = []
    for t in range(length):
        part = t / (length - 1)
        o = kind()
        for camera in EYES:
            for what in ("rgb", "depth", "mask", "point_cloud"):
                setattr(o, f"{camera}_{what}", None)
        o.joint_positions = start + (end - start) * (1 - np.cos(np.pi * part)) / 2
        o.joint_velocities = (end - start) * np.sin(np.pi * part) / (length * 0.05) * np.pi / 2
        o.joint_forces = rng.normal(0, 5, ROWS)
        o.gripper_open = float(part < 0.5)
        tip = np.array([0.28, 0.0, 1.47]) * (1 - part) + ball * part
        o.gripper_pose = np.concatenate([tip, [0.0, 1.0, 0.0, 0.0]])
        o.gripper_matrix = np.eye(4)
        o.gripper_joint_positions = np.full(2, 0.04 * o.gripper_open)
        o.gripper_touch_forces = np.zeros(TOUCHES)
        o.task_low_dim_state = np.append(ball, np.arange(task_state - 3, dtype=float))
        o.misc = {"variation_index": 0}
        for camera, (eye, far) in EYES.items():
            name = f"{camera}_camera"
            o.misc |= {
                f"{name}_extrinsics": pose(eye),
                f"{name}_intrinsics": lens(size),
                f"{name}_near": NEAR,
                f"{name}_far": far,
            }
        found.append(o)
    return found, ball


def write_demo(
    folder: Path, *, length: int = 6, size: int = 32, seed: int = 0, task_state: int = 3, **change
) -> dict[str, np.ndarray]:
    """Write one demo; return what was drawn, each (T, ...), and the ball.

    `change` are functions by name of an observation's attribute: what becomes of it.
    """
    rng = np.random.default_rng(seed)
    with classes() as made:
        seen, ball = observations(
            length, rng, size=size, kind=made["Observation"], task_state=task_state
        )
        low = {
            name: np.stack([np.asarray(getattr(o, name)) for o in seen])
            for name in ("joint_positions", "joint_velocities", "gripper_pose", "gripper_open")
        }
        for t, o in enumerate(seen):
            for name, function in change.items():
                setattr(o, name, function(getattr(o, name), t))
        demo = made["Demo"]()
        demo._observations, demo.random_seed = seen, np.random.RandomState(seed).get_state()
        demo.num_reset_attempts = 1
        dump(demo, folder / "low_dim_obs.pkl")
    drawn: dict[str, list[np.ndarray]] = {}
    for t in range(length):
        for camera, (_, far) in EYES.items():
            picture = view(camera, ball, size, rng)
            for kind, values in picture.items():
                name = f"{camera}_{kind}"
                save_picture(kind, values, folder / name / f"{t}.png", far=far)
                drawn.setdefault(name, []).append(values)
    return {name: np.stack(values) for name, values in drawn.items()} | low | {"ball": ball}


def write_rlbench(root: Path, *, task: str = "reach_target", episodes: int = 2, **demo) -> Path:
    """Write a task of one variation in RLBench's layout, and return the root."""
    variation = root / task / "variation0"
    for i in range(episodes):
        write_demo(variation / "episodes" / f"episode{i}", seed=i, **demo)
    dump([f"{task} now", f"please {task}"], variation / "variation_descriptions.pkl")
    return root


def write_peract(root: Path, *, task: str = "reach_target", episodes: int = 2, **demo) -> Path:
    """Write a task in PerAct's layout, episode i of variation i, and return the root."""
    for i in range(episodes):
        folder = root / task / "all_variations" / "episodes" / f"episode{i}"
        write_demo(folder, seed=i, **demo)
        dump([f"{task} number {i}"], folder / "variation_descriptions.pkl")
        dump(i, folder / "variation_number.pkl")
    return root
