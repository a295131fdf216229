"""The command line's verbs and flags, and the YAML files that give their defaults."""

import argparse
import subprocess
import sys

import pytest
import yaml

from curvedit import __version__
from curvedit.cli import build_parser, main
from curvedit.cli.config import record
from curvedit.cli.program import parse

EVERY_VERB = """
    --config FILE
    --traceback = False (no argument)
"""
LOADING_AND_DATA = """
    --dtype = 'auto' of auto|float32|bfloat16|float16
    --device NAME
    --tokenizer DIR
    --window as int = 512
    --batch-size as int = 8
    --max-tokens N as int
    --text-field NAME = 'text'
    --split NAME = 'train'
    --cache DIR
"""
NO_PROGRESS = "--no-progress sets progress = True (no argument)"
FLAGS = {
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
        {LOADING_AND_DATA}
        {NO_PROGRESS}
    """,
    "rank": f"""{EVERY_VERB}
        --factors DIR required
        --keep-mass RHO as float
        --sweep FROM:TO:STEP
        --out DIR required
        --criterion = 'curvature' of curvature|weighted|ekfac|svd|random
        --scope = 'target' of target|model
        --targets PATTERN (+)
        --model DIR
        --seed as int = 0
        --dtype = 'auto' of auto|float32|bfloat16|float16
        {NO_PROGRESS}
        one of keep_mass, sweep: required
    """,
    "project": f"""{EVERY_VERB}
        --model DIR required
        --selection DIR required
        --out DIR required
        --removed-scale ALPHA as float = 0.0
    """,
    "evaluate": f"""{EVERY_VERB}
        --model DIR required
        --baseline DIR
        --out DIR required
        --passages FILE
        --prefix-length N as int = 64
        --suffix-length N as int = 48
        --text PATH (+)
        --splits NAME=FILE (+)
        {LOADING_AND_DATA}
    """,
    "run": f"""{EVERY_VERB}
        stages CONFIG required
        --out DIR required
    """,
    "demo": f"""{EVERY_VERB}
        --out DIR = 'demo'
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
        --json = False (no argument)
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


@pytest.fixture
def config(tmp_path):
    """A function that writes a file and gives the words that name it."""

    def write(content):
        path = tmp_path / "given.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return ["--config", str(path)]

    return write


FIT = {"model": "m", "data": ["a", "b"], "targets": "*.mlp.*", "out": "o"}
RANK = {"factors": "f", "out": "o"}


def test_a_file_gives_defaults_and_the_command_line_wins(config):
    given = config(FIT | {"window": 20, "seed": 3, "corrected": "sequence"})
    words = ["fit", "--window", "9", *given, "--data", "c", "--dtype", "float32"]
    options = parse(words)
    assert (options.model, options.out, options.seed) == ("m", "o", 3)
    assert (options.window, options.data, options.dtype) == (9, ["c"], "float32")
    assert options.targets == ["*.mlp.*"]  # one value of a flag that takes several
    assert options.corrected == "sequence"
    assert options.batch_size == 8  # nobody's but the flag's own


@pytest.mark.parametrize("spelling", ["--config {}", "--config={}", "--conf {}"])
def test_every_spelling_of_config_is_read(config, spelling):
    path = config(RANK | {"keep_mass": 0.5})[1]
    options = parse(["rank", *spelling.format(path).split()])
    assert (options.factors, options.keep_mass) == ("f", 0.5)


def test_values_are_converted_as_on_the_command_line(config):
    text = "factors: 2024\nkeep_mass: 5e-1\nout: 2024-01-31\nseed: '7'\ntargets: [3]\nmodel: null"
    options = parse(["rank", *config(text)])
    assert (options.factors, options.out) == ("2024", "2024-01-31")
    assert (options.keep_mass, options.seed, options.targets) == (0.5, 7, ["3"])
    assert options.model is None
    assert parse(["rank", *config(RANK | {"keep-mass": 1})]).keep_mass == 1.0


def test_switches(config):
    off = parse(["fit", *config(FIT | {"progress": False, "weighted": False})])
    assert (off.progress, off.weighted, off.traceback) == (False, False, False)
    on = parse(["fit", *config(FIT | {"progress": True, "weighted": True, "traceback": True})])
    assert (on.progress, on.weighted, on.traceback) == (True, True, True)
    assert not parse(["fit", *config(FIT | {"progress": True}), "--no-progress"]).progress
    assert parse(["doctor", *config({"json": True})]).json


def test_flags_that_exclude_each_other(config):
    for name, value, other in (("keep_mass", 0.5, "sweep"), ("sweep", "0.1:0.9:0.1", "keep_mass")):
        words = ["rank", *config(RANK | {name: value})]
        assert getattr(parse(words), name) == value
        won = parse([*words, "--keep-mass" if other == "keep_mass" else "--sweep", "0.25"])
        assert getattr(won, name) is None
        assert float(getattr(won, other)) == 0.25
    words = ["rank", *config(RANK | {"keep_mass": 0.5}), "--keep-mass", "0.25"]
    assert (parse(words).keep_mass, parse(words).sweep) == (0.25, None)


REFUSED = {
    "unknown key": (FIT | {"windwo": 3}, "expected keys among ['batch_size', ", "got 'windwo'"),
    "the switch's flag": (FIT | {"no_progress": True}, "'progress'", "got 'no_progress'"),
    "key that is no text": (FIT | {3: 4}, "expected keys among", "got 3"),
    "nested file": (FIT | {"config": "other.yaml"}, "expected keys among", "got 'config'"),
    "other verb": (FIT | {"verb": "rank"}, "verb: expected 'fit'", "got 'rank'"),
    "text for an integer": (FIT | {"window": "x"}, "window: expected an integer", "got 'x'"),
    "fraction for an integer": (FIT | {"window": 20.5}, "expected an integer", "got 20.5"),
    "truth for an integer": (FIT | {"seed": True}, "seed: expected an integer", "got True"),
    "list for an integer": (FIT | {"seed": [1]}, "seed: expected an integer", "got [1]"),
    "truth for text": (FIT | {"out": True}, "out: expected text", "got True"),
    "mapping for text": (FIT | {"model": {}}, "model: expected text", "got {}"),
    "mapping in a list": (FIT | {"data": ["a", {}]}, "data: expected text", "got {}"),
    "null in a list": (FIT | {"data": [None]}, "data: expected text", "got None"),
    "empty list": (FIT | {"data": []}, "data: expected at least one value", "got []"),
    "text for a switch": (FIT | {"progress": "no"}, "progress: expected true or false", "'no'"),
    "other choice": (FIT | {"dtype": "int8"}, "dtype: expected one of ['auto',", "got 'int8'"),
    "no mapping": ([1], "expected keys and values", "got list"),
    "no YAML": ("a: [", "while parsing", "given.yaml"),
    "no text": ("\x00", "unacceptable character", "given.yaml"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_a_file(config, capsys, case):
    content, expected, got = REFUSED[case]
    words = config(content)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *words])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    for part in (f"curvedit: error: --config {words[1]}: ", expected, got):
        assert part in message


def test_refuses_two_flags_that_exclude_each_other(config, capsys):
    words = config(RANK | {"keep_mass": 0.5, "sweep": "0.1:0.9:0.1"})
    with pytest.raises(SystemExit) as stopped:
        main(["rank", *words])
    assert stopped.value.code == 2
    assert "expected only one of ['keep_mass', 'sweep'], got [" in capsys.readouterr().err


def test_a_flag_missing_from_file_and_command_line(config, capsys):
    for verb, content, missing in (
        ("fit", FIT | {"model": None}, "required: --model"),
        ("rank", RANK, "--keep-mass --sweep is required"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([verb, *config(content)])
        assert stopped.value.code == 2
        assert missing in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "fit --model m --data a b --targets *.mlp.* --out o --no-progress --no-weighted --seed 7",
        "fit --model m --data a --targets x --out o --corrected position --max-tokens 9",
        "rank --factors f --sweep 0.5:0.9:0.1 --out o --targets a b --criterion svd --model m",
        "rank --factors f --keep-mass 1e-3 --out o --scope model",
        "project --model m --selection s --out 12 --removed-scale 0.25",
        "evaluate --model m --out o --splits a=b c=d --text x --passages p --prefix-length 3",
        "merge --factors a b --out o",
    ],
)
def test_a_record_replays(tmp_path, words):
    options = parse(words.split())
    record(options, tmp_path)
    replayed = parse([options.verb, "--config", str(tmp_path / "config.yaml")])
    assert vars(replayed) | {"config": None} == vars(options)


def test_a_record_of_version_0_1_replays(config):
    text = """\
        {verb: fit, model: m, data: [a.jsonl], targets: ['*.mlp.*'], out: o, labels: sampled,
         seed: 0, positions: all, weighted: true, dtype: auto, window: 20, batch_size: 4,
         text_field: text, split: train, progress: false}"""
    options = parse(["fit", *config(text), "--out", "again"])
    assert (options.data, options.window, options.out) == (["a.jsonl"], 20, "again")
    assert (options.weighted, options.progress) == (True, False)


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
