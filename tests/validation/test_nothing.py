import pytest

from kdx_analysis.validation import nothing


def test_studies_without_any_effect_have_the_covariance_that_is_meant():
    studies = list(nothing.null_studies(300, 4))
    values = {
        metric: [study[metric].to_numpy() for study in studies] for metric in nothing.MEASURED
    }
    for i, metric in enumerate(nothing.MEASURED):
        drawn = [value for table in values[metric] for value in table.ravel()]
        assert sum(drawn) / len(drawn) == pytest.approx(
            nothing.LEVELS[i], abs=0.05 * nothing.SPREADS[i]
        )
        spread = (sum((value - nothing.LEVELS[i]) ** 2 for value in drawn) / len(drawn)) ** 0.5
        assert spread == pytest.approx(nothing.SPREADS[i], rel=0.05)


def test_few_claims_of_such_studies_are_false():
    rows = {row.yardstick: row for row in nothing._claims(60, 3)}
    assert rows["a false sentence among the claims"].value <= 0.1
    assert rows["a star in a comparison"].value <= 0.15
    assert rows["exploratory decisions over those expected by chance"].value > 0


def test_objectives_that_lack_an_epoch_differ_by_nothing():
    assert all(row.passed for row in nothing._missing_epochs(200))
