"""What a public forge and a commit run is what ``make test`` runs, on every Python that we name."""

import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
JOB = WORKFLOW["jobs"]["test"]
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
MAKEFILE = (ROOT / "Makefile").read_text()


def test_the_workflow_runs_the_same_script_as_we_do():
    assert [step["run"] for step in JOB["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "PIP_ARGS ?=" in MAKEFILE
    assert JOB["env"] == {"PIP_ARGS": "--extra-index-url https://download.pytorch.org/whl/cpu"}


def test_the_workflow_takes_no_step_of_a_third_party_and_can_change_nothing():
    actions = {step["uses"].partition("@")[0] for step in JOB["steps"] if "uses" in step}
    assert actions == {"actions/checkout", "actions/setup-python"}
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in WORKFLOW["on"]


def test_the_pythons_tested_are_those_that_the_package_names():
    named = re.findall(r"Python :: (\d\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert JOB["strategy"]["matrix"]["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_a_commit_runs_programs_of_the_environment_that_make_test_runs_too():
    tested = MAKEFILE.partition("\ntest: ")[2].replace("$(BIN)", ".venv/bin")
    assert [repository["repo"] for repository in HOOKS] == ["local"]
    for hook in HOOKS[0]["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].removesuffix(" --force-exclude") in tested, hook["id"]


@pytest.mark.parametrize("name", ["ruff", "mypy", "import-linter", "pytest"])
def test_their_versions_are_pinned_once(name):
    pinned = re.findall(rf"^{name}==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert len(pinned) == 1
