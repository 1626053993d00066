"""Measure camera calibration and grasps of boxes against the simulator's state.

    python benchmarks/perception.py calibration --json benchmarks/calibration.json
    python benchmarks/perception.py grasps 20 --json benchmarks/grasps.json
    python benchmarks/perception.py image
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

from latentplan.errors import LatentplanError
from latentplan.evaluation.provenance import provenance
from latentplan.real_robot.perception import grasps
from latentplan.real_robot.perception.calibration import Config, calibrate
from latentplan.real_robot.perception.calibration_target import CalibrationTarget, TargetDetector
from latentplan.real_robot.perception.tabletop_segmentation import TabletopSegmenter
from latentplan.robots import description
from latentplan.robots.camera import CalibratedCamera
from latentplan.robots.pick_and_place import PHASES, PickAndPlace
from latentplan.robots.simulated_arm import SimulatedArm
from latentplan.sim.rendering import mujoco_renderer
from latentplan.sim.rendering.cameras import Camera
from latentplan.types import Array

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # which render images of calibration targets
from calibration_images import Studio  # noqa: E402

LENS = (0.08, -0.15, 0.001, -0.0007)
TRUE = CalibratedCamera("front", 640, 480, fx=605.0, fy=607.0, cx=323.0, cy=236.5, distortion=LENS)
CAMERA = Camera("front", (0.55, 0.25, 0.65), fovy=50.0, width=320, height=240)
SPOT = np.array([0.0, 0.2])  # target position of the boxes, m
COLOURS = ((0.85, 0.3, 0.2, 1), (0.2, 0.4, 0.85, 1))


def calibration() -> list[dict[str, Any]]:
    """Return a row per target, mount, known or unknown intrinsics, and error of the joints."""
    arm, rows = description.load("panda"), []
    for kind, mount in (("charuco", "table"), ("charuco", "flange"), ("apriltag", "table")):
        marker = 0.022 if kind == "charuco" else 0.026
        board = CalibrationTarget(kind=kind, columns=7, rows=5, square=0.033, marker=marker)
        studio, finder = Studio(arm, TRUE, mount, board=board), TargetDetector(board)
        rng = np.random.default_rng(0)
        q = studio.positions(20, rng)
        for noise in (0.0, 3.0):
            seen = [finder.find(studio.image(each, rng, noise=noise)) for each in q]
            for joints in (0.0, 0.05):
                measured = q + np.radians(rng.normal(0, joints, q.shape))
                for known in (True, False):
                    blank = TRUE if known else CalibratedCamera("front", 640, 480)
                    found = calibrate(
                        seen,
                        measured,
                        arm=arm,
                        camera=blank,
                        mount=mount,
                        lens_known=known,
                        config=Config(joint_std=joints),
                    )
                    gap = np.linalg.inv(studio.camera.pose()) @ found.camera.pose()
                    turn = Rotation.from_matrix(gap[:3, :3]).magnitude()
                    rows.append(
                        {
                            "board": kind,
                            "mount": mount,
                            "noise_levels": noise,
                            "joint_error_deg": joints,
                            "lens_known": known,
                            "error_mm": round(1e3 * float(np.linalg.norm(gap[:3, 3])), 3),
                            "error_deg": round(float(np.degrees(turn)), 4),
                            "focal_error": round(abs(found.camera.fx / TRUE.fx - 1), 5),
                            **{name: round(value, 4) for name, value in found.figures.items()},
                        }
                    )
                    print(rows[-1], flush=True)
    return rows


def boxes(rng: np.random.Generator) -> tuple[Any, list[Array]]:
    """Return an MjSpec of a table with two boxes of random sizes, and their positions (2,), m."""
    spec, positions = mujoco.MjSpec(), []
    spec.visual.quality.shadowsize = 0
    spec.visual.headlight.ambient = spec.visual.headlight.diffuse = (0.5,) * 3
    plane = mujoco.mjtGeom.mjGEOM_PLANE
    spec.worldbody.add_geom(type=plane, size=(2, 2, 0.1), rgba=(0.36, 0.38, 0.4, 1))
    for number, y in enumerate((-0.13, 0.03)):
        positions.append(np.array([rng.uniform(-0.05, 0.1), y]))
        yaw, half = rng.uniform(-np.pi, np.pi), rng.uniform((0.012, 0.012, 0.015), (0.03,) * 3)
        turn = (np.cos(yaw / 2), 0, 0, np.sin(yaw / 2))
        body = spec.worldbody.add_body(name=f"{number}", pos=(*positions[-1], half[2]), quat=turn)
        body.add_freejoint()
        cube = mujoco.mjtGeom.mjGEOM_BOX
        body.add_geom(type=cube, size=half, mass=0.05, condim=4, rgba=COLOURS[number])
    spec.add_exclude(bodyname1="world", bodyname2="base")
    return spec, positions


def seen(simulated: SimulatedArm, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return an image and its depth, with noise of 1.5 mm and a tenth of the pixels missing."""
    renderer = mujoco_renderer.Renderer(simulated.model, CAMERA)
    image, depth = renderer.image(simulated.data), renderer.depth(simulated.data)
    renderer.close()
    depth += rng.normal(0, 1.5e-3, depth.shape)
    depth[rng.random(depth.shape) < 0.1] = 0
    return image, depth


def taken(count: int) -> list[dict[str, Any]]:
    """Return a row for each of `count` tables: the error of the grasp, and the end of the box."""
    arm, rows = description.load("panda"), []
    planner, table = PickAndPlace(arm), TabletopSegmenter()
    for seed in range(count):
        rng = np.random.default_rng(seed)
        spec, positions = boxes(rng)
        simulated = SimulatedArm(arm, scene=spec, solid=True)
        try:
            found = grasps.find(table.look(seen(simulated, rng)[1], CAMERA), arm.gripper)
            grasp, motion = grasps.carry(planner, found, SPOT)
        except LatentplanError as e:
            rows.append({"seed": seed, "refused": str(e)})
            continue
        measured = simulated.execute(motion)
        box = int(np.argmin([np.linalg.norm(grasp.point[:2] - each) for each in positions]))
        closed = np.flatnonzero(motion.phase == PHASES.index("grasp"))[-1]
        end = simulated.data.body(f"{box}").xpos[:2]
        off = float(np.linalg.norm(measured.ee[closed, :2] - positions[box]))
        away = float(np.linalg.norm(end - SPOT))
        rows.append(
            {
                "seed": seed,
                "grasp_mm": round(1e3 * off, 2),
                "placed_mm": round(1e3 * away, 2),
                "success": away < 0.01,
            }
        )
        print(rows[-1], flush=True)
    return rows


def draw(out: Path) -> None:
    """Draw image, depth, objects and grasps of a rope, a cloth and boxes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from latentplan.sim.deformable.cloth import Cloth
    from latentplan.sim.deformable.rope import Rope

    arm = description.load("panda")
    views: list[tuple[str, Array, Array, Camera]] = []
    for env, name in ((Rope, "rope"), (Cloth, "cloth")):
        made = env(env.Config(cameras=("angled",), observe=("rgb", "depth"), image=256))
        observation, _ = made.reset(seed=3)
        camera = made.cameras()["angled"]
        views.append((name, observation["rgb_angled"], observation["depth_angled"], camera))
    rng = np.random.default_rng(1)
    simulated = SimulatedArm(arm, scene=boxes(rng)[0], solid=True)
    views.append(("boxes, noise", *seen(simulated, rng), CAMERA))
    figure, axes = plt.subplots(len(views), 3, figsize=(11, 9.6), layout="constrained")
    for row, (name, rgb, depth, camera) in zip(axes, views, strict=True):
        scene = TabletopSegmenter().look(depth, camera)
        heights = 100 * scene.heights(scene.points)
        shown = row[0].imshow(heights, cmap="viridis", vmin=-0.5, vmax=5)
        figure.colorbar(shown, ax=row[0], label="cm", shrink=0.8)
        row[0].set_title(f"{name}: height over the table")
        row[1].imshow(rgb)
        row[1].imshow(
            np.ma.masked_equal(scene.labels, 0), cmap="autumn", alpha=0.55, interpolation="nearest"
        )
        row[1].set_title(f"{len(scene.cells)} found above the table")
        row[2].imshow(rgb)
        best = grasps.find(scene, arm.gripper)
        for number, grasp in reversed(list(enumerate(best[:8]))):
            _draw(row[2], grasp, camera, colour="lime" if number == 0 else "orange")
        row[2].set_title("grasps, the best in green")
        where = np.argwhere(scene.mask)
        middle, half = where.mean(0), 1.25 * np.ptp(where, axis=0).max() / 2
        (top, left), (bottom, right) = middle - half, middle + half
        for axis in row:
            axis.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    figure.savefig(out, dpi=75)
    print(out)


def _draw(axis: Any, grasp: grasps.Grasp, camera: Camera, *, colour: str) -> None:
    """Draw the positions of the fingers, and the path down."""
    close = np.array([-np.sin(grasp.yaw), np.cos(grasp.yaw), 0]) * (grasp.width / 2 + 0.006)
    ends, _ = camera.project(np.stack([grasp.point - close, grasp.point + close]))
    way, _ = camera.project(np.stack([grasp.point, grasp.point + 0.05 * grasp.normal]))
    axis.plot(*ends.T, "-o", color=colour, lw=1.6, ms=3.5)
    axis.plot(*way.T, "-", color=colour, lw=0.8)


def main(arguments: list[str]) -> None:
    """Run a measurement, and write its rows as JSON if a file is named."""
    what = arguments[0]
    if what == "image":
        draw(ROOT / "docs" / "images" / "table.png")
        return
    rows = calibration() if what == "calibration" else taken(int(arguments[1]))
    if "--json" in arguments:
        file = Path(arguments[arguments.index("--json") + 1])
        made = {"made_with": provenance(), "rows": rows}
        file.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
