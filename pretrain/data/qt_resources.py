"""Binary resource files of Qt (`.rcc`): a tree of named files in one.

A big-endian header (`qres`, format version, offsets of tree, data and names) is followed by the nodes of the tree, each
of fixed size: offset of the name, flags, and either the number and the index of a folder's children or, for a file,
locale and offset of its data, which begins with its length. From version 2 on a node ends with a modification time.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError

MAX_FILE_BYTES = 2**27  # of one file, decompressed
COMPRESSED, DIRECTORY, ZSTD = 1, 2, 4  # flags of a node


def read_resources(file: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the path and the content of every file in a resource file; `UserError` if it is damaged or none.

    Files compressed by Zstandard are left out: pictures, which are compressed already, are stored as they are.
    """
    data = file.read_bytes()
    try:
        magic, version, tree, content, names = struct.unpack_from(">4sIIII", data)
        if magic != b"qres":
            raise UserError(f"{file} is not a resource file of Qt")
        for path, flags, start in _files(data, tree, names, 14 if version == 1 else 22):
            (length,) = struct.unpack_from(">I", data, content + start)
            stored = data[content + start + 4 : content + start + 4 + length]
            if not flags & ZSTD:
                yield path, _decompress(stored) if flags & COMPRESSED else stored
    except (struct.error, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{file} is a damaged resource file of Qt: {error}") from error


def _files(data: bytes, tree: int, names: int, node_size: int) -> Iterator[tuple[str, int, int]]:
    """Yield path, flags and offset of the data of every file; a node that is reached twice is damage."""
    pending, seen = [(0, "")], {0}
    while pending:
        index, path = pending.pop()
        name, flags, first, second = struct.unpack_from(">IHII", data, tree + index * node_size)
        if index:
            path = f"{path}/{_name(data, names + name)}"
        if not flags & DIRECTORY:
            yield path, flags, second
            continue
        children = range(second, second + first)
        if first * node_size > len(data) or not seen.isdisjoint(children):
            raise struct.error("its tree has a cycle")
        seen.update(children)
        pending.extend((child, path) for child in reversed(children))


def _name(data: bytes, start: int) -> str:
    """Return a name, stored as number of characters, hash and UTF-16."""
    (length,) = struct.unpack_from(">H", data, start)
    return data[start + 6 : start + 6 + 2 * length].decode("utf-16-be")


def _decompress(stored: bytes) -> bytes:
    """Return the content behind a length of four bytes and zlib's stream."""
    return zlib.decompressobj().decompress(stored[4:], MAX_FILE_BYTES)
