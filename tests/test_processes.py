"""A fit that several processes share: as torchrun starts them, and within one group in Python."""

import json
import os
import re
import subprocess
import sys

import architectures
import models
import pytest
import torch
from torch import distributed, multiprocessing

import curvedit
from curvedit.cli import main
from curvedit.fitting.processes import add_up, require_alike

pytestmark = pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model on disk, and 21 sequences of 12 ids."""
    place = tmp_path_factory.mktemp("processes")
    models.build("llama").save_pretrained(place / "model")
    ids = torch.randint(1, models.VOCABULARY, (21, 12), generator=torch.Generator().manual_seed(0))
    rows = "".join(json.dumps({"input_ids": row}) + "\n" for row in ids.tolist())
    (place / "ids.jsonl").write_text(rows)
    return place


def command(place, out, *more):
    given = ["--model", str(place / "model"), "--data", str(place / "ids.jsonl"), "--window", "12"]
    return ["fit", *given, "--targets", "*", "--no-progress", "--out", str(out), *more]


def torchrun(*words, count=2):
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run(
        [sys.executable, *start, "-m", "curvedit", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def assert_alike(got, expected):
    assert list(got) == list(expected)
    for name in expected:
        assert got[name].tokens == expected[name].tokens
        assert got.targets[name].input_group == expected.targets[name].input_group
        for kind in ("A", "G", "A_w", "G_w"):
            one, other = got.mean(kind, name), expected.mean(kind, name)
            assert (one - other).norm() <= 1e-6 * other.norm(), (kind, name)


def test_two_processes_fit_what_one_does(place, tmp_path):
    """Also where the last batch has a row for one of them only."""
    assert main(command(place, tmp_path / "one", "--batch-size", "4")) == 0
    run = torchrun(*command(place, tmp_path / "two", "--batch-size", "4", "--json"))
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)  # by one of them
    one, two = (curvedit.Factors.load(tmp_path / name) for name in ("one", "two"))
    assert_alike(two, one)
    assert two.provenance["processes"] == 2
    for key in ("samples", "positions", "loss_terms", "rows", "data"):
        assert two.provenance[key] == one.provenance[key], key
    assert told["positions"] == one.provenance["positions"]
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_process_without_data_adds_nothing(place, tmp_path):
    """Single sequences are all the first process's."""
    assert main(command(place, tmp_path / "one", "--batch-size", "1")) == 0
    run = torchrun(*command(place, tmp_path / "two", "--batch-size", "1"))
    assert run.returncode == 0, run.stderr
    one, two = (curvedit.Factors.load(tmp_path / name) for name in ("one", "two"))
    assert_alike(two, one)


def test_other_verbs_are_refused(place, tmp_path, monkeypatch, capsys):
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    given = ["--factors", str(place), "--keep-mass", "0.6", "--out", str(tmp_path / "x")]
    assert main(["rank", *given]) == 1
    expected = "torchrun: expected fit, the verb that several processes can share, got rank"
    assert expected in capsys.readouterr().err


def test_an_error_in_one_ends_all(place, tmp_path):
    run = torchrun(*command(place, tmp_path / "out", "--targets", "*.none"))
    assert run.returncode != 0
    assert "matches no linear map" in run.stderr
    assert not (tmp_path / "out").exists()


def in_group(number, count, at, work, results):
    """One process of a group, in Python."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{at}", rank=number, world_size=count
    )
    try:
        results.put((number, work(number, distributed.group.WORLD)))
    except (ValueError, RuntimeError) as error:
        results.put((number, f"{type(error).__name__}: {error}"))
    finally:
        distributed.destroy_process_group()


def together(work, tmp_path, count=2):
    """What ``work(number, group)`` gives in each of several processes."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (count, str(tmp_path / "store"), work, results)
    started = [
        context.Process(target=in_group, args=(number, *arguments)) for number in range(count)
    ]
    for process in started:
        process.start()
    found = dict(results.get(timeout=120) for _ in started)
    for process in started:
        process.join()
    return [found[number] for number in range(count)]


def fit_mixture(number, group):
    model = architectures.build("mixtral")
    batches = [
        {key: value for key, value in batch.items() if key != "labels"}
        for batch in architectures.batches("text")
    ]
    factors = curvedit.fit(model, batches, targets="*.experts.*", group=group, progress=False)
    return {name: (factors[name].tokens, factors[name].G.tolist()) for name in factors}


def test_experts_that_one_process_never_called(tmp_path):
    first, second = together(fit_mixture, tmp_path)
    alone = fit_mixture(0, None)
    assert first == second
    assert first.keys() == alone.keys()
    for name, (tokens, G) in alone.items():
        assert first[name][0] == tokens
        error = torch.tensor(first[name][1]) - torch.tensor(G)
        assert error.norm() <= 1e-6 * torch.tensor(G).norm()


def fit_other_data(number, group):
    ids = torch.randint(models.VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(number))
    return curvedit.fit(models.build("llama"), [ids], targets="*", group=group, progress=False)


def fit_other_seeds(number, group):
    ids = torch.ones(4, 12, dtype=torch.int64)
    model = models.build("llama")
    return curvedit.fit(model, [ids], targets="*", seed=number, group=group, progress=False)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (fit_other_data, "group: expected the same data in every process, got another rows"),
        (fit_other_seeds, "group: expected the same model, data and settings .* another seed"),
    ],
)
def test_processes_that_do_not_do_the_same_are_refused(work, message, tmp_path):
    for error in together(work, tmp_path):
        assert re.match(f"ValueError: {message}", error)


def test_corrected_eigenvalues_are_refused(tmp_path):
    for error in together(fit_corrected, tmp_path):
        assert error.startswith("ValueError: group: expected None with corrected eigenvalues")


def fit_corrected(number, group):
    ids = torch.ones(4, 12, dtype=torch.int64)
    model = models.build("llama")
    return curvedit.fit(model, [ids], targets="*", corrected="position", group=group)


def test_alone_nothing_is_asked():
    require_alike(None, {}, what="data")
    assert add_up(None, None, {}) == {}
