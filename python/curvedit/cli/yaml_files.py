"""Reads YAML files: small, of text as it is written, without surprises.

Numbers stay text, because a flag converts its value as it would on the command line: ``010`` is
10, ``1e-3`` a number, ``0.5:0.9:0.1`` a sweep and ``2024-01-31`` a name. Only true, false and null
are more than text.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

_MOST_BYTES = 1 << 20
_MOST_VALUES = 10_000  # with every alias written out
_KNOWN = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")


class ConfigError(ValueError):
    """A configuration file cannot be used; the message names the file, the key and the reason."""


class _Loader(yaml.SafeLoader):
    """Resolves truth values and null only, and refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [(each.tag, each.value) for each, _ in node.value]
        for number, (tag, key) in enumerate(keys):
            if (tag, key) in keys[:number] and not tag.endswith(":merge"):
                where = node.value[number][0].start_mark
                raise yaml.MarkedYAMLError(
                    problem=f"expected each key once, got {key!r} twice", problem_mark=where
                )
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _KNOWN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: str | Path, source: str) -> Any:
    """The content of a YAML file; an empty file is an empty mapping.

    Args:
        path: The file, in UTF-8, or in UTF-16 with a byte order mark.
        source: How messages name it.

    Raises:
        ConfigError: the file cannot be read, is not YAML, gives a key twice, or is too large.
    """
    try:
        with Path(path).open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{source}: expected a YAML file, got none ({reason})") from error
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{source}: expected a YAML file of at most 1 MiB, got a larger one")
    try:
        loader = _Loader(content)
        node = loader.get_single_node()
        if node is None:
            return {}
        _count(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: {_reason(error)}") from error
    except (ValueError, TypeError, AttributeError) as error:  # a tag that does not fit its value
        raise ConfigError(f"{source}: expected plain YAML, got a bad value ({error})") from error
    except RecursionError:
        raise ConfigError(
            f"{source}: expected keys and values, got content that is nested too deeply"
        ) from None


def _count(node: yaml.Node, sizes: dict[int, int]) -> int:
    """The number of values in a node, with every alias written out.

    Raises:
        yaml.YAMLError: there are too many, or a node contains itself.
    """
    if id(node) not in sizes:
        sizes[id(node)] = _MOST_VALUES + 1  # what a node that contains itself will find
        parts = [node.value] if isinstance(node.value, str) else node.value
        flat = [each for part in parts for each in (part if isinstance(part, tuple) else (part,))]
        sizes[id(node)] = 1 + sum(_count(each, sizes) for each in flat if not isinstance(each, str))
    if sizes[id(node)] > _MOST_VALUES:
        raise yaml.YAMLError(
            f"expected at most {_MOST_VALUES:,} values, got aliases that make more of them"
        )
    return sizes[id(node)]


def _reason(error: yaml.YAMLError) -> str:
    """A YAML error in one line, with its place and a remedy."""
    if isinstance(error, yaml.reader.ReaderError):
        if error.encoding == "unicode":
            return f"expected text, got an unacceptable character at position {error.position}"
        return (
            f"expected text in UTF-8, got another encoding (at byte {error.position}); "
            "save the file as UTF-8"
        )
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    text = ": ".join(part for part in (error.context, error.problem) if part)
    mark = error.problem_mark or error.context_mark
    place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    remedy = "; indent with spaces, not tabs" if "'\\t'" in text else ""
    return " ".join(f"{text}{place}{remedy}".split())
