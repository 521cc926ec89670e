"""What VAM costs: a training step with it, and inference after folding, against the plain model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx_analysis.bench.common import answered, in_turn, random_images, seeded
from kdx_analysis.bench.contract import Contest, Contestant, Precision, Run, Setting, bench
from kdx_analysis.models import MODELS, vam

_GAMMA = 0.01  # any weight of the penalty takes the same time
_CLASSES = 100


def plain(model: str) -> nn.Module:
    """A model of the zoo."""
    with seeded():
        return MODELS[model](_CLASSES)


def attended(model: str) -> nn.Module:
    """The same with VAM, its gates drawn at random."""
    with_vam = plain(model)
    vam.attach(with_vam)
    with torch.no_grad(), seeded():
        for logits in vam.gate_parameters(with_vam):
            logits.normal_()
    return with_vam


def folded(model: str) -> nn.Module:
    """The same after folding, which leaves the plain layers with other weights."""
    with_vam = copy.deepcopy(attended(model))
    vam.fold(with_vam)
    return with_vam


def step(model: nn.Module, images: Tensor, precision: Precision) -> Run:
    """A training step, with the entropy penalty where there is VAM."""
    gates = list(vam.gate_parameters(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    labels = in_turn(len(images), _CLASSES, images.device)
    model.train()

    def run() -> None:
        loss = F.cross_entropy(answered(model, images, precision), labels)
        if gates:
            loss = loss + _GAMMA * vam.entropy(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def inference(model: nn.Module, images: Tensor, precision: Precision) -> Run:
    """A forward pass in eval mode."""
    model.eval()

    @torch.no_grad()
    def run() -> None:
        answered(model, images, precision)

    return run


def contests(model: str, images: Callable[[], Tensor], precision: Precision) -> Iterator[Contest]:
    """Training and inference, which compute more with VAM; folded, it computes the same again."""

    def make(
        phase: Callable[[nn.Module, Tensor, Precision], Run], build: Callable[[str], nn.Module]
    ) -> Run:
        given = images()
        return phase(build(model).to(given.device), given, precision)

    @torch.no_grad()
    def logits(build: Callable[[str], nn.Module]) -> Mapping[str, Tensor]:
        given = images()
        return {"logits": answered(build(model).to(given.device).eval(), given)}

    yield Contest(
        f"training step, {precision}",
        Contestant("plain", partial(make, step, plain)),
        (Contestant("VAM", partial(make, step, attended)),),
        precision,
        rounds=5,
    )
    yield Contest(
        f"inference, {precision}",
        Contestant("plain", partial(make, inference, plain)),
        (
            Contestant("VAM", partial(make, inference, attended), partial(logits, attended)),
            Contestant("folded", partial(make, inference, folded), partial(logits, folded)),
        ),
        precision,
        rounds=9,
    )


@bench(
    "vam",
    title="WRN-16-2 with VAM, its entropy penalty included, 32 images of 32×32",
    against="the plain model",
    ratio="cost",
)
def vam_bench(setting: Setting) -> Iterator[Contest]:
    """Training with VAM and inference after folding."""
    images = partial(random_images, setting.batch or 32, (3, 32, 32), setting.device)
    for precision in setting.precisions or ("float32",):
        yield from contests("wrn_16_2", images, precision)
