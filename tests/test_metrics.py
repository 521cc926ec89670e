"""What a formula may give, and under which names its values are recorded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kdx_analysis.errors import KdxError
from kdx_analysis.metrics import INPUTS, METRICS, evaluated, metric

COSINES = torch.rand(5, 3, 3, generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture
def forgotten() -> Iterator[None]:
    before = set(METRICS)
    yield
    for name in set(METRICS) - before:
        METRICS.forget(name)


def result_of(cosines: Tensor) -> Tensor:
    return cosines.mean(dim=(-2, -1))


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (COSINES.mean(dim=-1), r"float64 of shape \(5, 3\)"),
        (COSINES.mean(), r"float64 of shape \(\)"),
        ((COSINES > 0).sum(dim=(-2, -1)), "int64 of shape"),
        (3, "gives int"),
        ((COSINES, COSINES, COSINES), "gives tuple"),
        ((COSINES.mean(dim=(-2, -1)), 0.3), "gives float"),
        (None, "gives NoneType"),
    ],
)
def test_a_formula_gives_one_number_for_each_draw(result: object, shown: str) -> None:
    @metric("wrong", reads="cosines", title="wrong")
    def wrong(cosines: Tensor) -> object:
        return result

    with pytest.raises(KdxError, match=rf"'wrong'.*{shown}.*here of shape \(5,\)"):
        evaluated("cosines", COSINES)


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(
    ("name", "reads", "recorded", "message"),
    [
        ("mean_cosine", "cosines", "", "hold another figure"),
        ("mine", "cosines", "contention", "hold another figure"),
        ("contention_uniform", "grams and gates", "", "hold another figure"),
        ("mine", "gates", "entropy_share", "as metric 'gate_entropy' is"),
        ("mine", "outputs of both", "accuracy", "as metric 'accuracy' is"),
    ],
)
def test_no_two_figures_are_recorded_alike(
    name: str, reads: str, recorded: str, message: str
) -> None:
    with pytest.raises(KdxError, match=message):
        metric(name, reads=reads, title="mine", recorded=recorded)(result_of)


def test_builtin_metrics_are_recorded_apart() -> None:
    places = [(each.input.kind, str(each.input.rows), each.recorded) for each in METRICS.values()]
    assert len(set(places)) == len(places)
    assert all(each.recorded not in INPUTS[each.reads].taken for each in METRICS.values())
