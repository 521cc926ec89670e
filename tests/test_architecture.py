import ast
import functools
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_data_moves_forward_only():
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("module", ["kdx_analysis", "kdx_analysis.cli"])
def test_importing_the_package_is_quick(module):
    heavy = "{'torch', 'pandas', 'matplotlib', 'numpy'}"
    code = f"import sys, {module}; print(*sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_results_are_drawn_by_what_is_imported_when_they_are():
    code = "import sys, kdx_analysis.models, kdx_analysis.probes; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"matplotlib", "seaborn"} & set(done.stdout.split())


def test_every_public_name_is_there():
    import kdx_analysis

    for name in kdx_analysis.__all__:
        assert getattr(kdx_analysis, name) is not None
    assert set(kdx_analysis.__all__) <= set(dir(kdx_analysis))
    with pytest.raises(AttributeError, match="no attribute 'Studdy'"):
        _ = kdx_analysis.Studdy


PACKAGE = ROOT / "kdx_analysis"
SUBMODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
]
SHADOWED = {  # modules that their room still hides behind a function or class of the same name
    "kdx_analysis.plots.faithfulness",
    "kdx_analysis.plots.flow",
}


@pytest.mark.parametrize("name", SUBMODULES)
def test_every_submodule_is_reached_by_its_dotted_name(name):
    """No room binds a function or class to the name of one of its modules."""
    module = importlib.import_module(name)
    shown = functools.reduce(getattr, name.split(".")[1:], importlib.import_module("kdx_analysis"))
    assert (shown is module) == (name not in SHADOWED), f"{name} is shadowed by {shown!r}"


def sets_modes(node: ast.AST) -> bool:
    """Whether modes are put back by hand: ``x.training = …``, or ``x.train(kept)``."""
    if isinstance(node, ast.Attribute):
        return node.attr == "training" and isinstance(node.ctx, ast.Store)
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "train"
        and any(isinstance(argument, ast.Name) for argument in node.args)
    )


def reads_selection(node: ast.AST) -> bool:
    """Whether a run's selection is looked up: ``info["selection"]``, or by ``get``."""
    if isinstance(node, ast.Subscript):
        key, read = node.slice, isinstance(node.ctx, ast.Load)
    elif isinstance(node, ast.Call) and node.args:
        key, read = node.args[0], ast.unparse(node.func).endswith(".get")
    else:
        return False
    return read and isinstance(key, ast.Constant) and key.value == "selection"


ONE_HOME = {  # what has one home → how it is seen, its home, and where it is still written again
    "training modes are restored": (
        sets_modes,
        "models/modes.py",
        set(),
    ),
    "a run's selection is read": (
        reads_selection,
        "runs/run.py",
        set(),
    ),
}


@pytest.mark.parametrize("what", ONE_HOME)
def test_what_has_one_home_is_nowhere_else(what):
    """Nulls are held to theirs in test_null.py."""
    seen_in, home, pending = ONE_HOME[what]
    places = set()
    for path in PACKAGE.rglob("*.py"):
        if any(seen_in(node) for node in ast.walk(ast.parse(path.read_text()))):
            places.add(path.relative_to(PACKAGE).as_posix())
    assert places == {home, *pending}, f"{what} in {home} alone"


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("training modes are restored", "module.training = training"),
        ("training modes are restored", "model.train(was_training)"),
        ("a run's selection is read", "rule = run.info['selection']['rule']"),
        ("a run's selection is read", "rule = run.info.get('selection', {}).get('rule')"),
    ],
)
def test_what_was_written_again_before_would_be_seen(what, line):
    assert any(ONE_HOME[what][0](node) for node in ast.walk(ast.parse(line)))
