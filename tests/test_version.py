"""The version stands in ``kdx_analysis/__init__.py``; whatever else shows it, shows that one."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

import kdx_analysis

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_build_reads_a_literal_without_importing_the_package():
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "kdx_analysis.__version__"
    }
    module = ast.parse(Path(kdx_analysis.__file__).read_text())
    assigned = {
        statement.targets[0].id: statement.value
        for statement in module.body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    assert ast.literal_eval(assigned["__version__"]) == kdx_analysis.__version__


def test_the_citation_names_the_same_version_and_address():
    assert CITATION["version"] == kdx_analysis.__version__
    assert CITATION["repository-code"] == PROJECT["project"]["urls"]["Repository"]


def test_the_changelog_has_a_section_for_it():
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{kdx_analysis.__version__}]" in changes
    assert "## [Unreleased]" in changes


def test_the_command_prints_it_without_importing_anything_slow():
    code = (
        "import sys; sys.argv = ['kdx', '--version']\n"
        "from kdx_analysis import cli\n"
        "try:\n    cli.main()\n"
        "finally:\n    assert not {'torch', 'pandas', 'matplotlib', 'numpy'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"kdx_analysis {kdx_analysis.__version__}\n"
