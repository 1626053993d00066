"""Frames of a video at exact times."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from latentplan.errors import SourceError
from latentplan.types import Array

FORMATS = {".mp4": "mp4", ".mov": "mp4", ".m4v": "mp4", ".mkv": "matroska", ".webm": "matroska"}


def check(path: Path) -> None:
    """Raise SourceError if the video is not there, or its name ends unlike a known format's.

    The format follows from the name and not from the content, so that no video is a playlist,
    which could name other files.
    """
    if not path.exists():
        raise SourceError(f"{path}: no such file")
    if not path.is_file() or path.suffix.lower() not in FORMATS:
        raise SourceError(f"{path}: need a video file {', '.join(FORMATS)}")


def frames(path: Path, times: Array, *, fps: float, size: tuple[int, int]) -> Array:
    """Return the images (n, h, w, 3) uint8 of a video at the increasing `times` (n,), in s.

    The video is decoded once, from the key frame before the first time. A frame is that of a time
    if it is nearer than half a frame. Raises SourceError if the file is missing or damaged, has no
    frame at a time, or frames that are not `size` (h, w).
    """
    import av

    check(path)
    found = np.empty((len(times), *size, 3), np.uint8)
    near, count = 0.5 / fps, 0
    try:
        with av.open(str(path), format=FORMATS[path.suffix.lower()]) as container:
            if not container.streams.video:
                raise SourceError(f"{path}: has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if times[0] > near and stream.time_base:
                container.seek(int((times[0] - near) / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if frame.time is None or frame.time < times[count] - near:
                    continue
                if frame.time >= times[count] + near:
                    raise SourceError(
                        f"{path}: has no frame at {times[count]:.4f} s; the next one is at "
                        f"{frame.time:.4f} s"
                    )
                if (frame.height, frame.width) != size:
                    raise SourceError(
                        f"{path}: has frames of {frame.height} x {frame.width}, need "
                        f"{size[0]} x {size[1]}"
                    )
                found[count] = frame.to_ndarray(format="rgb24")
                count += 1
                if count == len(times):
                    return found
    except av.FFmpegError as e:
        raise SourceError(f"{path}: damaged, or not a video ({e.strerror or e})") from None
    except (ValueError, ArithmeticError, LookupError, MemoryError) as e:
        raise SourceError(f"{path}: damaged, or not a video ({e})") from None
    raise SourceError(f"{path}: ends before {times[count]:.4f} s: {count} of {len(times)} frames")
