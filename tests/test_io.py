from pathlib import Path

import pandas as pd
import pytest

from kdx_analysis import io


def fill(file: Path, text: str) -> None:
    file.write_text(text)
    raise RuntimeError("midway")


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with io.staged_file(path) as partial:
        partial.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_left_as_it_was_if_the_body_raises(tmp_path):
    path = tmp_path / "file.txt"
    io.write_text(path, "old")
    with pytest.raises(RuntimeError, match="midway"), io.staged_file(path) as partial:
        fill(partial, "half of the new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_has_its_name_only_when_finished(tmp_path):
    path = tmp_path / "runs" / "one"
    with io.staged_directory(path) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "file").write_text("x")
        assert not path.exists()
        assert partial.name.startswith(".")
    assert (path / "inner" / "file").read_text() == "x"
    assert list(path.parent.iterdir()) == [path]


def test_a_directory_does_not_appear_if_the_body_raises(tmp_path):
    with (
        pytest.raises(RuntimeError, match="midway"),
        io.staged_directory(tmp_path / "one") as partial,
    ):
        fill(partial / "file", "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_directory_that_is_there_is_kept(tmp_path, when, monkeypatch):
    path = tmp_path / "one"
    io.write_text(path / "file", "mine")
    if when == "meanwhile":  # another process finishes between the look and the rename
        answers = iter([False, True])
        monkeypatch.setattr(type(path), "exists", lambda self: next(answers))
    with pytest.raises(FileExistsError), io.staged_directory(path) as partial:
        (partial / "file").write_text("yours")
    monkeypatch.undo()
    assert (path / "file").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_json_comes_back_and_refuses_what_json_has_not(tmp_path):
    path = tmp_path / "a.json"
    io.write_json(path, {"τ": [1, 2.5, None]})
    assert io.read_json(path) == {"τ": [1, 2.5, None]}
    with pytest.raises(ValueError, match="nan"):
        io.write_json(path, float("nan"))
    assert io.read_json(path) == {"τ": [1, 2.5, None]}


def test_a_table_comes_back(tmp_path):
    frame = pd.DataFrame(
        {"epoch": [1, 2], "metric": ["loss", "accuracy"], "value": [0.5, float("nan")]}
    )
    io.write_parquet(tmp_path / "a.parquet", frame)
    pd.testing.assert_frame_equal(io.read_parquet(tmp_path / "a.parquet"), frame)
