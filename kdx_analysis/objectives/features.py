"""Features of a model at module paths, taken by hooks while it runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME
from kdx_analysis.models.choose import module_at
from kdx_analysis.models.modes import unwrapped

# How models name the stages of their body: those of this package's, of ResNets, of transformers
# and ConvNeXts of torchvision and timm, of VGGs and MobileNets.
_STAGES = (r"stages\.\d+", r"layer\d+", r"blocks\.\d+", r"encoder\.layers\.\w+", r"features\.\d+")


@contextmanager
def captured(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What the modules at ``paths`` give while ``model`` runs in the body, by path, as float32.

    >>> import torch
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU())
    >>> with captured(model, ["1"]) as features:
    ...     _ = model(torch.zeros(2, 1, 2, 2))
    >>> features["1"].shape
    torch.Size([2, 3])

    A module that runs several times gives its last output. Hooks are gone afterwards, also when the
    body raises. Of a model inside the wrappers of torch.compile or of data parallelism, paths are
    those of the model itself.

    Raises:
        KdxError: a path that no module has, a module that gives no tensor, or one that did not run.
    """
    inside, _ = unwrapped(model)
    features: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for path in dict.fromkeys(paths):
            module = module_at(inside, path, type(inside).__name__)
            stack.callback(module.register_forward_hook(_keep(path, features)).remove)
        yield features
    missing = [path for path in paths if path not in features]
    if missing:
        raise KdxError(
            f"module {missing[0]!r} of {type(inside).__name__} did not run, so it has no features; "
            "name one that runs in every forward pass, as containers and compiled parts don't"
        )


def middle_stage(model: nn.Module) -> str:
    """The path of the middle one of a model's stages, whose features are intermediate ones.

    Of an explainer that is its trunk, which comes before its experts part.

    Raises:
        KdxError: a model whose stages can't be told by their names.
    """
    inside, _ = unwrapped(model)
    if isinstance(inside, HME):
        return "trunk"
    paths = [path for path, _ in inside.named_modules()]
    for pattern in _STAGES:
        stages: list[str] = [path for path in paths if re.fullmatch(pattern, path)]
        if stages:
            return stages[(len(stages) - 1) // 2]
    raise KdxError(
        f"{type(inside).__name__} has no stages that can be told by their names; name the module "
        f"whose features are meant, as one of {', '.join(path for path in paths if path)[:200]}"
    )


def _keep(path: str, features: dict[str, Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise KdxError(
                f"module {path!r} gives a {type(output).__name__}, not one tensor; name another "
                "module whose features are meant"
            )
        # under autocast features are of half precision, whose squares may leave its range
        features[path] = output.float()

    return hook
