"""What a person reads when a verb stops: one line, with the reason and what to do."""

import json

import torch
from safetensors import SafetensorError

_MOST = 1000  # characters
# The package's own refusals, and what libraries raise for a user's mistake.
_KNOWN = (
    *(ValueError, TypeError, KeyError, RuntimeError, OSError, ImportError),
    *(MemoryError, SafetensorError),
)
_ADDRESS = "https://github.com/curvedit/curvedit/issues"
_MEMORY = "use a smaller --batch-size or --window, fewer --targets, or --dtype bfloat16"


def explain(error: BaseException) -> str:
    """One line that says what went wrong; the first line of a longer message."""
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"out of memory on the GPU ({first_line(error)}); {_MEMORY}, or let the sums of a fit "
            "wait on the host with --sums-on cpu; curvedit plan counts what a fit takes"
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return f"out of memory ({first_line(error)}); {_MEMORY}"
    if not isinstance(error, _KNOWN):
        return (
            f"unexpected {type(error).__name__}: {first_line(error)}; run again with --traceback "
            f"and report it at {_ADDRESS}"
        )
    if isinstance(error, SafetensorError):
        return f"a safetensors file is damaged ({first_line(error)}); write or download it again"
    line = first_line(error)
    return line if line == _text(error) else f"{line} (--traceback shows more)"


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its type if it has none."""
    lines = [line.strip() for line in _text(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[0] if len(lines[0]) <= _MOST else lines[0][: _MOST - 1] + "…"


def _text(error: BaseException) -> str:
    """An error's message, without the decoration of its type."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, OSError) and error.strerror:
        named = f"{error.filename}: " if error.filename is not None else ""
        return f"{named}{error.strerror}"
    if isinstance(error, UnicodeDecodeError):
        return f"expected text in UTF-8, got another encoding ({error}); save the file as UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return f"expected JSON, got something else ({error})"
    return str(error).strip()
