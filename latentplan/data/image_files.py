"""Image files of others, decoded within the budget."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from latentplan import budget, foreign
from latentplan.errors import LatentplanError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
DAMAGE = (  # what Pillow raises for it
    *(ArithmeticError, LookupError, MemoryError, OSError, SyntaxError, TypeError, ValueError),
)
PIXEL = 8  # bytes that decoding needs at most: four channels, twice


@contextmanager
def opened(
    source: Path | str | bytes,
    *,
    where: str,
    error: type[LatentplanError],
    formats: Sequence[str] = FORMATS,
) -> Iterator[Image]:
    """Yield Pillow's image of a file or its content; its pixels are decoded in the block.

    Raises `error` if it is missing, no regular file, damaged (also if that shows in the block) or
    of another format; BudgetError, before it is decoded, for a size that exceeds the budget.
    """
    from PIL import Image

    found = source if isinstance(source, bytes) else foreign.content(source, error=error)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(found), formats=tuple(formats))
        with image:
            budget.claim(where, bytes=image.width * image.height * PIXEL)
            yield image
    except LatentplanError:
        raise
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise error(f"{where}: an image of more than {most} pixels, which is refused") from None
    except DAMAGE as e:
        kinds = " or ".join(formats)
        line = (str(e).splitlines() or [""])[0] or type(e).__name__
        raise error(f"{where}: not a whole {kinds} image ({line})") from None
