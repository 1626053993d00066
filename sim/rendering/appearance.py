"""The appearance of a scene: colours, light, a pattern on the table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latentplan.types import Array

Colour = tuple[float, float, float]  # red, green, blue, each 0 to 1
TILE = 64  # side of the table's pattern, pixels


@dataclass(frozen=True)
class Appearance:
    """The colours and the light of a scene; by default an engine's own."""

    object: Colour | None = None
    table: Colour | None = None
    brightness: float = 1.0  # factor on all light
    light: tuple[float, float] | None = None  # rad: from and about the vertical; None: camera
    contrast: float = 0.0  # of the table's pattern: 0 none, 1 black to the table's colour
    pattern: int = 0  # seed of the pattern

    def toward_light(self) -> Array | None:
        """Return the unit vector (3,) from the table to the light; None if it is at the camera."""
        if self.light is None:
            return None
        tilt, heading = self.light
        flat = np.sin(tilt)
        return np.array([flat * np.cos(heading), flat * np.sin(heading), np.cos(tilt)])

    def tile(self) -> Array:
        """Return the factor on the table's colour (TILE, TILE) float32, 1 - contrast to 1.

        The pattern is value noise of four scales, seamless between tiles.
        """
        rng = np.random.default_rng(self.pattern)
        total = np.zeros((TILE, TILE))
        for cells in (4, 8, 16, 32):
            coarse = rng.random((cells, cells))
            at = np.arange(TILE) * cells / TILE
            low = at.astype(int)
            part = at - low
            rows = coarse[low] * (1 - part)[:, None] + coarse[(low + 1) % cells] * part[:, None]
            total += (rows[:, low] * (1 - part) + rows[:, (low + 1) % cells] * part) * 4 / cells
        level = (total - total.min()) / (total.max() - total.min())
        factor: Array = (1 - self.contrast * (1 - level)).astype(np.float32)
        return factor
