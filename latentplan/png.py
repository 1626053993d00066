"""PNG images, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from latentplan.files import replacing
from latentplan.types import Array


def write(path: Path, image: Array) -> Path:
    """Write an image (h, w, 3) uint8 and return its path; OSError if writing fails."""
    from matplotlib.image import imsave

    with replacing(path) as partial:
        imsave(partial, image, format="png")
    return path
