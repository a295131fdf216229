"""What several verbs read (models, tokens, images, passages) and the flags that describe it."""

import argparse
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from curvedit import data, models
from curvedit.cli.verb import Options, require_at_least
from curvedit.evaluation import (
    Agreement,
    Divergence,
    ExtractionStrength,
    Measure,
    Passages,
    Prompts,
    Relearning,
    Rounding,
    SampledExtraction,
    Suite,
    Tasks,
    TokenRecall,
)

_OF_PASSAGES: dict[str, Callable[[Any], Measure]] = {
    "recall": TokenRecall,
    "strength": ExtractionStrength,
    "sampled": SampledExtraction,
    "prompts": Prompts,
    "rounding": Rounding,
}
_OF_TEXT: dict[str, Callable[[Any], Measure]] = {"kl": Divergence, "top1": Agreement}


def add_dtype_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--dtype``, the precision that a model is loaded in."""
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="precision to load the model in (auto: the checkpoint's own; of a .gguf file float32)",
    )


def add_loading_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that :func:`load_model` reads."""
    add_dtype_flag(parser)
    add_device_flag(parser)


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, where a model is loaded."""
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, …; by default CUDA where there is one"
    )


def load_model(path: str, options: Options, *, quantised: bool = False) -> nn.Module:
    """The model of a checkpoint directory, hub name or GGUF file; ``quantised`` if it may be."""
    where = {"dtype": options.dtype, "device": options.device}
    return models.load_model(path, **where, quantised=quantised)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that :func:`batches` reads."""
    parser.add_argument("--tokenizer", metavar="DIR", help="by default the model's own")
    parser.add_argument("--window", type=int, default=512, help="tokens per window (512)")
    parser.add_argument(
        "--batch-size", type=int, default=8, help="windows, passages or images at a time (8)"
    )
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="take N tokens, spread over the data"
    )
    parser.add_argument(
        "--data-seed", type=int, default=0, metavar="N", help="seeds that choice of documents (0)"
    )
    parser.add_argument(
        "--bos",
        default="auto",
        choices=data.BOS,
        help="begin windows and prefixes with BOS where the tokenizer adds one, or always or never",
    )
    parser.add_argument(
        "--text-field",
        default="text",
        metavar="NAME",
        help="field of .jsonl rows that holds the text (text)",
    )
    parser.add_argument(
        "--split", default="train", metavar="NAME", help="split of an hf:NAME dataset (train)"
    )
    parser.add_argument(
        "--cache", metavar="DIR", help="cache tokens here, under a hash of the files"
    )


def batches(paths: list[str], options: Options, *, name: str = "data") -> Iterable[Any]:
    """Batches of tokens from text files or a dataset, or of images from one ``.safetensors`` file.

    Args:
        paths: Files, directories or hf:NAME.
        options: With the flags of :func:`add_data_flags`.
        name: What messages call the data.

    Raises:
        ValueError: a number is out of range, or images in more than one file, or beside text.
    """
    require_at_least(options, window=2, batch_size=1, max_tokens=2)
    with _called(name):
        return _batches(paths, options)


@contextlib.contextmanager
def _called(name: str) -> Iterator[None]:
    """Call data by the name of its flag in messages."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        if name == "data" or not text.startswith("data: "):
            raise
        raise ValueError(f"{name}: {text.removeprefix('data: ')}") from error


def _batches(paths: list[str], options: Options) -> Iterable[Any]:
    if any(path.endswith(".safetensors") for path in paths):
        if len(paths) != 1:
            raise ValueError(f"data: expected one .safetensors file of images, got {paths}")
        return data.image_batches(paths[0], batch_size=options.batch_size)
    source: Any = paths[0] if len(paths) == 1 else [Path(path) for path in paths]
    return data.token_batches(
        source,
        tokenizer=load_tokenizer(options),
        window=options.window,
        batch_size=options.batch_size,
        max_tokens=options.max_tokens,
        text_field=options.text_field,
        split=options.split,
        cache=options.cache,
        bos=options.bos,
        seed=options.data_seed,
    )


def add_passage_flags(parser: argparse.ArgumentParser, what: str = "", **options: Any) -> None:
    """Add the flags that describe passages; ``what`` they are for goes into the help."""
    rows = ".jsonl rows: prefix_ids and suffix_ids, or text"
    parser.add_argument(
        "--passages", metavar="FILE", help=f"{rows}, {what}" if what else rows, **options
    )
    parser.add_argument(
        "--passages-split",
        metavar="NAME",
        help="take the rows of this split only, tune or test in a file of mine",
    )
    parser.add_argument(
        "--prefix-length",
        type=int,
        default=64,
        metavar="N",
        help="tokens of a text passage that the model is given (64)",
    )
    parser.add_argument(
        "--suffix-length",
        type=int,
        default=48,
        metavar="N",
        help="tokens of it that the model should recite (48)",
    )


def add_suite_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that :func:`suite` reads, beside those of :func:`add_data_flags`."""
    add_passage_flags(parser)
    parser.add_argument(
        "--text", nargs="+", metavar="PATH", help="held-out text, given as for fit --data"
    )
    parser.add_argument(
        "--measures",
        nargs="+",
        choices=[*_OF_PASSAGES, *_OF_TEXT, "relearning", "tasks"],
        metavar="NAME",
        help="more measures: recall, strength, sampled, prompts and rounding (to int8 and int4) of "
        "passages, kl and top1 of text, relearning of passages by training on text, and tasks made "
        "by code",
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        metavar="NAME=FILE",
        help="labelled images, each split a .safetensors file",
    )


def suite(options: Options) -> Suite:
    """What to measure a model on.

    Raises:
        ValueError: a number is out of range, a split is not spelled NAME=FILE, or there is nothing
            to measure on.
    """
    require_at_least(options, window=2, batch_size=1, max_tokens=2)
    require_at_least(options, prefix_length=1, suffix_length=1)
    has_tasks = "tasks" in (options.measures or ())
    if not has_tasks and options.passages is None and not options.text and not options.splits:
        raise ValueError("evaluate: expected --passages, --text or --splits, got none of them")
    splits = {}
    for entry in options.splits or []:
        name, separator, path = entry.partition("=")
        if not (separator and name and path):
            raise ValueError(f"splits: expected NAME=FILE, got {entry!r}")
        if name in splits:
            raise ValueError(f"splits: expected each name once, got {name!r} twice")
        with _called("splits"):
            splits[name] = data.image_batches(path, batch_size=options.batch_size)
    recited = None
    if options.passages is not None:
        recited = passages(options, options.passages, options.passages_split)
    text = None if options.text is None else batches(options.text, options, name="text")
    needs_tokenizer = recited is not None or "tasks" in (options.measures or ())
    tokenizer = load_tokenizer(options) if needs_tokenizer else None
    return Suite(
        _more_measures(options.measures or (), recited, text, tokenizer, options.bos),
        passages=recited,
        text=text,
        splits=splits,
        batch_size=options.batch_size,
        decode=None if tokenizer is None else partial(data.decoded, tokenizer),
    )


def _more_measures(
    names: Sequence[str], recited: Passages | None, text: Any, tokenizer: Any, bos: str
) -> list[Measure]:
    """The measures beside the usual ones.

    Raises:
        ValueError: one needs passages, text or a tokenizer that is not there.
    """
    found: list[Measure] = []
    for name in dict.fromkeys(names):
        if name == "tasks":
            if tokenizer is None:
                raise ValueError("measures: expected a tokenizer for 'tasks', got a model without")
            found.append(Tasks(tokenizer, bos=bos))
            continue
        if name == "relearning":
            if recited is None or text is None:
                raise ValueError(
                    "measures: expected --passages and --text for 'relearning', got no "
                    f"--{'passages' if recited is None else 'text'}"
                )
            found.append(Relearning(recited, text))
            continue
        given, flag = (recited, "passages") if name in _OF_PASSAGES else (text, "text")
        if given is None:
            raise ValueError(f"measures: expected --{flag} for {name!r}, got none")
        found.append({**_OF_PASSAGES, **_OF_TEXT}[name](given))
    return found


def passages(options: Options, path: str, split: str | None = None) -> Passages:
    """Passages from a file of JSON lines, as the flags describe them."""
    return Passages.read(
        path,
        tokenizer=load_tokenizer(options),
        bos=options.bos,
        prefix=options.prefix_length,
        suffix=options.suffix_length,
        text_field=options.text_field,
        split=split,
    )


def load_tokenizer(options: Options) -> Any:
    """The tokenizer that ``--tokenizer`` names, or the model's own; None if it has none."""
    return models.load_tokenizer(options.tokenizer or options.model)
