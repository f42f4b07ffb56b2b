"""One reader decodes every picture: bad metadata is ignored, and whatever else is wrong is one line with a name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from common.images import ImageError, decode_rgb, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
ORIENTATION, X_RESOLUTION = 0x0112, 0x011A
SHORT, RATIONAL, SIGNED_RATIONAL = 3, 5, 10


def save(kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **options)
    return buffer.getvalue()


def png(*chunks):
    """A PNG with more chunks behind its header."""
    made = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks]
    content = save("PNG")
    return content[:33] + b"".join(made) + content[33:]


def jpeg(*segments):
    """A JPEG with more segments at its start."""
    made = [b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data for marker, data in segments]
    content = save("JPEG", quality=95)
    return content[:2] + b"".join(made) + content[2:]


def exif(*entries, values=b""):
    """An EXIF block of (tag, type, count, four bytes)."""
    made = [struct.pack("<HHI", *entry) + four for *entry, four in entries]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(made) + bytes(4) + values


TURNED = (ORIENTATION, SHORT, 1, struct.pack("<HH", 6, 0))
AT = struct.pack("<I", 8 + 2 + 2 * 12 + 4)  # where the values of a block with two entries begin
NEGATIVE = exif(TURNED, (X_RESOLUTION, SIGNED_RATIONAL, 1, AT), values=struct.pack("<ii", -72, 1))
DIVIDED_BY_ZERO = exif(TURNED, (X_RESOLUTION, RATIONAL, 1, AT), values=struct.pack("<II", 72, 0))
MEGABYTES = zlib.compress(bytes(2_000_000))
JUNK = b"\x8a\x03" * 40
BAD_METADATA = {
    "EXIF of many entries": jpeg((0xE1, b"Exif\0\0" + exif(*[(ORIENTATION, SHORT, 3000, b"\1\0\0\0")] * 3000))),
    "EXIF that is none": jpeg((0xE1, b"Exif\0\0" + JUNK)),
    "EXIF of a PNG that is none": png((b"eXIf", b"garbage!")),
    "text of 2 MB": png((b"zTXt", b"Comment\0\0" + MEGABYTES)),
    "international text of 2 MB": png((b"iTXt", b"Comment\0\1\0\0\0" + MEGABYTES)),
    "color profile of 2 MB": png((b"iCCP", b"icc\0\0" + MEGABYTES)),
    "resolution cut short": png((b"pHYs", b"1")),
    "3,000 broken blocks": jpeg(*[(0xED, b"Photoshop 3.0\x008BIM" + JUNK)] * 3000),
    "an index of pictures that is none": jpeg((0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff")),
    "a header cut short": jpeg((0xE0, b"JFIF")),
    "a color space cut short": jpeg((0xEE, b"Adobe")),
}


@pytest.mark.parametrize("kind", BAD_METADATA)
def test_bad_metadata_is_ignored(kind):
    content = BAD_METADATA[kind]
    expected = PIXELS if content.startswith(b"\x89PNG") else decode_rgb(save("JPEG", quality=95), "plain")
    assert np.array_equal(decode_rgb(content, "bad"), expected)


@pytest.mark.parametrize("block", [exif(TURNED), NEGATIVE, DIVIDED_BY_ZERO], ids=["plain", "negative", "zero"])
def test_a_picture_is_turned_as_its_exif_says_whatever_else_that_holds(block):
    turned = np.rot90(PIXELS, -1)
    assert np.array_equal(decode_rgb(png((b"eXIf", block)), "turned"), turned)
    assert np.array_equal(decode_rgb(png((b"eXIf", block)), "stored", upright=False), PIXELS)
    found = decode_rgb(jpeg((0xE1, b"Exif\0\0" + block)), "turned")
    assert np.array_equal(found, np.rot90(decode_rgb(save("JPEG", quality=95), "plain"), -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone_as_pillow_does(orientation):
    from PIL import ImageOps

    block = exif((ORIENTATION, SHORT, 1, struct.pack("<HH", orientation, 0)))
    content = png((b"eXIf", block))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert np.array_equal(decode_rgb(content, "turned"), expected)


def test_a_decoder_that_raises_anything_ends_in_one_line(monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: (_ for _ in ()).throw(struct.error("unpack\nrequires 4 bytes")))
    with pytest.raises(ImageError, match=r"^a\.png is not a PNG or JPEG picture, or is damaged: unpack$"):
        decode_rgb(save("PNG"), "a.png")


def header(width, height):
    data = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + data + struct.pack(">I", zlib.crc32(data)) + png()[33:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(2**31 - 1, 2**31 - 1), "x: expected at most 33,554,432 pixels"),
        (header(12_000, 12_000), "x: expected at most 33,554,432 pixels, got 12000 x 12000"),
        (save("GIF"), "x is not a PNG or JPEG picture, or is damaged: no such picture begins like this"),
        (save("PNG")[:-60], "x is not a PNG or JPEG picture, or is damaged: image file is truncated"),
        (b"", "x is not a PNG or JPEG picture"),
    ],
    ids=["declared", "large", "kind", "cut", "empty"],
)
def test_a_picture_that_cannot_be_decoded_is_named(content, message):
    with pytest.raises(ImageError) as refused:
        decode_rgb(content, "x")
    assert str(refused.value).startswith(message)
    assert "BytesIO" not in str(refused.value)


def test_a_file_larger_than_any_picture_is_not_read(tmp_path):
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ImageError, match=r"huge.png: expected 1 to 268,435,456 bytes, got 1,099,511,627,776"):
        read_image(tmp_path / "huge.png")


def test_a_caller_sets_how_many_pixels_are_decoded():
    content = save("PNG")
    assert np.array_equal(decode_rgb(content, "image 1", max_pixels=120), PIXELS)
    with pytest.raises(ImageError, match=r"^image 1: expected at most 119 pixels, got 10 x 12$"):
        decode_rgb(content, "image 1", max_pixels=119)
