"""What a student may get from its teacher beside its answers (after Ojha et al. 2023, 2205.16004).

Where it looks: are the Grad-CAM maps of an image alike? What fools it: do images that were made to
fool the teacher fool the student? What it ignores: do the outputs change on the same images, when
these are turned, mirrored or moved? Each is asked of own teacher and siblings alike (method, §8).

Axes: B images, C channels, H×W pixels, K classes.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from beartype import beartype
from jaxtyping import Float, Int, UInt8, jaxtyped
from scipy.stats import rankdata
from torch import Tensor, nn

from kdx_analysis import _compat  # noqa: F401  before torchvision
from kdx_analysis.data import Dataset, Split
from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME
from kdx_analysis.models.choose import module_at
from kdx_analysis.models.modes import fitted, in_full, undisturbed
from kdx_analysis.probes.faithfulness.attribution import captum, grad_cam, prepare
from kdx_analysis.probes.subtasks import Asked, answer, asked
from kdx_analysis.records import IMAGES, kind, number, text

Attack = Literal["fgsm", "pgd"]
Margins = Callable[[Tensor], Tensor]
LOOKS, FOOLS, IGNORES = "where it looks", "what fools it", "what it ignores"
_AT_ONCE = 128  # images in one pass with gradients; bounds the memory of 224×224
_DEGREES, _SHARE = 15.0, 1 / 8  # of a turn, and of the side for a move

kind(
    "properties",
    "A property of one network beside one teacher, or its level by itself.",
    home=__name__,
    keys=(
        text("property", f"{LOOKS}, {FOOLS} or {IGNORES}"),
        text("metric", "what of it is given"),
        text("variant", "layer, attack or transform"),
        text("run", "the network"),
        text("teacher", "run of the teacher beside it; '' where the row is of the network alone"),
    ),
    values=(number("value", "of the metric; NaN where it is undefined"), IMAGES),
)


@dataclass(frozen=True, eq=False)
class Network:
    """One network that is looked at.

    Attributes:
        model: gives B×K.
        layer: path of the module whose features Grad-CAM reads; by default the last that are maps.
        to_margins: from its outputs to the scores that it is compared by; None: they are these.
        binary: whether scores are margins of binary subtasks, as an explainer's.
    """

    model: nn.Module
    layer: str | None = None
    to_margins: Margins | None = None
    binary: bool = False


@dataclass(frozen=True)
class Attacked:
    """How images are made that fool a teacher.

    Attributes:
        attack: ``fgsm`` (one step; Goodfellow et al. 2015) or ``pgd`` (Madry et al. 2018).
        epsilon: the most that a pixel moves, in units of [0, 1].
        steps: of PGD, each 2.5 ε/steps long, from the image itself.
    """

    attack: Attack = "pgd"
    epsilon: float = 8 / 255
    steps: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 1:
            raise KdxError(
                f"epsilon = {self.epsilon} should lie between 0 and 1, in units of pixels that run "
                "from 0 to 1; 8/255 is .0314"
            )

    def __str__(self) -> str:
        return f"{self.attack.upper()}, ε = {255 * self.epsilon:.3g}/255"


@jaxtyped(typechecker=beartype)
def map_correlation(
    maps: Float[Tensor, "B H W"], others: Float[Tensor, "B H W"]
) -> Float[Tensor, " B"]:
    """Pearson's r of two maps over the pixels of each image, in [−1, 1], null 0.

    NaN where either map is constant, as one is that Grad-CAM leaves empty.

    >>> a = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]]])
    >>> map_correlation(a, torch.tensor([[[1.0, 3.0], [5.0, 7.0]], [[0.0, 1.0], [2.0, 3.0]]]))
    tensor([1.0000,    nan], dtype=torch.float64)
    """
    # In float64, so that a constant map has no variance by rounding.
    x, y = (each.double().flatten(1) for each in (maps, others))
    constant = (x == x[:, :1]).all(dim=1) | (y == y[:, :1]).all(dim=1)
    x, y = x - x.mean(dim=1, keepdim=True), y - y.mean(dim=1, keepdim=True)
    r = (x * y).sum(dim=1) / (x.norm(dim=1) * y.norm(dim=1))
    # Rounding alone carries a quotient beyond 1, by Cauchy and Schwarz.
    return r.clamp(-1, 1).masked_fill(constant, torch.nan)


@jaxtyped(typechecker=beartype)
def fooled_along(
    labels: Int[Tensor, " B"],
    teacher: Int[Tensor, " B"],
    teacher_attacked: Int[Tensor, " B"],
    student: Int[Tensor, " B"],
    student_attacked: Int[Tensor, " B"],
) -> tuple[float, int]:
    """Share of images made to fool the teacher that change the student's answer, and their number.

    Counted are those that both had right before and that fool the teacher. In [0, 1]; NaN where
    there is none.

    Args:
        labels: true classes, B.
        teacher, student: answers on the images as they were.
        teacher_attacked, student_attacked: answers on those made for the teacher.

    >>> right, wrong = torch.tensor([0, 0, 0, 0]), torch.tensor([1, 1, 1, 0])
    >>> fooled_along(right, right, wrong, torch.tensor([0, 0, 1, 0]), torch.tensor([2, 0, 1, 1]))
    (0.5, 2)
    """
    counted = (teacher == labels) & (teacher_attacked != labels) & (student == labels)
    n = int(counted.sum())
    changed = int((counted & (student_attacked != student)).sum())
    return changed / n if n else math.nan, n


@jaxtyped(typechecker=beartype)
def output_change(
    scores: Float[Tensor, "B K"], others: Float[Tensor, "B K"], binary: bool = False
) -> Float[Tensor, " B"]:
    """Total variation ½ Σ_k |p_k − q_k| of two outputs on each image, in [0, 1], null 0.

    p = softmax(scores); of ``binary`` subtasks p_k = σ(m_k), and the mean over k of |p_k − q_k|.

    >>> scores, others = torch.tensor([[0.0, 0.0]]), torch.tensor([[50.0, 0.0]])
    >>> output_change(scores, others), output_change(scores, others, binary=True)
    (tensor([0.5000]), tensor([0.2500]))
    """
    if binary:
        return (scores.sigmoid() - others.sigmoid()).abs().mean(dim=1)
    return (scores.softmax(dim=1) - others.softmax(dim=1)).abs().sum(dim=1) / 2


@jaxtyped(typechecker=beartype)
def change_alike(changes: Float[Tensor, " B"], others: Float[Tensor, " B"]) -> float:
    """Spearman's ρ over images of how far two networks' outputs change, in [−1, 1], null 0.

    NaN where one of them changes alike on all.

    >>> change_alike(torch.tensor([0.1, 0.2, 0.4]), torch.tensor([0.0, 0.3, 0.2]))
    0.5
    """
    x, y = (rankdata(each.double().cpu().numpy()) for each in (changes, others))
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / size if size > 0 else math.nan


@torch.inference_mode(False)
def attention_maps(
    network: Network, images: Float[Tensor, "B C H W"], classes: Int[Tensor, " B"]
) -> Float[Tensor, "B H W"]:
    """Grad-CAM maps of a network for a class of each image, at the images' size (arXiv 1610.02391).

    Of an explainer those of its last level. The model is left as it was found.

    Args:
        network: with its ``layer``, whose features are B×C×h×w.
        images: normalised, B×C×H×W.
        classes: whose score each map is of, B.

    Raises:
        KdxError: a layer that there is not or whose features are no maps; a network with attention
            or tokens behind its last maps, as a transformer, unless a layer is given; a layer of
            an explainer.
    """
    model = network.model
    if isinstance(model, HME):
        if network.layer is not None:
            raise KdxError(
                f"layer = {network.layer!r} can't be chosen in an explainer, whose maps are those "
                "of its last level; leave it out"
            )
        parts = [grad_cam(model, images[i], classes[i]).maps for i in _chunks(images)]
        return torch.cat(parts)
    working, first, _ = prepare(model, images[:_AT_ONCE], classes[:_AT_ONCE])
    images, classes = images.to(first), classes.to(first.device)
    path = _last_maps(working, images[:2]) if network.layer is None else network.layer
    layer = module_at(working, path, "the model")
    wrapped, to_margins = Asked(working), network.to_margins
    method = captum().LayerGradCam(_scored(wrapped, to_margins), layer)
    maps = []
    for i in _chunks(images):
        with undisturbed(working):  # whatever Captum raises, none of its hooks stays
            weighted = method.attribute(images[i], classes[i], attr_dim_summation=False)
        if not isinstance(weighted, Tensor) or weighted.ndim != 4:
            raise KdxError(
                f"layer {path!r} gives no maps B×C×H×W for Grad-CAM; name one that does, as a "
                "convolution"
            )
        positive = weighted.sum(dim=1, keepdim=True).clamp(min=0)  # what speaks for the class alone
        sized = captum().LayerAttribution.interpolate(
            positive, tuple(images.shape[-2:]), "bilinear"
        )
        maps.append(sized[:, 0].detach().cpu())
    return torch.cat(maps)


def _scored(model: nn.Module, to_margins: Margins | None) -> Callable[[Tensor], Tensor]:
    return model if to_margins is None else lambda images: to_margins(model(images))


class _LastMaps:
    """Looks for the last maps that a convolution makes, and for what comes behind them.

    Attributes:
        last: path of the module that gives these maps; '' where there is none.
        behind: path of a module that gives tokens, or is an attention, behind them.
    """

    def __init__(self) -> None:
        self.last, self.behind = "", ""

    def hook(self, path: str, module: nn.Module) -> Callable[..., None]:
        """A forward hook for the module at a path."""
        convolves = any(isinstance(inner, nn.Conv2d) for inner in module.modules())
        attends = "attention" in type(module).__name__.lower()

        def look(_: nn.Module, __: Any, features: Any) -> None:
            axes = features.ndim if isinstance(features, Tensor) else 0
            if axes == 4 and convolves and min(features.shape[-2:]) > 1:
                self.last, self.behind = path, ""
            elif axes == 3 or attends:
                self.behind = path

        return look


def _last_maps(model: nn.Module, images: Tensor) -> str:
    """The path of the module that gives the last maps made by a convolution."""
    seen = _LastMaps()
    handles = []
    try:
        for path, module in model.named_modules():
            if path:
                handles.append(module.register_forward_hook(seen.hook(path, module)))
        asked(model, images)
    finally:
        for handle in handles:
            handle.remove()
    if not seen.last:
        raise KdxError(
            f"{type(model).__name__} makes no maps B×C×H×W by a convolution, which Grad-CAM reads; "
            "name a layer that gives some"
        )
    if seen.behind:
        raise KdxError(
            f"{type(model).__name__} goes on with tokens behind its last maps ({seen.behind!r} "
            f"behind {seen.last!r}), as a transformer does, so these are not what it looks at in "
            "the end; name a layer whose features are maps B×C×H×W"
        )
    return seen.last


class _OnPixels(nn.Module):
    """A model that is asked with pixels in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, data: Dataset) -> None:
        super().__init__()
        self.model = model
        for name, values in (("mean", data.mean), ("std", data.std)):
            self.register_buffer(name, fitted(_column(values), model))

    def forward(self, pixels: Tensor) -> Tensor:
        outputs: Tensor = self.model((pixels - self.mean) / self.std)
        return outputs


@torch.inference_mode(False)
def adversarial(
    model: nn.Module,
    pixels: Float[Tensor, "B C H W"],
    labels: Int[Tensor, " B"],
    data: Dataset,
    attacked: Attacked = Attacked(),
) -> Float[Tensor, "B C H W"]:
    """Pixels within ε of the given ones, and within [0, 1], that raise a model's cross-entropy.

    Made by Captum's FGSM or PGD on a copy of the model; nothing is drawn.

    Args:
        model: takes normalised images, gives logits B×K.
        pixels: in [0, 1], B×C×H×W.
        labels: true classes, B.
        data: whose mean and standard deviation the model's images are normalised by.
        attacked: how, and how far.
    """
    on_pixels = _OnPixels(model, data)
    working, first, _ = prepare(on_pixels, pixels[:_AT_ONCE], labels[:_AT_ONCE])
    pixels, labels = pixels.to(first), labels.to(first.device)
    robust = importlib.import_module("captum.robust")
    # one value an image, as Captum has it; what each gains does not hang on the others
    loss = nn.CrossEntropyLoss(reduction="none")
    kinds = {"fgsm": robust.FGSM, "pgd": robust.PGD}
    attack = kinds[attacked.attack](Asked(working), loss, lower_bound=0.0, upper_bound=1.0)
    # Madry's step, with which the ball's edge is reached
    pgd = (2.5 * attacked.epsilon / attacked.steps, attacked.steps)
    further = pgd if attacked.attack == "pgd" else ()
    made = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that pixels are given gradients, as is meant
        for i in _chunks(pixels):
            changed = attack.perturb(pixels[i], attacked.epsilon, *further, labels[i])
            made.append(changed.detach().cpu())
    return torch.cat(made)


def _turned(images: Tensor, ways: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    bilinear = functional.InterpolationMode.BILINEAR
    left, right = (functional.rotate(images, a, bilinear) for a in (_DEGREES, -_DEGREES))
    return torch.where(ways[:, :1, None, None], left, right)


def _mirrored(images: Tensor, ways: Tensor) -> Tensor:
    return images.flip(3)


def _moved(images: Tensor, ways: Tensor) -> Tensor:
    """Each image by an eighth of its side down or up and right or left, black coming in."""
    height, width = images.shape[-2:]
    moved = torch.zeros_like(images)
    for i, (down, right) in enumerate(ways.tolist()):
        dy = max(1, round(_SHARE * height)) * (1 if down else -1)
        dx = max(1, round(_SHARE * width)) * (1 if right else -1)
        shifted = images[i].roll((dy, dx), dims=(1, 2))
        keep_y = torch.arange(height).roll(dy) + dy == torch.arange(height)
        keep_x = torch.arange(width).roll(dx) + dx == torch.arange(width)
        moved[i] = shifted * (keep_y[:, None] & keep_x)
    return moved


TRANSFORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rotation by 15°": _turned,
    "mirroring": _mirrored,
    "translation by 1/8": _moved,
}


@jaxtyped(typechecker=beartype)
def transformed(
    images: UInt8[Tensor, "B C H W"], name: str, ids: Int[Tensor, " B"], seed: int = 0
) -> UInt8[Tensor, "B C H W"]:
    """Images under one of :data:`TRANSFORMS`; which way is drawn for each by its id and the seed.

    >>> image = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    >>> transformed(image, "mirroring", torch.tensor([0])).flatten().tolist()
    [2, 1, 4, 3]
    """
    drawn = [np.random.default_rng([seed, image]).integers(2, size=2) for image in ids.tolist()]
    ways = torch.from_numpy(np.stack(drawn)).bool()
    return TRANSFORMS[name](images.cpu(), ways)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What one network makes of the images.

    Attributes:
        scores: on the images themselves, B×K.
        maps: B×H×W.
        changed: transform → scores on the images under it, B×K.
        binary: as of the network.
    """

    scores: Tensor
    maps: Tensor
    changed: Mapping[str, Tensor] = field(default_factory=dict)
    binary: bool = False

    @property
    def answers(self) -> Tensor:
        return self.scores.argmax(dim=1)

    def change(self, name: str) -> Tensor:
        return output_change(self.scores, self.changed[name], self.binary)


def properties_of(
    networks: Mapping[str, Network],
    teachers: Mapping[str, Network],
    split: Split,
    data: Dataset,
    attacked: Attacked = Attacked(),
    seed: int = 0,
) -> pd.DataFrame:
    """The record ``properties`` of every network beside every teacher, and of each by itself.

    All maps are for the true class. Networks and teachers are compared by scores of one kind, which
    :class:`Network` says how to get.

    Args:
        networks: run → network: the student or explainer, and what stands beside it.
        teachers: run → network, the own one and siblings.
        split: the images that are looked at.
        data: that they are of.
        attacked: how images are made that fool a teacher.
        seed: of which way images are turned and moved.
    """
    images = split.images.take(torch.arange(len(split))).cpu()
    labels, normalised = split.labels.cpu(), data.normalise(images)
    shifted = {name: transformed(images, name, split.ids.cpu(), seed) for name in TRANSFORMS}
    seen: dict[str, _Seen] = {}
    for run, network in {**networks, **teachers}.items():
        changed = {name: _scores(network, data.normalise(moved)) for name, moved in shifted.items()}
        maps = attention_maps(network, normalised, labels)
        seen[run] = _Seen(_scores(network, normalised), maps, changed, network.binary)
    rows = [row for run in seen for row in _alone(run, seen[run])]
    for teacher, network in teachers.items():
        pixels = adversarial(network.model, images.float() / 255, labels, data, attacked)
        fooling = (pixels - _column(data.mean)) / _column(data.std)
        teacher_attacked = _scores(network, fooling).argmax(dim=1)
        for run in [name for name in networks if name != teacher]:
            rows += _beside(run, seen[run], teacher, seen[teacher])
            answers = _scores(networks[run], fooling).argmax(dim=1)
            share, n = fooled_along(
                labels, seen[teacher].answers, teacher_attacked, seen[run].answers, answers
            )
            rows.append((FOOLS, "answers changed", str(attacked), run, teacher, share, n))
    columns = ["property", "metric", "variant", "run", "teacher", "value", "n"]
    return pd.DataFrame(rows, columns=columns)


def _beside(run: str, seen: _Seen, teacher: str, taught: _Seen) -> Iterator[tuple[Any, ...]]:
    r = map_correlation(seen.maps, taught.maps)
    n = int((~r.isnan()).sum())
    yield LOOKS, "correlation of maps", "Grad-CAM", run, teacher, float(r.nanmean()), n
    for name in TRANSFORMS:
        alike = change_alike(seen.change(name), taught.change(name))
        yield IGNORES, "likeness of change", name, run, teacher, alike, len(seen.scores)


def _alone(run: str, seen: _Seen) -> Iterator[tuple[Any, ...]]:
    n = len(seen.scores)
    for name in TRANSFORMS:
        moved = float((seen.answers != seen.changed[name].argmax(dim=1)).double().mean())
        change = float(seen.change(name).mean())
        yield IGNORES, "change of output", name, run, "", change, n
        yield IGNORES, "answers changed", name, run, "", moved, n


def _scores(network: Network, images: Tensor) -> Tensor:
    """What a network says of images, as it is compared, B×K, on the CPU."""
    model = in_full(network.model)
    images = fitted(images, model)
    with undisturbed(model), torch.no_grad():
        parts = [answer(model(images[i].clone()), len(images[i])).float() for i in _chunks(images)]
    outputs = torch.cat(parts)
    return (outputs if network.to_margins is None else network.to_margins(outputs)).cpu()


def _chunks(images: Tensor) -> tuple[Tensor, ...]:
    return torch.arange(len(images), device=images.device).split(_AT_ONCE)


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)
