"""Pictures of digits become images as MNIST has them."""

from __future__ import annotations

import functools
import io
import os
import struct
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageDraw, ImageFont

from fl_node.data import datasets, images
from fl_node.errors import DataError


def seven(width: int = 100, height: int = 140) -> np.ndarray:
    """A light seven on dark, not centred."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[20:30, 20:70] = 255
    pixels[30:110, 60:70] = 255
    return pixels


def save(path: Path, pixels: np.ndarray, mode: str = "L") -> Path:
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def test_an_image_of_mnists_size_is_taken_as_it_is(tmp_path: Path) -> None:
    for number, pixels in enumerate(datasets.load("digits").test_images[:5]):
        digit = images.read(save(tmp_path / f"{number}.png", pixels))
        assert digit.dtype == np.uint8
        assert np.array_equal(digit, pixels)


def test_a_dark_digit_on_light_is_inverted(tmp_path: Path) -> None:
    light = images.read(save(tmp_path / "light.png", seven()))
    dark = images.read(save(tmp_path / "dark.png", 255 - seven()))
    assert np.array_equal(light, dark)


def test_whoever_knows_better_can_say_which_way_round_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "image.png", datasets.load("digits").test_images[0])
    plain = images.read(path)
    assert np.array_equal(images.read(path, invert=False), plain)
    assert np.array_equal(images.read(path, invert=True), 255 - plain)


def test_a_digit_is_fitted_into_twenty_pixels_and_centred_by_its_mass(tmp_path: Path) -> None:
    digit = images.read(save(tmp_path / "seven.png", seven()))
    assert digit.shape == (28, 28)
    rows, columns = (np.flatnonzero(digit.any(axis=axis)) for axis in (1, 0))
    assert rows[-1] - rows[0] + 1 == 20
    assert columns[-1] - columns[0] + 1 <= 20
    mass = digit.astype(float)
    for axis in (0, 1):
        centre = (mass.sum(axis=1 - axis) * np.arange(28)).sum() / mass.sum()
        assert abs(centre - 13.5) <= 1.0


def test_where_a_digit_stands_in_its_picture_does_not_count(tmp_path: Path) -> None:
    moved = np.pad(seven(), ((30, 5), (60, 0)))
    assert np.array_equal(
        images.read(save(tmp_path / "one.png", seven())), images.read(save(tmp_path / "other.png", moved))
    )


@pytest.mark.parametrize(
    ("suffix", "mode"), [("png", "RGB"), ("png", "RGBA"), ("png", "P"), ("bmp", "1"), ("jpg", "L")]
)
def test_pictures_of_any_usual_kind_are_read(tmp_path: Path, suffix: str, mode: str) -> None:
    digit = images.read(save(tmp_path / f"seven.{suffix}", seven(), mode))
    plain = images.read(save(tmp_path / "plain.png", seven()))
    assert np.abs(digit.astype(int) - plain).mean() < 5


@pytest.mark.parametrize("colour", [0, 255])
def test_a_transparent_picture_is_a_digit_on_paper(tmp_path: Path, colour: int) -> None:
    # Ink on nothing, as drawing programs save it.
    ink = np.full((*seven().shape, 4), colour, np.uint8)
    ink[..., 3] = seven()
    Image.fromarray(ink).save(tmp_path / "ink.png")
    assert np.array_equal(images.read(tmp_path / "ink.png"), images.read(save(tmp_path / "paper.png", 255 - seven())))


@pytest.mark.parametrize("value", [0, 127, 255])
@pytest.mark.parametrize("side", [1, 28, 50])
def test_a_picture_of_nothing_is_refused(tmp_path: Path, value: int, side: int) -> None:
    path = save(tmp_path / "image.png", np.full((side, side), value, np.uint8))
    with pytest.raises(DataError, match="is blank"):
        images.read(path)


def test_two_specks_far_apart_are_nothing(tmp_path: Path) -> None:
    pixels = np.zeros((1000, 1000), np.uint8)
    pixels[5, 5] = pixels[995, 995] = 255
    with pytest.raises(DataError, match="shows no digit"):
        images.read(save(tmp_path / "image.png", pixels))


@settings(max_examples=100)
@given(data_=st.data())
def test_every_picture_with_something_on_it_becomes_an_image(
    tmp_path_factory: pytest.TempPathFactory, data_: st.DataObject
) -> None:
    height, width = data_.draw(st.tuples(st.integers(1, 60), st.integers(1, 60)))
    pixels = np.full((height, width), data_.draw(st.integers(0, 255)), np.uint8)
    for _ in range(data_.draw(st.integers(0, 4))):
        y, x = data_.draw(st.integers(0, height - 1)), data_.draw(st.integers(0, width - 1))
        pixels[y : y + data_.draw(st.integers(1, 20)), x : x + data_.draw(st.integers(1, 20))] = data_.draw(
            st.integers(0, 255)
        )
    path = save(tmp_path_factory.getbasetemp() / "any.png", pixels)
    try:
        digit = images.read(path)
    except DataError as error:
        assert any(text in str(error) for text in ("is blank", "shows no digit"))
        return
    assert digit.shape == (28, 28)
    assert digit.dtype == np.uint8
    assert digit.max() > digit.min()


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"BM" + bytes(60), b"GIF89a"])
def test_junk_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"image\.png"):
        images.read(path)


def test_a_picture_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.png"):
        images.read(tmp_path / "nowhere.png")
    with pytest.raises(DataError):
        images.read(tmp_path)


@settings(max_examples=150)
@given(data_=st.data(), kind=st.sampled_from(["PNG", "JPEG", "BMP"]))
def test_a_damaged_picture_is_refused_or_still_an_image(
    tmp_path_factory: pytest.TempPathFactory, data_: st.DataObject, kind: str
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(seven()).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for _ in range(data_.draw(st.integers(1, 4))):
        content[data_.draw(st.integers(0, len(content) - 1))] = data_.draw(st.integers(0, 255))
    content = content[: data_.draw(st.integers(1, len(content)))]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    try:
        assert images.read(path).shape == (28, 28)
    except DataError as error:
        assert "\n" not in str(error)


# What phones, scanners, tablets and drawing programs write: one drawn seven, and always the same image of it.

SIZE = 150, 210
BACK = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What undoes each orientation of EXIF."""


def drawn(digit: str = "7") -> Image.Image:
    """Dark on light."""
    picture = Image.new("L", SIZE, 255)
    ImageDraw.Draw(picture).text((75, 105), digit, 0, font=ImageFont.load_default(165), anchor="mm")
    return picture


PAPER = drawn()
GREY = np.asarray(PAPER)
DEEP = GREY.astype(np.uint16) * 257


def ink(colour: Any, mode: str = "RGBA") -> Image.Image:
    """The same in a colour on nothing."""
    picture = Image.new("RGBA", SIZE, colour)
    picture.putalpha(Image.fromarray(255 - GREY))
    return picture.convert(mode)


def lab() -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(PAPER.convert("RGB"), *profiles, outputMode="LAB")
    assert converted is not None
    return converted


@functools.cache
def drawing() -> np.ndarray:
    """Return the image of the drawing itself."""
    with TemporaryDirectory() as folder:
        PAPER.save(Path(folder, "plain.png"))
        return images.read(Path(folder, "plain.png")).astype(int)


def alike(tmp_path: Path, name: str, picture: Image.Image, **options: Any) -> bool:
    picture.save(tmp_path / name, **options)
    return bool(np.abs(images.read(tmp_path / name).astype(int) - drawing()).mean() < 2)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp", "avif"])
@pytest.mark.parametrize("orientation", BACK)
def test_a_picture_is_turned_as_its_camera_says(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    back = BACK[orientation]
    stored = PAPER.convert("RGB") if back is None else PAPER.convert("RGB").transpose(back)
    assert alike(tmp_path, f"turned.{suffix}", stored, exif=exif)


def test_damaged_exif_data_turn_nothing(tmp_path: Path) -> None:
    for number, content in enumerate([b"Exif\0\0MM\0*\0\0\0\x08\0\xff", b"Exif\0\0junk", b"Exif\0\0"]):
        assert alike(tmp_path, f"{number}.jpg", PAPER, exif=content)
    exif = Image.Exif()
    exif[0x112] = 9
    assert alike(tmp_path, "nine.jpg", PAPER, exif=exif)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_a_picture_of_any_mode_shows_the_same(tmp_path: Path, mode: str, suffix: str) -> None:
    assert alike(tmp_path, f"seven.{suffix}", PAPER.convert(mode))


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("cmyk.tiff", PAPER.convert("RGB").convert("CMYK")),
        ("cmyk.jpg", PAPER.convert("RGB").convert("CMYK")),
        ("ycbcr.tiff", PAPER.convert("RGB").convert("YCbCr")),
        ("ycbcr.jpg", PAPER.convert("RGB").convert("YCbCr")),
        ("lab.tiff", lab()),
        ("deep.png", Image.fromarray(DEEP)),
        ("deep.tiff", Image.fromarray(DEEP)),
        ("big-endian.tiff", Image.frombytes("I;16B", SIZE, DEEP.astype(">u2").tobytes())),
        ("twelve-bits.png", Image.fromarray(DEEP // 16)),
        ("int.tiff", Image.fromarray(DEEP.astype(np.int32))),
        ("int-of-a-byte.tiff", Image.fromarray(GREY.astype(np.int32))),
        ("float-to-1.tiff", Image.fromarray((GREY / 255).astype(np.float32))),
        ("float-to-255.tiff", Image.fromarray(GREY.astype(np.float32))),
        ("seven.jp2", PAPER),
        ("seven.ppm", PAPER.convert("RGB")),
        ("seven.gif", PAPER),
        ("photo.jpg", Image.merge("RGB", [PAPER.point(lambda v, a=a: 40 + v * a // 255) for a in (200, 190, 150)])),
        ("blue-on-yellow.png", Image.merge("RGB", [PAPER, PAPER, Image.new("L", SIZE, 120)])),
        ("large.jpg", PAPER.resize((3000, 4200))),
        ("large-deep.png", Image.fromarray(DEEP).resize((1800, 2520))),
        ("large-palette.png", PAPER.resize((1800, 2520)).convert("P")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_colours_and_depths_show_the_same(tmp_path: Path, name: str, picture: Image.Image) -> None:
    assert alike(tmp_path, name, picture)


@pytest.mark.parametrize("colour", ["black", "white", "grey", "red", "yellow"])
@pytest.mark.parametrize(("suffix", "mode"), [("png", "RGBA"), ("png", "LA"), ("webp", "RGBA"), ("tiff", "RGBA")])
def test_ink_of_any_colour_on_nothing_is_seen(tmp_path: Path, colour: str, suffix: str, mode: str) -> None:
    assert alike(tmp_path, f"ink.{suffix}", ink(colour, mode))


@pytest.mark.parametrize("colour", ["black", "white"])
def test_ink_on_nothing_with_a_palette_is_seen(tmp_path: Path, colour: str) -> None:
    assert alike(tmp_path, "ink.gif", ink(colour))
    assert alike(tmp_path, "ink.png", ink(colour).quantize(64, Image.Quantize.FASTOCTREE))


@pytest.mark.parametrize(
    ("picture", "hidden"),
    [(PAPER, 255), (PAPER.convert("1"), 255), (PAPER.convert("RGB"), (255,) * 3), (Image.fromarray(DEEP), 65535)],
)
def test_a_colour_that_stands_for_nothing_is_paper(tmp_path: Path, picture: Image.Image, hidden: Any) -> None:
    assert alike(tmp_path, "key.png", picture, transparency=hidden)


def test_a_photograph_with_round_corners_is_not_seen_as_its_frame(tmp_path: Path) -> None:
    mask = Image.new("L", SIZE, 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 149, 209), 25, fill=255)
    for name, grey in (("light.png", PAPER), ("dark.png", PAPER.point(lambda value: 255 - value))):
        picture = grey.convert("RGBA")
        picture.putalpha(mask)
        assert alike(tmp_path, name, picture)


@pytest.mark.parametrize("suffix", ["tiff", "gif", "webp", "png", "mpo"])
def test_the_first_of_several_pictures_counts(tmp_path: Path, suffix: str) -> None:
    first, second = PAPER.convert("RGB"), drawn("2").convert("RGB")
    assert alike(tmp_path, f"several.{suffix}", first, save_all=True, append_images=[second])


ACROSS, DOWN = np.meshgrid(np.linspace(0, 1, SIZE[0]), np.linspace(0, 1, SIZE[1]))


@pytest.mark.parametrize(
    "paper",
    [
        np.full_like(ACROSS, 90),
        240 - 150 * ACROSS,
        240 - 90 * ACROSS - 80 * DOWN,
        230 - 210 * ((ACROSS - 0.5) ** 2 + (DOWN - 0.5) ** 2),
        200 - 110 / (1 + np.exp(-(ACROSS - 0.5) * 12)),
        230 - 160 * np.clip(1 - np.hypot(ACROSS - 1, DOWN - 1), 0, 1),
    ],
    ids=["dim", "across", "diagonal", "lamp", "shadow", "corner"],
)
@pytest.mark.parametrize("noise", [0, 6])
def test_how_the_paper_is_lit_does_not_count(tmp_path: Path, paper: np.ndarray, noise: float) -> None:
    covered = 1 - GREY / 255
    grain = np.random.default_rng(1).normal(0, noise, GREY.shape)
    for name, seen in (
        ("pen.png", paper * (1 - 0.8 * covered)),
        ("chalk.png", (255 - paper) * 0.5 * (1 - covered) + 230 * covered),
    ):
        assert alike(tmp_path, name, Image.fromarray(np.clip(seen + grain, 0, 255).astype(np.uint8)))


def test_a_small_digit_on_a_large_sheet_with_dirt_on_a_dark_table_is_found(tmp_path: Path) -> None:
    sheet = np.full((800, 700), 235, np.uint8)
    sheet[300:510, 250:400] = np.minimum(GREY, 235)
    sheet[:, :60] = 40
    sheet[700:703, 500:503] = 0
    assert alike(tmp_path, "sheet.png", Image.fromarray(sheet))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a file of this kind can't be read|empty"),
        (
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            "HEIC, as iPhones save photographs, can't be read; .* as PNG or JPEG",
        ),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42", "a video can't be read"),
        (b"%PDF-1.7", "PDF can't be read"),
        (b"\xef\xbb\xbf <svg>", "SVG can't be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript can't be read"),
        (b"P5\n0 0\n255\n", "image"),
    ],
)
def test_what_is_no_picture_of_pixels_says_what_to_do(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        images.read(path)
    assert "\n" not in str(raised.value)


def test_a_picture_that_would_not_fit_into_memory_is_refused_without_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    for side in (12_000, 60_000):
        path = tmp_path / f"{side}.bmp"
        header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 62, 0, 0, 62, 40, side, side, 1, 1, 0, 0, 0, 0, 2, 0)
        path.write_bytes(header + bytes(8))
        with pytest.raises(DataError, match=r"truncated|more than 178 million pixels; reduce its size"):
            images.read(path)
    assert not list(recwarn)


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((9, 9), np.nan, np.float32)).save(tmp_path / "nan.tiff")
    with pytest.raises(DataError, match="should be finite"):
        images.read(tmp_path / "nan.tiff")


def test_a_picture_without_pixels_is_named() -> None:
    with pytest.raises(DataError, match="the drawing has no pixels"):
        images.as_mnist(np.zeros((0, 5), np.uint8), "the drawing")


def test_a_pipe_or_a_folder_is_no_picture_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path):
        with pytest.raises(DataError, match=f"image {path}"):
            images.read(path)
