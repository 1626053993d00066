"""Calibration targets: boards of known corners, printed and detected with OpenCV.

The board's frame has its origin in the upper left corner of the pattern, x to the right, y down,
z away from the viewer; lengths in metres.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from latentplan.errors import ConfigError, MissingDependency, check_range, unknown
from latentplan.files import replacing
from latentplan.shapes import check
from latentplan.types import Array

DICTIONARIES = {"charuco": "5X5_100", "apriltag": "APRILTAG_36h11"}  # the default of each kind
FORMATS = (".png", ".pdf")


class Corners(NamedTuple):
    """The corners of a board in an image."""

    points: Array  # (N, 3) m, in the board's frame
    pixels: Array  # (N, 2)


@dataclass(frozen=True)
class CalibrationTarget:
    """A flat board: `charuco`, a chessboard with markers in its white squares, or `apriltag`, a
    grid of tags.

    The corners of a ChArUco board are those between squares, accurate to some hundredths of a
    pixel; those of a grid of tags are the corners of each tag. Either may be partly out of the
    image.
    """

    kind: str = "charuco"  # charuco or apriltag
    columns: int = 8  # squares, or tags, from left to right
    rows: int = 6  # from top to bottom
    square: float = 0.03  # m, side of a square, or distance of tags; measure it on paper
    marker: float = 0.022  # m, side of a marker or tag, with its black border
    dictionary: str = ""  # OpenCV's name (5X5_100, APRILTAG_36h11, ...); empty: the kind's default
    legacy: bool = False  # charuco with an even number of rows, printed before OpenCV 4.6

    def __post_init__(self) -> None:
        """Raise ConfigError if there is no such board."""
        if self.kind not in DICTIONARIES:
            raise ConfigError(f"CalibrationTarget.kind: {unknown('kind', self.kind, DICTIONARIES)}")
        least = 3 if self.kind == "charuco" else 1
        check_range("CalibrationTarget.columns", self.columns, least, 60)
        check_range("CalibrationTarget.rows", self.rows, least, 60)
        check_range("CalibrationTarget.square", self.square, 1e-3, 2)
        check_range("CalibrationTarget.marker", self.marker, 0.3 * self.square, 0.95 * self.square)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the pattern, m, without the white margin that it needs."""
        gap = 0.0 if self.kind == "charuco" else self.square - self.marker
        return self.columns * self.square - gap, self.rows * self.square - gap

    def image(self, *, dpi: float = 300.0) -> tuple[Array, float]:
        """Return the board (h, w) uint8 with a margin of half a square, and its pixels a metre.

        These differ slightly from `dpi`, so that squares are whole pixels.
        """
        check_range("CalibrationTarget.dpi", dpi, 20, 2400)
        side = max(round(self.square * dpi / 0.0254), 16)
        scale, margin = side / self.square, side // 2
        width, height = (round(length * scale) + 2 * margin for length in self.size)
        drawn: Array = _opencv(self)[1].generateImage((width, height), marginSize=margin)
        return drawn, scale

    def save(self, file: Path, *, dpi: float = 300.0) -> None:
        """Write the board to a .png or .pdf that prints at its true size; ConfigError for others.

        Print it at 100 %; the side of a square is then `square`. Measure it all the same.
        """
        from PIL import Image

        if file.suffix not in FORMATS:
            raise ConfigError(f"calibrate.out: {str(file)!r} must end with {' or '.join(FORMATS)}")
        drawn, scale = self.image(dpi=dpi)
        true = scale * 0.0254
        # One bit a pixel, so that a PDF does not hold it as a JPEG.
        paper = Image.fromarray(drawn).convert("1", dither=Image.Dither.NONE)
        with replacing(file) as partial:
            if file.suffix == ".png":
                paper.save(partial, dpi=(true, true))
            else:
                paper.save(partial, resolution=true)


class TargetDetector:
    """A detector of one calibration target in images."""

    def __init__(self, board: CalibrationTarget) -> None:
        """Build OpenCV's detector; MissingDependency without OpenCV."""
        cv2, layout = _opencv(board)
        self._cv2, self._layout, self._tags = cv2, layout, board.kind == "apriltag"
        settings = cv2.aruco.DetectorParameters()
        if self._tags:
            # Measured on tags of 20 to 30 pixels: half the error of OpenCV's default, 0.3 cells.
            settings.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_SUBPIX
            settings.relativeCornerRefinmentWinSize = 0.6
            self._detector = cv2.aruco.ArucoDetector(layout.getDictionary(), settings)
        else:
            self._detector = cv2.aruco.CharucoDetector(layout, detectorParams=settings)

    def find(self, image: Array) -> Corners | None:
        """Return the corners in an image (h, w, 3) or (h, w) uint8; None if it has none."""
        grey = image
        if image.ndim == 3:
            check("TargetDetector.image", image, "h w c", c=3)
            grey = self._cv2.cvtColor(image, self._cv2.COLOR_RGB2GRAY)
        if self._tags:
            corners, names, _ = self._detector.detectMarkers(grey)
        else:
            corners, names, _, _ = self._detector.detectBoard(grey)
        if names is None or len(names) == 0:
            return None
        points, pixels = self._layout.matchImagePoints(corners, names)
        if points is None or len(points) == 0:  # tags, but of another board
            return None
        return Corners(points.reshape(-1, 3).astype(float), pixels.reshape(-1, 2).astype(float))


def library() -> Any:
    """Return the module cv2; MissingDependency, with the install command, if it is missing."""
    try:
        import cv2
    except ImportError as e:
        if getattr(e, "name", None) == "cv2":
            raise MissingDependency(
                'calibration needs cv2: pip install "latentplan[perception]"'
            ) from None
        raise MissingDependency(
            f"calibration: cv2 does not load ({e}); type: pip install opencv-python-headless"
        ) from None
    return cv2


def _opencv(board: CalibrationTarget) -> tuple[Any, Any]:
    """Return the module cv2 and its object of the board; ConfigError for an unknown dictionary."""
    cv2 = library()
    known = {n.removeprefix("DICT_").lower(): n for n in dir(cv2.aruco) if n.startswith("DICT_")}
    wanted = (board.dictionary or DICTIONARIES[board.kind]).lower().removeprefix("dict_")
    if wanted not in known:
        raise ConfigError(f"CalibrationTarget.dictionary: {unknown('dictionary', wanted, known)}")
    markers = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, known[wanted]))
    squares = board.columns * board.rows
    needed, there = (squares if board.kind == "apriltag" else squares // 2), len(markers.bytesList)
    if needed > there:
        raise ConfigError(
            f"CalibrationTarget.dictionary: {wanted} has {there} markers, {board.columns} x "
            f"{board.rows} {board.kind} needs {needed}; take a larger dictionary or a smaller board"
        )
    size = (board.columns, board.rows)
    if board.kind == "apriltag":
        return cv2, cv2.aruco.GridBoard(size, board.marker, board.square - board.marker, markers)
    layout = cv2.aruco.CharucoBoard(size, board.square, board.marker, markers)
    layout.setLegacyPattern(board.legacy)
    return cv2, layout
