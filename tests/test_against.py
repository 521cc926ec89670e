"""tools/against.py: turns, ratios and targets, from times that are planted."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKER = """
import json, sys
seconds = iter({"old": [9, 2, 4, 9], "new": [9, 1, 1, 3]}[sys.argv[1].rpartition("/")[2]])
log = open(sys.argv[1] + "/../log", "a")
for line in sys.stdin:
    what, name = json.loads(line)
    log.write(sys.argv[1].rpartition("/")[2][0])
    log.flush()
    answer = {"note": "a note"} if what == "make" else {"seconds": next(seconds)}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def against(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("against", ROOT / "tools" / "against.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "against", module)
    spec.loader.exec_module(module)
    (tmp_path / "worker.py").write_text(WORKER)
    for tree in ("old", "new"):
        (tmp_path / tree / "kdx_analysis").mkdir(parents=True)
    monkeypatch.setattr(module, "WORKER", tmp_path / "worker.py")
    monkeypatch.setattr(module, "ROOT", tmp_path / "new")
    contests = {"steps": module.Contest("a step", 2.5, 3)}
    monkeypatch.setattr(module, "CONTESTS", contests)
    return module


def test_trees_take_turns_and_are_told_apart(against, tmp_path, capsys):
    against.main([str(tmp_path / "old"), "steps", "--json", str(tmp_path / "all.json")])
    (result,) = json.loads((tmp_path / "all.json").read_text())
    assert (result["old"], result["new"]) == ([2, 4, 9], [1, 1, 3])  # without the warm-up
    assert (result["ratio_low"], result["ratio"], result["ratio_high"]) == (2.5, 3, 3.5)
    assert result["met"] is True
    assert (tmp_path / "log").read_text() == "on" + "on" + "no" + "on" + "no"
    printed = capsys.readouterr().out
    assert "old 4000 ms, new 1000 ms (medians of 3 rounds), 3.00 times as fast" in printed
    assert "target 2.5: met" in printed
    assert "old: a note" in printed


def test_what_is_not_there_is_refused(against, tmp_path, capsys):
    for arguments, message in (
        ([str(tmp_path), "steps"], "has no folder kdx_analysis"),
        ([str(tmp_path / "old"), "stepps"], "unknown contest 'stepps'; valid: steps"),
    ):
        with pytest.raises(SystemExit):
            against.main(arguments)
        assert message in capsys.readouterr().err


def test_both_files_have_the_same_contests():
    named = {
        line.split('"')[1]
        for file in ("against.py", "against_worker.py")
        for line in (ROOT / "tools" / file).read_text().splitlines()
        if line.startswith('    "') and "_" in line and (": Contest(" in line)
    }
    worker = (ROOT / "tools" / "against_worker.py").read_text()
    assert named
    assert all(f'"{name}": ' in worker for name in named)
