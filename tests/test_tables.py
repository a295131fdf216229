"""Committed benchmark results: the README's tables agree with them, and they name a commit."""

import json
import shutil
import subprocess

import pytest
import tables
from clean_tree import why_not_clean
from demo_record import POLYLINES, without_polylines


@pytest.fixture
def readme(tmp_path):
    return shutil.copy(tables.README, tmp_path / "README.md")


def test_the_tables_are_those_of_the_committed_results():
    assert tables.main(["--check"]) == 0, tables.main(["--check"])


@pytest.mark.parametrize("table", ["bench", "demo", "gpu", "study"])
def test_a_changed_number_is_seen_and_put_right(table, readme):
    right = readme.read_text()
    begin = right.index(f"<!-- {table} table -->")
    place = next(i for i in range(begin + 400, len(right)) if right[i].isdigit())
    wrong = right[:place] + str((int(right[place]) + 1) % 10) + right[place + 1 :]
    readme.write_text(wrong)
    assert "README.md: its tables differ" in tables.main(["--check"], readme)
    assert readme.read_text() == wrong
    assert tables.main([], readme) == 0
    assert readme.read_text() == right


def test_a_missing_marker_is_an_error():
    text = tables.README.read_text().replace("<!-- end of demo table -->", "")
    with pytest.raises(ValueError, match="one demo table between its markers, got 0"):
        tables.filled(text)


def test_the_demo_record_has_the_numbers_and_the_recipe_but_no_polylines():
    record = json.loads(tables.DEMO.read_text())
    assert {"before", "after", "controls", "recipe", "hashes"} <= set(record)
    assert record["targets"]
    for target in record["targets"]:
        assert not set(POLYLINES) & set(target)
        assert {"name", "shape", "kept", "mass", "change"} <= set(target)
    drawn = [{**target, **dict.fromkeys(POLYLINES, ())} for target in record["targets"]]
    assert without_polylines({**record, "format": "curvedit-report", "targets": drawn}) == record


def test_results_are_saved_from_a_clean_tree_only(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "git finds none: " in why_not_clean(tmp_path)

    def git(*arguments):
        who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.invalid"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "kernel.py").write_text("1")
    git("add", "kernel.py")
    git("commit", "-m", "first")
    (tmp_path / "untracked.py").write_text("1")
    assert why_not_clean(tmp_path) == ""
    (tmp_path / "kernel.py").write_text("2")
    assert why_not_clean(tmp_path) == "1 tracked file(s) are modified"
    git("add", "kernel.py")
    assert why_not_clean(tmp_path) == "1 tracked file(s) are modified"
