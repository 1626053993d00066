"""Reading of PNG and JPEG files, with one error for whatever Pillow raises on a damaged one."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from latentplan.errors import SourceError

DEEP = ("I", "F")  # how Pillow's modes of more than 8 bits a channel begin
# What Pillow raises on damage, whose kind depends on the place that is damaged.
DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError),
    *(MemoryError, struct.error, zlib.error),
)


@contextmanager
def opened(file: Path | IO[bytes], *, where: object, formats: Sequence[str]) -> Iterator[Any]:
    """Yield the `PIL.Image` of a file in one of Pillow's `formats`; the block decodes it.

    Raises SourceError that begins with `where` if it is missing or damaged, also in the block.
    """
    from PIL import Image

    try:
        with Image.open(file, formats=tuple(formats)) as image:
            yield image
    except FileNotFoundError:
        raise SourceError(f"{where}: no such file") from None
    except (*DAMAGE, Image.DecompressionBombError) as e:
        kind = " or ".join(formats)
        line = (str(e).splitlines() or [type(e).__name__])[0]
        raise SourceError(f"{where}: cannot be read as {kind} ({line}); copy it again") from None
