"""YAML files that give the flags' defaults."""

import argparse

import pytest
import yaml

from curvedit.cli import build_parser, main
from curvedit.cli.config import record
from curvedit.cli.program import parse


@pytest.fixture
def config(tmp_path):
    """A function that writes a file and gives the words that name it."""

    def write(content):
        path = tmp_path / "given.yaml"
        if not isinstance(content, bytes):
            content = (content if isinstance(content, str) else yaml.safe_dump(content)).encode()
        path.write_bytes(content)
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


@pytest.mark.parametrize("spelling", ["--config {}", "--config={}"])
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


def test_text_is_read_as_it_is_written(config):
    """As the command line would, not as YAML 1.1 reads numbers, times and dates."""
    text = "factors: 1_0\nkeep_mass: 1e-3\nout: 1:30\nseed: 010\ntargets: [0x1, 1.50]"
    options = parse(["rank", *config(text)])
    assert (options.factors, options.out, options.targets) == ("1_0", "1:30", ["0x1", "1.50"])
    assert (options.keep_mass, options.seed) == (0.001, 10)
    for spelled, value in (
        ("inf", float("inf")),
        (".5", 0.5),
        ("'0.5'", 0.5),
        ("!!float 0.5", 0.5),
    ):
        given = config(f"factors: f\nout: o\nkeep_mass: {spelled}")
        assert parse(["rank", *given]).keep_mass == value


def test_encodings(config):
    text = "model: café\ndata: d\ntargets: x\nout: o"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        assert parse(["fit", *config(text.encode(encoding))]).model == "café"


def test_anchors_and_merged_keys(config):
    text = "data: &d [a, b]\ntargets: *d\nmodel: m\nout: o\n<<: {seed: 3, model: other}"
    options = parse(["fit", *config(text)])
    assert (options.data, options.targets, options.model) == (["a", "b"], ["a", "b"], "m")
    assert options.seed == 3


def verbs():
    (parts,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return parts.choices


def test_every_switch_can_stand_in_a_file(config):
    for verb, parser in verbs().items():
        switches = [a for a in parser._actions if a.nargs == 0 and a.dest != "help"]
        needed = {a.dest: "x" for a in parser._actions if a.required} | {
            group._group_actions[0].dest: 0.5
            for group in parser._mutually_exclusive_groups
            if group.required
        }
        for switch in switches:
            for value in (True, False):
                options = parse([verb, *config(needed | {switch.dest: value})])
                assert getattr(options, switch.dest) is value, (verb, switch.dest)


def test_positional_arguments_can_stand_in_a_file(config):
    assert parse(["inspect", *config({"path": "here"})]).path == "here"
    assert parse(["inspect", "there", *config({"path": "here"})]).path == "there"
    options = parse(["run", *config({"stages": "run.yaml", "out": "o"})])
    assert (options.stages, options.out) == ("run.yaml", "o")


def usage_error(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_config_is_found_where_the_parser_finds_it(config, capsys, tmp_path):
    words = config(RANK | {"keep_mass": 0.5})
    other = tmp_path / "other.yaml"
    other.write_text("keep_mass: 0.25\nfactors: g\nout: p")
    assert parse(["rank", *words, f"--config={other}"]).keep_mass == 0.25  # the last one counts
    assert parse(["inspect", "--", "--config"]).path == "--config"
    assert parse(["rank", *words, "--out=--config"]).out == "--config"
    assert "--config: expected after the verb" in usage_error([*words, "rank"], capsys)
    assert "--out: expected one argument" in usage_error(["rank", "--out", *words], capsys)
    assert "--config: expected one argument" in usage_error(["rank", "--config"], capsys)


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
    "key that is no text": (FIT | {3: 4}, "expected keys among", "got '3'"),
    "nested file": (FIT | {"config": "other.yaml"}, "expected keys among", "got 'config'"),
    "other verb": (FIT | {"verb": "rank"}, "verb: expected 'fit'", "got 'rank'"),
    "text for an integer": (FIT | {"window": "x"}, "window: expected an integer", "got 'x'"),
    "fraction for an integer": (FIT | {"window": 20.5}, "expected an integer", "got '20.5'"),
    "truth for an integer": (FIT | {"seed": True}, "seed: expected an integer", "got True"),
    "list for an integer": (FIT | {"seed": [1]}, "seed: expected an integer", "got ['1']"),
    "truth for text": (FIT | {"out": True}, "out: expected text", "got True"),
    "mapping for text": (FIT | {"model": {}}, "model: expected text", "got {}"),
    "mapping in a list": (FIT | {"data": ["a", {}]}, "data: expected text", "got {}"),
    "null in a list": (FIT | {"data": [None]}, "data: expected text", "got None"),
    "empty list": (FIT | {"data": []}, "data: expected at least one value", "got []"),
    "text for a switch": (FIT | {"progress": "no"}, "progress: expected true or false", "'no'"),
    "other choice": (FIT | {"dtype": "int8"}, "dtype: expected one of ['auto',", "got 'int8'"),
    "one key twice": ("seed: 1\nseed: 2", "expected each key once", "got 'seed' twice in line 2"),
    "tabs": ("seed:\n\t- 1", "cannot start any token in line 2", "spaces, not tabs"),
    "two documents": ("seed: 1\n---\nseed: 2", "expected a single document", "line 2"),
    "a tag": ("seed: !!python/name:os.system", "could not determine a constructor", "line 1"),
    "deep": ("[" * 5000, "expected keys and values", "nested too deeply"),
    "unknown anchor": ("seed: *nothing", "undefined alias 'nothing'", "line 1"),
    "a loop": ("model: &a [*a]", "expected at most 10,000 values", "aliases"),
    "a bomb": (
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(
            f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n"
            for a, b in zip("abcdef", "bcdefg", strict=True)
        ),
        "expected at most 10,000 values",
        "aliases",
    ),
    "latin-1": ("model: caf\xe9".encode("latin-1"), "expected text in UTF-8", "save the file as"),
    "large": ("#" * (1 << 20) + "\n", "at most 1 MiB", "got a larger one"),
    "octal": (FIT | {"window": "0o17"}, "window: expected an integer", "got '0o17'"),
    "hexadecimal": ("window: 0x10", "window: expected an integer", "got '0x10'"),
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
    for part in (f"curvedit fit: error: --config {words[1]}: ", expected, got):
        assert part in message


def test_refuses_two_flags_that_exclude_each_other(config, capsys):
    words = config(RANK | {"keep_mass": 0.5, "sweep": "0.1:0.9:0.1"})
    with pytest.raises(SystemExit) as stopped:
        main(["rank", *words])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "expected only one of ['keep_mass', 'keep_kl', 'sweep'], got [" in said


def test_a_flag_missing_from_file_and_command_line(config, capsys):
    for verb, content, missing in (
        ("fit", FIT | {"model": None}, "required: --model"),
        ("rank", RANK, "--keep-mass --keep-kl --sweep is required"),
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
