"""Documents: text or exact token ids, read from files and rows and checked where they enter."""

import json
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

Ids = np.ndarray[Any, np.dtype[np.int32]]
Document = str | Ids  # text to tokenise, or ids that are taken as they are

LARGEST_ID = 2**31 - 1
_READ_KEYS = ("input_ids", "prefix_ids", "suffix_ids")
_UTF8_MARK = b"\xef\xbb\xbf"


def file_documents(files: list[Path], text_field: str) -> Iterator[Document]:
    """The documents of ``.txt`` files, one each, and of ``.jsonl`` files, one per line."""
    for path in files:
        if path.suffix == ".txt":
            yield plain_text(path.read_bytes(), path)
            continue
        for number, row in json_rows("data", path, text_field):
            yield row_document(row, text_field, f"{path}:{number}")


def json_rows(name: str, path: Path, text_field: str) -> Iterator[tuple[int, Any]]:
    """Line number and JSON value of each line of a file that is not blank.

    Raises:
        ValueError: a line is not UTF-8 or not JSON, or names a key twice that is read.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.removeprefix(_UTF8_MARK).strip():
                yield number, json_row(name, f"{path}:{number}", line, text_field)


def json_row(name: str, where: str, line: bytes, text_field: str) -> Any:
    """The JSON value of one line."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = [key for key in (*_READ_KEYS, text_field) if keys.count(key) > 1]
            if twice:
                raise ValueError(f"the key {twice[0]!r} is there twice")
        return row

    text = decoded(line.removeprefix(_UTF8_MARK), name, where)
    try:
        return json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError(f"{name}: {where} is not JSON (nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"{name}: {where} is not JSON ({error})") from error


def decoded(raw: bytes, name: str, where: str) -> str:
    """UTF-8 text.

    Raises:
        ValueError: the bytes are of another encoding.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name}: expected UTF-8 text in {where}, got the byte 0x{raw[error.start]:02x}; "
            "save the file as UTF-8"
        ) from None


def plain_text(raw: bytes, path: Path, line: int = 1) -> str:
    """The text of a ``.txt`` file, or of a part of it from ``line`` on; line ends become LF.

    Raises:
        ValueError: it is not UTF-8, or holds NUL, as binary files and UTF-16 do.
    """
    raw = raw.removeprefix(_UTF8_MARK)
    for number, part in enumerate(raw.split(b"\n") if _is_odd(raw) else (), line):
        where = f"{path}:{number}"
        decoded(part, "data", where)
        if b"\0" in part:
            raise ValueError(
                f"data: expected text in {where}, got a NUL byte; is it a binary file, or UTF-16?"
            )
    return raw.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def row_document(row: Any, text_field: str, where: str) -> Document:
    """The document of a row: its ``input_ids``, or else the text in its ``text_field``.

    Raises:
        ValueError: it has neither, or ids that are none.
    """
    if isinstance(row, Mapping):
        if isinstance(row.get(text_field), str) and row.get("input_ids") is None:
            return checked_text(row[text_field], "data", where)
        if "input_ids" in row:
            return checked_ids(row["input_ids"], "data", where)
    got = sorted(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
    raise ValueError(
        f"data: expected a text field {text_field!r} or input_ids in {where}, got {got}"
    )


def given_document(given: Any, text_field: str, number: int) -> Document:
    """The document of something given in Python: text, ids, or a row that holds either.

    Raises:
        ValueError: it is none of them.
    """
    where = f"document {number}"
    if isinstance(given, str):
        return checked_text(given, "data", where)
    if isinstance(given, Mapping):
        return row_document(given, text_field, where)
    return checked_ids(given, "data", where)


def checked_text(text: str, name: str, where: str) -> str:
    """Text that a tokenizer can read.

    Raises:
        ValueError: it holds half a surrogate pair, which JSON can spell and UTF-8 cannot.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: expected Unicode text in {where}, got the lone surrogate "
            f"{text[error.start]!r} at character {error.start}"
        ) from None
    return text


def checked_ids(values: Any, name: str, where: str) -> Ids:
    """Token ids as an array (n,).

    Raises:
        ValueError: not a flat list of integers from 0 to 2147483647.
    """
    given = values.tolist() if hasattr(values, "tolist") else values
    expected = f"{name}: expected token ids, integers from 0 to {LARGEST_ID}, in {where}, got"
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        raise ValueError(f"{expected} {given!r:.60}")
    plain = set(map(type, given)) <= {int} and (
        not given or (min(given) >= 0 and max(given) <= LARGEST_ID)
    )
    for position, value in enumerate(() if plain else given):
        is_whole = type(value) is int or (
            isinstance(value, Integral) and not isinstance(value, bool)
        )
        if not is_whole or not 0 <= value <= LARGEST_ID:
            raise ValueError(f"{expected} {_short(value)} at position {position}")
    return np.asarray(given, dtype=np.int32)


def _short(value: Any) -> str:
    if isinstance(value, int) and abs(value) > 1 << 64:
        return f"an integer of {value.bit_length()} bits"  # too long to spell
    return f"{value!r:.60}"


def _is_odd(raw: bytes) -> bool:
    """Whether a part has bytes that text does not have; a fast look at the whole."""
    if b"\0" in raw:
        return True
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False
