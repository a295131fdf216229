"""Output is whole or absent: killed writers, writers at the same time, full disks, odd places."""

import os
import random
import resource
import signal
import time
from pathlib import Path

import models
import pytest
import torch

import curvedit
from curvedit import Factors, files
from curvedit.checks import require_new_directory
from curvedit.factors import basis as basis_file
from curvedit.factors.basis import Basis, BasisStore
from curvedit.factors.target import Key

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fewer positions:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]
BUSY = "expected a place that no other process is writing"


def forked(work, *, start=None):
    """The process id of a child that does the work; it ends with 0, or with 3 if refused."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        torch.set_num_threads(1)  # the threads of the parent are not here
        if start is not None:
            os.read(start, 1)
        work()
        status = 0
    except OSError as error:
        expected = (BUSY, "expected a new or empty directory")
        status = 3 if any(words in str(error) for words in expected) else 4
    finally:
        os._exit(status)


def status_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_after(work, seconds):
    child = forked(work)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def slow_writer(place, mark, number=12):
    with files.new_directory("out", place) as part:
        for each in range(number):
            (part / f"{each}").write_text(mark * 5000)
            time.sleep(0.001)


def content(place):
    return {path.name: path.read_bytes() for path in sorted(place.iterdir())}


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """A checkpoint directory, factors in memory, and a selection."""
    place = tmp_path_factory.mktemp("edited")
    model = models.build("llama")
    model.save_pretrained(place / "model")
    factors = curvedit.fit(model, models.ragged_batches("llama"), targets="*.mlp.*", progress=False)
    return place / "model", factors, curvedit.rank(factors, keep_mass=0.6, progress=False)


def writers(edited):
    """What is killed or runs out of room, by name."""
    model, factors, selection = edited
    return {
        "directory": lambda place: slow_writer(place, "a"),
        "save": lambda place: Factors.merge([factors]).save(place),
        "project": lambda place: curvedit.project(model, selection, out=place),
    }


@pytest.mark.parametrize("kind", ["directory", "save", "project"])
def test_ten_kills_leave_a_whole_directory_or_none(edited, tmp_path, kind):
    write = writers(edited)[kind]
    moments = random.Random(kind)
    begin = time.perf_counter()
    write(tmp_path / "whole")
    usual = time.perf_counter() - begin
    whole = {path.name for path in (tmp_path / "whole").iterdir()}
    for _ in range(10):
        place = tmp_path / "out"
        killed_after(lambda: write(place), moments.uniform(0.0, 1.5 * usual))  # noqa: B023
        if place.exists():
            assert {path.name for path in place.iterdir()} == whole
            for path in place.iterdir():
                path.unlink()
        write(place)
        assert {path.name for path in place.iterdir()} == whole
        left = {path.name for path in tmp_path.iterdir()} - {"whole", "out"}
        assert not left, "the next writer must clear what the killed one left"
        for path in place.iterdir():
            path.unlink()
        place.rmdir()


def test_twenty_pairs_of_writers_end_with_one_directory(tmp_path):
    outcomes = []
    for number in range(20):
        place = tmp_path / f"{number}"
        gate, opener = os.pipe()
        pair = [
            forked(lambda mark=mark: slow_writer(place, mark), start=gate)  # noqa: B023
            for mark in "ab"
        ]
        os.write(opener, b"..")
        outcomes.append(sorted(status_of(child) for child in pair))
        os.close(gate)
        os.close(opener)
        assert len({text[:1] for text in content(place).values()}) == 1, "files of two writers"
        assert len(content(place)) == 12
    assert outcomes == [[0, 3]] * 20
    assert {path.name for path in tmp_path.iterdir()} == {f"{number}" for number in range(20)}


def test_two_writers_of_a_cached_basis_leave_one(tmp_path, monkeypatch):
    key = Key("A", "layer")
    save_file = basis_file.save_file

    def slowly(*args):
        save_file(*args)
        time.sleep(0.05)

    monkeypatch.setattr(basis_file, "save_file", slowly)

    def write(scale):
        store = BasisStore()
        store.move(tmp_path, {})
        vectors = torch.eye(64) * scale
        store.keep(key, Basis(torch.ones(64).double() * scale, vectors, {"rank": int(scale)}))

    for _ in range(3):
        children = [forked(lambda scale=scale: write(scale)) for scale in (1.0, 2.0)]
        assert [status_of(child) for child in children] == [0, 0]
        store = BasisStore()
        store.move(tmp_path, {})
        basis = store.get(key)
        assert float(basis.values[0]) == float(basis.vectors[0, 0]) == basis.certificate["rank"]
        (found,) = tmp_path.iterdir()
        found.unlink()


def test_a_killed_writer_of_a_file_is_cleared_by_the_next(tmp_path):
    path = tmp_path / "config.yaml"

    def stall():
        with files.new_file(path) as part:
            part.write_text("half")
            time.sleep(60)

    killed_after(stall, 0.3)
    assert not path.exists()
    assert len(list(tmp_path.iterdir())) == 2
    files.write_whole(path, b"whole")
    assert [found.name for found in tmp_path.iterdir()] == ["config.yaml"]


def test_files_of_a_user_are_never_removed(tmp_path):
    (tmp_path / "mine.part").mkdir()
    (tmp_path / "mine.part/thesis").write_text("years of work")
    (tmp_path / "config.yaml.part").write_text("mine too")
    slow_writer(tmp_path / "mine", "a", 1)
    files.write_whole(tmp_path / "config.yaml", b"x")
    assert (tmp_path / "mine.part/thesis").read_text() == "years of work"
    assert (tmp_path / "config.yaml.part").read_text() == "mine too"
    (tmp_path / ".other.curvedit-lock").write_text("something of mine")
    with pytest.raises(OSError, match="is not a lock of curvedit's; move it away"):
        slow_writer(tmp_path / "other", "a", 1)
    assert not (tmp_path / "other").exists()


def test_without_fcntl_a_lock_still_excludes(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    with files.new_directory("out", tmp_path / "out") as part:
        (part / "file").write_text("first")
        with pytest.raises(FileExistsError, match=f"out: {BUSY}"):
            slow_writer(tmp_path / "out", "b")
    assert content(tmp_path / "out") == {"file": b"first"}
    files.write_whole(tmp_path / "file", b"x")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "file"}


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    sync, rename = os.fsync, Path.rename

    def record_sync(descriptor):
        done.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    def record_rename(path, target):
        done.append("renamed")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "rename", record_rename)
    with files.new_directory("out", tmp_path / "out") as part:
        (part / "inner").mkdir()
        (part / "inner/file").write_text("x")
        wanted = [str(part / "inner/file"), str(part / "inner"), str(part)]
    assert done == [*wanted, "renamed", str(tmp_path)]


@pytest.mark.parametrize("kind", ["directory", "save", "project"])
def test_a_disk_that_fills_up_leaves_nothing(edited, tmp_path, kind):
    write = writers(edited)[kind]
    messages, writer = os.pipe()

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        try:
            write(tmp_path / "new/out")
        except OSError as error:
            os.write(writer, str(error).encode())

    assert status_of(forked(limited)) == 0
    message = os.read(messages, 4096).decode()
    assert f"writing {tmp_path / 'new/out'} failed" in message
    assert "nothing was left there" in message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


def dangling(place):
    place.symlink_to(place.with_name("nowhere"))


def below_a_file(place):
    place.parent.rmdir()
    place.parent.write_text("a file")


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (dangling, FileExistsError, "a symlink to nothing"),
        (below_a_file, NotADirectoryError, "is a file"),
        (lambda place: place.write_text("x"), FileExistsError, "already has content"),
    ],
)
def test_places_that_cannot_be_made_are_refused_at_once(tmp_path, prepare, error, message):
    place = tmp_path / "inner/out"
    place.parent.mkdir()
    prepare(place)
    with pytest.raises(error, match=f"out: expected a new or empty directory, got .*{message}"):
        require_new_directory("out", place)


def test_a_mount_point_and_a_place_without_rights_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path).endswith("mounted"))
    (tmp_path / "mounted").mkdir()
    with pytest.raises(FileExistsError, match="a mount point, which cannot be replaced"):
        require_new_directory("out", tmp_path / "mounted")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=r"but .* cannot be written; choose another path"):
        require_new_directory("out", tmp_path / "new/out")


def test_a_symlink_to_an_empty_directory_is_followed(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    slow_writer(tmp_path / "link", "a", 1)
    assert content(tmp_path / "empty") == {"0": b"a" * 5000}
    assert (tmp_path / "link").is_symlink()


def test_a_name_as_long_as_names_may_be(tmp_path):
    place = tmp_path / ("n" * 255)
    slow_writer(place, "a", 1)
    files.write_whole(tmp_path / ("m" * 255), b"x")
    assert {path.name[:1] for path in tmp_path.iterdir()} == {"n", "m"}


def appears_meanwhile(place, make):
    with files.new_directory("out", place):
        make(place)


def test_what_appears_meanwhile_is_not_replaced(tmp_path):
    def directory(place):
        place.mkdir()
        (place / "mine").write_text("x")

    for make in (directory, lambda place: place.write_text("mine")):
        with pytest.raises(FileExistsError, match="already has content"):
            appears_meanwhile(tmp_path / make.__name__, make)
    assert content(tmp_path / "directory") == {"mine": b"x"}
    assert (tmp_path / "<lambda>").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2
