"""Directories and files that are written whole or not at all, by one writer at a time.

What is written goes beside its destination first, under a name with a random part, and is renamed
when it is complete and on the disk. Such names begin with ``.NAME.curvedit-``. A directory's
destination is locked by ``.NAME.curvedit-lock``, which names what its writer makes; the next writer
finds the lock of one that was killed and removes what that one left.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from curvedit.checks import require_new_directory
from curvedit.meter import beat

try:
    import fcntl
except ModuleNotFoundError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

_HEAD = "curvedit writes "  # how the content of a lock begins; a directory's name follows
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL
_OLD = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)


@contextlib.contextmanager
def new_directory(name: str, path: str | Path, *, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield a directory beside ``path`` to write into; rename it when the block succeeds.

    On any exception it is removed, and ``path`` is not created. What a killed writer to ``path``
    left behind is removed first.

    Args:
        name: The caller's argument, for messages.
        path: The final directory; must not exist, or must be empty.
        needed_bytes: Disk space that must be free before anything is written.

    Yields:
        The directory to write into.

    Raises:
        FileExistsError: ``path`` is not empty, or another process is writing it.
        OSError: the place cannot be written, the disk lacks space, or a write failed; the message
            names ``path`` and a remedy.
    """
    final = Path(os.path.realpath(require_new_directory(name, Path(path))))
    missing = [parent for parent in final.parents if not parent.exists()]
    try:
        with _reporting(name, final):
            final.parent.mkdir(parents=True, exist_ok=True)
        with _locked(name, final) as part:
            free = shutil.disk_usage(final.parent).free
            if needed_bytes > free:
                raise OSError(
                    f"{name}: expected {needed_bytes:,} bytes free for {final}, got {free:,}; "
                    "free some space or choose another disk"
                )
            with _reporting(name, final):
                part.mkdir()
                yield part
                _sync_tree(part)
            require_new_directory(name, final)
            with _reporting(name, final):
                _move(part, final)
    except BaseException:
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Write one file under a name of its own, then rename it over ``path``."""
    with new_file(path) as part:
        part.write_bytes(content)


@contextlib.contextmanager
def new_file(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield the path of a file to write; rename it over ``path`` at the end.

    On any exception it is removed, and ``path`` stays as it was. Writers of one file wait for each
    other.

    Args:
        path: The final file.
        replace: Whether to replace a file that is there by then; if not, the new one is dropped.

    Raises:
        FileExistsError: another writer did not end within a minute.
    """
    with _locked(str(path), path, patience=60.0) as part:
        part.mkdir()  # safetensors puts a file of its own beside the one it writes
        yield part / "file"
        if replace or not path.exists():
            _sync(part / "file")
            (part / "file").replace(path)
            _sync(path.parent)


@contextlib.contextmanager
def held_file(name: str, path: Path) -> Iterator[Path]:
    """Yield the path of a new file to write, and hold its destination until the block ends.

    Unlike :func:`new_file` for long work: other writers are refused at once, and so is a file that
    is there already. A block that writes nothing leaves nothing.

    Args:
        name: The caller's argument, for messages.
        path: The final file; its parents are made.

    Raises:
        FileExistsError: the file exists, or another process holds it.
        OSError: the place cannot be written.
    """
    if path.exists() or path.is_symlink():
        raise FileExistsError(
            f"{name}: expected a new file, got {path}, which exists; choose another path or "
            "remove it"
        )
    with _reporting(name, path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(name, path) as part:
        part.mkdir()
        yield part / "file"
        if (part / "file").exists():
            _sync(part / "file")
            (part / "file").replace(path)
            _sync(path.parent)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            beat()
    return digest.hexdigest()


def document_hash(document: Any) -> str:
    """Return the SHA-256 of a JSON document, in hex; its layout and the order of keys are free."""
    plain = json.loads(json.dumps(document))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _reporting(name: str, final: Path) -> Iterator[None]:
    """Say of a failed write which argument it belongs to, and that nothing is left."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = error.errno if isinstance(error, OSError) else None
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise OSError(
            code if code is not None else errno.EIO,
            f"{name}: writing {final} failed ({reason}); nothing was left there",
        ) from error


def _prefix(path: Path) -> str:
    """Return how the names of files and directories begin that become ``path``."""
    name = path.name
    if len(os.fsencode(name)) > 200:  # names are at most 255 bytes long
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return f".{name}.curvedit-"


@contextlib.contextmanager
def _locked(name: str, final: Path, *, patience: float = 0.0) -> Iterator[Path]:
    """Hold the lock of a destination; yield the path, still free, of what is to become it."""
    lock = final.with_name(_prefix(final) + "lock")
    descriptor = _acquire(name, final, lock, patience)
    part = final.with_name(_prefix(final) + secrets.token_hex(8))
    try:
        with _reporting(name, final):
            _remove_leftover(descriptor, lock)
            os.truncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, os.fsencode(_HEAD + part.name))
        yield part
    finally:
        _remove(part)
        if fcntl is None:  # where open files cannot be removed, and the lock's existence counts
            os.close(descriptor)
        with contextlib.suppress(OSError):
            lock.unlink()
        if fcntl is not None:
            os.close(descriptor)


def _acquire(name: str, final: Path, lock: Path, patience: float) -> int:
    """Return the descriptor of the destination's lock file, locked, after seconds of patience.

    Raises:
        FileExistsError: another writer has it.
    """
    end = time.monotonic() + patience
    while True:
        opened = _open_lock(lock)
        if opened is None:  # its writer has just finished
            continue
        descriptor, is_new = opened
        held = _flock(descriptor)
        if held or (held is None and is_new):
            if _is_same_file(descriptor, lock):
                return descriptor
            os.close(descriptor)
            continue
        os.close(descriptor)
        if time.monotonic() >= end:
            raise FileExistsError(
                f"{name}: expected a place that no other process is writing, got {final}; "
                f"wait for it or choose another path (if none is running, delete {lock})"
            )
        time.sleep(0.02)


def _open_lock(lock: Path) -> tuple[int, bool] | None:
    """Return a lock file's descriptor and whether it is new; None if it has just been removed."""
    try:
        return os.open(lock, _NEW, 0o644), True
    except FileExistsError:
        try:
            return os.open(lock, _OLD), False
        except FileNotFoundError:
            return None


def _flock(descriptor: int) -> bool | None:
    """Lock an open file; return whether that succeeded, or None if there are no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EACCES) else None
    return True


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _remove_leftover(descriptor: int, lock: Path) -> None:
    """Remove what the lock of a killed writer names.

    Raises:
        FileExistsError: the file is not a lock of ours.
    """
    content = os.fsdecode(os.read(descriptor, 4096))
    left = content.removeprefix(_HEAD)
    if content and not (content.startswith(_HEAD) and left.startswith(lock.name[:-4])):
        raise FileExistsError(f"{lock} is not a lock of curvedit's; move it away")
    if left and os.sep not in left:
        _remove(lock.with_name(left))


def _remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file or directory is on the disk."""
    if os.name == "nt":  # opens no directories, and syncs no files that are open for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(directory: Path) -> None:
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            _sync(Path(folder) / name)
            beat()
        _sync(Path(folder))


def _move(part: Path, final: Path) -> None:
    """Rename a directory to one that is absent or empty, in one step where the system can."""
    if os.name == "nt" and final.exists():
        final.rmdir()
    part.rename(final)
    _sync(final.parent)
