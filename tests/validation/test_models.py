import math

import pytest

from kdx_analysis.validation import models


@pytest.mark.parametrize("way", models.WAYS, ids=lambda way: way.name)
def test_conflict_is_plain_autograd_s_or_refused_by_name(way: models.Way) -> None:
    row = models._row(way)
    assert row.passed, row.note or row.value
    assert math.isnan(row.value) == bool(way.refused)


def test_a_wrong_number_and_a_needless_refusal_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    right = models.Way("two convolutions", models.Net)
    needless = models._row(models.Way("needless", models.Probabilities))
    assert not needless.passed
    assert "look like probabilities" in needless.note
    assert not models._row(models.Way("not refused", models.Net, refused="'a'")).passed
    monkeypatch.setattr(models, "_one_vs_rest", lambda logits: 1.01 * logits)
    wrong = models._row(right)
    assert not wrong.passed
    assert wrong.value > 1e-3


def test_the_part_has_one_row_a_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "WAYS", models.WAYS[:2])
    outcome = models.validate()
    assert outcome.passed
    assert outcome.part == "models"
    assert list(outcome.to_frame()["on"]) == [way.name for way in models.WAYS]
