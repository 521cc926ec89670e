import math
import sys

import pytest
import torch

from kdx_analysis.bench import (
    BENCHES,
    Bench,
    Contest,
    Contestant,
    Setting,
    Table,
    run_bench,
    running,
)
from kdx_analysis.bench.limits import Limits
from kdx_analysis.bench.memory import peak
from kdx_analysis.bench.running import check_same, difference
from kdx_analysis.errors import KdxError
from kdx_analysis.extensions import load

CPU = Setting(torch.device("cpu"))


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only in the runs of :func:`contestant`."""
    monkeypatch.setattr(running, "limits", lambda *_: Limits(matrix=1e9, copy=1e9))
    now = [0.0]

    def clock():
        return now[0]

    def contestant(name, seconds, **options):
        def run():
            now[0] += seconds

        return Contestant(name, lambda: run, operations=lambda: 5e8, **options)

    clock.contestant = contestant
    return clock


def test_a_row_for_each_contestant(clock):
    contest = Contest("K = 1", clock.contestant("plain", 3), (clock.contestant("ours", 2),))
    bench = Bench("b", "title", "plain", lambda setting: [contest], target={"K = 1": 1.4})
    (rows,) = run_bench(bench, CPU, rounds=4, memory=False, clock=clock)
    assert [row.contestant for row in rows] == ["plain", running.AGAIN, "ours"]
    assert [row.ms for row in rows] == pytest.approx([3000, 3000, 2000])
    assert [row.ratio for row in rows] == pytest.approx([1, 1, 1.5])
    assert [(row.low, row.high) for row in rows][2] == pytest.approx((1.5, 1.5))
    assert [row.met for row in rows] == [None, None, True]
    assert [row.limit_ms for row in rows] == pytest.approx([500] * 3)
    assert {row.rounds for row in rows} == {4}
    assert rows[0].to_json()["peak_mb"] is None


def test_what_costs_more_than_its_target_is_said(clock):
    contest = Contest("", clock.contestant("plain", 2), (clock.contestant("ours", 3),), rounds=1)
    bench = Bench("b", "title", "plain", lambda setting: [contest], ratio="cost", target=1.2)
    (rows,) = run_bench(bench, CPU, rounds=4, memory=False, clock=clock)
    assert rows[2].ratio == pytest.approx(1.5)
    assert rows[2].met is False
    assert rows[2].rounds == 1
    printed = Table.contest(rows).splitlines()
    assert printed[3].split() == [
        "ours",
        "3000",
        "1.5",
        "(1.5–1.5)",
        "≤1.2",
        "not",
        "met",
        "500",
        "–",
    ]
    assert all(len(line) <= 100 for line in [Table.head(), *printed])


def test_one_of_equal_parts_stands_for_all(clock):
    plain, ours = clock.contestant("plain", 1, parts=100), clock.contestant("ours", 2)
    bench = Bench("b", "title", "plain", lambda setting: [Contest("", plain, (ours,))])
    (rows,) = run_bench(bench, CPU, rounds=2, memory=False, clock=clock)
    assert [row.ms for row in rows] == pytest.approx([100_000, 100_000, 2000])
    assert rows[2].ratio == pytest.approx(50)
    assert [row.limit_ms for row in rows] == pytest.approx([50_000, 50_000, 500])


def giving(name, tensor):
    return Contestant(name, lambda: lambda: None, lambda: {"gradient": tensor})


def test_a_contestant_that_computes_something_else_is_refused():
    right = torch.tensor([1.0, -2.0])
    check_same("b", Contest("", giving("plain", right), (giving("ours", right.clone()),)))
    for wrong in (right + torch.tensor([0.0, 0.01]), right[:1], torch.tensor([1.0, math.nan])):
        with pytest.raises(KdxError, match="ours computes something else than plain; 'gradient'"):
            check_same("b", Contest("", giving("plain", right), (giving("ours", wrong),)))
    other = Contestant("ours", lambda: lambda: None, lambda: {"gradient": right, "margins": right})
    with pytest.raises(KdxError, match="does not give the same: 'margins'"):
        check_same("b", Contest("", giving("plain", right), (other,)))


def test_differences_are_relative_to_the_largest_entry():
    assert difference(torch.tensor([9.0, 0.0]), torch.tensor([10.0, 0.0])) == pytest.approx(0.1)
    assert difference(torch.zeros(2), torch.zeros(2)) == 0
    assert difference(torch.ones(2), torch.zeros(2)) == math.inf


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell a process's peak")
def test_memory_is_that_of_a_fresh_process_which_knows_a_users_own_bench(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "from kdx_analysis.bench import Contest, Contestant, bench\n"
        "def of_megabytes(n):\n"
        "    return lambda: (lambda: torch.ones(n * 250_000).sum())\n"
        "@bench('allocations', title='tensors', against='small ones')\n"
        "def allocations(setting):\n"
        "    yield Contest('', Contestant('10', of_megabytes(10)),"
        " (Contestant('200', of_megabytes(200)),))\n"
    )
    load(file)
    try:
        bench = BENCHES["allocations"]
        (contest,) = bench.contests(CPU)
        small, large = (
            peak(bench, "", each, CPU) / 1e6 for each in (contest.plain, *contest.others)
        )
    finally:
        BENCHES.forget("allocations")
    assert small < 100
    assert 180 < large < 300
