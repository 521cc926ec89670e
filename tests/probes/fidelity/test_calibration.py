"""Calibration by hand: which bin holds what, what answers by chance give, and margins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kdx_analysis.probes.fidelity.calibration import (
    calibration_error,
    ece,
    expected_by_chance,
    levels,
    nll,
)
from kdx_analysis.probes.fidelity.outputs import Outputs


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def scores_of(confidences: list[float]) -> Tensor:
    """Two classes, of which the first is chosen with these probabilities, each above ½."""
    p = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], dim=1)


def test_a_bin_holds_its_upper_end() -> None:
    # 10/15 ends a bin, and .7 lies in the next: |−1 + (1 − .7)| would be .35 were they in one.
    end = 10 / 15
    apart = calibration_error(doubles(end, 0.7), torch.tensor([False, True]))
    assert float(apart) == pytest.approx((end + 0.3) / 2)
    together = calibration_error(doubles(end, end - 0.01), torch.tensor([False, True]))
    assert float(together) == pytest.approx(abs(-end + 1 - (end - 0.01)) / 2)


def test_confidence_0_belongs_to_the_lowest_bin() -> None:
    # Margins far below 0: σ underflows. In one bin with .05 they balance.
    error = calibration_error(doubles(0.0, 0.05), torch.tensor([False, False]))
    assert float(error) == pytest.approx(0.025)


def test_answers_by_chance_are_seeded_and_above_0() -> None:
    confidence = torch.linspace(0.5, 1, 100, dtype=torch.float64)
    first, second = expected_by_chance(confidence), expected_by_chance(confidence)
    assert first == second
    assert 0 < first < 0.2
    assert expected_by_chance(confidence.repeat(100)) < first / 5


def test_answers_by_chance_do_not_depend_on_the_order_of_the_images() -> None:
    confidence = torch.linspace(0.5, 1, 97, dtype=torch.float64)
    shuffled = confidence[torch.randperm(97, generator=torch.Generator().manual_seed(0))]
    # 200 draws of about .05 agree to a few thousandths.
    assert expected_by_chance(shuffled) == pytest.approx(expected_by_chance(confidence), abs=5e-3)


def test_a_sure_network_has_nothing_by_chance() -> None:
    assert expected_by_chance(torch.ones(20, dtype=torch.float64)) == 0


def test_the_metric_is_the_error_of_the_chosen_classes_confidence() -> None:
    scores = scores_of([0.9, 0.9, 0.6])
    labels = torch.tensor([0, 1, 0])
    # .9 twice, one right: |.5 − .9|·2/3; .6 right: .4/3.
    assert float(ece(scores, labels)) == pytest.approx(0.8 / 3 + 0.4 / 3)
    measured = levels(Outputs(scores, labels))
    assert measured["ece"].value == pytest.approx(1.2 / 3)
    assert measured["ece"].chance == expected_by_chance(doubles(0.9, 0.9, 0.6))
    assert (measured["ece"].n, measured["nll"].n) == (3, 3)
    assert math.isnan(measured["nll"].chance)


def test_likelihood_by_hand() -> None:
    scores, labels = scores_of([0.9, 0.6]), torch.tensor([0, 1])
    assert float(nll(scores, labels)) == pytest.approx(-(math.log(0.9) + math.log(0.4)) / 2)


def test_margins_sum_over_subtasks() -> None:
    margins = doubles(2.0, -1.0, 0.5).unsqueeze(0)
    p = 1 / (1 + np.exp(-np.array([2.0, -1.0, 0.5])))
    by_hand = -(np.log(p[2]) + np.log(1 - p[0]) + np.log(1 - p[1]))
    labels = torch.tensor([2])
    assert float(nll(margins, labels, binary=True)) == pytest.approx(by_hand)
    assert float(ece(margins, labels, binary=True)) == pytest.approx(p[0])  # chosen, and wrong


def test_a_class_that_was_ruled_out_is_infinitely_unlikely() -> None:
    scores = torch.tensor([[0.0, -torch.inf], [0.0, -torch.inf]])
    assert float(nll(scores, torch.tensor([0, 1]))) == math.inf
    assert float(nll(scores, torch.tensor([0, 0]))) == 0
