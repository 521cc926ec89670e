"""A probe of the user's own, in a file outside the package, goes the way of the built-in ones."""

import pandas as pd
import pytest
import torch

from kdx_analysis.config import ObjectiveConfig, ProbeConfig
from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, build_model
from kdx_analysis.probes import PROBES, TrainingProbe
from kdx_analysis.probes.contract import Probe, check_sections, configured, probe_of
from kdx_analysis.records import RECORDS
from kdx_analysis.training import Epoch
from tests import toys

# As a user writes it, complete, in a file of their own.
SOURCE = '''
import pandas as pd
from kdx_analysis.probes import Moment, Probe, probe_of
from kdx_analysis.records import EPOCH, SPLIT, kind, number

kind(
    "sureness",
    "Mean margin of the right class.",
    keys=(EPOCH, SPLIT),
    values=(number("value", "mean over images"),),
    home=__name__,
)


@probe_of("sureness", title="sureness", roles=("student", "explainer"), kinds=("sureness",))
class Sureness(Probe):
    """How sure is a model of the right class?"""

    def __call__(self, moment: Moment) -> dict[str, pd.DataFrame]:
        right = moment.margins.gather(1, moment.labels.unsqueeze(1))
        return {"sureness": pd.DataFrame({"value": [right.mean().item()]})}
'''
CONFIG = {"per_class": 2, "checkpoints": 1, "null_draws": 19, "permutations": 19}


@pytest.fixture
def sureness():
    exec(compile(SOURCE, "mine.py", "exec"), {"__name__": "mine"})
    yield
    PROBES.forget("sureness")
    RECORDS.forget("sureness")


def training_probe(role: str, **section: object) -> tuple[TrainingProbe, torch.nn.Module]:
    torch.manual_seed(0)
    model = build_model("digits_student", 3, 1)
    model = HME.from_student(model, 3, 2) if role == "explainer" else model
    config = ProbeConfig.model_validate({**CONFIG, **section})
    return TrainingProbe(
        role, model, toys.dataset(), ObjectiveConfig(name="hard"), config, 2
    ), model


def look(role: str, **section: object) -> dict[str, pd.DataFrame]:
    probe, model = training_probe(role, **section)
    for epoch in (1, 2):
        probe(Epoch(epoch, 2, 0.0, 0.0, 1.0, None), model)
    return probe.tables()


def test_it_is_short() -> None:
    assert len(SOURCE.strip().splitlines()) <= 25


def test_a_student_without_vam_is_looked_at_by_it_alone(sureness) -> None:
    tables = look("student")
    assert set(tables) == {"sureness"}
    table = tables["sureness"]
    assert table[["epoch", "split"]].to_numpy().tolist() == [[2, "train"], [2, "val"]]
    _, model = training_probe("student")
    data = toys.dataset()
    images, labels = data.probe_images("val", 2, 0)
    with torch.no_grad():
        right = model.eval()(images)[range(len(labels)), labels].mean().item()
    assert table["value"].iloc[1] == pytest.approx(right)


def test_an_explainer_is_looked_at_by_all(sureness) -> None:
    assert {"sureness", "gates", "conflict", "affinity"} < set(look("explainer"))


def test_without_a_probe_nothing_is_looked_at() -> None:
    probe, model = training_probe("student")
    probe(Epoch(1, 2, 0.0, 0.0, None, None), model)
    assert (probe.ids, probe.tables()) == ({}, {})


def test_a_section_switches_off_and_overrides() -> None:
    tables = look("explainer", affinity=False, claims={"null_draws": 21, "checkpoints": 2})
    assert "affinity" not in tables
    assert set(tables["output_conflict"]["null_draws"]) == {21}
    assert set(tables["output_conflict"]["epoch"]) == {1, 2}
    assert set(tables["conflict"]["null_draws"]) == {19}
    assert set(tables["conflict"]["epoch"]) == {2}


def test_a_probe_may_look_at_images_of_its_own() -> None:
    probe, _ = training_probe("explainer", conflict={"per_class": 3})
    assert {name: len(ids) for name, ids in probe.ids.items()} == {
        "train": 6,
        "val": 6,
        "conflict train": 9,
        "conflict val": 9,
    }


def test_affinity_counts_its_own_draws() -> None:
    shared = ProbeConfig.model_validate({"null_draws": 99})
    assert configured(shared, PROBES["affinity"])[1].null_draws == 2
    more = shared.with_options("affinity", null_draws=39)
    config, options = configured(more, PROBES["affinity"])
    assert (config.null_draws, options.null_draws) == (99, 39)
    off = ProbeConfig.model_validate({"affinity": None})
    assert off.with_options("affinity", null_draws=39) == off


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"afinity": False}, "unknown key or probe of probes 'afinity'; did you mean 'affinity'"),
        (
            {"conflict": {"null_drawz": 3}},
            "unknown option of probes.conflict 'null_drawz'; did you mean 'null_draws'",
        ),
        ({"affinity": {"null_draws": 0}}, "probes.affinity: null_draws = 0: .*greater than or eq"),
        ({"conflict": {"null_draws": 3}}, "probes.conflict: null_draws = 3: .*greater than or eq"),
    ],
)
def test_sections_are_checked_beforehand(section: dict, message: str) -> None:
    with pytest.raises(KdxError, match=message):
        training_probe("explainer", **section)


def test_what_a_probe_gives_is_held_against_its_kind(sureness) -> None:
    probe, model = training_probe("student")
    wrong = {"sureness": pd.DataFrame({"value": ["high"]})}
    type(probe.probes["sureness"]).__call__ = lambda self, moment: wrong
    with pytest.raises(KdxError, match=r"probe 'sureness': column 'value' of 'sureness' .*'high'"):
        probe(Epoch(2, 2, 0.0, 0.0, None, None), model)
    wrong = {"metrics": pd.DataFrame()}
    with pytest.raises(
        KdxError, match="gives records of the kind 'metrics', but declares sureness"
    ):
        probe(Epoch(2, 2, 0.0, 0.0, None, None), model)


def test_declarations_that_cannot_be_are_refused() -> None:
    with pytest.raises(KdxError, match="unknown role 'pupil'"):
        probe_of("x", title="", roles=("pupil",), kinds=())
    with pytest.raises(KdxError, match="a key that all probes share"):
        probe_of("seed", title="", roles=("student",), kinds=())


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (("conflct",), "not declared: unknown kind of record 'conflct'; did you mean 'conflict'"),
        (("conflict",), "kind 'conflict', which probe 'conflict' gives"),
        (("metrics",), "kind 'metrics', which the training gives"),
    ],
)
def test_kinds_of_a_probe_are_its_own_before_anything_trains(kinds, message):
    @probe_of("mine", title="", roles=("student",), kinds=kinds)
    class Mine(Probe):
        def __call__(self, moment):
            return {}

    try:
        with pytest.raises(KdxError, match=message):
            check_sections(ProbeConfig.model_validate(CONFIG))
    finally:
        PROBES.forget("mine")


def test_a_kind_that_is_text_is_refused():
    with pytest.raises(KdxError, match="give a tuple"):
        probe_of("x", title="", roles=("student",), kinds="sureness")
