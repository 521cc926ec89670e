"""What a subtask's margin rests on, with Captum: pixels, and experts.

Pixels are asked for the whole model, or through one expert alone. Everything is computed on a copy
of the model in eval mode (half precision in float32), so the model is left as it was found whatever
happens. Captum is imported when first used: it takes seconds, and brings pyplot along.
"""

from __future__ import annotations

import base64
import copy
import importlib
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME
from kdx_analysis.models.heads import TokenPool
from kdx_analysis.models.modes import in_full, unwrapped, usable
from kdx_analysis.probes.conflict.proof import check_fixed_function
from kdx_analysis.probes.record import Record
from kdx_analysis.probes.subtasks import Asked, asked, finite, pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of the integral. Conductance takes more, as its sum over steps is a plain one.
STEPS, CONDUCTANCE_STEPS = 32, 128
AT_ONCE = 512  # images in one pass, those between baseline and image included; bounds the memory
MAX_OTHERS = 8  # class token, distillation token, registers


@dataclass(frozen=True, eq=False)
class Attribution(Record):
    """How much every pixel of some images speaks for a subtask.

    Attributes:
        method: ``integrated gradients`` or ``Grad-CAM``.
        subtask: k of every image, B.
        expert: (level, expert) where it is what passes through one expert alone, else None.
        images: B×C×H×W, normalised, as they were given.
        maps: B×H×W, summed over channels; above 0 for the subtask, below against it (never below
            for Grad-CAM).
        delta: of integrated gradients of the whole model, per image, what the maps' sum misses of
            the margin's difference from the baseline's; 0 is complete. None where nothing has to
            add up.
    """

    FILE = "attribution_record"

    method: str
    subtask: Tensor
    expert: tuple[int, int] | None
    images: Tensor
    maps: Tensor
    delta: Tensor | None

    @property
    def title(self) -> str:
        """The method, and the expert that it is taken through."""
        if self.expert is None:
            return self.method
        level, expert = self.expert
        return f"{self.method} through expert {expert} of level {level}"

    def to_frame(self) -> pd.DataFrame:
        """One row a pixel: image, subtask, y, x, attribution."""
        image, y, x = np.indices(self.maps.shape).reshape(3, -1)
        return pd.DataFrame(
            {
                "image": image,
                "subtask": self.subtask.numpy()[image],
                "y": y,
                "x": x,
                "attribution": self.maps.numpy().ravel(),
            }
        )

    def plot(self, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
        """The images side by side with their maps over them, as (figure, axes).

        They are drawn into ``ax`` if one is given.
        """
        from kdx_analysis.probes.faithfulness.drawing import attribution

        return attribution(self, ax)

    def _repr_html_(self) -> str:
        return as_html(self.plot()[0])


@dataclass(frozen=True, eq=False)
class Conductance(Record):
    """How much of a subtask's margin flows through every expert of a level.

    From Dhamdhere et al., How important is a neuron?, arXiv 1805.12233.

    Attributes:
        level: of the experts.
        subtask: k of every image, B.
        values: B×N; the rows add up to the margin's difference from the baseline's.
        delta: per image, by how much they miss it; 0 is complete.
    """

    FILE = "conductance_record"

    level: int
    subtask: Tensor
    values: Tensor
    delta: Tensor

    def to_frame(self) -> pd.DataFrame:
        """One row an image and expert: image, subtask, level, expert, conductance."""
        image, expert = np.indices(self.values.shape).reshape(2, -1)
        return pd.DataFrame(
            {
                "image": image,
                "subtask": self.subtask.numpy()[image],
                "level": self.level,
                "expert": expert,
                "conductance": self.values.numpy().ravel(),
            }
        )

    def plot(self, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
        """Every image a dot for each expert, as (figure, axes), drawn into ``ax`` if given."""
        from kdx_analysis.probes.faithfulness.drawing import conductance

        return conductance(self, ax)

    def _repr_html_(self) -> str:
        return as_html(self.plot()[0])


@torch.inference_mode(False)
def integrated_gradients(
    model: nn.Module,
    images: Tensor,
    subtask: int | Tensor,
    *,
    through: tuple[int, int] | None = None,
    baseline: float | Tensor = 0.0,
    steps: int = STEPS,
) -> Attribution:
    """(x − x₀) ∫₀¹ ∂m_k/∂x (x₀ + t(x − x₀)) dt, summed over channels.

    From Sundararajan et al., Axiomatic attribution for deep networks, arXiv 1703.01365. ``through``
    an expert, only the part of the gradient that passes it: over the experts of any one level these
    add up to the whole, and each one's sum over pixels is its :func:`conductance`.

    Args:
        model: an explainer; without ``through`` any classifier, images → B×K.
        images: normalised, B×C×H×W.
        subtask: k, or one for every image, B.
        through: (level, expert), levels from the trunk, 1.
        baseline: x₀, a number or an image C×H×W; 0 is the data set's mean colour once images are
            normalised.
        steps: of the Gauss–Legendre integral.

    Raises:
        KdxError: images, subtask or expert that don't fit the model, margins that are not finite.
    """
    working, images, subtasks = prepare(model, images, subtask)
    start = _baseline(baseline, images)
    with _only(working, through):
        values, delta = (
            captum()
            .IntegratedGradients(Asked(working))
            .attribute(
                images,
                start,
                target=subtasks,
                n_steps=steps,
                # Captum wants one step of all images to fit.
                internal_batch_size=max(AT_ONCE, len(images)),
                return_convergence_delta=True,
            )
        )
    maps = _kept(values.sum(dim=1), "integrated gradients")
    return Attribution(
        "integrated gradients",
        subtasks.cpu(),
        through,
        images.cpu(),
        maps,
        None if through else _kept(delta, "its error"),
    )


@torch.inference_mode(False)
def grad_cam(
    model: HME,
    images: Tensor,
    subtask: int | Tensor,
    *,
    level: int | None = None,
    expert: int | None = None,
) -> Attribution:
    """max(0, Σ_c w_c F_c), w_c the mean of ∂m_k/∂F_c over positions.

    From Selvaraju et al., Grad-CAM, arXiv 1610.02391. Over the channels of a whole level, by
    default the last whose positions reach the margins, or of one expert; brought to the images'
    size bilinearly. Tokens T×D are those of patches, row by row, behind a few that belong to no
    patch and are left out. Raises KdxError as :func:`integrated_gradients` does, and where tokens
    make no grid of square patches, or the heads read only the first of the ``level``'s.
    """
    working, images, subtasks = prepare(model, images, subtask)
    readout = getattr(working, "readout", None)
    last = len(experts_of(working)) - int(isinstance(readout, TokenPool) and readout.first)
    level = last if level is None else level
    site, N = _site(working, level), experts_of(working)[level - 1]
    if level > last:
        raise KdxError(
            f"the heads read the first token of level {level}, so its patches say nothing; take a "
            "lower one"
        )
    if expert is not None:
        _check_expert(working, (level, expert))
    channels = nn.Identity()
    handle = site.register_forward_hook(_through(channels, level, images))
    try:
        weighted = (
            captum()
            .LayerGradCam(Asked(working), channels)
            .attribute(images, subtasks, attr_dim_summation=False)
        )
    finally:
        handle.remove()
    apart = weighted.unflatten(1, (N, -1)).sum(dim=2)
    chosen = apart if expert is None else apart[:, [expert]]
    maps = chosen.sum(dim=1, keepdim=True).clamp(min=0)  # what speaks for the subtask alone
    maps = captum().LayerAttribution.interpolate(maps, tuple(images.shape[-2:]), "bilinear")[:, 0]
    place = None if expert is None else (level, expert)
    return Attribution(
        "Grad-CAM", subtasks.cpu(), place, images.cpu(), _kept(maps, "Grad-CAM"), None
    )


def _through(channels: nn.Module, level: int, images: Tensor) -> Callable[..., Tensor]:
    """A hook that lets features of ``level`` pass a module as channels, B×C×H×W."""

    def hook(module: nn.Module, inputs: Any, features: Tensor) -> Tensor:
        if features.ndim == (4 if level == 1 else 5):
            flat = features.reshape(len(features), -1, *features.shape[-2:])
            return channels(flat).view_as(features)
        grid = _patches(features.shape[-2], images)
        count = math.prod(grid)
        others, patches = features.split([features.shape[-2] - count, count], dim=-2)
        tokens = patches.unsqueeze(1) if level == 1 else patches
        laid = channels(tokens.transpose(-1, -2).reshape(len(features), -1, *grid))
        back = laid.reshape(tokens.transpose(-1, -2).shape).transpose(-1, -2).view_as(patches)
        return torch.cat([others, back], dim=-2)

    return hook


@torch.inference_mode(False)
def conductance(
    model: HME,
    images: Tensor,
    subtask: int | Tensor,
    level: int,
    *,
    baseline: float | Tensor = 0.0,
    steps: int = CONDUCTANCE_STEPS,
) -> Conductance:
    """∫ ∂m_k/∂F_i · dF_i from the baseline to the image, for every expert i of ``level``.

    The integral is along the straight line between them. Arguments and errors as for
    :func:`integrated_gradients`; the sum over steps is a plain one, so it takes more.
    """
    working, images, subtasks = prepare(model, images, subtask)
    values, delta = (
        captum()
        .LayerConductance(Asked(working), _site(working, level))
        .attribute(
            images,
            _baseline(baseline, images),
            target=subtasks,
            n_steps=steps,
            internal_batch_size=max(AT_ONCE, len(images)),  # one step of all images has to fit
            return_convergence_delta=True,
        )
    )
    per_expert = values.reshape(len(images), experts_of(working)[level - 1], -1).sum(dim=2)
    return Conductance(
        level, subtasks.cpu(), _kept(per_expert, "conductance"), _kept(delta, "its error")
    )


def captum() -> Any:
    """``captum.attr``, imported when first used.

    What it says about progress bars in notebooks is kept quiet.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("captum.attr")


def working_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode that asks for no gradients of its own.

    It is in float32 where the model is in half precision. A copy of an explainer gives margins,
    also where the model gives multi-class scores.
    """
    copied = in_full(copy.deepcopy(unwrapped(usable(model))[0]).eval().requires_grad_(False))
    return copied.giving_margins() if isinstance(copied, HME) else copied


def prepare(
    model: nn.Module, images: Tensor, subtask: int | Tensor
) -> tuple[nn.Module, Tensor, Tensor]:
    """A working copy, images on its device and in its precision, and k of every image.

    Raises KdxError where they can't be.
    """
    working, images = working_copy(model), checked(model, images)
    like = next(working.parameters())
    images = images.to(like)
    margins = finite(asked(working, images))
    check_fixed_function(working, images)
    subtasks = torch.as_tensor(subtask, device=images.device)
    K = margins.shape[-1]
    if subtasks.shape not in ((), (len(images),)) or subtasks.is_floating_point():
        raise KdxError(
            f"subtask of shape {tuple(subtasks.shape)} should be one number, or one for each image"
        )
    if not ((subtasks >= 0) & (subtasks < K)).all():
        raise KdxError(
            f"subtask = {subtasks.tolist()} should lie in 0 to {K - 1}, the model's outputs"
        )
    return working, images, subtasks.expand(len(images)).contiguous()


def checked(model: nn.Module, images: Tensor) -> Tensor:
    """``images`` as one finite batch, if ``model`` has parameters; else KdxError."""
    if next(model.parameters(), None) is None:
        raise KdxError(f"{type(model).__name__} has no parameters, so there is nothing to explain")
    return pictures(images)


def experts_of(model: nn.Module) -> tuple[int, ...]:
    """N_l of an explainer; KdxError for any other model."""
    if not isinstance(model, HME):
        raise KdxError(f"{type(model).__name__} has no experts; give an explainer (HME)")
    return model.experts


def as_html(figure: Figure) -> str:
    """A figure as an element of a page."""
    png = base64.b64encode(figure._repr_png_()).decode()  # type: ignore[attr-defined]
    return f'<img alt="" src="data:image/png;base64,{png}">'


@contextmanager
def replaced(model: nn.Module, level: int, replace: Any) -> Iterator[None]:
    """``replace(features)`` in place of the features B×N×… of ``level`` inside the body.

    The trunk's are B×1×….
    """

    def hook(module: nn.Module, inputs: Any, features: Tensor) -> Tensor:
        return replace(features.unsqueeze(1)).squeeze(1) if level == 1 else replace(features)

    handle = _site(model, level).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _only(model: nn.Module, expert: tuple[int, int] | None) -> Iterator[None]:
    """Inside the body gradients pass the level through this expert alone."""
    if expert is None:
        yield
        return
    _check_expert(model, expert)
    level, i = expert

    def all_but_one_detached(features: Tensor) -> Tensor:
        kept = torch.arange(features.shape[1], device=features.device) == i
        return torch.where(kept.view(-1, *(1,) * (features.ndim - 2)), features, features.detach())

    with replaced(model, level, all_but_one_detached):
        yield


def _site(model: nn.Module, level: int) -> nn.Module:
    """The module that gives the features of ``level``."""
    experts = experts_of(model)
    assert isinstance(model, HME)
    if not 1 <= level <= len(experts):
        raise KdxError(f"level = {level} should lie in 1, the trunk, to {len(experts)}")
    return model.trunk if level == 1 else model.levels[level - 2]


def _check_expert(model: nn.Module, expert: tuple[int, int]) -> None:
    level, i = expert
    _site(model, level)
    N = experts_of(model)[level - 1]
    if not 0 <= i < N:
        raise KdxError(f"level {level} has the experts 0 to {N - 1}, not {i}")


def _patches(tokens: int, images: Tensor) -> tuple[int, int]:
    """Rows and columns of the largest grid of square patches of the images that fits.

    Raises KdxError if many tokens are left over.
    """
    H, W = images.shape[-2:]
    sizes = [
        p for p in range(1, min(H, W) + 1) if H % p == W % p == 0 and (H // p) * (W // p) <= tokens
    ]
    if not sizes or tokens - (H // sizes[0]) * (W // sizes[0]) > MAX_OTHERS:
        raise KdxError(
            f"{tokens} tokens are no grid of square patches of {H}×{W} images and up to "
            f"{MAX_OTHERS} tokens beside; take integrated_gradients"
        )
    return H // sizes[0], W // sizes[0]


def _baseline(baseline: float | Tensor, images: Tensor) -> Tensor:
    start = torch.as_tensor(baseline).to(images)
    try:
        return start.expand_as(images[:1]).contiguous()
    except RuntimeError:
        raise KdxError(
            f"a baseline of shape {tuple(start.shape)} doesn't fit images of "
            f"{tuple(images.shape[1:])}"
        ) from None


def _kept(values: Tensor, what: str) -> Tensor:
    """``values`` on the CPU, in float64 as they are to be summed; KdxError if one is not finite."""
    if not values.isfinite().all():
        raise KdxError(f"{what} of the images is not finite; look at the model's weights")
    return values.detach().double().cpu()
