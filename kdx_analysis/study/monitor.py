"""A study while it runs, from the files that its trainings leave.

It only reads, and asks no training.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kdx_analysis.errors import KdxError
from kdx_analysis.io import read_json
from kdx_analysis.training.progress import PLAN, PROGRESS

Alive = Callable[[Mapping[str, Any]], bool]
DONE, RUNNING, STOPPED, WAITING = "done", "running", "stopped", "waiting"
_COLUMNS = (
    "run",
    "state",
    "epoch",
    "epochs",
    "loss",
    "val_accuracy",
    "gate_entropy",
    "temperature",
    "left_s",
    "seen_s",
)


@dataclass(frozen=True)
class Watched:
    """Where a study stands.

    Attributes:
        name: of its directory.
        runs: one row a run, in the order of the plan: run (its title), state (done, running,
            stopped: its process is gone, waiting), epoch, epochs, loss, val_accuracy, gate_entropy
            (mean H/ln N), temperature, left_s (seconds to its end at its own pace so far), seen_s
            (seconds since it was last written). NaN where it is not known.
        left: seconds to the end of the study, if as many runs stay at work and those that wait take
            as long as others of their role; None while no epoch is done, or if none is running.
    """

    name: str
    runs: pd.DataFrame
    left: float | None

    def count(self, state: str) -> int:
        return int((self.runs["state"] == state).sum())

    @property
    def finished(self) -> bool:
        return self.count(DONE) == len(self.runs)

    @property
    def heading(self) -> str:
        counts = [
            f"{self.count(state)} {state}"
            for state in (RUNNING, STOPPED, WAITING)
            if self.count(state)
        ]
        parts = [f"{self.name}: {self.count(DONE)} of {len(self.runs)} runs done", *counts]
        if self.left is not None:
            parts.append(f"about {_duration(self.left)} left")
        elif self.count(STOPPED) and not self.count(RUNNING):
            parts.append("the same kdx run goes on with it")
        return ", ".join(parts)

    def __str__(self) -> str:
        table = self.runs.to_string(index=False, na_rep="", float_format="{:.4g}".format)
        return f"{self.heading}\n{table}"

    def __rich__(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for name in ("run", "epoch", "loss", "val", "gate entropy", "τ", "left"):
            table.add_column(
                name, justify="left" if name == "run" else "right", no_wrap=name != "run"
            )
        for row in self.runs[self.runs["state"].isin([RUNNING, STOPPED])].to_dict("records"):
            table.add_row(
                Text(row["run"]),
                _number(row["epoch"], "{:.0f}") + "/" + _number(row["epochs"], "{:.0f}"),
                _number(row["loss"], "{:.3f}"),
                _number(row["val_accuracy"], "{:.1%}"),
                _number(row["gate_entropy"], "{:.3f}"),
                _number(row["temperature"], "{:.2f}"),
                STOPPED if row["state"] == STOPPED else _number(row["left_s"], _duration),
            )
        return Group(Text(self.heading, style="bold"), *([table] if table.row_count else []))


def watched(
    out: str | Path,
    now: float | None = None,
    alive: Callable[[Mapping[str, Any]], bool] | None = None,
) -> Watched:
    """Where the study in the directory ``out`` stands.

    Args:
        now: seconds since 1970; by default the present.
        alive: whether a process (host, pid, created) is still there; one on another host is taken
            to be.

    Raises KdxError if ``out`` holds no study that was started.
    """
    out = Path(out)
    try:
        plan = read_json(out / PROGRESS / PLAN)
    except (OSError, ValueError):
        raise KdxError(
            f"{str(out)!r} holds no study that was started; give the directory of kdx run (--out)"
        ) from None
    now = time.time() if now is None else now
    rows = [_row(out, entry, now, alive or _is_alive) for entry in plan]
    runs = pd.DataFrame(rows, columns=[*_COLUMNS, "pace"])
    return Watched(out.resolve().name, runs[list(_COLUMNS)], _left(runs))


def watch(out: str | Path, console: Console, wait: Callable[[float], None] = time.sleep) -> None:
    """Show the study on a terminal until all its runs are done or the user interrupts.

    It is shown anew every second.
    """
    with (
        suppress(KeyboardInterrupt),
        Live(watched(out), console=console, auto_refresh=False) as live,
    ):
        while not (state := watched(out)).finished:
            live.update(state, refresh=True)
            wait(1)
        live.update(state, refresh=True)


def _row(out: Path, entry: Mapping[str, str], now: float, alive: Alive) -> dict[str, Any]:
    run = out / entry["run"]
    progress: dict[str, Any] = {}
    with suppress(OSError, ValueError):  # it has not begun, or its file is being written
        progress = read_json(out / PROGRESS / f"{run.name}.json")
    row = {"run": entry["title"], **{name: progress[name] for name in _COLUMNS if name in progress}}
    if progress.get("epoch"):
        row["pace"] = (progress["updated"] - progress["started"]) / progress["epoch"]
    if run.is_dir():
        return row | {"state": DONE}
    if not progress:
        return row | {"state": WAITING}
    row |= {
        "state": RUNNING if alive(progress["process"]) else STOPPED,
        "seen_s": now - progress["updated"],
    }
    if row["state"] == RUNNING and "pace" in row:
        row["left_s"] = row["pace"] * (progress["epochs"] - progress["epoch"])
    return row


def _left(runs: pd.DataFrame) -> float | None:
    """Seconds to the end, over the runs at work.

    A run of a role that none has shown yet counts as the mean of all.
    """
    running = runs["state"] == RUNNING
    whole = (runs["pace"] * runs["epochs"]).astype(float)
    if not running.any() or whole.isna().all():
        return None
    role = runs["run"].str.split().str[0]
    expected = role.map(whole.groupby(role).mean()).fillna(whole.mean())
    rest = runs["left_s"].astype(float).where(running, expected).fillna(expected)
    return float(rest[runs["state"] != DONE].sum() / running.sum())


def _is_alive(process: Mapping[str, Any]) -> bool:
    if process["host"] != platform.node():
        return True
    try:
        # A number is given again when its process is gone; times of creation are rounded.
        created: float = psutil.Process(process["pid"]).create_time()
        return abs(created - float(process["created"])) < 1
    except psutil.Error:
        return False


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _number(value: Any, form: str | Callable[[float], str]) -> str:
    if value is None or math.isnan(value):
        return "–"
    return form.format(value) if isinstance(form, str) else form(value)
