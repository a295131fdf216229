"""Reads the JSON documents that say how they hash: ``curvedit.json`` and ``report.json``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curvedit.files import document_hash


def with_hash(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with its SHA-256 in it, as :func:`read_document` checks it."""
    return {**document, "sha256": document_hash(document)}


def read_document(name: str, path: Path, remedy: str) -> Any:
    """Read a JSON document; the ``sha256`` of an object, if it has one, is checked and removed.

    Args:
        name: The argument, for messages.
        path: The file.
        remedy: What to do about a damaged one, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or was changed since it was written.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        stored = document.pop("sha256", None) if isinstance(document, dict) else None
        is_as_written = stored is None or stored == document_hash(document)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: expected JSON, got {path} ({error}); {remedy}") from error
    if not is_as_written:
        raise ValueError(
            f"{name}: {path} is damaged or was changed (its content differs from its SHA-256); "
            f"{remedy}"
        )
    return document


def read_record(path: str | Path) -> dict[str, Any]:
    """Read the ``curvedit.json`` of an edited checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    document: dict[str, Any] = read_document("model", Path(path), "project again")
    if not _is_record(document):
        raise ValueError(f"model: expected the record of an edit, got {path}; project again")
    return document


def _is_record(document: Any) -> bool:
    if not isinstance(document, dict):
        return False
    recipe, targets = document.get("recipe"), document.get("targets")
    return (
        isinstance(recipe, dict)
        and isinstance(targets, dict)
        and all(isinstance(entry, dict) for entry in targets.values())
    )
