"""`latentplan calibrate`: a camera's lens and pose, from images of a target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from latentplan.commands.options import Overrides

if TYPE_CHECKING:
    from latentplan.api.calibrate import Calibrated

EXAMPLE = "latentplan calibrate poses.zarr --robot ur5e --out front.yaml"


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="Store or folder of images with joint positions; `board` draws a target to print.",
        ),
    ],
    out: Annotated[
        str, typer.Option(help="CAMERA.yaml to write; of a target, its .png or .pdf.")
    ],
    board: Annotated[str, typer.Option(help="charuco or apriltag.")] = "charuco",
    robot: Annotated[str, typer.Option(help="The arm, or its YAML file.")] = "panda",
    mount: Annotated[
        str,
        typer.Option(help="Mount of the camera: table (the arm carries the target) or flange."),
    ] = "table",
    camera: Annotated[str, typer.Option(help="Its name in the store and in CAMERA.yaml.")] = "rgb",
    lens: Annotated[
        str | None,
        typer.Option(help="CAMERA.yaml whose lens is used. Default: estimated from the images."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Calibrate a camera by the arm: lens, pose on the table or the flange, and residuals."""
    from latentplan.api import calibrate

    if source == "board":
        target = calibrate.draw_target(out, kind=board, overrides=overrides or ())
        width, height = target.size
        print(
            f"{out}: {target.kind}, {target.columns} x {target.rows}, {width:.3f} x {height:.3f} "
            "m; print it at 100 %, glue it on something flat, and measure "
            f"square={target.square}"
        )
        return
    found = calibrate.calibrate(
        source,
        out=out,
        kind=board,
        robot=robot,
        mount=mount,
        camera=camera,
        lens=lens,
        overrides=overrides or (),
    )
    show(found)


def show(found: Calibrated) -> None:
    """Print the camera and how well it fits."""
    f, camera = found.result.figures, found.result.camera
    place = [round(value, 4) for value in camera.position]
    print(f"{found.file}: camera {camera.name}, {camera.width} x {camera.height}, on the "
          f"{camera.mount}")  # fmt: skip
    print(
        f"lens         fx {camera.fx:.2f} fy {camera.fy:.2f} cx {camera.cx:.2f} cy {camera.cy:.2f} "
        f"px, distortion {[round(number, 4) for number in camera.distortion]}"
    )
    print(f"position     {place} m in the frame of the {camera.mount}")
    print(f"images       {f['images']:.0f} of {len(found.images)}")
    print(f"reprojection {f['reprojection_px']:.3f} px")
    print(f"hand-eye     {f['hand_eye_mm']:.2f} mm, {f['hand_eye_deg']:.3f} deg")
    print(f"std          {f['position_std_mm']:.2f} mm, {f['rotation_std_deg']:.3f} deg")
    if found.without_target:
        print(f"no target in {', '.join(found.without_target)}")
    if found.suspects:
        worst = ", ".join(f"{name} ({error:.2f} px)" for name, error in found.suspects.items())
        print(f"inspect      {worst}: they fit worse than the others")
