"""Video of the planner's trials: the current image beside the goal image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from latentplan.evaluation.goals import Trial
from latentplan.mp4 import encode
from latentplan.types import Array

PANEL = 320  # pixels, approximate side of one image
BAR = 32  # pixels, height of the text above the images
MARGIN = 8  # pixels
BACKGROUND, TEXT = (24, 24, 27), (228, 228, 231)


def write(path: Path, trials: Sequence[Trial], *, fps: int = 4) -> int:
    """Write an mp4 (H.264, yuv420p) of all trials and return its number of frames.

    A trial of L actions has L + 1 frames; the last one is shown for another second. Raises OSError
    if writing fails, and keeps an earlier file.
    """
    return encode(path, _frames(trials, hold=fps), fps=fps)


def _frames(trials: Sequence[Trial], *, hold: int) -> Iterator[Array]:
    for index, trial in enumerate(trials):
        planner, goal = trial.attempts["planner"], trial.goal
        assert goal is not None  # `Goals.video` checks it
        for step, (image, distance) in enumerate(
            zip(planner.images, planner.distance, strict=True)
        ):
            text = f"trial {index + 1} of {len(trials)}   action {step}   {distance * 100:.1f} cm"
            frame = side_by_side(image, goal, text)
            yield frame
        for _ in range(hold):
            yield frame


def side_by_side(now: Array, goal: Array, text: str) -> Array:
    """Return a frame (h, w, 3) uint8 with the current image on the left and the goal on the right.

    Both are enlarged by a whole factor, without interpolation.
    """
    from PIL import Image, ImageDraw, ImageFont

    factor = max(1, round(PANEL / max(now.shape[:2])))
    height, width = now.shape[0] * factor, now.shape[1] * factor
    size = (2 * width + 3 * MARGIN, height + BAR + MARGIN)
    frame = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), BACKGROUND)
    for column, image in enumerate((now, goal)):
        large = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
        frame.paste(large, (MARGIN + column * (width + MARGIN), BAR))
    draw, font = ImageDraw.Draw(frame), ImageFont.load_default(15)
    draw.text((MARGIN, BAR / 2), text, TEXT, font, anchor="lm")
    draw.text((2 * MARGIN + width, BAR / 2), "goal", TEXT, font, anchor="lm")
    return np.asarray(frame)
