import math

import pytest

from kdx_analysis.config import PenaltyConfig, TemperatureConfig, TrainingConfig
from kdx_analysis.training.schedules import (
    learn_to_branch_factor,
    learning_rate_factor,
    penalty_at,
    temperature_at,
)


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
    assert temperature_at(
        TemperatureConfig(schedule=schedule, start=8, end=2), 1, 1
    ) == pytest.approx(8)


def factors(steps: int, **keys) -> list[float]:
    """The first ``steps`` multipliers, two steps an epoch."""
    return [learning_rate_factor(TrainingConfig(**keys), step, 2) for step in range(steps)]


def test_the_learning_rate_warms_up_and_then_falls_along_a_cosine():
    by_hand = [0.5, 1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    assert factors(6, epochs=3, warmup_epochs=1) == pytest.approx(by_hand)


def test_a_constant_learning_rate_warms_up_only():
    assert factors(4, epochs=2, schedule="constant", warmup_epochs=1) == [0.5, 1, 1, 1]


def test_a_warm_up_as_long_as_the_training():
    assert factors(3, epochs=1, warmup_epochs=1) == [0.5, 1, 1]


def test_steps_halve_the_learning_rate():
    halved = factors(8, epochs=4, schedule="step", step_epochs=2, warmup_epochs=0.5)
    assert halved == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]
    assert factors(12, epochs=6, schedule="step", step_epochs=1, warmup_epochs=0)[-1] == 0.5**5


def test_the_released_code_warms_up_by_itself_and_falls_every_other_epoch():
    told = factors(300 * 2, epochs=300, schedule="learn_to_branch", warmup_epochs=9)
    assert told[:9] == [0.25, 0.25, 0.5, 0.5, 1, 1, 1, 1, 1 - 4 / 309]  # ⌊1.03093·300⌋ = 309
    assert told[10:13] == [1 - 4 / 309, 1 - 4 / 309, 1 - 6 / 309]
    assert told[-1] == told[-4] == 1 - 298 / 309


@pytest.mark.parametrize("epochs", [*range(5, 100), 300])
def test_the_released_codes_learning_rate_only_falls_from_epoch_4_and_stays_above_0(epochs):
    factors = [learn_to_branch_factor(epoch, epochs) for epoch in range(4, epochs + 1)]
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] > 0


def test_a_penalty_stays_or_grows_in_equal_steps():
    grows = PenaltyConfig(schedule="linear", start=0, end=0.3)
    assert [penalty_at(grows, epoch, 4) for epoch in (1, 2, 3, 4)] == pytest.approx(
        [0, 0.1, 0.2, 0.3]
    )
    assert penalty_at(grows, 1, 1) == 0
    assert penalty_at(PenaltyConfig(start=0.2), 3, 4) == 0.2
