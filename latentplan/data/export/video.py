"""Images of many episodes written into few videos, each frame at an exact time."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from latentplan.errors import ConfigError
from latentplan.files import FULL
from latentplan.types import Array


@dataclass(frozen=True)
class Piece:
    """The part of a video file that holds an episode's images, from `start` to `stop` in s."""

    file: int
    start: float
    stop: float


class Videos:
    """A series of videos at `pattern`, of chunk_index and file_index, with frame i at i / fps."""

    def __init__(
        self, pattern: str, *, fps: int, codec: str, crf: int, gop: int, file_bytes: int, chunk: int
    ) -> None:
        """Prepare to write; a new file begins once one holds `file_bytes`, `chunk` a folder."""
        self._pattern, self._fps, self._codec, self._chunk = pattern, fps, codec, chunk
        self._options = {"crf": str(crf), "g": str(gop)}
        if codec == "libsvtav1":
            self._options["svtav1-params"] = "lp=2"  # threads; the default takes a whole machine
            os.environ.setdefault("SVT_LOG", "1")  # errors alone, without its settings
        self._limit = file_bytes
        self._file, self._frames, self._bytes = -1, 0, 0
        self._container: Any = None
        self._stream: Any = None

    def append(self, images: Array) -> Piece:
        """Write the images (n, h, w, 3) uint8 of an episode and return their part of the video.

        Raises ConfigError if the codec does not take images of this size.
        """
        import av

        try:
            if self._container is None or self._bytes >= self._limit:
                self._next(*images.shape[1:3])
            start = self._frames / self._fps
            for place, image in enumerate(images):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = self._frames, Fraction(1, self._fps)
                if place == 0:  # an episode can be decoded without the one before it
                    frame.pict_type = av.video.frame.PictureType.I
                self._mux(self._stream.encode(frame))
                self._frames += 1
        except (av.FFmpegError, ValueError) as e:
            self._stream = None  # to end the stream after a failure crashes FFmpeg
            _check_disk(e)
            raise ConfigError(
                f"Export.codec: {self._codec} cannot encode images of {images.shape[1]} x "
                f"{images.shape[2]} ({e}); export images instead"
            ) from None
        return Piece(self._file, start, self._frames / self._fps)

    def close(self) -> None:
        """Finish the open file."""
        if self._container is None:
            return
        import av

        try:
            try:
                if self._stream is not None:
                    self._mux(self._stream.encode())
            finally:
                container, self._container = self._container, None
                container.close()
        except av.FFmpegError as e:
            _check_disk(e)
            raise

    def _next(self, height: int, width: int) -> None:
        import av

        self.close()
        if height % 2 or width % 2:
            raise ValueError("sides must be even")
        self._file, self._frames, self._bytes = self._file + 1, 0, 0
        chunk, place = divmod(self._file, self._chunk)
        path = Path(self._pattern.format(chunk_index=chunk, file_index=place))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream(
            self._codec, rate=self._fps, options=self._options
        )
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"

    def _mux(self, packets: Any) -> None:
        for packet in packets:
            self._bytes += packet.size
            self._container.mux(packet)


def _check_disk(error: Exception) -> None:
    """Raise OSError for an error of FFmpeg that the disk is the reason of, and not the images."""
    number = getattr(error, "errno", 0) or 0
    if number in (*FULL, errno.EIO, errno.EROFS, errno.EACCES):
        raise OSError(number, os.strerror(number), getattr(error, "filename", None)) from None
