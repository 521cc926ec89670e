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
    assert "1 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("module", ["kdx_analysis", "kdx_analysis.cli"])
def test_importing_the_package_is_quick(module):
    code = f"import sys, {module}; print(*sorted({{'torch', 'pandas', 'matplotlib', 'numpy'}} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_every_public_name_is_there():
    import kdx_analysis

    for name in kdx_analysis.__all__:
        assert getattr(kdx_analysis, name) is not None
    assert set(kdx_analysis.__all__) <= set(dir(kdx_analysis))
    with pytest.raises(AttributeError, match="no attribute 'Studdy'"):
        _ = kdx_analysis.Studdy
