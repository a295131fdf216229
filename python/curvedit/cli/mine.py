"""``curvedit mine``: find the passages of a corpus that a model recites."""

import argparse
import warnings
from pathlib import Path

from curvedit import data, mining
from curvedit.cli.inputs import add_loading_flags, load_model, load_tokenizer
from curvedit.cli.places import require_device
from curvedit.cli.skeleton import read_skeleton
from curvedit.cli.verb import Job, Options, Result, Verb, add_progress_flag, require_at_least
from curvedit.mining import Mined


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="checkpoint directory, hub name or .gguf file"
    )
    parser.add_argument(
        "--corpus",
        required=True,
        nargs="+",
        metavar="PATH",
        help="texts that it may recite: .txt or .jsonl files, directories of them, or hf:NAME",
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="new .jsonl file for the passages"
    )
    parser.add_argument(
        "--prefix-length", type=int, default=32, metavar="N", help="tokens given (32)"
    )
    parser.add_argument(
        "--suffix-length", type=int, default=24, metavar="N", help="tokens to recite (24)"
    )
    parser.add_argument(
        "--stride", type=int, metavar="N", help="tokens between windows (half a suffix)"
    )
    parser.add_argument(
        "--near",
        type=float,
        default=0.75,
        metavar="SHARE",
        help="least share of a suffix's tokens right (0.75)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seeds the split by source (0)")
    parser.add_argument("--tokenizer", metavar="DIR", help="by default the model's own")
    parser.add_argument("--batch-size", type=int, default=16, help="windows at a time (16)")
    parser.add_argument(
        "--bos",
        default="auto",
        choices=data.BOS,
        help="begin prefixes with BOS where the tokenizer adds one, or always or never",
    )
    parser.add_argument(
        "--text-field", default="text", metavar="NAME", help="field of .jsonl rows (text)"
    )
    parser.add_argument(
        "--split", default="train", metavar="NAME", help="split of an hf:NAME dataset (train)"
    )
    add_loading_flags(parser)
    add_progress_flag(parser)


def _prepare(options: Options) -> Job:
    require_at_least(options, prefix_length=1, suffix_length=1, stride=1, batch_size=1)
    require_device("device", options.device)
    out = Path(options.out)
    if out.exists():
        raise FileExistsError(f"out: expected a new file, got {out}, which exists")
    read_skeleton("model", options.model)
    return lambda: _mine(options, out)


def _mine(options: Options, out: Path) -> Result:
    corpus = options.corpus
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        mined = mining.mine(
            load_model(options.model, options, quantised=True),
            corpus[0] if len(corpus) == 1 else [Path(each) for each in corpus],
            out=out,
            tokenizer=load_tokenizer(options),
            prefix=options.prefix_length,
            suffix=options.suffix_length,
            stride=options.stride,
            near=options.near,
            batch_size=options.batch_size,
            bos=options.bos,
            text_field=options.text_field,
            split=options.split,
            seed=options.seed,
            progress=options.progress,
        )
    is_empty = mined.passages is None
    failure = "the model recites nothing of this corpus; no file was written" if is_empty else ""
    text = mined.summary() if is_empty else f"{mined.summary()}\npassages: {out}"
    return Result(text, _told(mined, out), failure)


def _told(mined: Mined, out: Path) -> dict[str, object]:
    found = mined.passages
    return {
        "out": None if found is None else out,
        "windows": mined.windows,
        "tokens": mined.tokens,
        "sources": mined.sources,
        "near_windows": mined.near,
        "passages": 0 if found is None else len(found),
        "exact": mined.exact,
        "tune": mined.side("tune"),
        "test": mined.side("test"),
        "seconds": mined.seconds,
    }


MINE = Verb("mine", "find the passages of a corpus that a model recites", _add_flags, _prepare)
