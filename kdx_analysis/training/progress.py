"""What a training shows while it runs, nothing or progress bars, and what it leaves on disk."""

from __future__ import annotations

import math
import multiprocessing
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from kdx_analysis.io import write_json
from kdx_analysis.training.loop import Epoch

Progress = Callable[[str, Epoch], None]
PROGRESS, PLAN = "progress", "plan.json"


@contextmanager
def no_progress(runs: int) -> Iterator[Progress]:
    """Show nothing."""
    yield lambda title, epoch: None


@contextmanager
def rich_progress(runs: int) -> Iterator[Progress]:
    """A bar for each of the ``runs`` that is in training and one for all of them.

    Outside of a terminal, nothing.
    """
    from rich import progress as rich
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        with no_progress(runs) as show:
            yield show
        return
    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(20),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[state]}"),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=console, transient=True) as bars:
        total = bars.add_task("runs", total=runs, state="")
        tasks: dict[str, rich.TaskID] = {}

        def show(title: str, epoch: Epoch) -> None:
            if title not in tasks:
                tasks[title] = bars.add_task(title, total=epoch.epochs, state="")
            bars.update(tasks[title], completed=epoch.epoch, state=describe(epoch))
            if epoch.epoch == epoch.epochs:
                bars.remove_task(tasks.pop(title))
                bars.advance(total)

        yield show


def describe(epoch: Epoch) -> str:
    """Loss, validation accuracy and, for explainers, τ and mean gate entropy, in a few words.

    The accuracy is left out after an epoch without validation.
    """
    if epoch.preparing:
        return f"preparing {epoch.preparing}"
    parts = [f"loss {epoch.loss:.3f}"]
    if not math.isnan(epoch.val_accuracy):
        parts.append(f"val {epoch.val_accuracy:.1%}")
    if epoch.temperature is not None:
        parts.append(f"τ {epoch.temperature:.2f}")
    if epoch.gate_entropy is not None:
        parts.append(f"H {epoch.gate_entropy:.2f}")
    return "  ".join(parts)


def write_plan(out: Path, runs: Iterable[tuple[Path, str]]) -> None:
    """Leave in the study's directory which runs it is going to have, in their order.

    ``runs`` are of a directory and a title each.
    """
    plan = [{"run": path.relative_to(out).as_posix(), "title": title} for path, title in runs]
    write_json(out / PROGRESS / PLAN, plan)


class ProgressFile:
    """A callback that keeps one small file: which training, in which process, at which epoch.

    Its accuracy is that of the last epoch with validation. The file is whole at every moment and
    only for looking at: where it can't be written the training goes on.
    """

    def __init__(self, path: Path, epochs: int) -> None:
        self.path = path
        here = psutil.Process(os.getpid())
        process = {"host": platform.node(), "pid": here.pid, "created": here.create_time()}
        self.state: dict[str, Any] = {
            "epochs": epochs,
            "epoch": 0,
            "started": time.time(),
            "process": process,
        }
        self._write()

    def __call__(self, epoch: Epoch, model: object) -> None:
        entropy = epoch.gate_entropy
        self.state |= {
            "epoch": epoch.epoch,
            "loss": epoch.loss,
            "temperature": epoch.temperature,
            "gate_entropy": None if entropy is None or math.isnan(entropy) else entropy,
        }
        if not math.isnan(epoch.val_accuracy):
            self.state["val_accuracy"] = epoch.val_accuracy
        self._write()

    def _write(self) -> None:
        with suppress(OSError):
            write_json(self.path, {**self.state, "updated": time.time()})


@contextmanager
def relayed(show: Progress) -> Iterator[Progress]:
    """Something to hand to other processes, which shows here what it is called with there."""
    with multiprocessing.get_context("spawn").Manager() as manager:
        queue = manager.Queue()

        def listen() -> None:
            with suppress(OSError, EOFError):  # where the manager is killed
                for title, epoch in iter(queue.get, None):
                    show(title, epoch)

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            yield partial(_put, queue)
        finally:
            with suppress(OSError, EOFError):  # else it would hide what the body raised
                queue.put(None)
            listener.join()


def _put(queue: Any, title: str, epoch: Epoch) -> None:
    queue.put((title, epoch))
