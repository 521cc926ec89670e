"""Run benches: check that contestants compute the same, time them in turns, hold them to limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from kdx_analysis.bench.contract import Bench, Contest, Contestant, Ratio, Setting
from kdx_analysis.bench.limits import limits, operations
from kdx_analysis.bench.memory import peak
from kdx_analysis.bench.timing import alternating, spread, waiting
from kdx_analysis.errors import KdxError

AGAIN = "the same again"  # the null contestant: the plain one, made once more


@dataclass(frozen=True)
class Row:
    """What was measured of one contestant.

    Attributes:
        bench, contest, contestant: their names.
        ms: median over rounds.
        ratio, low, high: median and quartiles within a round; 1 for the plain contestant itself.
        kind: speed or cost, which the ratio is of.
        target, met: None where there is no target, and for the plain contestant and its null.
        limit_ms: the least time that the machine could do it in; NaN where that says nothing.
        peak_mb: most memory, in 10⁶ bytes; NaN where it is not measured.
        rounds, device, threads, precision: how.
    """

    bench: str
    contest: str
    contestant: str
    ms: float
    ratio: float
    low: float
    high: float
    kind: Ratio
    target: float | None
    met: bool | None
    limit_ms: float
    peak_mb: float
    rounds: int
    device: str
    threads: int
    precision: str

    def to_json(self) -> dict[str, Any]:
        """Plain values; null where a number is not there."""
        return {
            key: None if isinstance(value, float) and np.isnan(value) else value
            for key, value in asdict(self).items()
        }


def run_bench(
    bench: Bench,
    setting: Setting,
    *,
    rounds: int = 15,
    memory: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[list[Row]]:
    """The rows of every contest, one contest after the other.

    Args:
        bench: whose contests are run.
        setting: device, threads and sizes.
        rounds: timings of each contestant, after the warm-up; a contest that takes long has fewer.
        memory: whether peaks of memory are measured, for which contestants are made once more.
        clock: gives seconds.

    Raises KdxError where contestants do not compute the same.
    """
    with _threads(setting.threads):
        for contest in bench.contests(setting):
            check_same(bench.name, contest)
            yield _rows(bench, contest, setting, rounds, memory, clock)


def check_same(name: str, contest: Contest) -> None:
    """Raise KdxError unless all contestants that have a result have the same one."""
    comparable = [each for each in (contest.plain, *contest.others) if each.result is not None]
    if not comparable:
        return
    first, *others = comparable
    assert first.result is not None
    expected = first.result()
    for other in others:
        assert other.result is not None
        actual = other.result()
        if actual.keys() != expected.keys():
            differing = sorted(actual.keys() ^ expected.keys())
            raise KdxError(f"bench {name!r}: {other.name} does not give the same: {differing[0]!r}")
        for key, tensor in expected.items():
            error = difference(actual[key], tensor)
            if not error <= contest.tolerance:
                raise KdxError(
                    f"bench {name!r}{f' ({contest.label})' if contest.label else ''}: {other.name} "
                    f"computes something else than {first.name}; {key!r} differs by "
                    f"{error:.2g} of its largest entry"
                )


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference of two tensors, relative to the largest entry; in [0, ∞], 0 if equal.

    >>> difference(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 4.0]))
    0.25
    """
    if actual.shape != expected.shape:
        return float("inf")
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    size = float(expected.abs().max()) if expected.numel() else 0.0
    error = float((actual - expected).abs().max()) if expected.numel() else 0.0
    if size == 0:
        return 0.0 if error == 0 else float("inf")
    return error / size


def _rows(
    bench: Bench,
    contest: Contest,
    setting: Setting,
    rounds: int,
    memory: bool,
    clock: Callable[[], float],
) -> list[Row]:
    contestants = [contest.plain, *contest.others]
    runs = [contestant.make() for contestant in (contest.plain, *contestants)]
    rounds = min(rounds, contest.rounds or rounds)
    seconds = alternating(runs, rounds, wait=waiting(setting.device), clock=clock)
    seconds *= np.array([[each.parts] for each in (contest.plain, *contestants)])
    machine = limits(setting.device, setting.threads, contest.precision)
    rows = []
    for i, contestant in enumerate((contest.plain, *contestants)):
        is_other = i > 1
        ratio = spread(seconds[0], seconds[i], bench.ratio)
        if i != 1:
            least = contestant.parts * machine.seconds(
                operations(contestant, runs[i]), contestant.moved
            )
            most = _peak(bench, contest, contestant, setting) if memory else float("nan")
        rows.append(
            Row(
                bench=bench.name,
                contest=contest.label,
                contestant=AGAIN if i == 1 else contestant.name,
                ms=1000 * float(np.median(seconds[i])),
                ratio=ratio.median,
                low=ratio.low,
                high=ratio.high,
                kind=bench.ratio,
                target=bench.target_of(contest.label) if is_other else None,
                met=bench.is_met(contest.label, ratio.median) if is_other else None,
                limit_ms=1000 * least,
                peak_mb=most / 1e6,
                rounds=rounds,
                device=setting.device.type,
                threads=setting.threads,
                precision=contest.precision,
            )
        )
    return rows


def _peak(bench: Bench, contest: Contest, contestant: Contestant, setting: Setting) -> float:
    return peak(bench, contest.label, contestant, setting)


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
