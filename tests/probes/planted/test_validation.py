from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from kdx_analysis.errors import KdxError
from kdx_analysis.probes.conflict import formulas as conflict
from kdx_analysis.probes.conflict import grams as gradients
from kdx_analysis.probes.planted import validation
from kdx_analysis.probes.planted.validation import YARDSTICKS, Validation, Yardstick, validate


@pytest.fixture(scope="module")
def found() -> Validation:
    return validate(2)


def test_every_yardstick_is_measured_on_every_seed_and_holds(found: Validation) -> None:
    frame = found.to_frame()
    assert list(zip(frame["yardstick"], frame["planted"], strict=True)) == [
        (y.name, y.planted) for y in YARDSTICKS
    ]
    assert len(found.values) == 2 * len(YARDSTICKS)
    assert frame["passed"].all()
    assert found.passed


def test_ten_seeds_make_more_than_five_thousand_null_pairs(found: Validation) -> None:
    frame = found.to_frame()
    null = frame[
        (frame["yardstick"] == validation.FALSE) & (frame["planted"] == validation.NOTHING)
    ]
    assert null["n"].item() * 5 >= 5000


def test_weak_conflicts_are_found_clearly_less_often(found: Validation) -> None:
    value = found.to_frame().set_index(["yardstick", "planted"])["value"]
    strong, weak = (value[validation.AUROC, on] for on in (validation.AT_1, validation.AT_QUARTER))
    assert strong - weak > 0.1


def test_the_table_is_text_and_html(found: Validation) -> None:
    assert "12 of 12 yardsticks hold over 2 seeds" in str(found)
    assert "<table" in found._repr_html_()
    assert all(yardstick.wanted in str(found) for yardstick in YARDSTICKS)


BROKEN: dict[str, tuple[Any, str, Callable[[Any], Any], set[str]]] = {
    "cosines of the other sign": (
        validation,
        "cosine",
        lambda whole: lambda gram: -whole(gram),
        {validation.AUROC, validation.AUROC_NULL},
    ),
    "contention that counts harmony": (
        validation,
        "contention",
        lambda whole: lambda ungated, q: whole(_harmony(ungated), q),
        {validation.CONTENTION},
    ),
    "modulation that counts harmony": (
        conflict,
        "_contentions",
        lambda whole: lambda ungated, q: whole(_harmony(ungated), q),
        {validation.MODULATION},
    ),
    "a null that shrinks": (
        validation,
        "with_null",
        lambda whole: (
            lambda r, draws, seed: torch.cat(
                [whole(r, 0, seed), *draws * [r[None].roll(1, dims=1)]]
            )
        ),
        {validation.FALSE},
    ),
    "experts out of order": (
        validation,
        "subtask_grams",
        lambda whole: lambda *given: _rolled(whole(*given)),
        {validation.EXPERT},
    ),
    "a distance that is a likeness": (
        validation,
        "routing_distance",
        lambda whole: lambda paths: 1 - whole(paths),
        {validation.ROUTES},
    ),
}


def _harmony(ungated: torch.Tensor) -> torch.Tensor:
    """Products of other signs, with their norms."""
    return 2 * torch.diag_embed(ungated.diagonal(dim1=-2, dim2=-1)) - ungated


def _rolled(grams: gradients.Grams) -> gradients.Grams:
    return gradients.Grams(tuple(inner.roll(1, dims=1) for inner in grams.experts), grams.gates)


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_metric_fails(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, broken, expected = BROKEN[case]
    monkeypatch.setattr(validation, "SUBTASKS", 20)
    monkeypatch.setattr(validation, "PAIRS", 6)
    monkeypatch.setattr(where, name, broken(getattr(where, name)))
    result = validate(1)
    frame = result.to_frame()
    assert not result.passed
    assert expected <= set(frame.loc[~frame["passed"], "yardstick"])
    assert "NO" in str(result)


def test_bounds_hold_for_the_mean_or_for_each_seed_and_nan_never() -> None:
    values = np.array([0.0, 1.0])
    assert Yardstick("", "", 0.4, 0.6).passes(values)
    assert not Yardstick("", "", 0.4, 0.6, "each").passes(values)
    assert Yardstick("", "", 0.0, np.inf, "each").passes(values)
    assert not Yardstick("", "", -np.inf, np.inf).passes(np.array([0.5, np.nan]))


def test_no_seeds_are_refused() -> None:
    with pytest.raises(KdxError, match="seeds = 0"):
        validate(0)
