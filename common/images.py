"""The one reader of pictures, from files and out of data sets: whatever is wrong with one is a line that names it.

Kind and size are checked before a pixel is decoded. Pixels are decoded without metadata, so that damaged or huge
metadata harms nothing; of it the orientation alone is used, where it can be read.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

from common.errors import UserError

FORMATS = ("PNG", "JPEG")
MAX_PIXELS = 2**25  # about 5,800 x 5,800: 100 MB in memory
MAX_BYTES = 2**28  # of a file: more than such a picture takes uncompressed, 8 bytes a pixel
PNG_SIGNATURE, JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
EXIF_HEADER = b"Exif\0\0"
JPEG_SCAN, JPEG_APP0, JPEG_EXIF, JPEG_ADOBE, JPEG_APP15, JPEG_COMMENT = 0xDA, 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
JPEG_COLORS = {JPEG_APP0: 18, JPEG_ADOBE: 16}  # the segments that tell the color space, and their lengths in bytes
UPRIGHT = {  # what undoes an orientation of EXIF
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(UserError):
    """An image or image source that cannot be used; the message names it."""


def read_image(file: Path, upright: bool = True) -> UInt8[np.ndarray, "H W 3"]:
    """Return a PNG or JPEG file as RGB, or raise `ImageError`; without `upright` as stored, whatever its orientation.

    Greyscale, palette, 16-bit and transparent pictures are converted; transparent pixels become black.
    """
    return decode_rgb(read_picture_bytes(file), str(file), upright=upright)


def read_picture_bytes(file: Path, formats: tuple[str, ...] = FORMATS) -> bytes:
    """Return the content of a picture's file; `ImageError` if it is none, or empty, or larger than any picture."""
    if not file.is_file():
        raise ImageError(f"expected a {' or '.join(formats)} file, got {file}, which is not a file")
    size = file.stat().st_size
    if not 0 < size <= MAX_BYTES:
        raise ImageError(f"{file}: expected 1 to {MAX_BYTES:,} bytes, got {size:,}" if size else f"{file} is empty")
    return file.read_bytes()


def decode_rgb(
    content: bytes,
    name: str,
    formats: tuple[str, ...] = FORMATS,
    upright: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> UInt8[np.ndarray, "H W 3"]:
    """Return a picture's content as RGB; see `decode_picture`."""
    with _damage_as_image_error(name, formats, max_pixels):
        return _to_rgb(decode_picture(content, name, formats, upright, max_pixels))


def decode_picture(
    content: bytes,
    name: str,
    formats: tuple[str, ...] = FORMATS,
    upright: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Return a picture with all its pixels; `ImageError` if it is damaged, too large or of another kind.

    Args:
        content: of the picture's file.
        name: of the picture, in messages.
        formats: Pillow's names of the allowed kinds.
        upright: turn it as its EXIF orientation says.
        max_pixels: of a picture; a larger one is refused before its pixels are decoded.
    """
    with _damage_as_image_error(name, formats, max_pixels), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes are checked here, and errors raised
        bare, exif = drop_metadata(content)
        picture: Image.Image = Image.open(io.BytesIO(bare), formats=formats)
        width, height = picture.size
        if width * height > max_pixels:
            raise ImageError(f"{name}: expected at most {max_pixels:,} pixels, got {width} x {height}")
        picture.load()
        exif = exif or picture.info.get("exif", b"")  # of other kinds
        turn = UPRIGHT.get(_orientation(exif)) if upright and exif else None
        return picture if turn is None else picture.transpose(turn)


@contextmanager
def _damage_as_image_error(name: str, formats: tuple[str, ...], max_pixels: int) -> Iterator[None]:
    """Turn whatever a decoder raises into an `ImageError` that names the picture."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: expected at most {max_pixels:,} pixels; {error}") from error
    except Exception as error:  # of a damaged picture Pillow's decoders raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "no such picture begins like this"  # Pillow's own words name a BytesIO
        raise ImageError(f"{name} is not a {' or '.join(formats)} picture, or is damaged: {reason}") from error


def drop_metadata(content: bytes) -> tuple[bytes, bytes]:
    """Return a PNG's or JPEG's content without metadata, and its EXIF block, empty if it has none.

    Other content, and what follows a damaged part, stays as it is.
    """
    if content.startswith(PNG_SIGNATURE):
        return _drop_png_metadata(content)
    return _drop_jpeg_metadata(content) if content.startswith(JPEG_START) else (content, b"")


def _drop_png_metadata(content: bytes) -> tuple[bytes, bytes]:
    """Keep a PNG's critical chunks, whose names begin with a capital, and its transparency."""
    parts, exif, start = [PNG_SIGNATURE], b"", len(PNG_SIGNATURE)
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4])  # length, name, data, checksum
        name = content[start + 4 : start + 8]
        if name[:1].isupper() or name == b"tRNS" or end > len(content):
            parts.append(content[start:end])
        elif name == b"eXIf":
            exif = exif or content[start + 8 : end - 4]
        start = end
    return b"".join(parts), exif


def _drop_jpeg_metadata(content: bytes) -> tuple[bytes, bytes]:
    """Keep a JPEG's segments but for comments, and of applications those that tell the color space."""
    parts, exif, start = [JPEG_START], b"", len(JPEG_START)
    while start + 4 <= len(content) and content[start] == 0xFF and content[start + 1] != JPEG_SCAN:
        if content[start + 1] == 0xFF:  # filling before a marker
            start += 1
            continue
        marker, end = content[start + 1], start + 2 + int.from_bytes(content[start + 2 : start + 4])
        if end > len(content) or end < start + 4:
            break
        segment = content[start:end]
        if marker == JPEG_EXIF and segment[4:].startswith(EXIF_HEADER):
            exif = exif or segment[4:]
        elif marker in JPEG_COLORS:
            parts += [segment] if len(segment) >= JPEG_COLORS[marker] else []
        elif not (JPEG_APP0 <= marker <= JPEG_APP15 or marker == JPEG_COMMENT):
            parts.append(segment)
        start = end
    return b"".join([*parts, content[start:]]), exif


def _orientation(exif: bytes) -> int:
    """Return the orientation in an EXIF block, 1 to 8; 1, upright, where it cannot be read."""
    tags = Image.Exif()
    try:
        tags.load(exif)
        return int(tags.get(ExifTags.Base.Orientation, 1))
    except Exception:  # it is metadata: whatever is wrong with it, the pixels are not
        return 1


def _to_rgb(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith("I"):  # 16-bit grey
        grey = np.asarray(picture).astype(np.int64).clip(0, 65535) // 257
        return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
    if "A" in picture.mode or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    return np.array(picture.convert("RGB"))
