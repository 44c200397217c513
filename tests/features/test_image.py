"""Images as pixels: formats, shapes and what is refused."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raymlp.config.features import Features
from raymlp.config.problem import Problem
from raymlp.core.errors import ConfigError, DataError
from raymlp.data.pictures import BrokenImage, decoded
from raymlp.data.profile import Profile
from raymlp.features.image import Picture
from raymlp.features.plan import FeaturePlan

RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def halves(width: int, height: int) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def pixels(content: bytes | None, fit: str = "pad", size: int = 8) -> np.ndarray[Any, Any]:
    step = Picture(column="i", height=size, width=size, fit=fit)
    return step.batch(pa.table({"i": pa.array([content], pa.binary())}))[0]


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG with a few bytes of pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"\0" * 99), b"IEND"]
    body = b"".join(struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
def test_every_format_gives_red_on_the_left_and_blue_on_the_right(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    found = pixels(encoded(halves(8, 8), kind, **options)).astype(int)
    assert found.shape == (3, 8, 8)
    assert np.abs(found[:, :, :3] - np.array(RED)[:, None, None]).max() < 12
    assert np.abs(found[:, :, 5:] - np.array(BLUE)[:, None, None]).max() < 12


@pytest.mark.parametrize(("fit", "top"), [("pad", (0, 0, 0)), ("crop", RED), ("stretch", RED)])
def test_a_wide_image_is_padded_cropped_or_stretched(fit: str, top: tuple[int, ...]) -> None:
    found = pixels(encoded(halves(32, 16)), fit)
    assert tuple(found[:, 0, 0]) == top
    assert tuple(found[:, 4, 0]) == RED
    assert tuple(found[:, 4, 7]) == BLUE


def test_shrinking_takes_the_mean_of_an_area() -> None:
    checks = Image.fromarray((np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8))
    assert np.abs(pixels(encoded(checks), "stretch").astype(int) - 127).max() <= 8


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000), (1, 1)])
@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_extreme_shapes_pass(size: tuple[int, int], fit: str) -> None:
    assert pixels(encoded(Image.new("RGB", size, RED)), fit).shape == (3, 8, 8)


def test_grey_palette_deep_transparent_and_turned_images_become_rgb() -> None:
    assert (pixels(encoded(Image.new("L", (8, 8), 100))) == 100).all()
    assert (pixels(encoded(Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)))) == 100).all()
    assert tuple(pixels(encoded(halves(8, 8).convert("P")))[:, 0, 0]) == RED
    assert (pixels(encoded(Image.new("RGBA", (8, 8), (9, 9, 9, 0)))) == 255).all()
    turned = Image.Exif()
    turned[0x0112] = 3
    assert tuple(pixels(encoded(halves(8, 8), exif=turned))[:, 0, 0]) == BLUE
    with pytest.raises(BrokenImage, match="mode F"):
        decoded(encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))


def test_a_missing_image_is_black_and_a_damaged_one_is_named() -> None:
    assert not pixels(None).any()
    with pytest.raises(DataError, match=r"'i' of row 0 of the batch is a damaged image.*Name the column in data.images"):
        pixels(encoded(halves(32, 32))[:-30])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no image"),
        (b"<svg/>", "no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
        (encoded(halves(64, 64))[:60], "damaged"),
        (encoded(halves(64, 64), "JPEG")[:400], "damaged"),
        (encoded(halves(64, 64), "GIF")[:60], "damaged"),
        (encoded(halves(100, 101)), "an image of 100 x 101 pixels"),
        (png_that_claims(100_000, 100_000), "DecompressionBomb"),
        (png_that_claims(9_000, 9_000), "an image of 9000 x 9000 pixels"),
    ],
)
def test_what_is_no_image_is_refused_before_it_costs_anything(content: bytes, words: str) -> None:
    with pytest.raises(BrokenImage, match=words):
        decoded(content, max_pixels=10_000)


def table(rows: int = 12) -> pa.Table:
    rng = np.random.default_rng(0)
    shots = [encoded(Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8))) for _ in range(rows)]
    return pa.table({"shot": [None, *shots[1:]], "other": pa.array(shots), "x": rng.normal(size=rows), "y": rng.choice(["a", "b"], rows)})


def test_batch_and_single_row_give_the_same_pixels() -> None:
    rows = table()
    problem = Problem(name="p", task="binary", target="y", positive_class="a")
    plan = FeaturePlan.fit(Features(image="shot", image_size=(16, 8)), problem, Profile().update(rows))
    assert plan.shapes == {"numeric": (1,), "categorical": (0,), "image": (3, 16, 8)}
    assert plan.reasons["other"] == "left out: bytes that features.image does not name"
    plan = FeaturePlan.from_json(plan.model_dump_json())
    batch, run = plan.transform(rows), plan.row_executor()
    assert batch["image"].dtype == np.uint8
    for i, row in enumerate(rows.to_pylist()):
        assert np.array_equal(run(row)["image"], batch["image"][i])
    assert not batch["image"][0].any()
    with pytest.raises(ConfigError, match=r"features\.image names 'x', which holds float values; expected bytes"):
        FeaturePlan.fit(Features(image="x"), problem, Profile().update(rows))


def test_rows_at_a_time_depend_on_what_they_hold() -> None:
    problem = Problem(name="p", task="binary", target="y", positive_class="a")
    profile = Profile().update(table())
    assert FeaturePlan.fit(Features(), problem, profile).rows_within(10, 8_192) == 8_192
    plan = FeaturePlan.fit(Features(image="shot", image_size=(32, 32)), problem, profile)
    assert (plan.rows_within(3 * 32 * 32 * 100, 8_192), plan.rows_within(10, 8_192)) == (100, 1)
