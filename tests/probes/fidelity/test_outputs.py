"""Outputs that are refused, and what is left of them where an image lacks a direction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdx_analysis.errors import KdxError
from kdx_analysis.probes.fidelity.likeness import Likeness
from kdx_analysis.probes.fidelity.outputs import Outputs

LABELS = torch.arange(12) % 4


def scores(seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.standard_normal((12, 4)), dtype=dtype)


def with_value(value: float) -> torch.Tensor:
    changed = scores()
    changed[5, 2] = value
    return changed


def all_ruled_out() -> torch.Tensor:
    changed = scores()
    changed[3] = -torch.inf
    return changed


@pytest.mark.parametrize(
    ("given", "labels", "message"),
    [
        (scores()[0], LABELS, r"\(4,\) for \(12,\) labels"),
        (scores().long(), LABELS, "torch.int64 .* give floating-point numbers"),
        (scores(), LABELS[:11], r"\(12, 4\) for \(11,\) labels"),
        (scores(), LABELS.int(), "labels are torch.int32; .* int64"),
        (scores()[:0], LABELS[:0], r"\(0, 4\); give at least one image and two classes"),
        (scores()[:, :1], LABELS * 0, "at least one image and two classes"),
        (scores(), LABELS + 1, "labels run from 1 to 4, but the classes are 0 to 3"),
        (scores(), LABELS - 1, "labels run from -1 to 2"),
        (with_value(torch.nan), LABELS, "score of image 5 for class 2 is nan"),
        (with_value(torch.inf), LABELS, "score of image 5 for class 2 is inf; leave out"),
        (all_ruled_out(), LABELS, "image 3 has a probability of 0 for every class"),
    ],
)
def test_outputs_that_say_nothing_are_refused(
    given: torch.Tensor, labels: torch.Tensor, message: str
) -> None:
    with pytest.raises(KdxError, match=message):
        Outputs(given, labels)


def test_an_infinite_margin_has_its_cause() -> None:
    with pytest.raises(KdxError, match="one-vs-rest margins: a probability of exactly 1"):
        Outputs(with_value(torch.inf), LABELS, binary=True)


def test_a_probability_of_0_is_no_error() -> None:
    outputs = Outputs(with_value(-torch.inf), LABELS)
    known = outputs.directions(slice(0, 12)).known
    assert known.tolist() == [n != 5 for n in range(12)]


def test_outputs_keep_no_graph_and_change_no_number() -> None:
    given = scores(dtype=torch.float64).requires_grad_()
    before = given.detach().clone()
    outputs = Outputs(given, LABELS)
    Likeness(outputs, Outputs(scores(1, torch.float64), LABELS)).values()
    assert not outputs.scores.requires_grad
    assert torch.equal(given.detach(), before)


def test_what_was_forgotten_is_made_anew() -> None:
    outputs, other = Outputs(scores(), LABELS), Outputs(scores(1), LABELS)
    before = Likeness(outputs, other).values()
    outputs.forget()
    assert Likeness(outputs, other).values() == before


@pytest.mark.parametrize("gap", ["none", "zeros", "constant", "lone class"])
def test_images_that_count_make_instance(gap: str) -> None:
    rng = np.random.default_rng(3)
    labels = torch.arange(60) % 5
    base = 0.3 * rng.standard_normal((60, 6))
    a, b = (torch.tensor(base + rng.standard_normal((60, 6))) for _ in range(2))
    if gap == "zeros":
        a[7, 5] = b[20, 5] = -torch.inf
    if gap == "constant":
        a[[4, 9]] = 1.0
    if gap == "lone class":
        labels[11] = 5
    likeness = Likeness(Outputs(a, labels), Outputs(b, labels))
    values, measured = likeness.of_images(), likeness.instance
    assert int(np.isnan(values).sum()) == measured.undefined
    assert np.nanmean(values) == pytest.approx(measured.value, abs=1e-12)
    assert bool(measured.undefined) == (gap != "none")


def test_images_say_nothing_where_instance_is_undefined() -> None:
    three = torch.tensor(np.random.default_rng(0).standard_normal((12, 3)))
    few = Outputs(three, torch.arange(12) % 3)
    assert np.isnan(Likeness(few, few).of_images()).all()
    alike = Outputs(torch.eye(4)[LABELS] + torch.arange(4.0), LABELS)
    assert np.isnan(Likeness(alike, Outputs(scores(), LABELS)).of_images()).all()
