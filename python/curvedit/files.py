"""Directories and files that are written whole or not at all: as ``<name>.part``, then renamed."""

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from curvedit.checks import require_new_directory


@contextlib.contextmanager
def new_directory(name: str, path: str | Path, *, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield ``<path>.part`` to write into; rename it to ``path`` when the block succeeds.

    On any exception the partial directory is removed, and ``path`` is not created.

    Args:
        name: The caller's argument, for messages.
        path: The final directory; must not exist, or must be empty.
        needed_bytes: Disk space that must be free before anything is written.

    Yields:
        The directory to write into. Leftovers of an interrupted run are removed first.

    Raises:
        FileExistsError: ``path`` is not empty.
        OSError: the disk lacks space, or a write failed; the message names ``path`` and a remedy.
    """
    final = require_new_directory(name, Path(path).absolute())
    part = final.with_name(final.name + ".part")
    if part.exists():
        shutil.rmtree(part)
    final.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(final.parent).free
    if needed_bytes > free:
        raise OSError(
            f"{name}: expected {needed_bytes:,} bytes free for {final}, got {free:,}; "
            "free some space or choose another disk"
        )
    part.mkdir()
    try:
        yield part
        if final.exists():
            final.rmdir()  # empty, as checked above
        part.rename(final)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise OSError(
            error.errno,
            f"{name}: writing {final} failed ({error.strerror or error}); nothing was left there",
        ) from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Write one file under a temporary name, then rename it over ``path``."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        Path(part).replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
