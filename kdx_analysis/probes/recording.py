"""``kdx.probe(model)``: gates and chosen activations of a model while any code runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, Trace
from kdx_analysis.models.choose import Where, chosen
from kdx_analysis.models.gates import pathways
from kdx_analysis.probes.record import Record
from kdx_analysis.records import with_undefined

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Recording(Record):
    """What was recorded, forward pass by forward pass; it grows while :func:`probe` is open.

    Attributes:
        model: the class of the model, for its heading.
    """

    FILE = "recording"

    model: str
    _attention: list[tuple[Tensor, ...]] = field(default_factory=list, repr=False)
    _activations: dict[str, list[Tensor]] = field(default_factory=dict, repr=False)

    @property
    def passes(self) -> int:
        """Forward passes of the explainer whose gates were recorded."""
        return len(self._attention)

    @property
    def attention(self) -> list[Tensor]:
        """α^l for l = 2…L+1, each S×N_l×N_{l−1}.

        S are forward passes, or of input gates all samples in their order. Raises KdxError where no
        gates were recorded.
        """
        if not self._attention:
            raise KdxError(
                f"no gates of {self.model} were recorded; run an explainer inside the with block"
            )
        levels = zip(*self._attention, strict=True)
        return [
            _joined(f"the gates into level {level}", rows) for level, rows in enumerate(levels, 2)
        ]

    @property
    def activations(self) -> dict[str, Tensor]:
        """By module path, the outputs of all its calls, one after the other along the first axis.

        Chosen modules that never ran, as containers don't, are left out; KdxError if none ran.
        """
        ran = {path: outputs for path, outputs in self._activations.items() if outputs}
        if self._activations and not ran:
            raise KdxError(
                f"none of {', '.join(self._activations)} ran inside the with block; choose modules "
                "that do"
            )
        return {
            path: _joined(f"the activations of {path!r}", outputs) for path, outputs in ran.items()
        }

    def pathways(self) -> list[Tensor]:
        """P^l (K×N_l) for l = 1…L, composed for each of the S passes or samples, then averaged."""
        return [paths.mean(dim=0) for paths in pathways(self.attention)]

    def merge(self, other: Recording) -> Recording:
        """This recording and then ``other``, as if both had been one.

        Raises KdxError if they hold other things.
        """
        mine, theirs = ((set(r._activations), bool(r._attention)) for r in (self, other))
        if self.model != other.model or mine != theirs:
            raise KdxError(
                f"a recording of {self.model} with {_holding(*mine)} can't be merged with one of "
                f"{other.model} with {_holding(*theirs)}; record the same of both"
            )
        merged = {
            path: [*outputs, *other._activations[path]]
            for path, outputs in self._activations.items()
        }
        return Recording(self.model, [*self._attention, *other._attention], merged)

    def to_frame(self) -> pd.DataFrame:
        """One row a gate: observation, level, child, parent, alpha, undefined.

        An observation is a pass, or a sample of input gates; ``undefined`` is 1 where α is NaN, as
        in a model that diverged.
        """
        frames = []
        for level, alpha in enumerate(self.attention, 2):
            index = np.indices(alpha.shape).reshape(3, -1)
            names = ("observation", "child", "parent")
            frame = pd.DataFrame(dict(zip(names, index, strict=True)))
            values = alpha.double().cpu().numpy().ravel()  # NumPy has no bfloat16
            frames.append(frame.assign(level=level, alpha=values))
        columns = ["observation", "level", "child", "parent", "alpha"]
        return with_undefined(pd.concat(frames, ignore_index=True)[columns], ["alpha"])

    def summary(self) -> pd.DataFrame:
        """One row for each thing recorded: recorded, shape, mean, deviation, not_finite, device.

        Mean and deviation are of the finite values; ``not_finite`` counts the others.
        """
        recorded = self.activations
        if self._attention:
            gates = {f"α into level {i}": alpha for i, alpha in enumerate(self.attention, 2)}
            recorded = gates | recorded
        rows = []
        for name, values in recorded.items():
            # In float64, as half precision would overflow in a sum.
            known = values.double()[values.isfinite()]
            rows.append(
                {
                    "recorded": name,
                    "shape": "×".join(map(str, values.shape)),
                    "mean": float(known.mean()),
                    "deviation": float(known.std(correction=0)),
                    "not_finite": values.numel() - known.numel(),
                    "device": str(values.device),
                }
            )
        return pd.DataFrame(
            rows, columns=["recorded", "shape", "mean", "deviation", "not_finite", "device"]
        )

    def plot(self, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
        """Mean attention into the heads, subtasks by experts, as (figure, axes).

        Without gates it is the spread of every activation.
        """
        from kdx_analysis.probes.drawing import recording

        return recording(self, ax)

    def _repr_html_(self) -> str:
        table = self.summary().style.hide(axis="index").format(precision=4, escape="html")
        return str(
            table.set_caption(f"{self.model}, {self.passes} forward passes with gates").to_html()
        )


@contextmanager
def probe(
    model: nn.Module,
    *,
    gates: bool | None = None,
    activations: Where = (),
    device: torch.device | str = "cpu",
) -> Iterator[Recording]:
    """Record what ``model`` computes inside the ``with`` block, whatever runs it.

    >>> import kdx_analysis as kdx
    >>> from kdx_analysis.models import build_model
    >>> model = kdx.HME.from_student(build_model("digits_student", 10, 1), 10)
    >>> with kdx.probe(model, activations="trunk") as seen:
    ...     _ = model(torch.zeros(5, 1, 8, 8))
    >>> seen.activations["trunk"].shape[0], seen.attention[-1].shape
    (5, torch.Size([1, 10, 4]))

    Model, modes, gradients, random state and hooks are the same afterwards, also when the body
    raises. Copies of the model made inside are not recorded.

    Args:
        model: any module; gates are those of the explainer that it is or holds.
        gates: record the attention of every forward pass, Gumbel noise included; None: where there
            are gates.
        activations: modules whose outputs are kept, by path, by a pattern as of fnmatch, several of
            these, or by a predicate of path and module.
        device: where recorded tensors lie.

    Raises:
        KdxError: a model without gates asked for gates, a path that no module has, nothing to
            record; inside the body, a chosen module that gives no tensor.
    """
    explainer = _explainer(model, gates)
    modules = chosen(dict(model.named_modules()), activations, argument="activations=")
    if explainer is None and not modules:
        raise KdxError(
            f"{type(model).__name__} has no gates, so there is nothing to record; name activations="
        )
    try:
        store = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise KdxError(f"device = {device!r} can't hold recorded tensors: {error}") from None
    recording = Recording(type(model).__name__, _activations={path: [] for path in modules})
    with ExitStack() as stack:
        if explainer is not None:
            stack.enter_context(_traced(explainer, recording, store))
        for path, module in modules.items():
            stack.callback(
                module.register_forward_hook(_keep(path, module, recording, store)).remove
            )
        yield recording


class _Traced:
    """Stands in for an explainer's ``trace`` and keeps its attention.

    A copy of the explainer gets a plain one.
    """

    def __init__(self, model: HME, recording: Recording, device: torch.device) -> None:
        self.model, self.recording, self.device = model, recording, device
        self.plain = model.trace

    def __call__(self, images: Tensor) -> Trace:
        trace = self.plain(images)
        samples = len(images) if any(alpha.ndim == 3 for alpha in trace.attention) else 1
        self.recording._attention.append(
            tuple(
                alpha.detach().expand(samples, *alpha.shape[-2:]).to(self.device, copy=True)
                for alpha in trace.attention
            )
        )
        return trace

    def __deepcopy__(self, memo: dict[int, Any]) -> MethodType:
        return MethodType(HME.trace, memo[id(self.model)])


@contextmanager
def _traced(model: HME, recording: Recording, device: torch.device) -> Iterator[None]:
    before = model.__dict__.get("trace")
    model.trace = _Traced(model, recording, device)  # type: ignore[method-assign]
    try:
        yield
    finally:
        if before is None:
            del model.trace
        else:
            model.trace = before  # type: ignore[method-assign]


def _keep(
    path: str, module: nn.Module, recording: Recording, device: torch.device
) -> Callable[..., None]:
    def hook(called: nn.Module, inputs: Any, output: Any) -> None:
        if called is not module:
            return  # a copy, which took the hook along
        parts = output if isinstance(output, tuple | list) else (output,)
        tensors = [part for part in parts if isinstance(part, Tensor)]
        if len(tensors) != 1:
            raise KdxError(
                f"module {path!r} gives {len(tensors)} tensors, not one; choose a module inside it"
            )
        recording._activations[path].append(tensors[0].detach().to(device, copy=True))

    return hook


def _explainer(model: nn.Module, gates: bool | None) -> HME | None:
    """The one explainer in ``model`` whose gates are to be recorded."""
    if gates is False:
        return None
    explainers = {path: part for path, part in model.named_modules() if isinstance(part, HME)}
    if not explainers and gates:
        raise KdxError(
            f"{type(model).__name__} has no gates; make it an explainer (HME), or name activations="
        )
    if len(explainers) > 1:
        raise KdxError(
            f"{type(model).__name__} holds {len(explainers)} explainers, at "
            f"{', '.join(map(repr, explainers))}; probe one of them"
        )
    return next(iter(explainers.values()), None)


def _joined(what: str, parts: Sequence[Tensor]) -> Tensor:
    """Parts one after the other along the first axis; KdxError if their other axes differ."""
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1 or parts[0].ndim == 0:
        raise KdxError(
            f"{what} have shapes {sorted(shapes)} apart from the first axis; record them one at a "
            "time"
        )
    return torch.cat(list(parts))


def _holding(paths: set[str], attention: bool) -> str:
    return ", ".join(sorted(paths) + ["gates"] * attention) or "nothing"
