"""What a training shows while it runs: nothing, or Rich progress bars in a terminal."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from kdx_analysis.training.loop import Epoch

Progress = Callable[[str, Epoch], None]


@contextmanager
def no_progress(runs: int) -> Iterator[Progress]:
    """Show nothing."""
    yield lambda title, epoch: None


@contextmanager
def rich_progress(runs: int) -> Iterator[Progress]:
    """A bar for each of the ``runs`` that is in training and one for all of them; nothing if not in a terminal."""
    from rich import progress as rich
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        with no_progress(runs) as show:
            yield show
        return
    columns = (
        rich.TextColumn("{task.description}"), rich.BarColumn(20), rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[state]}"), rich.TimeRemainingColumn(),
    )  # fmt: skip
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
    """Loss, validation accuracy and, for explainers, τ and mean gate entropy, in a few words."""
    parts = [f"loss {epoch.loss:.3f}", f"val {epoch.val_accuracy:.1%}"]
    if epoch.temperature is not None:
        parts.append(f"τ {epoch.temperature:.2f}")
    if epoch.gate_entropy is not None:
        parts.append(f"H {epoch.gate_entropy:.2f}")
    return "  ".join(parts)


@contextmanager
def relayed(show: Progress) -> Iterator[Progress]:
    """Something to hand to other processes, which shows here what it is called with there."""
    with multiprocessing.get_context("spawn").Manager() as manager:
        queue = manager.Queue()

        def listen() -> None:
            for title, epoch in iter(queue.get, None):
                show(title, epoch)

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            yield partial(_put, queue)
        finally:
            queue.put(None)
            listener.join()


def _put(queue: Any, title: str, epoch: Epoch) -> None:
    queue.put((title, epoch))
