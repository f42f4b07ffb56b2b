"""Damage to files: bytes that change, and values of JSON and command lines that no writer would have put there.

All of it is drawn from a generator of random numbers, so that a seed gives the same damage again.
"""

import copy
import io
import json
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

TITLE, CLEAR = "\x1b]0;owned\x07", "\x1b[2J"  # control sequences: a terminal's title, an empty screen
CANARY = "canary"  # a file that foreign code makes, in the working directory
DEEP = 200_000  # levels of nested lists
ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 10**9, 2**63, 10**400, 0.5, float("nan"), float("inf"), -1e308, "", "nan", "x" * 10**6,
    f"{TITLE}{CLEAR}", "\udc80", "../../escape", "/escape", "%s{0}${7*7}", [], {}, [[]], [1, "a", None], {"": 0},
    {"auto_map": {"AutoModel": "foreign.Model"}}, ["a"] * 10_000, 1e-320, "0",
)  # fmt: skip
FOREIGN = f"from pathlib import Path\nPath({CANARY!r}).touch()\n"  # a module that marks its being run

Rng = np.random.Generator
Damage = Callable[[bytes, Rng], tuple[str, bytes]]


def damage_bytes(content: bytes, rng: Rng) -> tuple[str, bytes]:
    """Return the name of a damage, and the damaged bytes."""
    kinds: dict[str, Callable[[bytearray, Rng], bytes]] = {
        "flipped bits": _flip, "cut": _cut, "inserted run": _insert, "zeroed run": _zero, "swapped blocks": _swap,
        "huge number": _huge, "emptied": lambda *_: b"", "repeated": lambda data, _: bytes(data) * 2,
    }  # fmt: skip
    weights = np.array([6, 4, 3, 3, 3, 4, 0.3, 0.7])
    name = str(rng.choice(list(kinds), p=weights / weights.sum()))
    return name, kinds[name](bytearray(content or b"\0"), rng)


def _flip(data: bytearray, rng: Rng) -> bytes:
    for place in _places(len(data), rng, int(rng.integers(1, 9))):
        data[place] ^= 1 << int(rng.integers(8))
    return bytes(data)


def _places(length: int, rng: Rng, count: int) -> list[int]:
    """Return places in a file, half of them in its head, where sizes and kinds are."""
    ends = [min(length, 64) if rng.random() < 0.5 else length for _ in range(count)]
    return [int(rng.integers(end)) for end in ends]


def _run(data: bytearray, rng: Rng) -> tuple[int, int]:
    start = _places(len(data), rng, 1)[0]
    return start, start + int(rng.integers(1, 4096))


def _cut(data: bytearray, rng: Rng) -> bytes:
    return bytes(data[: int(rng.integers(len(data)))])


def _insert(data: bytearray, rng: Rng) -> bytes:
    start, end = _run(data, rng)
    return bytes(data[:start] + rng.bytes(end - start) + data[start:])


def _zero(data: bytearray, rng: Rng) -> bytes:
    start, end = _run(data, rng)
    end = min(end, len(data))
    data[start:end] = bytes(end - start)
    return bytes(data)


def _swap(data: bytearray, rng: Rng) -> bytes:
    half = len(data) // 2
    length = int(rng.integers(1, half + 1)) if half else 0
    data[:length], data[half : half + length] = data[half : half + length], data[:length]
    return bytes(data)


def _huge(data: bytearray, rng: Rng) -> bytes:
    number = struct.pack(rng.choice(["<I", ">I", "<Q", ">Q"]), int(rng.choice([2**31 - 1, 2**32 - 1, 2**30])))
    start = _places(len(data), rng, 1)[0]
    data[start : start + len(number)] = number
    return bytes(data)


def value_places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside nested lists and dicts."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in entries:
        yield (*path, name)
        yield from value_places(one, (*path, name))


def damage_values(values: Any, rng: Rng, limit: int = 1) -> tuple[str, Any]:
    """Return what was changed, and a copy of nested values in which up to `limit` of them are odd or missing."""
    changed, names = copy.deepcopy(values), []
    for _ in range(int(rng.integers(1, limit + 1))):
        places = list(value_places(changed))
        if not places:
            return "replaced", ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]
        *path, last = places[int(rng.integers(len(places)))]
        parent = changed
        for name in path:
            parent = parent[name]
        kind = str(rng.choice(["odd", "odd", "odd", "missing", "added"]))
        odd = copy.deepcopy(ODD_VALUES[int(rng.integers(len(ODD_VALUES)))])
        if kind == "missing":
            del parent[last]
        elif kind == "added" and isinstance(parent, dict):
            parent[str(rng.choice(["auto_map", "__class__", f"{TITLE}", "x" * 10_000]))] = odd
        else:
            parent[last] = odd
        names.append(f"{kind} value at {'.'.join(str(name)[:20] for name in (*path, last))}")
    return ", ".join(names), changed


def damage_json(content: bytes, rng: Rng) -> tuple[str, bytes]:
    """Return the name of a damage, and JSON with odd values, a deep nest, or damaged bytes."""
    choice = rng.random()
    if choice < 0.15:
        return damage_bytes(content, rng)
    if choice < 0.2:
        return "deep nest", b"[" * DEEP + b"]" * DEEP
    name, values = damage_values(json.loads(content), rng, 3)
    return name, json.dumps(values).encode()


class _Payload:
    """A pickle of it calls a function that makes the canary."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, (FOREIGN,)


def damage_pickle(content: bytes, rng: Rng) -> tuple[str, bytes]:
    """Return the name of a damage, and a pickle of odd values, one that runs code, or damaged bytes."""
    choice = rng.random()
    if choice < 0.35:
        return damage_bytes(content, rng)
    if choice < 0.5:
        return "payload", pickle.dumps([_Payload()], protocol=int(rng.integers(6)))
    if choice < 0.6:
        opcodes = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
        return "random opcodes", b"\x80\x04" + b"".join(rng.choice(opcodes, size=int(rng.integers(2, 40)))) + b"."
    name, values = damage_values(pickle.loads(content), rng, 3)  # our own
    return name, pickle.dumps(values)


def damage_zip(content: bytes, rng: Rng, damage_member: Mapping[str, Damage]) -> tuple[str, bytes]:
    """Return the name of a damage, and an archive with damaged, missing, swapped or added members, or damaged bytes."""
    if rng.random() < 0.3:
        return damage_bytes(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    chosen = str(rng.choice(list(damage_member if rng.random() < 0.8 else members)))
    kind = str(rng.choice(["damaged", "damaged", "damaged", "damaged", "missing", "swapped", "outside"]))
    name = f"{kind} member {chosen}"
    if kind == "damaged":
        what, members[chosen] = damage_member.get(chosen, damage_bytes)(members[chosen], rng)
        name += f": {what}"
    elif kind == "missing":
        del members[chosen]
    elif kind == "swapped":
        other = str(rng.choice(list(members)))
        members[chosen], members[other] = members[other], members[chosen]
    else:
        members["../../escape"] = b"outside"
    return name, write_zip(members)


def write_zip(members: dict[str, bytes]) -> bytes:
    """Return an archive of members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def damage_safetensors(content: bytes, rng: Rng) -> tuple[str, bytes]:
    """Return the name of a damage, and weights with an odd head, odd numbers, or damaged bytes."""
    choice = rng.random()
    if choice < 0.4:
        return damage_bytes(content, rng)
    length = int.from_bytes(content[:8], "little")
    head, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    if choice < 0.8:
        name, head = damage_values(head, rng, 2)
        text = json.dumps(head).encode()
        return f"head: {name}", len(text).to_bytes(8, "little") + text + body
    numbers = np.frombuffer(body[: len(body) // 4 * 4], np.float32).copy()
    numbers[int(rng.integers(len(numbers)))] = rng.choice([np.nan, np.inf, -np.inf])
    return "weights that are not finite", content[: 8 + length] + numbers.tobytes()


def damage_words(words: list[str], rng: Rng) -> tuple[str, list[str]]:
    """Return the name of a damage, and the words of a command line with odd values, missing or repeated words."""
    place, odd = int(rng.integers(len(words))), ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]
    text = str(odd)[: 2**16].replace("\0", "")
    kind = str(rng.choice(["odd", "odd", "odd", "missing", "repeated", "joined", "characters"]))
    changed = list(words)
    if kind == "odd":
        changed[place] = text
    elif kind == "missing":
        del changed[place]
    elif kind == "repeated":
        changed.insert(place, words[place])
    elif kind == "joined":
        changed[place] = f"{words[place]}={text}"
    else:
        damaged = damage_bytes(words[place].encode(), rng)[1].replace(b"\0", b"?")
        changed[place] = damaged.decode(errors="surrogateescape")
    return f"{kind} word {words[place]}", changed


def write_damaged(file: Path, damage: Damage, rng: Rng) -> str:
    """Damage a file; return what was done."""
    name, content = damage(file.read_bytes(), rng)
    file.write_bytes(content)
    return f"{file.name}: {name}"
