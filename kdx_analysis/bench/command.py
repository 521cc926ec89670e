"""``kdx bench``: which benches, where, and what is printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch

from kdx_analysis import io
from kdx_analysis.bench.contract import BENCHES, Bench, Precision, Setting
from kdx_analysis.bench.limits import device_name, limits
from kdx_analysis.bench.running import run_bench
from kdx_analysis.bench.table import Table
from kdx_analysis.errors import KdxError
from kdx_analysis.registry import unknown

DEVICES = ("auto", "cpu", "cuda")


def setting_of(
    device: str, threads: int, batch: int | None, precisions: Sequence[str] | None
) -> Setting:
    """On what benches are run. Raises KdxError for what is not there or has no such name."""
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        raise KdxError("device = 'cuda', but PyTorch finds no GPU here; give cpu or auto")
    wanted = "cuda" if device == "auto" and torch.cuda.is_available() else device
    names: tuple[Precision, ...] = get_args(Precision)
    for precision in precisions or ():
        if precision not in names:
            raise unknown("precision", precision, names)
    given = tuple(name for name in names if name in (precisions or ()))
    place = torch.device("cpu" if wanted == "auto" else wanted)
    return Setting(place, threads, batch, given or None)


def chosen(names: Sequence[str], setting: Setting) -> list[Bench]:
    """The benches of these names, or all that say something on the setting's device.

    Raises KdxError for a name that no bench has, or a bench that needs a GPU where there is none.
    """
    benches = [BENCHES[name] for name in names]
    for bench in benches:
        if bench.device == "cuda" and setting.device.type != "cuda":
            raise KdxError(f"bench {bench.name!r} needs a GPU; on a CPU leave it out")
    if benches:
        return benches
    return [bench for bench in BENCHES.values() if bench.device in ("any", setting.device.type)]


def bench_all(
    benches: Sequence[Bench],
    setting: Setting,
    rounds: int,
    file: Path | None,
    say: Callable[[str], Any],
) -> None:
    """Run benches, ``say`` each contest as it ends, and write all of it to a JSON ``file``."""
    name = device_name(setting.device)
    rows: list[dict[str, Any]] = []
    precisions: list[Precision] = []
    say(Table.head())
    for bench in benches:
        say(Table.opening(bench))
        for contest in run_bench(bench, setting, rounds=rounds):
            say(Table.contest(contest))
            rows += [row.to_json() for row in contest]
            precisions += [p for p in get_args(Precision) if p == contest[0].precision]
    rates = {each: limits(setting.device, setting.threads, each) for each in precisions}
    for precision, rate in rates.items():
        say(Table.machine(name, precision, rate))
    if file is not None:
        machine = {precision: asdict(rate) for precision, rate in rates.items()}
        report = {"device": name, "torch": torch.__version__, "limits": machine, "rows": rows}
        io.write_text(file, json.dumps(report, indent=1) + "\n")
