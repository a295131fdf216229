"""An interrupted fit goes on from its snapshots, bit-identical to one that was never stopped."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import models
import pytest
import torch
from safetensors.torch import load_file, save_file

import curvedit
from curvedit import fitting
from curvedit.cli import main
from curvedit.fitting import snapshots
from curvedit.fitting.places import Resident

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fewer positions:UserWarning", "ignore:.*are not run block by block:UserWarning"
)
COUNT = 5


def batches(kind="llama", count=COUNT):
    return [
        each for seed in range(count) for each in [shifted(models.ragged_batches(kind)[0], seed)]
    ]


def shifted(batch, by):
    """A batch of its own: other ids, or other pixels."""
    ids = batch.get("input_ids")
    if ids is None:
        return {**batch, "pixel_values": batch["pixel_values"] + by}
    return {**batch, "input_ids": (ids + by).remainder(60)}


class Stopped(RuntimeError):
    pass


class Stopping:
    """Batches that break off after some, as a process that is stopped does."""

    def __init__(self, given, after):
        self.given, self.after = given, after

    def __iter__(self):
        for number, each in enumerate(self.given):
            if number == self.after:
                raise Stopped
            yield each


def fit(model, given, place=None, **options):
    options = {"targets": models.targets("llama"), "snapshot_every": 0, **options}
    return curvedit.fit(model, given, snapshots=place, progress=False, **options)


def assert_same(one, other):
    assert list(one) == list(other)
    for name in one:
        assert one[name].tokens == other[name].tokens
        for kind in one.kinds_of(name) if hasattr(one, "kinds_of") else ("A", "G", "A_w", "G_w"):
            assert torch.equal(one.mean(kind, name), other.mean(kind, name)), (kind, name)


@pytest.mark.parametrize("after", range(1, COUNT + 1))
@pytest.mark.parametrize("kind", ["llama", "vit"])
def test_it_goes_on_bit_for_bit(kind, after, tmp_path):
    model, given = models.build(kind), batches(kind)
    options = {"targets": models.targets(kind)}
    whole = fit(model, given, **options)
    with pytest.raises(Stopped):
        fit(model, Stopping([*given, given[0]], after), tmp_path / "s", **options)
    assert (tmp_path / "s").is_dir()
    if after == COUNT:
        given = [*given]  # all were processed; the pass ends at once
    resumed = fit(model, given, tmp_path / "s", **options)
    assert_same(whole, resumed)
    for key in ("samples", "positions", "loss_terms", "backward"):
        assert whole.provenance[key] == resumed.provenance[key]
    fitting.discard(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_what_is_in_a_batch_beside_tokens_is_seen_too(tmp_path):
    """A number alone, words, and flags; another number is other data."""

    def given(scale):
        extra = {"note": "words", "scale": torch.tensor(scale)}
        return [{**each, "labels": each["input_ids"].clone()} | extra for each in batches()]

    moments = snapshots.Moments(Resident(), weighted=False)
    place, other = (snapshots.Snapshots(tmp_path, {}, 0, moments) for _ in range(2))
    run = type("Run", (), {"batches": -1})
    for keeper, scale in ((place, 1.0), (other, 2.0)):
        for each in given(scale):
            keeper.saw(each, run)
    assert place.digest != other.digest


def test_stopped_again_and_again(tmp_path):
    model, given = models.build("llama"), batches()
    for after in (2, 3, 3, 5):
        with pytest.raises(Stopped):
            fit(model, Stopping([*given, given[0]], after), tmp_path)
    assert_same(fit(model, given), fit(model, given, tmp_path))


def test_a_model_run_as_a_whole_and_its_second_pass(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    draw = torch.Generator().manual_seed(0)
    given = [
        (torch.randn(40, 6, generator=draw), torch.randint(4, (40,), generator=draw))
        for _ in range(COUNT)
    ]
    options = {"targets": "*", "corrected": "position"}
    whole = fit(model, given, **options)
    with pytest.raises(Stopped):
        fit(model, Stopping(given, 3), tmp_path, targets="*")
    resumed = fit(model, given, tmp_path, **options)
    assert_same(whole, resumed)
    assert torch.equal(whole.mean("S", "0"), resumed.mean("S", "0"))


def interrupted(place, **options):
    model, given = models.build("llama"), batches()
    with pytest.raises(Stopped):
        fit(model, Stopping(given, 4), place, **options)
    return model, given


def newest(place):
    return max(place.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize("damage", ["cut off", "empty", "other numbers", "no header"])
def test_a_damaged_snapshot_is_left_out_and_the_one_before_is_taken(tmp_path, damage):
    model, given = interrupted(tmp_path)
    path = newest(tmp_path)
    content = path.read_bytes()
    if damage == "other numbers":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "no header":
        save_file(load_file(path), path)
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut off" else b"")
    with pytest.warns(UserWarning, match=r"snapshots: .* is damaged .* and left out"):
        resumed = fit(model, given, tmp_path)
    assert_same(fit(model, given), resumed)


def test_without_a_good_one_it_begins_anew(tmp_path):
    model, given = interrupted(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="is damaged"):
        assert_same(fit(model, given, tmp_path), fit(model, given))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 1}, "seed"),
        ({"labels": "data"}, "labels"),
        ({"weighted": False}, "weighted"),
        ({"targets": "*.mlp.*"}, "targets"),
    ],
)
def test_snapshots_of_another_fit_are_refused(tmp_path, change, what):
    model, given = interrupted(tmp_path)
    with pytest.raises(ValueError, match=f"snapshots: expected .* one with another {what} "):
        fit(model, given, tmp_path, **change)


def test_snapshots_of_another_model_are_refused(tmp_path):
    model, given = interrupted(tmp_path)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    with pytest.raises(ValueError, match="one with another model "):
        fit(model, given, tmp_path)


def test_other_data_are_refused(tmp_path):
    model, given = interrupted(tmp_path)
    with pytest.raises(ValueError, match=r"expected the 4 batches that .* has seen, got others"):
        fit(model, [given[1], *given[1:]], tmp_path)
    with pytest.raises(ValueError, match=r"expected the 4 that were processed before .* got 2"):
        fit(model, given[:2], tmp_path)
    others = curvedit.token_batches(torch.arange(60).view(5, 12).tolist(), window=12, batch_size=1)
    with pytest.raises(ValueError, match="one with another data "):
        fit(model, others, tmp_path)


def test_a_full_disk_keeps_the_last_good_snapshot(tmp_path, monkeypatch):
    model, given = interrupted(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "save_file", full)
        with pytest.warns(UserWarning, match="could not be written .*No space left.*goes on"):
            resumed = fit(model, given, tmp_path)
    assert_same(fit(model, given), resumed)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")} == before


def test_snapshots_wait_for_their_time(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(snapshots.time, "monotonic", lambda: now[0])

    def slowly():
        for each in batches():
            yield each
            now[0] += 40

    fit(models.build("llama"), slowly(), tmp_path, snapshot_every=100)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


@pytest.fixture
def checkpoint(tmp_path):
    models.build("llama").save_pretrained(tmp_path / "model")
    draw = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(60, (20,), generator=draw).tolist()} for _ in range(400)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def command(place, out):
    data = ["--data", str(place / "data.jsonl"), "--window", "20", "--batch-size", "1"]
    where = ["--model", str(place / "model"), "--out", str(place / out), "--device", "cpu"]
    return ["fit", *where, *data, "--targets", "model.layers.*.mlp.*", "--no-progress"]


def test_a_killed_process_goes_on(checkpoint):
    """Killed three times, whenever it has come further, then run to its end."""
    assert main(command(checkpoint, "whole")) == 0
    again = [sys.executable, "-m", "curvedit", *command(checkpoint, "factors")]
    again += ["--snapshot-minutes", "1e-9"]
    place = checkpoint / "factors.unfinished"
    for _ in range(3):
        known = set(times(place))
        process = subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while len(set(times(place)) - known) < 2 and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert place.is_dir()
    assert subprocess.run(again, check=False, capture_output=True).returncode == 0
    assert not place.exists()
    one, other = (curvedit.Factors.load(checkpoint / name) for name in ("whole", "factors"))
    assert_same(one, other)


def times(place):
    return [(path.name, path.stat().st_mtime_ns) for path in place.glob("snapshot-*")]


def test_the_command_line_leaves_none_when_it_is_done(checkpoint, capsys):
    assert main([*command(checkpoint, "factors"), "--snapshot-minutes", "1e-9"]) == 0
    assert not (checkpoint / "factors.unfinished").exists()
    assert main([*command(checkpoint, "none"), "--snapshot-minutes", "0"]) == 0
    assert main([*command(checkpoint, "bad"), "--snapshot-minutes", "-1"]) != 0
    assert re.search(r"snapshot.minutes: expected at least 0", capsys.readouterr().err)
    assert sorted(Path(each).name for each in checkpoint.glob("*.unfinished")) == []
