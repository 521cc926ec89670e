from pathlib import Path

from kdx_analysis.runs import RunSet


def write_report(runs: RunSet, out: Path) -> Path:
    return out
