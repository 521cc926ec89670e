"""Weights on disk and back: safetensors, or a ``state_dict`` that torch loads with ``weights_only=True``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.io import staged_file


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the model's ``state_dict`` as safetensors, whole or not at all."""
    own = {"memory_format": torch.contiguous_format}  # safetensors takes no tensors that share memory
    state = {name: tensor.detach().cpu().clone(**own) for name, tensor in model.state_dict().items()}
    with staged_file(path) as partial:
        save_file(state, partial)


def load_weights(path: Path, model: nn.Module) -> None:
    """Load weights into ``model``; a pickled file may wrap its state in ``{'model': …}`` or ``{'state_dict': …}``.

    Raises KdxError if the file can't be read safely or its tensors don't fit the model.
    """
    try:
        if path.suffix == ".safetensors":
            state: Mapping[str, Tensor] = load_file(path)
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
            state = state[wrapper]  # type: ignore[assignment]
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise KdxError(f"weights in {str(path)!r} don't fit {type(model).__name__}: {reason}") from None


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of a model's parameters and buffers."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
