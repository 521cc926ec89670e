"""Where the time of a training goes: seconds of the wall clock, part by part."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TRAINING, TEACHER, SCORING, PROBES, OTHER = "training", "teacher", "scoring", "probes", "other"
PARTS = (TRAINING, TEACHER, SCORING, PROBES, OTHER)


class Seconds:
    """A stopwatch that runs from when it is made and always counts for exactly one part.

    A part that begins inside another one interrupts it, so the parts add up to the whole. Work that
    an accelerator does on its own while Python goes on counts for the part that waits for it.

    >>> clock = iter([0.0, 2.0, 5.0, 6.0])
    >>> seconds = Seconds(lambda: next(clock))
    >>> with seconds.of("scoring"):
    ...     pass
    >>> seconds.told()
    {'training': 0.0, 'teacher': 0.0, 'scoring': 3.0, 'probes': 0.0, 'other': 3.0}
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._parts = dict.fromkeys(PARTS, 0.0)
        self._part = OTHER
        self._since: float | None = clock()

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Count for ``part``, one of ``PARTS``, inside the body."""
        before = self._part
        self._switch(part)
        try:
            yield
        finally:
            self._switch(before)

    def told(self) -> dict[str, float]:
        """Seconds of every part so far, to the millisecond."""
        self._switch(self._part)
        return {part: round(seconds, 3) for part, seconds in self._parts.items()}

    def add(self, part: str, seconds: float) -> None:
        """Count ``seconds`` more for a part, which were taken elsewhere."""
        self._parts[part] += seconds

    def rest(self) -> None:
        """Count for nothing until :meth:`go_on`."""
        self._switch(self._part)
        self._since = None

    def go_on(self) -> None:
        """Count again, for the same part as before."""
        self._since = self._clock()

    def _switch(self, part: str) -> None:
        now = self._clock()
        if self._since is not None:
            self._parts[self._part] += now - self._since
            self._since = now
        self._part = part
