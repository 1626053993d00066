"""Images of ROS messages: compressed ones of every kind, and what is refused by name."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentplan.data import image_files
from latentplan.data.ros_images import ENCODINGS, decompressed, pixels
from latentplan.errors import SourceError

RGB = np.kron(
    np.random.default_rng(0).integers(0, 256, (4, 5, 3)), np.ones((8, 8, 1), int)
).astype(np.uint8)  # in blocks, which JPEG keeps


def compressed(image: Image.Image, form: str, *, kind: str = "PNG", **saved: Any) -> Any:
    file = io.BytesIO()
    image.save(file, kind, **saved)
    return SimpleNamespace(format=form, data=np.frombuffer(file.getvalue(), np.uint8))


def near(found: np.ndarray, wanted: np.ndarray) -> bool:
    return found.shape == wanted.shape and np.abs(found.astype(int) - wanted).mean() < 12


PICTURE, GREY = Image.fromarray(RGB), Image.fromarray(RGB[..., 0])
DEEP = Image.fromarray(RGB[..., 0].astype(np.uint16) * 256 + 77)


@pytest.mark.parametrize(
    ("image", "form", "wanted"),
    [
        (PICTURE, "rgb8; png compressed bgr8", RGB),
        (PICTURE, "bayer_rggb8; png compressed bgr8", RGB),  # converted before compression
        (PICTURE.convert("RGBA"), "rgba8; png compressed bgr8", RGB),
        (PICTURE.convert("P", palette=Image.Palette.ADAPTIVE), "png", RGB),
        (GREY, "mono8; png compressed ", RGB[..., :1].repeat(3, -1)),
        (GREY.convert("LA"), "png", RGB[..., :1].repeat(3, -1)),
        (GREY.point(lambda v: 255 * (v > 99), "1"), "png", None),
        (DEEP, "mono16; png compressed ", RGB[..., :1].repeat(3, -1)),
    ],
)
def test_png_of_every_kind_is_rgb(image: Image.Image, form: str, wanted: Any) -> None:
    found = decompressed("/cam", compressed(image, form))
    if wanted is None:
        wanted = np.where(RGB[..., :1] > 99, 255, 0).repeat(3, -1)
    assert found.dtype == np.uint8 and found.shape == RGB.shape
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_of_every_kind_is_rgb(mode: str) -> None:
    found = decompressed("/cam", compressed(PICTURE.convert(mode), "jpeg", kind="JPEG"))
    assert near(found, np.asarray(PICTURE.convert(mode).convert("RGB")))


def test_a_turned_camera_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: a viewer turns the image clockwise
    found = decompressed("/cam", compressed(PICTURE, "jpeg", kind="JPEG", exif=exif))
    assert near(found, np.rot90(RGB, -1))


@pytest.mark.parametrize(
    ("image", "form"),
    [
        (GREY, "bayer_rggb8; jpeg compressed "),
        (GREY, "bayer_gbrg8; png compressed bayer_gbrg8"),
        (DEEP, "bayer_rggb16; png compressed "),
        (DEEP, "16UC1; png compressed "),
        (GREY, "yuv422; jpeg compressed "),
    ],
)
def test_a_compressed_mosaic_or_depth_is_refused(image: Image.Image, form: str) -> None:
    kind, encoding = "JPEG" if "jpeg" in form else "PNG", form.split(";")[0]
    says = f"/cam: format '{form}' is a compressed {encoding}, no colour image; known: rgb8, bgr8"
    with pytest.raises(SourceError, match=says):
        decompressed("/cam", compressed(image, form, kind=kind))


def test_what_is_neither_jpeg_nor_png_is_refused() -> None:
    for data in (b"", b"\0\0\0\1gh264", b"\0" * 12 + b"\x89PNG\r\n", b"\xff\xd8\xff\xe0 cut"):
        message = SimpleNamespace(format="h264", data=np.frombuffer(data, np.uint8))
        with pytest.raises(SourceError, match="/cam: not a whole PNG or JPEG image") as refused:
            decompressed("/cam", message)
        assert "object at" not in str(refused.value)


@pytest.mark.parametrize(
    "encoding",
    ["bayer_rggb8", "bayer_grbg16", "yuv422", "yuv422_yuy2", "nv21", "16UC1", "32FC1", "8UC3"],
)
def test_another_encoding_is_refused_with_those_that_are_read(encoding: str) -> None:
    message = SimpleNamespace(encoding=encoding, height=2, width=2, step=8, is_bigendian=0)
    message.data = b"\0" * 32
    with pytest.raises(SourceError, match=f"encoding '{encoding}', known: {', '.join(ENCODINGS)}"):
        pixels("/cam", message)


def test_floats_are_no_image_file() -> None:
    with pytest.raises(SourceError, match="x: found an image of mode F, need 8 or 16 bits"):
        image_files.rgb(Image.fromarray(RGB[..., 0].astype("f4")), where="x", error=SourceError)
