"""Decoding: every common pixel format is read, every damaged or hostile file is one line that names it."""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from sm_jax.data import images
from sm_jax.errors import ImageError


def _encode(image: Image.Image, format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def _gradient(height=20, width=30) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 8, y * 12, (x + y) * 4], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP", "JPEG", "GIF"])
def test_formats(format, tmp_path):
    path = tmp_path / f"a.{format.lower()}"
    options = {"lossless": True} if format == "WEBP" else {}
    path.write_bytes(_encode(Image.fromarray(_gradient()), format, **options))
    read = images.read_image(path)
    assert read.shape == (20, 30, 3) and read.dtype == np.uint8
    tolerance = 0 if format in ("PNG", "BMP", "TIFF", "WEBP") else 40
    assert np.abs(read.astype(int) - _gradient()).max() <= tolerance
    assert images.image_size(path) == (20, 30)


def test_refused_format_and_not_a_picture(tmp_path):
    for name, content in {"a.pcx": _encode(Image.fromarray(_gradient()), "PCX"), "b.jpg": b"hello"}.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ImageError, match=name):
            images.read_image(path)


def test_missing_empty_folder(tmp_path):
    (tmp_path / "empty.jpg").touch()
    for name, reason in {"none.jpg": "no such", "empty.jpg": "empty", ".": "not a regular file"}.items():
        with pytest.raises(ImageError, match=reason):
            images.read_image(tmp_path / name)
    with pytest.raises(ImageError, match="empty"):
        images.read_image(b"")
    with pytest.raises(ImageError):
        images.read_image("a\0b.jpg")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_truncated(format, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "cut.img"
    content = _encode(Image.fromarray(noise), format)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match="cut.img") as error:
        images.read_image(path)
    assert "\n" not in str(error.value)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_bytes_never_escape(format, damage):
    content = bytearray(_encode(Image.fromarray(_gradient()), format))
    for where, value in damage:
        content[where % len(content)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            assert images.read_image(bytes(content), max_pixels=10**6).shape[-1] == 3
        except ImageError as error:
            assert "\n" not in str(error)


def _png_bomb(width: int, height: int) -> bytes:
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in chunks)


@pytest.mark.parametrize("size", [(11000, 11000), (13000, 13000), (60000, 60000)])
def test_decompression_bomb(size, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(_png_bomb(*size))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=r"bomb.png.*too many pixels"):
            images.read_image(path, max_pixels=10**8)


def test_exif_orientation():
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = _encode(Image.fromarray(_gradient()), "PNG", exif=exif)
        turned = images.read_image(content)
        expected = {
            1: lambda a: a,
            2: lambda a: a[:, ::-1],
            3: lambda a: a[::-1, ::-1],
            4: lambda a: a[::-1],
            5: lambda a: a.transpose(1, 0, 2),
            6: lambda a: np.rot90(a, -1),
            7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
            8: lambda a: np.rot90(a, 1),
        }[orientation](_gradient())
        np.testing.assert_array_equal(turned, expected)
        assert images.image_size(content) == turned.shape[:2]
        np.testing.assert_array_equal(images.read_image(content, orient=False), _gradient())


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_orientation(orientation, compression):
    """Pillow turns a TIFF while loading it, and its size earlier: the size agrees with the pixels anyway."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    png = _encode(Image.fromarray(_gradient()), "PNG", exif=exif)
    picture = Image.fromarray(_gradient())
    content = _encode(picture, "TIFF", tiffinfo={0x0112: orientation}, compression=compression)
    np.testing.assert_array_equal(images.read_image(content), images.read_image(png))
    np.testing.assert_array_equal(images.read_image(content, orient=False), _gradient())
    assert images.image_size(content) == images.image_size(png)
    assert images.image_size(content, orient=False) == _gradient().shape[:2]


def test_an_orientation_that_does_not_exist_turns_nothing():
    exif = Image.Exif()
    exif[0x0112] = 9
    content = _encode(Image.fromarray(_gradient()), "PNG", exif=exif)
    assert images.image_size(content) == images.read_image(content).shape[:2] == _gradient().shape[:2]


def test_grey_palette_bilevel_cmyk():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(images.as_image(Image.fromarray(grey)), np.repeat(grey[..., None], 3, -1))
    bilevel = Image.fromarray(grey > 100)
    assert set(np.unique(images.as_image(bilevel))) == {0, 255}
    palette = Image.fromarray(_gradient()).convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_array_equal(images.as_image(palette), np.asarray(palette.convert("RGB")))
    cmyk = _encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    red = images.read_image(cmyk)[4, 4].astype(int)
    assert red[0] > 230 and red[1] < 25 and red[2] < 25
    lab = Image.new("LAB", (4, 4), (255, 128, 128))
    assert images.as_image(lab).min() > 240


def test_colour_management_that_fails_is_one_line(monkeypatch):
    def fails(*_, **__):
        raise ImageCms.PyCMSError("cannot build transform")

    monkeypatch.setattr(ImageCms, "profileToProfile", fails)
    with pytest.raises(
        ImageError, match=r"lab.tif: cannot convert pixel format LAB \(cannot build"
    ) as caught:
        images.read_image(_encode(Image.new("LAB", (4, 4)), "TIFF"), name="lab.tif")
    assert "\n" not in str(caught.value)


def test_alpha_is_composited_on_white():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2, :, 3] = 255
    np.testing.assert_array_equal(images.as_image(Image.fromarray(rgba))[:, 0, 0], [0, 0, 255, 255])
    np.testing.assert_array_equal(images.as_image(rgba)[:, 0, 0], [0, 0, 255, 255])
    grey_alpha = _encode(Image.fromarray(rgba).convert("LA"), "PNG")
    np.testing.assert_array_equal(images.read_image(grey_alpha)[:, 0, 0], [0, 0, 255, 255])
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    transparent = _encode(palette, "PNG", transparency=0)
    assert images.read_image(transparent).min() == 255
    partly = _encode(palette, "PNG", transparency=b"\x80\xff")
    assert 100 < images.read_image(partly).mean() < 200


def test_sixteen_bit_and_float():
    deep = np.array([[0, 257, 65535]], np.uint16)
    for format in ("PNG", "TIFF"):
        read = images.read_image(_encode(Image.fromarray(deep), format))
        np.testing.assert_array_equal(read[0, :, 0], [0, 1, 255])
    for values, expected in (
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([-2.0, 0.0, 2.0], [0, 128, 255]),
        ([np.nan, 1.0, np.inf], [255, 255, 255]),
    ):
        content = _encode(Image.fromarray(np.array([values], np.float32)), "TIFF")
        np.testing.assert_array_equal(images.read_image(content)[0, :, 0], expected)
    integers = _encode(Image.fromarray(np.array([[0, 514, 65535]], np.int32)), "TIFF")
    np.testing.assert_array_equal(images.read_image(integers)[0, :, 0], [0, 2, 255])


def test_animation_gives_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for format in ("GIF", "WEBP", "TIFF", "PNG"):
        content = _encode(frames[0], format, save_all=True, append_images=frames[1:])
        pixel = images.read_image(content)[0, 0].astype(int)
        assert pixel[0] > 240 and pixel[2] < 20


def test_as_image_arrays():
    expected = _gradient()
    np.testing.assert_array_equal(images.as_image(expected), expected)
    np.testing.assert_array_equal(images.as_image(expected / 255.0), expected)
    np.testing.assert_array_equal(images.as_image(expected.astype(np.uint16) * 257), expected)
    np.testing.assert_array_equal(images.as_image(expected[..., 0])[..., 2], expected[..., 0])
    np.testing.assert_array_equal(images.as_image(_encode(Image.fromarray(expected), "PNG")), expected)
    assert images.as_image(np.ones((2, 2), bool)).max() == 255
    assert images.as_image(expected) is not expected


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.full((4, 4, 3), np.nan, np.float32),
        np.full((4, 4, 3), 200.0),
        np.zeros((4, 4, 3), np.int64),
        None,
        Image.new("RGB", (0, 5)),
    ],
)
def test_as_image_refuses(bad):
    with pytest.raises(ImageError, match="query 3"):
        images.as_image(bad, name="query 3")


def test_quiet_in_threads():
    content = _png_bomb(11000, 11000)

    def work(_):
        with pytest.raises(ImageError):
            images.read_image(content, max_pixels=10**6)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(64)))
        assert warnings.filters == before


def test_fit_to_area_published_examples():
    assert images.fit_to_area((300, 200)) == (293, 195)
    assert images.fit_to_area((500, 500)) == (240, 240)
    assert images.fit_to_area((1000, 20)) == (1697, 33)
    assert images.fit_to_area((100000, 1), 10) == (3162, 1)


def test_resize():
    assert images.resize(_gradient(), (7, 9)).shape == (7, 9, 3)
    expected = np.asarray(Image.fromarray(_gradient()).resize((9, 7), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(images.resize(_gradient(), (7, 9), "lanczos"), expected)
    with pytest.raises(ImageError):
        images.resize(_gradient(), (0, 9))


def test_the_size_of_a_png_needs_no_pixels_but_its_orientation(monkeypatch):
    """EXIF may stand before the pixels or behind them, and XMP may say it as well."""
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    stored = {}
    for name, options in (("plain", {}), ("before", {"exif": exif}), ("xmp", {"pnginfo": xmp})):
        stored[name] = _encode(Image.new("RGB", (40, 30)), "PNG", **options)
    start = stored["before"].index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(stored["before"][start : start + 4], "big")
    stored["behind"] = stored["plain"][:-12] + stored["before"][start:end] + stored["plain"][-12:]
    for name, size in (("plain", (30, 40)), ("before", (40, 30)), ("behind", (40, 30)), ("xmp", (40, 30))):
        assert images.image_size(stored[name]) == images.read_image(stored[name]).shape[:2] == size
        assert images.image_size(stored[name], orient=False) == (30, 40)
    for cut in range(60, len(stored["plain"]), 7):  # damaged behind the header
        assert images.image_size(stored["plain"][:cut]) == (30, 40)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", None)
    assert images.image_size(stored["plain"]) == (30, 40) and images.image_size(stored["before"]) == (40, 30)
