"""Gradients of all subtasks and their nulls, against a backward pass for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from kdx_analysis.bench.common import in_turn, one_vs_rest, random_images, seeded
from kdx_analysis.bench.contract import Contest, Contestant, Run, Setting, bench
from kdx_analysis.models import HME, MODELS
from kdx_analysis.probes import Grams, module_groups, subtask_grams
from kdx_analysis.probes.conflict.grams import residuals, with_null

_COMPARED = 2  # sets of residuals: the loss and, where there is a null, one draw of it
Subject = tuple[nn.Module, Tensor, Tensor]  # a model, images and residuals, R×B×K


def plain_grams(model: nn.Module, images: Tensor, sets: Tensor) -> list[Tensor]:
    """Gram matrices of every level, R×K×K, one backward pass for each subtask of each set."""
    model.eval()
    margins = model(images)
    levels = _levels(model)
    parameters = [parameter for level in levels for parameter in level]
    grams: list[list[Tensor]] = [[] for _ in levels]
    for residual in sets:
        rows: list[list[Tensor]] = [[] for _ in levels]
        for k in range(residual.shape[1]):
            gradients = iter(
                torch.autograd.grad(margins[:, k], parameters, residual[:, k], retain_graph=True)
            )
            for level, row in zip(levels, rows, strict=True):
                row.append(torch.cat([next(gradients).flatten() for _ in level]))
        for gram, row in zip(grams, rows, strict=True):
            stacked = torch.stack(row).double()  # as ours, since small squares vanish in float32
            gram.append(stacked @ stacked.T)
    return [torch.stack(gram) for gram in grams]


def _levels(model: nn.Module) -> list[list[nn.Parameter]]:
    """Parameters of trunk and levels, or of a model's groups of modules."""
    if isinstance(model, HME):
        return [list(part.parameters()) for part in (model.trunk, *model.levels)]
    levels = []
    for group in module_groups(model):
        modules = [model.get_submodule(path) for path in group]
        levels.append([parameter for module in modules for parameter in module.parameters()])
    return levels


def contest(
    label: str,
    build: Callable[[], nn.Module],
    images: Callable[[], Tensor],
    num_classes: int,
    null_draws: int,
    rounds: int | None = None,
) -> Contest:
    """Gram matrices of the hard loss and so many draws of its null.

    Sets take the same time, so the plain implementation runs one of them; two are compared.
    """

    def subject() -> Subject:
        given = images()
        model = build().to(given.device).eval()
        labels = in_turn(len(given), num_classes, given.device)
        with torch.no_grad():
            margins = model(given)
        residual = residuals(lambda m: one_vs_rest(m, labels), margins)
        return model, given, with_null(residual, null_draws, seed=0)

    def make_ours() -> Run:
        return partial(_grams, *subject())

    def make_plain() -> Run:
        model, given, sets = subject()
        return partial(plain_grams, model, given, sets[:1])

    def ours() -> Mapping[str, Tensor]:
        model, given, sets = subject()
        grams = _grams(model, given, sets[:_COMPARED])
        return {f"level {level}": grams.level(level) for level in range(1, len(grams.experts) + 1)}

    def plain() -> Mapping[str, Tensor]:
        model, given, sets = subject()
        grams = plain_grams(model, given, sets[:_COMPARED])
        return {f"level {level}": gram for level, gram in enumerate(grams, 1)}

    sets = 1 + null_draws
    return Contest(
        label,
        Contestant(f"{num_classes * sets} backward passes", make_plain, plain, parts=sets),
        (Contestant("subtask_grams", make_ours, ours),),
        rounds=rounds,
    )


def _grams(model: nn.Module, images: Tensor, sets: Tensor) -> Grams:
    """Ours; a model without gates has to say that its outputs are margins."""
    if isinstance(model, HME):
        return subtask_grams(model, images, sets)
    return subtask_grams(model, images, sets, margins=lambda outputs: outputs)


def digits_explainer() -> nn.Module:
    """The explainer of the demo, before training."""
    with seeded():
        student = MODELS["digits_student"](10, 1)
        return HME.from_student(student, 10, experts=4, image_shape=(1, 8, 8))


def plain_resnet20() -> nn.Module:
    """A model without gates or experts, before training."""
    with seeded():
        return MODELS["resnet20"](10, 3)


@bench(
    "probe",
    title="Gram matrices of ten subtasks with 49 null draws, 200 digits",
    against="plain autograd, a backward pass for each subtask and set",
)
def probe(setting: Setting) -> Iterator[Contest]:
    """The explainer, the images and the draws of the demo, for one loss and one split."""
    images = partial(random_images, setting.batch or 200, (1, 8, 8), setting.device)
    yield contest("", digits_explainer, images, 10, null_draws=49, rounds=3)


@bench(
    "gram",
    title="Gram matrices of ten subtasks without a null",
    against="plain autograd, a backward pass for each subtask",
    ratio="cost",
    target=1.2,
)
def gram(setting: Setting) -> Iterator[Contest]:
    """Of experts, which are grouped convolutions, and of a model without any."""
    digits = partial(random_images, setting.batch or 200, (1, 8, 8), setting.device)
    yield contest("digits' explainer, 200 images", digits_explainer, digits, 10, 0, rounds=7)
    images = partial(random_images, setting.batch or 40, (3, 32, 32), setting.device)
    yield contest("resnet20, 40 images", plain_resnet20, images, 10, 0, rounds=4)
