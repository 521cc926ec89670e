"""The yardsticks of nulls: they hold, and would not where a sample's quantiles stood for the range."""

from __future__ import annotations

import numpy as np
import pytest

from kdx_analysis import null
from kdx_analysis.validation import Outcome
from kdx_analysis.validation.coverage import ROOMS, coverage

SAMPLED = {
    39: 0.9,
    199: 0.941,
}  # (R + 1)·.95 of R + 1 places, less what the quantiles of R leave out


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return Outcome("coverage", coverage(seed=1, values=300))


def test_every_room_is_asked_at_every_size_and_holds(outcome: Outcome) -> None:
    frame = outcome.to_frame()
    assert outcome.passed, str(outcome)
    asked = {(row.on, row.yardstick.rpartition("= ")[2]) for row in frame.itertuples()}
    assert asked == {(room.name, str(draws)) for room in ROOMS for draws in room.sizes}
    assert frame["value"].between(0, 1).all()
    assert (frame.loc[~frame["yardstick"].str.startswith("share"), "value"] > 0).any()


@pytest.mark.parametrize("draws", SAMPLED)
def test_a_samples_quantiles_would_be_told(draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cosines = ROOMS[0]
    assert cosines.draw(draws, 10_000, 0).inside.mean() == pytest.approx(0.95, abs=0.01)
    monkeypatch.setattr(
        null, "_order_statistic", lambda ordered, count, end: np.quantile(ordered, end, axis=0)
    )
    told = cosines.draw(draws, 10_000, 0).inside.mean()
    assert told == pytest.approx(SAMPLED[draws], abs=0.008)
