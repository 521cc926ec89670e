"""Models of one architecture side by side: N of them computed as one net of N copies.

``torch.func.vmap`` runs one model's code over the stacked weights of all: a convolution becomes a
grouped one (or, where all read the same images, a wider one), a linear layer a batched product.
Any model that vmap can run will do, whatever its layers are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.overrides import TorchFunctionMode

from kdx_analysis.errors import KdxError
from kdx_analysis.models.vam import entropy

_DROPOUTS = frozenset(
    {
        F.dropout,
        F.dropout1d,
        F.dropout2d,
        F.dropout3d,
        F.alpha_dropout,
        F.feature_alpha_dropout,
    }
)


class RandomState:
    """A random state of torch, of the CPU and of ``device``, that goes on where it was left.

    It starts as the present one.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = [device] if device.type == "cuda" else []
        self._keep()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have what is drawn in the body drawn from this state; torch's own is left as it is."""
        with torch.random.fork_rng(devices=self._cuda):
            torch.set_rng_state(self._cpu)
            for device, state in zip(self._cuda, self._on_devices, strict=True):
                torch.cuda.set_rng_state(state, device)
            try:
                yield
            finally:
                self._keep()

    def _keep(self) -> None:
        self._cpu = torch.get_rng_state()
        self._on_devices = [torch.cuda.get_rng_state(device) for device in self._cuda]


class Together:
    """N models of one architecture, whose tensors are slices of stacked ones, N×….

    The models stay ordinary ones: each reads and writes its slice, so that training the stack
    trains them, and what is set on one of them, as a gate's temperature, is set in the stack.
    :meth:`apart` gives every model tensors of its own again.

    Args:
        models: on one device, in train mode or not alike.
        states: the random state of each, from which its dropout draws as it does alone.

    Raises KdxError if the models have not one architecture.
    """

    def __init__(self, models: Sequence[nn.Module], states: Sequence[RandomState]) -> None:
        self.models, self.states = list(models), list(states)
        try:
            parameters, buffers = stack_module_state(self.models)
        except (RuntimeError, ValueError) as error:
            raise KdxError(
                f"models of {type(models[0]).__name__} can't be trained together: "
                f"{_first_line(error)}"
            ) from None
        self.parameters: dict[str, Tensor] = parameters
        self.buffers: dict[str, Tensor] = buffers
        for i, model in enumerate(self.models):
            for name, tensor in _tensors(model).items():
                tensor.data = (parameters | buffers)[name].detach()[i]
        self._numbers = torch.arange(len(self.models))
        self._run = _WithPenalty(self.models[0])

    @property
    def stacked(self) -> dict[nn.Parameter, Tensor]:
        """For each parameter of the first model the stack of it over all models, a leaf."""
        return {p: self.parameters[name] for name, p in self.models[0].named_parameters()}

    def __call__(
        self, images: Tensor, *, shared: bool, penalty: bool = False
    ) -> tuple[Tensor, Tensor]:
        """All models' outputs, N×B×K, and VAM's entropy of each, N (0 without ``penalty``).

        Args:
            images: B×C×H×W for all if they are ``shared``, else N×B×C×H×W.
            shared: whether all models read the same images.
            penalty: whether VAM's entropy is asked for.

        Raises KdxError if the model does something that can't be done for N at once.
        """
        forward = vmap(
            self._forward, in_dims=(0, 0, 0, None if shared else 0, None), randomness="error"
        )
        try:
            outputs, entropies = forward(
                self._prefixed(self.parameters),
                self._prefixed(self.buffers),
                self._numbers,
                images,
                penalty,
            )
        # Whatever the model's own code runs into.
        except (RuntimeError, TypeError, ValueError) as error:
            raise KdxError(
                f"{type(self.models[0]).__name__} can't be trained together with others: "
                f"{_first_line(error)}"
            ) from error
        return outputs, entropies

    def apart(self) -> None:
        """Give every model tensors of its own, with the values that it has now."""
        for model in self.models:
            for tensor in _tensors(model).values():
                tensor.data = tensor.detach().clone()

    def _forward(
        self,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        number: Tensor,
        images: Tensor,
        penalty: bool,
    ) -> tuple[Tensor, Tensor]:
        """One model's outputs and entropy; vmap makes it that of all."""
        with _SideBySide(number, self.states):
            result: tuple[Tensor, Tensor] = functional_call(
                self._run, (parameters, buffers), (images, penalty)
            )
        return result

    @staticmethod
    def _prefixed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"model.{name}": tensor for name, tensor in tensors.items()}


def unfit(model: nn.Module, shape: Sequence[int]) -> str:
    """Why models like this one can't be trained together, '' if they can.

    Two copies are tried on two images each, of ``shape`` C×H×W; the model is left as it is.
    """
    with torch.random.fork_rng():
        copies = [copy.deepcopy(model).train() for _ in range(2)]
        device = next(model.parameters()).device
        try:
            net = Together(copies, [RandomState(device) for _ in copies])
            outputs, _ = net(torch.zeros(2, 2, *shape, device=device), shared=False)
            outputs.sum().backward()
        except (KdxError, RuntimeError) as error:
            return _first_line(error)
    return ""


class _WithPenalty(nn.Module):
    """A model's outputs together with VAM's entropy, so that both read the stacked weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, penalty: bool) -> tuple[Tensor, Tensor]:
        outputs = self.model(images).float()
        return outputs, entropy(self.model) if penalty else outputs.new_zeros(())


class _SideBySide(TorchFunctionMode):
    """Rules of our own under vmap, for batch normalisation, dropout and the order of memory."""

    def __init__(self, number: Tensor, states: Sequence[RandomState]) -> None:
        super().__init__()
        self.number, self.states = number, states

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func is F.batch_norm:
            x, *rest = _batch_norm_arguments(*args, **given)
            return _BatchNorm.apply(self.number, x, *rest)  # type: ignore[no-untyped-call]
        if func in _DROPOUTS:
            x, p, training = _dropout_arguments(*args, **given)
            if not (training and p):
                return x
            return _Dropout.apply(  # type: ignore[no-untyped-call]
                self.number, x, func, p, self.states
            )
        if func is Tensor.is_contiguous and "memory_format" in given:
            return False  # vmap can't say so; what asks has another way for any other order
        return func(*args, **given)


def _batch_norm_arguments(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Any, ...]:
    """The arguments of torch's ``batch_norm`` in its order."""
    return input, running_mean, running_var, weight, bias, training, momentum, eps


def _dropout_arguments(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> tuple[Any, ...]:
    """The arguments of torch's dropouts in their order, without ``inplace``."""
    return input, p, training


class _UnderVmap(torch.autograd.Function):
    """A function that is only called under vmap, where its ``vmap`` differentiates by itself."""

    @staticmethod
    def forward(*args: Any) -> Any:
        raise AssertionError("is called under vmap with a batched number")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        raise AssertionError("is called under vmap with a batched number")


class _BatchNorm(_UnderVmap):
    """One normalisation of N·C channels in place of N of C.

    vmap's own rule normalises, then scales, then shifts, in three passes over the features.
    """

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        number: Tensor,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        *options: Any,
    ) -> tuple[Tensor, int]:
        N = info.batch_size
        channels = _side_by_side(x, in_dims[1], N).flatten(1, 2)
        tensors = (running_mean, running_var, weight, bias)
        mean, var, scale, shift = (
            # Views of the running statistics, which are written into.
            None if tensor is None else _first(tensor, dim, N).view(-1)
            for tensor, dim in zip(tensors, in_dims[2:6], strict=True)
        )
        normalised = F.batch_norm(channels, mean, var, scale, shift, *options)
        return normalised.unflatten(1, (N, -1)), 1


class _Dropout(_UnderVmap):
    """Dropout whose mask each model draws from a random state of its own."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        number: Tensor,
        x: Tensor,
        dropout: Callable[..., Tensor],
        p: float,
        states: Sequence[RandomState],
    ) -> tuple[Tensor, int]:
        kept = []
        for each, state in zip(_first(x, in_dims[1], info.batch_size), states, strict=True):
            with state.in_place():
                kept.append(dropout(each, p, True))
        return torch.stack(kept), 0


def _side_by_side(x: Tensor, dim: int | None, N: int) -> Tensor:
    """B×N×C×…, from features of N models or of all alike."""
    if dim is None:
        return x.unsqueeze(1).expand(-1, N, *x.shape[1:])
    return x.movedim(dim, 1)


def _first(tensor: Tensor, dim: int | None, N: int) -> Tensor:
    """N×…, from a tensor of N models or of all alike."""
    return tensor.expand(N, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
