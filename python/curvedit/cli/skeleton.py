"""What can be known of a model before it is loaded: its configuration, and its modules' names."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from curvedit.cli.errors import first_line
from curvedit.data import Passages, TokenBatches
from curvedit.evaluation import Suite
from curvedit.models import is_gguf, model_class, require_fits


class Skeleton:
    """A model's configuration and, where it can be built without memory, its modules."""

    def __init__(self, config: Any, modules: nn.Module | None) -> None:
        """Hold both; the modules' weights have shapes but no values."""
        self.config, self.modules = config, modules

    def require_fits(self, name: str, longest: int, largest: int) -> None:
        """Refuse token sequences for which the model lacks positions or embeddings.

        Raises:
            ValueError: a sequence is longer than the model's context, or an id is outside its
                vocabulary.
        """
        require_fits(name, cast(nn.Module, self), longest, largest)  # which reads the config


def read_skeleton(name: str, path: str, *, modules: bool = False) -> Skeleton:
    """Read the configuration of a checkpoint directory, hub name or GGUF file.

    Args:
        name: The caller's argument, for messages.
        path: The directory, hub name or file.
        modules: Build the modules too, on the meta device.

    Raises:
        FileNotFoundError: there is no configuration.
        ValueError: the configuration is not usable.
        ModuleNotFoundError: transformers is not installed; or, for a GGUF file, gguf or accelerate.
    """
    if is_gguf(path):
        architecture, config = model_class(path, name)
        _quiet()
        return Skeleton(config, _built(architecture, config) if modules else None)
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name}: loading a checkpoint directory needs transformers; pip install 'curvedit[hf]'"
        ) from error
    _quiet()
    place = Path(path)
    looks_local = place.exists() or place.is_absolute() or path.startswith((".", "~"))
    if (looks_local or path.count("/") > 1) and not (place / "config.json").is_file():
        hint = ""
        if (place / "adapter_config.json").is_file():
            hint = (
                ", an adapter alone; merge it into its base (merge_and_unload of peft) and save "
                "that, or load both in Python"
            )
        raise FileNotFoundError(
            f"{name}: expected a checkpoint directory with config.json, got {path}{hint}"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{name}: expected a checkpoint directory with config.json, or the name of one on the "
            f"hub that can be reached, got {path} ({first_line(error)})"
        ) from error
    names = getattr(config, "architectures", None) or []
    architecture = getattr(transformers, names[0], None) if names else None
    return Skeleton(config, _built(architecture, config) if modules else None)


def _quiet() -> None:
    import transformers

    if not sys.stderr.isatty():  # where its bars would fill a log
        transformers.utils.logging.disable_progress_bar()


def _built(architecture: Any, config: Any) -> nn.Module | None:
    """The modules of a class that a configuration names; None if they need real memory."""
    if architecture is None:
        return None  # loading says what is wrong
    try:
        with torch.device("meta"):
            built: nn.Module = architecture(config)
    except Exception:  # noqa: BLE001 - a class that cannot be built this way is checked when loaded
        return None
    return built


def require_untied(modules: nn.Module, targets: Iterable[str]) -> None:
    """Refuse targets whose weight is another parameter too, which an edit would change with it.

    Raises:
        ValueError: a target is tied.
    """
    owners: dict[int, list[str]] = {}
    for name, parameter in modules.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for names in owners.values():
        tied = sorted({name.removesuffix(".weight") for name in names} & set(targets))
        if tied and len(names) > 1:
            raise ValueError(
                f"targets: {tied[0]!r} is tied, {' and '.join(names)} are one tensor, so project "
                "would change both; leave it out"
            )


def require_data_fits(name: str, skeleton: Skeleton, batches: Any) -> None:
    """Refuse windows of tokens that do not fit the model.

    Raises:
        ValueError: as :meth:`Skeleton.require_fits`.
    """
    if isinstance(batches, TokenBatches):
        skeleton.require_fits(name, batches.longest, batches.largest)


def require_passages_fit(skeleton: Skeleton, passages: Passages, name: str) -> None:
    """Refuse passages that do not fit the model.

    Raises:
        ValueError: as :meth:`Skeleton.require_fits`.
    """
    rows = [(*prefix, *suffix) for prefix, suffix in passages.rows()]
    skeleton.require_fits(name, max(map(len, rows)), max(map(max, rows)))


def require_suite_fits(skeleton: Skeleton, suite: Suite) -> None:
    """Refuse passages and texts that do not fit the model.

    Raises:
        ValueError: as :meth:`Skeleton.require_fits`.
    """
    if suite.passages is not None:
        require_passages_fit(skeleton, suite.passages, "passages")
    require_data_fits("text", skeleton, suite.text)
