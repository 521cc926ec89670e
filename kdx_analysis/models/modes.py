"""The model that a probe looks at: refused where it can't be probed, and left as it was found."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdx_analysis.errors import KdxError

M = TypeVar("M", bound=nn.Module)
# What data parallelism and torch.compile put before the names of parameters.
WRAPPERS = ("module.", "_orig_mod.")


def unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    """The module inside wrappers, and the prefix of its names in them.

    Wrappers are those of torch.compile and of data parallelism. Compiled code knows no hooks and
    replicas are other modules. A wrapper with hooks of its own stays.
    """
    prefix = ""
    while not (model._forward_hooks or model._forward_pre_hooks):
        if isinstance(model, nn.DataParallel | DistributedDataParallel):
            name = "module"
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            name = "_orig_mod"
        else:
            break
        model, prefix = getattr(model, name), f"{prefix}{name}."
    return model, prefix


def usable(model: M) -> M:
    """``model``, if its parameters are there, on one device and can have gradients.

    Otherwise KdxError says why not.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        if nn.parameter.is_lazy(tensor):
            raise KdxError(
                f"{name!r} has no shape yet, as its module is lazy; call the model on some images "
                "first"
            )
        if tensor.is_meta:
            raise KdxError(
                f"{name!r} lies on the meta device and has no values; load the model's weights "
                "first"
            )
        if tensor.is_inference():
            raise KdxError(
                f"{name!r} was made under torch.inference_mode() and can have no gradient; build "
                "or load the model "
                "outside of it"
            )
    devices = sorted({str(tensor.device) for tensor in tensors.values()})
    if len(devices) > 1:
        raise KdxError(
            f"the model lies on {', '.join(devices)}; move it to one device, as "
            f"model.to({devices[0]!r})"
        )
    return model


def in_full(model: M) -> M:
    """The model, or a float32 copy of one in half precision.

    There the angles of gradients are too coarse.
    """
    halves = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    return copy.deepcopy(model).float() if halves else model


def fitted(images: Tensor, model: nn.Module) -> Tensor:
    """``images`` on the model's device and in its precision.

    That is the one of its first parameter that has a floating point.
    """
    first = next(model.parameters(), images)
    return images.to(
        next((p for p in model.parameters() if p.is_floating_point()), images.to(first.device))
    )


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards every module of ``model`` trains or not as it did before.

    So it is when the body raises, too.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode and full precision inside the body; afterwards everything is as it was before.

    So it is when the body raises, too. Everything is parameters, buffers, gradients, requires_grad,
    modes, hooks and attributes of every module, torch's, NumPy's and Python's random states,
    autocast, and the precision of products. Inside, compiled code runs eagerly and
    torch.inference_mode() is left.
    """
    device = next((p.device.type for p in model.parameters()), "cpu")
    kept = [_Module.of(module) for module in model.modules()]
    tensors = [_Values.of(tensor) for tensor in (*model.parameters(), *model.buffers())]
    try:
        with ExitStack() as stack:
            # Leaving inference mode switches gradients on, which a caller who is not in it may not
            # want.
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.autocast(device, enabled=False))
            stack.enter_context(_random_states(model))
            stack.enter_context(_full_precision(model))
            stack.enter_context(patch.object(torch.utils.checkpoint, "CheckpointFunction", _Direct))
            # Where it is not imported nothing is compiled, and importing it takes seconds.
            if "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            model.eval()
            yield
    finally:
        for module in kept:
            module.restore()
        for values in tensors:
            values.restore()


class _Direct:
    """The function itself, in place of a reentrant checkpoint.

    Such a checkpoint knows no gradients by given tensors.
    """

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


@dataclass(frozen=True)
class _Module:
    """What hangs on a module: its attributes, and what its registries hold."""

    module: nn.Module
    attributes: dict[str, Any]
    registries: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, module: nn.Module) -> _Module:
        if isinstance(module, torch.jit.ScriptModule):  # keeps its own in C++
            return cls(module, {"training": module.training}, {})
        attributes = dict(vars(module))
        registries = {
            name: dict(value)
            for name, value in attributes.items()
            if name[0] == "_" and isinstance(value, dict)
        }
        return cls(module, attributes, registries)

    def restore(self) -> None:
        if isinstance(self.module, torch.jit.ScriptModule):
            self.module.training = self.attributes["training"]
            return
        _refill(vars(self.module), self.attributes)
        for name, content in self.registries.items():
            _refill(vars(self.module)[name], content)


def _refill(mapping: dict[str, Any], content: dict[str, Any]) -> None:
    """``mapping`` with the very objects of ``content`` and no other."""
    if mapping.keys() != content.keys() or any(
        mapping[name] is not value for name, value in content.items()
    ):
        mapping.clear()
        mapping.update(content)


@dataclass(frozen=True)
class _Values:
    """A parameter or buffer with its values, its gradient and whether it asks for one."""

    tensor: Tensor
    values: Tensor | None
    grad: Tensor | None
    requires_grad: bool

    @classmethod
    def of(cls, tensor: Tensor) -> _Values:
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            return cls(tensor, None, None, tensor.requires_grad)
        return cls(
            tensor,
            tensor.detach().clone(),
            tensor.grad if tensor.is_leaf else None,
            tensor.requires_grad,
        )

    def restore(self) -> None:
        if self.values is None:
            return
        # Only what changed is written: a graph that waits for its backward pass may hold the
        # tensor.
        if not torch.equal(self.tensor, self.values):
            with torch.no_grad():
                self.tensor.copy_(self.values)
        if self.tensor.is_leaf:
            if self.tensor.grad is not self.grad:
                self.tensor.grad = self.grad
            if self.tensor.requires_grad != self.requires_grad:
                self.tensor.requires_grad_(self.requires_grad)


@contextmanager
def _random_states(model: nn.Module) -> Iterator[None]:
    cuda = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _full_precision(model: nn.Module) -> Iterator[None]:
    """No product in TensorFloat-32 or bfloat16, whose rounding is a thousandth of a gradient."""
    precision = torch.get_float32_matmul_precision()
    cuda = any(p.device.type == "cuda" for p in model.parameters())
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    try:
        torch.set_float32_matmul_precision("highest")
        with ExitStack() as stack:
            if cuda:
                cudnn = torch.backends.cudnn
                stack.enter_context(
                    cudnn.flags(
                        # cuDNN's recurrent layers have no gradients in eval mode
                        enabled=cudnn.enabled and not recurrent,
                        benchmark=cudnn.benchmark,
                        deterministic=cudnn.deterministic,
                        allow_tf32=False,
                    )
                )
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
