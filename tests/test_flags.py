"""The command line's verbs and flags, and the YAML files that give their defaults."""

import argparse
import subprocess
import sys

import pytest

from curvedit import __version__
from curvedit.cli import build_parser, main

EVERY_VERB = """
    --config FILE
    --traceback = False (no argument)
    --json = False (no argument)
"""
DATA = """
    --tokenizer DIR
    --window as int = 512
    --batch-size as int = 8
    --max-tokens N as int
    --data-seed N as int = 0
    --bos = 'auto' of auto|always|never
    --text-field NAME = 'text'
    --split NAME = 'train'
    --cache DIR
"""
LOADING_AND_DATA = f"""
    --dtype = 'auto' of auto|float32|bfloat16|float16
    --device NAME
    {DATA}
"""
NO_PROGRESS = "--no-progress sets progress = True (no argument)"
FLAGS = {
    "plan": f"""{EVERY_VERB}
        --model DIR required
        --targets PATTERN (+) required
        --device-memory GIB as float
        --tflops RATE as float
        --no-weighted sets weighted = True (no argument)
        --window as int = 512
        --batch-size as int = 8
        --dtype = 'auto' of auto|float32|bfloat16|float16
    """,
    "fit": f"""{EVERY_VERB}
        --model DIR required
        --data PATH (+) required
        --targets PATTERN (+) required
        --out DIR required
        --labels = 'sampled' of sampled|data
        --seed as int = 0
        --positions = 'all' of all|first
        --no-weighted sets weighted = True (no argument)
        --corrected of sequence|position
        --inputs-on DEVICE
        --sums-on DEVICE
        --graph-memory GIB as float = 0.0
        --min-coverage SHARE as float = 0.0
        --snapshot-minutes M as float = 10.0
        {LOADING_AND_DATA}
        {NO_PROGRESS}
    """,
    "rank": f"""{EVERY_VERB}
        --factors DIR required
        --keep-mass RHO as float
        --keep-kl NATS as float
        --sweep FROM:TO:STEP
        --out DIR required
        --criterion = 'curvature' of curvature|weighted|ekfac|svd|random
        --scope = 'target' of target|model
        --targets PATTERN (+)
        --skip PATTERN (+)
        --model DIR
        --holdout PATH (+)
        --seed as int = 0
        {LOADING_AND_DATA}
        {NO_PROGRESS}
        one of keep_mass, keep_kl, sweep: required
    """,
    "project": f"""{EVERY_VERB}
        --model DIR required
        --selection DIR required
        --out DIR required
        --removed-scale ALPHA as float = 0.0
        {NO_PROGRESS}
    """,
    "forget": f"""{EVERY_VERB}
        --model DIR required
        --factors DIR required
        --passages FILE required
        --passages-split NAME
        --prefix-length N as int = 64
        --suffix-length N as int = 48
        --retain FILE
        --holdout PATH (+) required
        --out DIR required
        --targets PATTERN (+)
        --budget NATS as float = 0.02
        --damping D as float = 0.1
        --steps N as int = 4
        --device NAME
        {DATA}
        {NO_PROGRESS}
    """,
    "evaluate": f"""{EVERY_VERB}
        --model DIR required
        --baseline DIR
        --out DIR required
        --passages FILE
        --passages-split NAME
        --prefix-length N as int = 64
        --suffix-length N as int = 48
        --text PATH (+)
        --measures NAME (+) of recall|strength|sampled|prompts|rounding|kl|top1|relearning|tasks
        --splits NAME=FILE (+)
        {LOADING_AND_DATA}
        {NO_PROGRESS}
    """,
    "run": f"""{EVERY_VERB}
        stages CONFIG required
        --out DIR required
    """,
    "mine": f"""{EVERY_VERB}
        model MODEL required
        --corpus PATH (+) required
        --out FILE required
        --prefix-length N as int = 32
        --suffix-length N as int = 24
        --stride N as int
        --near SHARE as float = 0.75
        --seed as int = 0
        --tokenizer DIR
        --batch-size as int = 16
        --bos = 'auto' of auto|always|never
        --text-field NAME = 'text'
        --split NAME = 'train'
        --dtype = 'auto' of auto|float32|bfloat16|float16
        --device NAME
        {NO_PROGRESS}
    """,
    "convert": f"""{EVERY_VERB}
        model FILE.gguf required
        --out DIR required
        --dtype = 'float32' of float32|bfloat16|float16
        {NO_PROGRESS}
    """,
    "study": f"""{EVERY_VERB}
        --model MODEL
        --preset of real
        --out DIR required
        --passages FILE
        --data PATH (+)
        --held-out NAME=PATH (+)
        --places NAME=PATTERN (+)
        --kinds NAME (+) of curvature|weighted|svd|random|noise|targeted
        --fit-tokens N (+) as int = [8192, 24576]
        --tokens N as int = 8192
        --window as int = 128
        --batch-size as int = 8
        --lost SHARE as float = 0.3333333333333333
        --budget NATS as float = 0.02
        --damping X as float = 0.1
        --without PART (+) = [] of map|tasks|audit
        --seed as int = 0
        --tokenizer DIR
        --dtype = 'auto' of auto|float32|bfloat16|float16
        --device NAME
        {NO_PROGRESS}
        one of model, preset: required
    """,
    "demo": f"""{EVERY_VERB}
        --out DIR = 'demo'
        --device NAME
        {NO_PROGRESS}
    """,
    "merge": f"""{EVERY_VERB}
        --factors DIR (+) required
        --out DIR required
    """,
    "inspect": f"""{EVERY_VERB}
        path DIR required
    """,
    "bench": f"""{EVERY_VERB}
        --ops OP (+) of syrk_accumulate|second_moment_accumulate|staircase_project
        --models NAME (+) of olmo2-1b|olmo2-7b|llama-3.1-8b|qwen3-14b|qwen3-30b-a3b
        --d N (+) as int
        --tokens N as int
        --rounds N as int = 7
        --device NAME
        --out DIR
        --backend NAME
        --repeat N as int = 10
        --dtype = 'bfloat16' of float32|bfloat16|float16
    """,
    "doctor": f"""{EVERY_VERB}
        {NO_PROGRESS}
    """,
}


def lines(text):
    return [line.strip() for line in text.splitlines() if line.strip()]


def spelled(action):
    """One line that says everything about a flag but its help."""
    (name,) = action.option_strings or [action.dest]
    parts = [name]
    if action.option_strings and name[2:].replace("-", "_") != action.dest:
        parts.append(f"sets {action.dest}")
    parts += [action.metavar] if action.metavar else []
    parts += [f"({action.nargs})"] if isinstance(action.nargs, str) else []
    parts += ["required"] if action.required else []
    parts += [f"as {action.type.__name__}"] if action.type else []
    parts += [f"= {action.default!r}"] if action.default is not None else []
    parts += [f"of {'|'.join(action.choices)}"] if action.choices else []
    parts += ["(no argument)"] if action.nargs == 0 else []
    return " ".join(parts)


def verbs_of(parser):
    (subparsers,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return subparsers.choices


def test_verbs_and_flags():
    found = {}
    for verb, parser in verbs_of(build_parser()).items():
        flags = [action for action in parser._actions if action.dest != "help"]
        assert all(action.help for action in flags if action.dest in ("config", "out"))
        found[verb] = [spelled(action) for action in flags] + [
            f"one of {', '.join(a.dest for a in group._group_actions)}"
            + (": required" if group.required else "")
            for group in parser._mutually_exclusive_groups
        ]
    assert list(found) == list(FLAGS)  # in the order of --help
    for verb, flags in FLAGS.items():
        assert found[verb] == lines(flags), verb


def test_runs_as_a_module():
    command = [sys.executable, "-m", "curvedit"]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == f"curvedit {__version__}\n"
    refused = subprocess.run([*command, "nope"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "curvedit: error: argument VERB: invalid choice: 'nope'" in refused.stderr


def usage_error(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("word", ["--conf", "--confi=x", "--keep", "--trace"])
def test_flags_are_spelled_out(capsys, word):
    words = ["rank", "--factors", "f", "--out", "o", "--keep-mass", "1", *word.split("=")]
    assert f"unrecognized arguments: {word.split('=')[0]}" in usage_error(words, capsys)


def test_usage_errors_are_one_line(capsys):
    message = usage_error(["fit", "--window", "x"], capsys)
    assert message == (
        "curvedit fit: error: argument --window: expected an integer, got 'x'; "
        "see curvedit fit --help\n"
    )
    assert "--model, --data" in usage_error(["fit"], capsys)


def test_help_still_says_what_is_required(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["rank", "--help"])
    assert stopped.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "(--keep-mass RHO | --keep-kl NATS | --sweep FROM:TO:STEP)" in said


def test_bench_of_one_backend_names_its_kernel(capsys):
    small = ["bench", "--d", "40", "--tokens", "20", "--repeat", "1", "--device", "cpu"]
    small += ["--dtype", "float32"]
    assert main([*small, "--backend", "staircase_project=torch"]) == 0
    assert capsys.readouterr().out.startswith("staircase_project, torch, float32, 40 x 40")
    assert main([*small, "--backend", "torch,staircase_project=reference"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("syrk_accumulate, torch, float32")
    assert second.startswith("staircase_project, reference, float32")
    for text, expected in (
        ("staircase_project=opencl", "backend: expected a backend of staircase_project"),
        ("staircase_rotate=torch", "backend: expected one of the ops ['syrk_accumulate', "),
        ("nope=torch", "backend: expected one of the ops"),
    ):
        assert main([*small, "--backend", text]) == 1
        assert f"curvedit bench: error: {expected}" in capsys.readouterr().err
    only = ["--ops", "syrk_accumulate", "--backend", "staircase_project=torch"]
    assert main([*small, *only]) == 1
    assert "expected one of the ops ['syrk_accumulate'], got" in capsys.readouterr().err
