"""Images of ROS 1 and 2 messages, decoded without ROS: any object with their fields will do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from latentplan.data import image_files
from latentplan.errors import SourceError
from latentplan.types import Array

RGB, BGR, GREY = (0, 1, 2), (2, 1, 0), (0, 0, 0)
# encoding: (dtype, channels, channels of red, green and blue)
ENCODINGS: Mapping[str, tuple[str, int, tuple[int, int, int]]] = {
    "rgb8": ("u1", 3, RGB),
    "bgr8": ("u1", 3, BGR),
    "rgba8": ("u1", 4, RGB),
    "bgra8": ("u1", 4, BGR),
    "mono8": ("u1", 1, GREY),
    "8UC1": ("u1", 1, GREY),
    "rgb16": ("u2", 3, RGB),
    "bgr16": ("u2", 3, BGR),
    "mono16": ("u2", 1, GREY),
    "rgba16": ("u2", 4, RGB),
    "bgra16": ("u2", 4, BGR),
}
GREY_MODES = ("L", "I", "I;16", "I;16B")  # of Pillow
NOT_GREY = ("bayer", "16UC", "16SC", "32FC", "32SC", "yuv")  # encodings of one or two channels


def pixels(where: str, message: Any) -> Array:
    """Return the image (h, w, 3) uint8, red green blue, of a sensor_msgs/Image.

    Rows may be padded (`step`), 16 bits are cut to 8, grey becomes three equal colours. Raises
    SourceError for an unknown encoding, or if the data is too short.
    """
    if message.encoding not in ENCODINGS:
        raise SourceError(
            f"{where}: encoding {message.encoding!r}, known: {', '.join(ENCODINGS)}; set its "
            "driver to one of them"
        )
    kind, channels, colours = ENCODINGS[message.encoding]
    big = message.is_bigendian and kind == "u2"
    dtype = np.dtype(f"{'>' if big else '<'}{kind}")
    width, height, step = int(message.width), int(message.height), int(message.step)
    row = width * channels * dtype.itemsize
    data = np.frombuffer(message.data, np.uint8)
    if min(width, height) < 1 or step < row or len(data) < step * height:
        raise SourceError(
            f"{where}: {len(data)} bytes in rows of {step} are no {message.encoding} of "
            f"{width}x{height}; see its driver"
        )
    rows = data[: step * height].reshape(height, step)[:, :row]
    values = np.ascontiguousarray(rows).view(dtype).reshape(height, width, channels)
    if kind == "u2":
        values = (values >> 8).astype(np.uint8)
    if values.shape[2] == 3 and colours == RGB:
        return values
    image = np.empty((height, width, 3), np.uint8)
    for i, colour in enumerate(colours):  # a quarter of the time of fancy indexing
        image[..., i] = values[..., colour]
    return image


def decompressed(where: str, message: Any) -> Array:
    """Return the image (h, w, 3) uint8, red green blue, of a sensor_msgs/CompressedImage.

    JPEG or PNG, see `image_files.rgb`. Raises SourceError if it is neither (compressed depth,
    H.264), is damaged, or is a Bayer mosaic or a depth image, which look grey.
    """
    encoding = message.format.split(";")[0].strip()  # before compression, as image_transport has it
    with image_files.opened(
        bytes(message.data), where=where, error=SourceError, formats=("PNG", "JPEG")
    ) as image:
        if image.mode in GREY_MODES and encoding.startswith(NOT_GREY):
            raise SourceError(
                f"{where}: format {message.format!r} is a compressed {encoding}, no colour "
                f"image; known: {', '.join(ENCODINGS)}; record the topic after its conversion"
            )
        return image_files.rgb(image, where=where, error=SourceError)
