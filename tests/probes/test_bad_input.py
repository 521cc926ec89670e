"""What every probe does with what it can't use: refuse it by name, or handle it with no NaN that
isn't counted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import kdx_analysis as kdx
from kdx_analysis import probes
from kdx_analysis.config import ObjectiveConfig, ProbeConfig
from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME
from kdx_analysis.models.zoo import StagedNet, plain_stage
from kdx_analysis.training import Epoch

from .. import toys
from .subjects import check_no_silent_nan

Table = Callable[[nn.Module, Tensor, Tensor], pd.DataFrame]


def conflict(model: nn.Module, images: Tensor, labels: Tensor) -> pd.DataFrame:
    record = probes.conflict_of(model, images, labels, null_draws=19, permutations=19)
    check_no_silent_nan(record.pairs)
    return record.summary


def by_batches(model: nn.Module, images: Tensor, labels: Tensor) -> pd.DataFrame:
    probe = probes.ConflictProbe(model)
    for batch in torch.arange(len(images)).split(4):
        probe.update(images[batch], labels[batch])
    return probe.compute(null_draws=19, permutations=19).summary


def watched(model: nn.Module, images: Tensor, labels: Tensor) -> pd.DataFrame:
    with kdx.probe(model, gates=True) as seen:
        model(images.to(next(model.parameters())))
    return seen.to_frame()


def gates_(model: nn.Module, images: Tensor, labels: Tensor) -> pd.DataFrame:
    record = probes.gates_of(model, images, labels)  # type: ignore[arg-type]
    check_no_silent_nan(record.to_frame())
    return record.summary(null_draws=5)


def ablation(model: nn.Module, images: Tensor, labels: Tensor) -> pd.DataFrame:
    record = probes.ablate(model, images, labels, permutations=9)  # type: ignore[arg-type]
    check_no_silent_nan(record.agreement)
    return record.to_frame()


GATED: dict[str, Table] = {
    "gates_of": gates_,
    "ablate": ablation,
    "explain": lambda m, x, y: probes.explain(m, x, y, 0, shown=1).to_frame(),  # type: ignore[arg-type]
    "grad_cam": lambda m, x, y: probes.grad_cam(m, x, 0).to_frame(),  # type: ignore[arg-type]
    "conductance": lambda m, x, y: probes.conductance(m, x, 0, 2, steps=2).to_frame(),  # type: ignore[arg-type]
    "probe": watched,
}
ANY: dict[str, Table] = {
    "conflict_of": conflict,
    "ConflictProbe": by_batches,
    "affinity_of": lambda m, x, y: probes.affinity_of(m, x, y, null_draws=1),
    "integrated_gradients": lambda m, x, y: probes.integrated_gradients(
        m, x, 0, steps=2
    ).to_frame(),
    "randomisation": lambda m, x, y: probes.randomisation(
        lambda n: probes.integrated_gradients(n, x, 0, steps=2).maps, m, draws=1, shifts=5
    ).to_frame(),
}
EVERY = GATED | ANY
HANDLED = [
    probe for probe in EVERY if probe != "explain"
]  # that is ablate, integrated_gradients and conductance
BY_CLASS = (
    "conflict_of",
    "ConflictProbe",
    "affinity_of",
    "ablate",
    "explain",
)  # what can't do without a class

IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 3


def student(classes: int = 3) -> StagedNet:
    torch.manual_seed(0)
    return StagedNet(
        nn.Identity(), [plain_stage(1 if i == 0 else 4, 4) for i in range(3)], 4, classes, pool=4
    )


def explainer(classes: int = 3, experts: int | list[int] = 2, gates: str = "parameter") -> HME:
    return HME.from_student(student(classes), classes, experts, gates=gates)


@pytest.mark.parametrize("probe", GATED)
def test_a_model_without_gates_is_refused_by_what_needs_them(probe: str) -> None:
    with pytest.raises(KdxError, match=r"has no (gates|experts)"):
        GATED[probe](student(), IMAGES, LABELS)


@pytest.mark.parametrize("probe", ANY)
def test_a_model_without_gates_is_probed_by_what_does_not(probe: str) -> None:
    check_no_silent_nan(ANY[probe](student(), IMAGES, LABELS))


@pytest.mark.parametrize("probe", EVERY)
def test_a_class_without_images_is_named_where_it_is_needed(probe: str) -> None:
    model, labels = explainer(), LABELS.clamp(max=1)
    if probe in BY_CLASS:
        with pytest.raises(KdxError, match="no image is of class '2'"):
            EVERY[probe](model, IMAGES, labels)
    else:
        check_no_silent_nan(EVERY[probe](model, IMAGES, labels))


@pytest.mark.parametrize("probe", EVERY)
def test_values_that_are_not_finite_are_named_or_counted(probe: str) -> None:
    model = explainer(gates="input" if probe == "probe" else "parameter")
    with torch.no_grad():
        next(model.levels[1].parameters()).fill_(torch.nan)
    if probe == "probe":  # it records what there is
        seen = EVERY[probe](model, IMAGES, LABELS)
        assert seen["undefined"].sum() == seen["alpha"].isna().sum() > 0
        return
    with pytest.raises(
        KdxError, match=r"of subtasks \[0, 1, 2\] are not finite|features on level 3 are not finite"
    ):
        EVERY[probe](model, IMAGES, LABELS)


class Steep(nn.Module):
    """Finite outputs, whose slope is infinite for subtask 1."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = student()

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.inner(images)
        one = (outputs[:, 1] - outputs[:, 1].detach()).sqrt()
        return torch.stack([outputs[:, 0], one, outputs[:, 2]], dim=1)


@pytest.mark.parametrize("probe", ["conflict_of", "affinity_of"])
def test_gradients_that_are_not_finite_are_named_by_subtask_and_level(probe: str) -> None:
    call = partial(ANY[probe], Steep(), IMAGES, LABELS)
    with pytest.raises(
        KdxError, match=r"gradients on level 1 are not finite \(subtasks \[.*1.*\]\)"
    ):
        call()


def test_an_attribution_that_is_not_finite_is_named() -> None:
    with pytest.raises(KdxError, match="integrated gradients of the images is not finite"):
        probes.integrated_gradients(Steep(), IMAGES, 1, steps=2)


@pytest.mark.parametrize("gates", ["parameter", "input"])
@pytest.mark.parametrize("probe", HANDLED)
def test_two_classes_and_one_expert_on_a_level(probe: str, gates: str) -> None:
    check_no_silent_nan(EVERY[probe](explainer(2, [1, 2], gates), IMAGES, LABELS.clamp(max=1)))


@pytest.mark.parametrize("probe", EVERY)
def test_a_single_image(probe: str) -> None:
    refused = {
        "gates_of": "don't vary over the 1 images",
        **dict.fromkeys(BY_CLASS, "no image is of class '1'"),
    }
    call = partial(EVERY[probe], explainer(2), IMAGES[:1], LABELS[:1])
    if probe in refused:
        with pytest.raises(KdxError, match=refused[probe]):
            call()
    else:
        check_no_silent_nan(call())


@pytest.mark.parametrize("probe", HANDLED)
def test_half_precision_is_handled_and_kept(probe: str) -> None:
    model = explainer().bfloat16()
    check_no_silent_nan(EVERY[probe](model, IMAGES, LABELS))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="a model on another device than its images needs a GPU"
)
@pytest.mark.parametrize("probe", EVERY)
def test_a_model_on_another_device_is_probed_there(probe: str) -> None:
    model = explainer()
    expected = EVERY[probe](copy.deepcopy(model), IMAGES, LABELS)
    found = EVERY[probe](model.cuda(), IMAGES, LABELS)
    numbers = expected.select_dtypes("number").columns
    pd.testing.assert_frame_equal(found[numbers], expected[numbers], rtol=1e-2, atol=1e-3)
    assert all(p.device.type == "cuda" for p in model.parameters())


@pytest.mark.parametrize("gates", ["parameter", "input"])
@pytest.mark.parametrize("kind", ["dead level", "one expert"])
def test_what_the_recorder_cannot_know_is_counted_in_every_table(kind: str, gates: str) -> None:
    data = toys.dataset()
    model = explainer(experts=1 if kind == "one expert" else 2, gates=gates)
    if kind == "dead level":  # features of level 2 that don't vary, and so none above it
        for parameter in model.levels[0].parameters():
            nn.init.zeros_(parameter)
    config = ProbeConfig(per_class=2, checkpoints=1, null_draws=19, permutations=19)
    recorder = probes.TrainingProbe(
        "explainer", model, data, ObjectiveConfig(name="hard"), config, 1
    )
    recorder(Epoch(1, 1, 0.0, 0.0, 1.0, None), model)
    tables = recorder.tables()
    for table in tables.values():
        check_no_silent_nan(table)
    if kind == "dead level":
        unknown = tables["gates"]["effective"].isna()
        assert set(tables["gates"].loc[unknown, "level"]) == {3, 4}
        assert (tables["gates"]["undefined"] == unknown).all()
        pairs = tables["conflict"].query("split == 'train' and level == '2'")
        assert (pairs["undefined"] > 0).all()
        assert (pairs["null_undefined"] == 19).all()
        summary = tables["conflict_summary"].query("split == 'train' and level == '2'")
        assert (summary["undefined"] == 3).all()
        assert (summary["pairs"] == 0).all()
    else:
        assert not tables["gates"].isna().any(axis=None)
