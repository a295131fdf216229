"""Seeded damage to files: bytes, JSON documents, and the headers of safetensors files."""

import json
import random

JUNK = (
    *(None, True, -1, 0, 7, 1 << 70, 0.5, -1e308, float("nan"), float("inf"), "", "x", "../x"),
    *([], [0], {}, {"a": 1}, [[]] * 3, "\ud800", "0" * 64),
)


def of_bytes(content: bytes, random: random.Random) -> bytes:
    """One of: a flipped bit, a cut, a tail, a blank, a repeated, dropped or shuffled piece."""
    start = random.randrange(len(content) + 1)
    stop = min(len(content), start + random.choice((1, 2, 8, 64)))
    piece = content[start:stop]
    kind = random.randrange(8)
    if kind <= 1 and piece:
        flipped = piece[0] ^ (1 << random.randrange(8))
        return content[:start] + bytes([flipped]) + content[start + 1 :]
    if kind == 2:
        return content[:start]
    if kind == 3:
        return content + random.randbytes(random.choice((1, 8, 100)))
    if kind == 4:
        return content[:start] + bytes(len(piece)) + content[stop:]
    if kind == 5:
        return content[:start] + piece + content[start:]
    if kind == 6:
        return content[:start] + content[stop:]
    return content[:start] + random.randbytes(len(piece)) + content[stop:]


def of_document(document: object, random: random.Random) -> object:
    """A JSON document with one value replaced, removed, renamed or put at another's place."""
    document = json.loads(json.dumps(document))
    places: list[tuple[object, object]] = []

    def visit(value: object) -> None:
        pairs = (
            value.items()
            if isinstance(value, dict)
            else enumerate(value)
            if isinstance(value, list)
            else ()
        )
        for key, each in pairs:
            places.append((value, key))
            visit(each)

    visit(document)
    if not places or random.random() < 0.02:
        return random.choice(JUNK)
    owner, key = random.choice(places)
    kind = random.randrange(6)
    if kind == 0:
        del owner[key]
    elif kind == 1 and isinstance(owner, dict):
        owner[f"{key}x"] = owner.pop(key)
    elif kind == 2:
        other, place = random.choice(places)
        owner[key] = json.loads(json.dumps(other[place]))
    elif kind == 3 and type(owner[key]) in (int, float):
        owner[key] = owner[key] + random.choice((1, -1, 0.5, 1 << 40))
    else:
        owner[key] = random.choice(JUNK)
    return document


def of_json(content: bytes, random: random.Random) -> bytes:
    """A damaged JSON file."""
    if random.random() < 0.5:
        return of_bytes(content, random)
    if random.random() < 0.03:
        return random.choice(
            (b"[" * 100_000, b'{"a":' * 100_000, b"", b"\xff\xfe{}", b"9" * 10_000)
        )
    return json.dumps(of_document(json.loads(content), random)).encode("utf-8", "replace")


def of_safetensors(content: bytes, random: random.Random) -> bytes:
    """A damaged safetensors file."""
    if random.random() < 0.5:
        return of_bytes(content, random)
    length = int.from_bytes(content[:8], "little")
    header, body = content[8 : 8 + length], content[8 + length :]
    if random.random() < 0.5:
        header = of_bytes(header, random)
    else:
        header = json.dumps(of_document(json.loads(header), random)).encode("utf-8", "replace")
    return len(header).to_bytes(8, "little") + header + body


def of_lines(content: bytes, random: random.Random) -> bytes:
    """Damaged JSON lines."""
    lines = content.split(b"\n")
    place = random.randrange(len(lines))
    lines[place] = of_json(lines[place], random) if lines[place] else b"[]"
    return b"\n".join(lines)
