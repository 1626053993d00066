"""MP4 videos of RGB frames, written by the ffmpeg of imageio-ffmpeg: whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile

from latentplan.files import FULL, replacing
from latentplan.types import Array


def encode(path: Path, frames: Iterable[Array], *, fps: int) -> int:
    """Write an mp4 (H.264, yuv420p) of frames (h, w, 3) uint8 and return their number.

    Height and width must be even. Raises OSError if writing fails, and keeps an earlier file.
    """
    import imageio_ffmpeg

    rest = iter(frames)
    first = next(rest)
    height, width, _ = first.shape
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps)]
    result = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "20", "-movflags", "+faststart"]
    count = 0
    with replacing(path) as partial, TemporaryFile() as said:
        program = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-xerror"]
        command = [*program, *source, "-i", "-", *result, str(partial.absolute())]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said)
        assert process.stdin is not None
        try:
            with suppress(BrokenPipeError), process.stdin as pipe:  # it says below why it ended
                for frame in chain([first], rest):
                    pipe.write(frame.tobytes())
                    count += 1
            code = process.wait()
        finally:
            process.kill()
            process.wait()
        if code:
            said.seek(0)
            raise _failure(code, said.read().decode(errors="replace"), path)
    return count


def _failure(code: int, said: str, path: Path) -> OSError:
    """Return the error that made ffmpeg end: a full disk, else its own last line."""
    if code == -signal.SIGXFSZ:
        return OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    for number in (*FULL, errno.EROFS, errno.EACCES):
        if os.strerror(number) in said:
            return OSError(number, os.strerror(number), str(path))
    lines = said.strip().splitlines() or [f"exit code {code}"]
    return OSError(errno.EIO, f"ffmpeg failed ({lines[-1]})", str(path))
