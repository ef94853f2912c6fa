"""Pixels come out as Pillow's by the stated rules; what is not a picture is refused in words."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from pretrain.data.decode import BadImage, decode, image_size
from pretrain.data.image_header import orientation
from tests.data.image_fuzz import decoder_campaign, ledger_campaign

PHOTO = Image.fromarray(np.random.default_rng(7).integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((61, 47), 3)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def array(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 5}, {"restart_marker_rows": 1}, {"optimize": True}],
)
def test_a_jpeg_decodes_to_the_pixels_of_pillow(options: dict[str, object]) -> None:
    data = encoded(PHOTO, "JPEG", **options)
    assert np.array_equal(decode(data), by_pillow(data))
    assert image_size(data) == (61, 47, "JPEG")


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA"])
def test_every_png_mode_becomes_the_colours_of_pillow_with_alpha_dropped(mode: str) -> None:
    data = encoded(PHOTO.convert(mode))
    assert np.array_equal(decode(data), by_pillow(data))
    assert image_size(data) == (61, 47, "PNG")


def test_the_colour_under_a_transparent_pixel_is_kept() -> None:
    image = PHOTO.convert("RGBA")
    image.putalpha(0)
    for data in (encoded(image), encoded(image, "WEBP", lossless=True, exact=True)):
        assert np.array_equal(decode(data), np.asarray(PHOTO))


def test_a_transparent_palette_colour_is_drawn() -> None:
    palette = PHOTO.quantize(16)
    assert np.array_equal(decode(encoded(palette, transparency=3)), np.asarray(palette.convert("RGB")))


def test_sixteen_bits_keep_their_high_byte_in_gray() -> None:
    values = np.arange(47 * 61, dtype=np.uint16).reshape(47, 61) * 22
    data = encoded(Image.fromarray(values))
    assert np.array_equal(decode(data), np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))
    assert np.array_equal(decode(data, in_chans=1)[..., 0], values >> 8)


def test_cmyk_is_read_as_adobe_writes_it() -> None:
    data = encoded(PHOTO.convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    assert abs(decode(data).astype(float) - np.asarray(PHOTO)).mean() < 4  # a wrong inversion is off by 80


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_undone_as_pillow_undoes_it(turn: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(PHOTO, format, exif=exif)
    image = Image.open(io.BytesIO(data))
    assert np.array_equal(decode(data), np.asarray(ImageOps.exif_transpose(image)))
    assert np.array_equal(decode(data, apply_exif=False), np.asarray(image))


def test_an_image_of_one_row_or_column_is_turned_into_an_array_that_torch_takes() -> None:
    for size in ((61, 1), (1, 47), (1, 1)):
        for turn in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = turn
            assert min(decode(encoded(PHOTO.resize(size), "PNG", exif=exif)).strides) > 0


@pytest.mark.parametrize(
    "tiff",
    [b"", b"II", b"II*\0", b"II*\0\xff\xff\xff\x7f", b"MM\0*\0\0\0\x08\xff\xff" + bytes(9)],
    ids=["empty", "order", "no offset", "offset outside", "entries outside"],
)
def test_malformed_exif_is_as_good_as_none(tiff: bytes) -> None:
    assert orientation(tiff) == orientation(b"Exif\0\0" + tiff) == 1
    assert np.array_equal(decode(encoded(PHOTO, "JPEG", exif=b"Exif\0\0" + tiff)), decode(encoded(PHOTO, "JPEG")))


def test_one_channel_is_the_luminance() -> None:
    weights = np.array([0.299, 0.587, 0.114])
    for format, options in (("JPEG", {"quality": 95, "subsampling": 0}), ("PNG", {}), ("WEBP", {"lossless": True})):
        gray = decode(encoded(PHOTO, format, **options), in_chans=1)
        assert gray.shape == (47, 61, 1)
        assert abs(gray[..., 0] - np.asarray(PHOTO) @ weights).mean() < 1.5


def test_an_animation_gives_its_first_frame() -> None:
    others = [PHOTO.rotate(90), PHOTO.rotate(180)]
    for format in ("PNG", "WEBP"):
        data = encoded(PHOTO, format, save_all=True, append_images=others, lossless=True)
        assert np.array_equal(decode(data), np.asarray(PHOTO))


def test_an_array_member_holds_any_number_of_channels() -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    pixels = decode(array(values), in_chans=4)
    assert np.array_equal(pixels, values) and pixels.flags.writeable
    assert image_size(array(values)) == (7, 5, "NPY")
    for wrong in (values.astype(np.uint16), values[0], np.asfortranarray(values), values.astype(object)):
        with pytest.raises(BadImage):
            decode(b"\x93NUMPY\1\0" + bytes(2) if wrong.dtype == object else array(wrong), in_chans=4)
    with pytest.raises(BadImage, match="4 channels where in_chans=3"):
        decode(array(values))
    with pytest.raises(BadImage, match=r"read from \.npy"):
        decode(encoded(PHOTO), in_chans=4)


def test_what_is_too_large_is_refused_by_its_header_alone() -> None:
    bomb = bytearray(encoded(Image.new("L", (1, 1))))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    for data in (bytes(bomb), encoded(PHOTO, "JPEG"), encoded(PHOTO, "WEBP"), array(np.zeros((47, 61, 3), np.uint8))):
        with pytest.raises(BadImage, match=r"too large: \d+x\d+"):
            decode(data, max_pixels=61 * 47 - 1)
    assert decode(encoded(PHOTO), max_pixels=61 * 47).shape == (47, 61, 3)


def test_the_name_of_a_refused_format_is_said() -> None:
    for format in ("GIF", "TIFF", "BMP"):
        with pytest.raises(BadImage, match=format):
            decode(encoded(PHOTO, format))
    for data, words in ((b"", "no bytes"), (b"text", "not a JPEG"), (b"<html>", "HTML"), (bytes(4096), "not a JPEG")):
        with pytest.raises(BadImage, match=words):
            decode(data)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"mode": "CMYK"}])
def test_a_jpeg_cut_anywhere_is_refused(options: dict[str, object]) -> None:
    data = encoded(PHOTO.convert(str(options.pop("mode", "RGB"))), "JPEG", **options)
    for length in range(len(data)):
        with pytest.raises(BadImage):
            decode(data[:length])


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_a_cut_png_or_webp_is_refused_or_whole(format: str) -> None:
    data = encoded(PHOTO, format)
    whole = decode(data)
    for length in range(len(data)):
        try:
            assert np.array_equal(decode(data[:length]), whole)  # only what follows the pixels was cut
        except BadImage:
            continue
        assert length > len(data) - 24


def test_many_pixels_from_few_bytes_are_refused_before_they_are_decoded() -> None:
    white = encoded(Image.new("RGB", (2100, 2100)), "WEBP", lossless=True, method=0)
    claimed = bytearray(encoded(PHOTO, "JPEG"))
    size = claimed.index(b"\xff\xc0") + 5
    claimed[size : size + 4] = (8000).to_bytes(2, "big") * 2
    for data in (white, bytes(claimed)):
        with pytest.raises(BadImage, match=r"(2100x2100|8000x8000) pixels in \d+ bytes: a decompression bomb"):
            decode(data)
    assert decode(encoded(Image.new("RGB", (2000, 2000)), "WEBP", lossless=True)).shape == (2000, 2000, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK"])
def test_a_tall_image_is_handed_over_whole(mode: str) -> None:
    image = PHOTO.resize((9, 1_000)).convert(mode)
    data = encoded(image, "JPEG" if mode == "CMYK" else "PNG")
    assert np.array_equal(decode(data), by_pillow(data))


def test_thousands_of_damaged_images_are_read_or_refused_and_nothing_else() -> None:
    """In a process of its own: a crash of the decoder would be counted, and so is its memory."""
    found = decoder_campaign(3_000)
    assert found["failures"] == []
    assert 0 < found["decoded"] < found["tried"]
    assert found["worst_rss_mb"] < 512


def test_a_crash_an_escaped_error_and_a_garbled_refusal_are_each_counted() -> None:
    found = decoder_campaign(20, planted=True)
    assert found["failed"] == 3
    assert found["failures"] == ["case 7: ended by signal 11", "case 9: KeyError: 'planted'", found["failures"][2]]
    assert "at 0x7f" in found["failures"][2]
    assert found["decoded"] + found["refused"] == 19


def test_the_ledger_of_damaged_shards_is_exactly_what_an_oracle_says() -> None:
    found = ledger_campaign(120)
    assert found["failures"] == []
    assert 0 < found["in_the_ledger"] < found["tried"]
