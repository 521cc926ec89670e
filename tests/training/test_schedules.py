import math

import pytest

from kdx_analysis.config import TemperatureConfig
from kdx_analysis.training.schedules import learning_rate_factor, temperature_at


@pytest.mark.parametrize(
    ("schedule", "taus"),
    [
        ("reciprocal", [8, 4, 8 / 3]),
        ("exponential", [8, 4, 2]),
        ("cosine", [8, 5, 2]),
        ("constant", [8, 8, 8]),
    ],
)
def test_temperatures_by_hand(schedule, taus):
    config = TemperatureConfig(schedule=schedule, start=8, end=2)
    assert [temperature_at(config, epoch, 3) for epoch in (1, 2, 3)] == pytest.approx(taus)


@pytest.mark.parametrize("schedule", ["reciprocal", "exponential", "cosine", "constant"])
def test_one_epoch_is_at_the_start(schedule):
    assert temperature_at(TemperatureConfig(schedule=schedule, start=8, end=2), 1, 1) == pytest.approx(8)


def test_the_learning_rate_warms_up_and_then_falls_along_a_cosine():
    factors = [learning_rate_factor("cosine", step, 6, 2) for step in range(6)]
    assert factors == pytest.approx([0.5, 1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])


def test_a_constant_learning_rate_warms_up_only():
    assert [learning_rate_factor("constant", step, 4, 2) for step in range(4)] == [0.5, 1, 1, 1]


def test_a_warm_up_as_long_as_the_training():
    assert [learning_rate_factor("cosine", step, 2, 2) for step in range(3)] == [0.5, 1, 1]
