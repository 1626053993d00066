"""Image files of others, decoded within the budget."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from latentplan import budget, foreign
from latentplan.errors import LatentplanError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

    from latentplan.types import Array

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
DAMAGE = (  # what Pillow raises for it
    *(ArithmeticError, LookupError, MemoryError, OSError, SyntaxError, TypeError, ValueError),
)
EIGHT_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
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
    from PIL import Image, UnidentifiedImageError

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
        # Pillow names an unknown format by the object that it read.
        why = "of no such format" if isinstance(e, UnidentifiedImageError) else first_line(e)
        raise error(f"{where}: not a whole {' or '.join(formats)} image ({why})") from None


def rgb(image: Image, *, where: str, error: type[LatentplanError]) -> Array:
    """Return the pixels (h, w, 3) uint8, red green blue, of an image, upright as its EXIF says.

    Palettes become colours, grey three equal channels, 16 bits are cut to 8, and transparency is
    dropped. Raises `error` for floats or 32 bits.
    """
    import numpy as np
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode in EIGHT_BITS:
        return np.array(upright.convert("RGB"))
    if upright.mode.startswith("I;16") or (upright.mode == "I" and image.format == "PNG"):
        grey = np.asarray(upright).astype(np.uint16) >> 8  # Pillow's own conversion clips at 255
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    raise error(f"{where}: found an image of mode {upright.mode}, need 8 or 16 bits a channel")
