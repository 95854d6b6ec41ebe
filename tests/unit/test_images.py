"""Pictures of digits become images as MNIST has them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fl_node import data, images
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
    for number, pixels in enumerate(data.load("digits").test_images[:5]):
        found = images.read(save(tmp_path / f"{number}.png", pixels))
        assert found.dtype == np.uint8
        assert np.array_equal(found, pixels)


def test_a_dark_digit_on_light_is_inverted(tmp_path: Path) -> None:
    light = images.read(save(tmp_path / "light.png", seven()))
    dark = images.read(save(tmp_path / "dark.png", 255 - seven()))
    assert np.array_equal(light, dark)


def test_whoever_knows_better_can_say_which_way_round_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "image.png", data.load("digits").test_images[0])
    plain = images.read(path)
    assert np.array_equal(images.read(path, invert=False), plain)
    assert np.array_equal(images.read(path, invert=True), 255 - plain)


def test_a_digit_is_fitted_into_twenty_pixels_and_centred_by_its_mass(tmp_path: Path) -> None:
    found = images.read(save(tmp_path / "seven.png", seven()))
    assert found.shape == (28, 28)
    rows, columns = (np.flatnonzero(found.any(axis=axis)) for axis in (1, 0))
    assert rows[-1] - rows[0] + 1 == 20
    assert columns[-1] - columns[0] + 1 <= 20
    mass = found.astype(float)
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
    found = images.read(save(tmp_path / f"seven.{suffix}", seven(), mode))
    plain = images.read(save(tmp_path / "plain.png", seven()))
    assert np.abs(found.astype(int) - plain).mean() < 5


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
    with pytest.raises(DataError, match="shows nothing"):
        images.read(path)


def test_two_specks_far_apart_are_nothing(tmp_path: Path) -> None:
    pixels = np.zeros((1000, 1000), np.uint8)
    pixels[5, 5] = pixels[995, 995] = 255
    with pytest.raises(DataError, match="shows nothing"):
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
        found = images.read(path)
    except DataError as error:
        assert "shows nothing" in str(error)
        return
    assert found.shape == (28, 28)
    assert found.dtype == np.uint8
    assert found.max() > found.min()


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
