"""From a model's name to a module, and whether that module fits the data."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models.modes import modes_kept
from kdx_analysis.models.redraw import draw_anew
from kdx_analysis.models.zoo import MODELS
from kdx_analysis.registry import unknown

Library = Literal["zoo", "torchvision", "timm"]

# Their auxiliary classifiers would make the output in train mode a tuple.
_ONE_OUTPUT = {"aux_logits": False, "init_weights": True}
_TORCHVISION_OPTIONS = {"googlenet": _ONE_OUTPUT, "inception_v3": _ONE_OUTPUT}


def list_models(library: Library = "zoo") -> list[str]:
    """The names, sorted, that ``build_model`` takes for a library's models, prefix included."""
    if library == "zoo":
        return sorted(MODELS)
    from kdx_analysis import _compat  # noqa: F401  # isort: split

    if library == "torchvision":
        from torchvision import models

        names = models.list_models(module=models)
    else:
        import timm

        names = timm.list_models()
    return sorted(f"{library}:{name}" for name in names)


def build_model(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """A model with fresh weights, for K classes and images B×in_channels×H×W.

    Nothing is downloaded. ``name`` is one of the zoo (``resnet20``), of torchvision
    (``torchvision:resnet18``) or of timm (``timm:convnext_atto``).

    Raises KdxError for an unknown name, and for torchvision's models where ``in_channels`` is not
    3.
    """
    library, colon, entry = name.partition(":")
    if not colon:
        return MODELS[name](num_classes=num_classes, in_channels=in_channels)
    if library == "torchvision":
        return _from_torchvision(name, entry, num_classes, in_channels)
    if library == "timm":
        return _from_timm(name, entry, num_classes, in_channels)
    raise unknown("model library", library, ("torchvision", "timm"))


def _from_torchvision(name: str, entry: str, num_classes: int, in_channels: int) -> nn.Module:
    if name not in (names := list_models("torchvision")):
        raise unknown("model", name, names, "kdx list models --library torchvision")
    if in_channels != 3:
        raise KdxError(
            f"{name} takes images of 3 channels, data has {in_channels}: "
            "choose a model of the zoo or of timm, or give the images 3 channels"
        )
    from torchvision.models import get_model

    return get_model(
        entry, weights=None, num_classes=num_classes, **_TORCHVISION_OPTIONS.get(entry, {})
    )


def _from_timm(name: str, entry: str, num_classes: int, in_channels: int) -> nn.Module:
    if name not in (names := list_models("timm")):
        raise unknown("model", name, names, "kdx list models --library timm")
    import timm

    return timm.create_model(entry, pretrained=False, num_classes=num_classes, in_chans=in_channels)


def redrawn(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose weights are drawn anew, all of them trainable.

    The model itself is left as it was. Raises KdxError for a module that holds parameters and has
    no ``reset_parameters`` to draw them by.
    """
    for name, module in model.named_modules():
        names = [parameter for parameter, _ in module.named_parameters(recurse=False)]
        resets = hasattr(module, "reset_parameters") or hasattr(module, "_reset_parameters")
        if names and not resets:
            raise KdxError(
                f"can't draw the weights of {type(model).__name__} anew: {name or 'it'}, a "
                f"{type(module).__name__}, holds {', '.join(names)} and has no reset_parameters(); "
                "add one, or give the model by name, as torchvision:NAME or timm:NAME"
            )
    fresh = copy.deepcopy(model)
    draw_anew(fresh)
    return fresh.requires_grad_(True).train()


def check_fits(model: nn.Module, shape: tuple[int, int, int], num_classes: int) -> None:
    """Send two images of zeros through ``model``, and refuse one that does not fit the data.

    Its modes, statistics and the random state are left as they were. ``shape`` is an image's C×H×W.
    Raises KdxError where the forward pass fails or its result is not 2×K.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    images = torch.zeros(2, *shape, dtype=like.dtype, device=like.device)
    devices = [like.device] if like.is_cuda else []
    try:
        with modes_kept(model), torch.no_grad(), torch.random.fork_rng(devices):
            logits = model.eval()(images)
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise KdxError(
            f"images of {'×'.join(map(str, shape))} do not fit model {type(model).__name__}: "
            f"{reason}; choose another model, or change the images' size or channels"
        ) from error
    if not isinstance(logits, torch.Tensor):
        raise KdxError(
            f"model gives a {type(logits).__name__}, not one tensor of logits: wrap it so that it "
            "returns B×K"
        )
    if logits.ndim != 2 or len(logits) != 2:
        raise KdxError(
            f"model gives {'×'.join(map(str, logits.shape)) or 'a number'} for 2 images, "
            f"wanted 2×{num_classes}: end it in a classifier that returns B×K"
        )
    if logits.shape[1] != num_classes:
        raise KdxError(
            f"model gives {logits.shape[1]} outputs, data has {num_classes} classes: "
            f"build it with num_classes={num_classes}"
        )


def count_parameters(model: nn.Module) -> int:
    """The number of scalars in all parameters of ``model``, frozen ones too.

    Shared ones count once.
    """
    return sum(parameter.numel() for parameter in model.parameters())
