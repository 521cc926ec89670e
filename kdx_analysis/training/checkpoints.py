"""Weights on disk and back: safetensors, or what torch loads with ``weights_only=True``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.io import staged_file
from kdx_analysis.models import HME
from kdx_analysis.models.learn_to_branch import Released, learn_to_branch


def save_weights(path: Path, model: nn.Module, metadata: Mapping[str, str] | None = None) -> None:
    """Write the model's ``state_dict`` as safetensors, whole or not at all.

    ``metadata`` stands in its header.
    """
    # safetensors takes no tensors that share memory or have strides of another format
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    with staged_file(path) as partial:
        save_file(state, partial, dict(metadata) if metadata else None)


def read_state(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file by name.

    A pickled file may wrap them in ``{'model': …}`` or ``{'state_dict': …}``.

    Raises KdxError if the file can't be read safely or holds no mapping.
    """
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        known = (OSError, SafetensorError, RuntimeError, EOFError, ValueError)
        if not isinstance(error, known) and "weights_only" not in str(error).lower():
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise KdxError(f"cannot load weights from {str(path)!r}: {reason}") from None
    for wrapper in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping):
        raise KdxError(
            f"cannot load weights from {str(path)!r}: it holds a {type(state).__name__}, no named "
            "tensors"
        )
    return state


def load_weights(path: Path, model: nn.Module) -> None:
    """Load the tensors of a file (see :func:`read_state`) into ``model``.

    Raises KdxError if the file can't be read safely or its tensors don't fit the model.
    """
    try:
        model.load_state_dict(read_state(path))
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise KdxError(
            f"weights in {str(path)!r} don't fit {type(model).__name__}: {reason}"
        ) from None


def convert_learn_to_branch(checkpoint: Path, out: Path) -> Released:
    """Write a checkpoint of the released code as an explainer's weights.

    What it was stands in the file's header.

    Raises KdxError if ``checkpoint`` can't be read safely or is none of the released code's.
    """
    released = Released.read(read_state(checkpoint))
    metadata = {
        "preset": "learn_to_branch",
        "form": released.form,
        "num_classes": str(released.num_classes),
        "experts": " ".join(map(str, released.experts)),
        "in_channels": str(released.in_channels),
    }
    save_weights(out, released.explainer(), metadata)
    return released


def load_learn_to_branch(path: Path | str) -> HME:
    """The explainer that ``kdx convert`` wrote, of the multi-class form.

    Its outputs are the released code's scores.

    Raises KdxError if the file can't be read or was written otherwise.
    """
    path = Path(path)
    state = read_state(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError:
        metadata = {}
    if metadata.get("preset") != "learn_to_branch":
        raise KdxError(
            f"{str(path)!r} was not written by kdx convert: convert the released code's checkpoint "
            "first"
        )
    experts = [int(n) for n in metadata["experts"].split()]
    form: Any = metadata["form"]
    model = learn_to_branch(
        int(metadata["num_classes"]), form, experts, int(metadata["in_channels"]), multiclass=True
    )
    model.to(next(tensor.dtype for tensor in state.values() if tensor.is_floating_point()))
    load_weights(path, model)
    return model


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of a model's parameters and buffers."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
