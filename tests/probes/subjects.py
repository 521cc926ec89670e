"""Explainers that probes are tried on, and whether a probe leaves them as it found them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import pandas as pd
import pytest
import timm
import torch
from torch import nn

from kdx_analysis import _compat  # noqa: F401  # isort: split
from kdx_analysis.models import HME, build_model
from kdx_analysis.null import LEAST_DRAWS

K = 5


def explainer(student: str = "digits_student", gates: str = "parameter") -> HME:
    """K subtasks, three experts a level, float64, train mode, statistics of BN that are not those
    of initialisation.
    """
    torch.manual_seed(0)
    if student == "test_vit":
        whole: nn.Module = timm.create_model(
            "vit_tiny_patch16_224",
            num_classes=K,
            in_chans=1,
            img_size=32,
            patch_size=8,
            embed_dim=48,
            depth=4,
            num_heads=4,
        )
    else:
        whole = build_model(student if student[:4] != "test" else f"timm:{student}", K, 1)
    model = HME.from_student(whole, K, 3, gates=gates, image_shape=(1, 32, 32)).double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    model.temperature = 0.5
    return model.train()


def small(gates: str = "parameter", experts: int | list[int] = 3, classes: int = 3) -> HME:
    """As it is initialised, float64, train mode."""
    torch.manual_seed(0)
    return (
        HME.from_student(build_model("digits_student", classes, 1), classes, experts, gates=gates)
        .double()
        .train()
    )


def snapshot(model: nn.Module) -> Iterator[object]:
    """Modes, hooks, gradients and values of a model."""
    for module in model.modules():
        yield module.training
        yield len(module._forward_hooks)
        yield len(module._backward_hooks)
    for parameter in model.parameters():
        yield parameter.grad
        yield parameter.requires_grad
    for tensor in model.state_dict().values():
        yield tensor.sum().item()


def check_left_as_found(
    model: HME, call: Callable[[], object], fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``call`` changes neither the model nor torch's random state, also where it raises half way."""
    before, rng = list(snapshot(model)), torch.get_rng_state()
    if fails:
        monkeypatch.setattr(model.heads, "forward", lambda inputs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call()
    else:
        call()
    assert all(x is y or x == y for x, y in zip(snapshot(model), before, strict=True))
    assert torch.equal(torch.get_rng_state(), rng)


def rescaled(model: HME, factor: float) -> HME:
    """A copy of a convolutional explainer with the same outputs and the same A, whose α is another.

    Features of the last level's first expert times ``factor``, its logits less τ ln ``factor``, and
    what the heads so get less of (Σ_j α_kj/c_j) given back by their weights.
    """
    copied = copy.deepcopy(model)
    norm = [module for module in copied.levels[-1].modules() if isinstance(module, nn.BatchNorm2d)][
        -1
    ]
    width = norm.num_features // model.experts[-1]
    before = model.attention()[-1].detach()
    with torch.no_grad():
        for parameter in (norm.weight, norm.bias):
            parameter[:width] *= factor
        copied.gates[-1].logits[:, 0] -= model.temperature * math.log(factor)
        kept = before.sum(dim=1) - before[:, 0] * (1 - 1 / factor)
        copied.heads.weight *= kept.unsqueeze(1)
    return copied


def check_no_silent_nan(table: pd.DataFrame) -> None:
    """Every NaN in a table of a probe is counted beside it, or its row says that there was nothing
    to draw from.
    """
    for row in table.to_dict("records"):
        unknown = {
            name for name, value in row.items() if isinstance(value, float) and math.isnan(value)
        }
        if row.get("null_draws") == 0 or row.get("null_undefined", 0) == row.get("null_draws"):
            unknown -= {"null_mean", "null_low", "null_high", "p"}
        if row.get("null_draws", 0) - row.get("null_undefined", 0) < LEAST_DRAWS:
            unknown -= {"null_low", "null_high"}
        if row.get("metric", "modulation") != "modulation":
            unknown -= {"p"}  # only modulation has one
        if row.get("undefined", 0) or row.get("says") == "undefined":
            continue
        assert not unknown, f"{unknown} in {row}"
