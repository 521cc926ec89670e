"""Figures drawn by several processes, since matplotlib draws one at a time in each.

A worker is this module, run by a Python of its own. So it works the same from a script without a
main guard, which ``multiprocessing`` would run again, from a notebook, and beside the threads of
torch, which a fork may leave locked. It is told a figure's name and the table that is drawn, and
answers with the files. Whatever a worker can't do is done here: with none, all of it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedWriter
from types import TracebackType
from typing import Self

import pandas as pd

from kdx_analysis.drawing.style import pictures
from kdx_analysis.extensions import Extension, load_same
from kdx_analysis.plots.figure import FIGURES, Figure

# More are hardly quicker: there are some 20 figures, and a worker takes seconds to load torch.
_MOST = 4
# One thread each, since there is a process for every core; a figure is no work for several.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Files = dict[str, bytes]


def usual_jobs() -> int:
    """How many processes draw unless one says it: a core each that this one may use, at most 4."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return min(_MOST, len(os.sched_getaffinity(0)))
    return min(_MOST, os.cpu_count() or 1)


@dataclass(frozen=True)
class Job:
    """A figure to be drawn of its table."""

    figure: Figure
    data: pd.DataFrame

    def drawn(self) -> Files:
        """The PNG and SVG, by suffix."""
        canvas, _ = self.figure.draw(self.data)
        return pictures(canvas)


class Drawers:
    """Draws figures in this process and in workers, which start when there is something to draw.

    Within ``with``; at its end no worker is left. :meth:`submit` returns at once, so that what else
    is to be computed is computed while workers draw.

    Args:
        jobs: processes, this one among them.
        extensions: files that workers load, so that their figures and objectives are known.
    """

    def __init__(self, jobs: int, extensions: Sequence[Extension] = ()) -> None:
        self.files: dict[str, Files] = {}
        self.errors: dict[str, Exception] = {}
        self._most, self._extensions = max(0, jobs - 1), tuple(extensions)
        self._waiting: deque[Job] = deque()
        self._here: list[Job] = []
        self._workers: list[_Worker] = []
        self._changed = threading.Condition()
        self._closing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._waiting.clear()
            self._closing = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.stop()

    def submit(self, job: Job, *, here: bool = False) -> None:
        """Have a figure drawn; ``here`` for one that workers don't know."""
        if here:
            self._here.append(job)
            return
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        if len(self._workers) < self._most:
            self._hire()

    def finish(self) -> None:
        """Draw here what no worker has begun, and wait for them.

        Then ``files`` holds every figure's, by its name, or ``errors`` what drawing it raised.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        while (job := self._next()) is not None:
            self._draw(job)
        while self._here:
            self._draw(self._here.pop(0))
        for worker in self._workers:
            with self._changed:
                idle = worker.job is None
            if idle:
                worker.stop()  # it may be loading still
            worker.thread.join()
        # What a worker failed at raises here what it raises, or can be drawn after all.
        while self._here:
            self._draw(self._here.pop(0))

    def _draw(self, job: Job) -> None:
        try:
            self.files[job.figure.name] = job.drawn()
        except Exception as error:
            error.add_note(f"while drawing the figure {job.figure.name!r}")
            self.errors[job.figure.name] = error

    def _next(self) -> Job | None:
        with self._changed:
            return self._waiting.popleft() if self._waiting else None

    def _hire(self) -> None:
        """Start a worker, if this machine lets us; if not, never try again."""
        try:
            worker = _Worker(self)
        except (OSError, ValueError):
            self._most = 0
            return
        self._workers.append(worker)
        worker.thread.start()

    def await_job(self, worker: _Worker) -> Job | None:
        """The next one for a worker, as soon as there is one; None when there is none to come."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            worker.job = self._waiting.popleft() if self._waiting else None
            return worker.job

    def take(self, worker: _Worker, files: Files | None) -> None:
        """What a worker has made of its job; None where it failed."""
        with self._changed:
            job, worker.job = worker.job, None
            assert job is not None
            if files is None:
                self._here.append(job)
            else:
                self.files[job.figure.name] = files

    @property
    def extensions(self) -> tuple[Extension, ...]:
        """What workers load."""
        return self._extensions


class _Worker:
    """A process that draws, and the thread that hands it figures and takes their files."""

    def __init__(self, drawers: Drawers) -> None:
        self.job: Job | None = None
        self._drawers = drawers
        # -P: a module in the working directory is not taken for one of ours
        command = [sys.executable or "", "-P", "-m", __name__]
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        environment = os.environ | dict.fromkeys(_ONE_THREAD, "1") | {"PYTHONPATH": path}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def stop(self) -> None:
        """End the process; its thread ends with it."""
        self._process.kill()
        self._process.wait()

    def _serve(self) -> None:
        # It has died or was stopped, or its job can't be sent.
        with contextlib.suppress(
            OSError, EOFError, ValueError, pickle.PickleError, AttributeError, TypeError
        ):
            self._exchange()
        if self.job is not None:
            self._drawers.take(self, None)

    def _exchange(self) -> None:
        jobs, answers = self._process.stdin, self._process.stdout
        assert jobs is not None
        assert answers is not None
        with jobs, answers:
            pickle.dump(self._drawers.extensions, jobs)
            jobs.flush()
            pickle.load(answers)  # it is ready
            while (job := self._drawers.await_job(self)) is not None:
                pickle.dump((job.figure.name, job.data), jobs)
                jobs.flush()
                self._drawers.take(self, pickle.load(answers))


def main() -> None:
    """Draw what comes in on standard input until it ends.

    Pickles go between this process and the one that started it alone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that started it ends it
    jobs = sys.stdin.buffer
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what a figure prints is no answer
        load_same(pickle.load(jobs))
        _answer(answers, len(FIGURES))
        while True:
            try:
                name, data = pickle.load(jobs)
            except EOFError:
                return
            try:
                files = Job(FIGURES[name], data).drawn()
            except Exception:
                files = None  # it is drawn once more where its error can be seen
            _answer(answers, files)


def _answer(answers: BufferedWriter, value: object) -> None:
    pickle.dump(value, answers)
    answers.flush()


if __name__ == "__main__":
    main()
