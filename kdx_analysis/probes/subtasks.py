"""A classifier's K one-vs-rest subtasks, and what every probe refuses of a model and its images.

Their margins m_k are read from the model's outputs, their plain hard loss is BCE(σ(m_k), 1[y = k]).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx_analysis.config import ObjectiveConfig
from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME
from kdx_analysis.models.answers import ends_in_probabilities, surely_probabilities
from kdx_analysis.models.modes import fitted, in_full, undisturbed, unwrapped, usable
from kdx_analysis.objectives import one_vs_rest_margins
from kdx_analysis.records import count, text

PAIR = (
    text("a", "first subtask of the pair; '' where all are meant"),
    text("b", "second subtask of the pair"),
    count("a_index", "of the class a; -1 where all are meant", low=-1),
    count("b_index", "of the class b", low=-1),
)
OVER_PAIRS = {"a": "", "b": "", "a_index": -1, "b_index": -1}  # PAIR in a row where all are meant


@dataclass(frozen=True, eq=False)
class OneVsRest:
    """A classifier on a probe set, and the plain hard loss of its K subtasks.

    Attributes:
        model: the model without wrappers, or a float32 copy of one in half precision; an explainer
            gives its margins.
        images: on the model's device, B×C×H×W.
        margins: outputs → margins; None where outputs are margins.
        outputs: the margins, B×K.
        classes: names of the K subtasks.
        one_hot: 1[y = k], B×K.
    """

    model: nn.Module
    images: Tensor
    margins: Callable[[Tensor], Tensor] | None
    outputs: Tensor
    classes: tuple[str, ...]
    one_hot: Tensor

    @classmethod
    def of(
        cls,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        classes: Sequence[str] | None,
        margins: Callable[[Tensor], Tensor] | None,
    ) -> OneVsRest:
        """Arguments and errors as of :func:`kdx_analysis.probes.conflict_of`."""
        images, labels = pictures(images), integers(labels)
        model = in_full(unwrapped(usable(model))[0])
        if margins is None and isinstance(model, HME):
            model = model.giving_margins()
        images = fitted(images, model)
        expected = None if classes is None else len(classes)
        if expected is None and labels.numel():
            expected = int(labels.max()) + 1
        answers = asked(model, images, expected)
        if margins is None and not isinstance(model, HME):
            check_logits(finite(answers), model, images)
            margins = one_vs_rest_margins
        outputs = answers if margins is None else margins(answers)
        names, labels = subtasks(outputs, labels.to(images.device), classes)
        one_hot = F.one_hot(labels, len(names)).to(outputs.dtype)
        return cls(model, images, margins, outputs, names, one_hot)

    def loss(self, margins: Tensor) -> Tensor:
        """BCE(σ(m_k), 1[y = k]) of every image and subtask, B×K.

        At margins 0 every entry is log 2:

        >>> images, labels = torch.zeros(2, 1, 1, 2), torch.tensor([0, 1])
        >>> probed = OneVsRest.of(nn.Flatten(), images, labels, None, lambda outputs: outputs)
        >>> probed.loss(torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
        tensor([[0.6931, 0.6931],
                [0.6931, 0.1269]])
        """
        # PyTorch's loss on logits loses what is left of it, and of its gradient, at margins beyond
        # ±14 in float32.
        return -self.one_hot * F.logsigmoid(margins) - (1 - self.one_hot) * F.logsigmoid(-margins)


class Asked(nn.Module):
    """A model whose answer is one tensor, B×K, whatever it is wrapped in."""

    def __init__(self, model: nn.Module, num_classes: int | None = None) -> None:
        super().__init__()
        self.model, self.num_classes = model, num_classes

    def forward(self, images: Tensor) -> Tensor:
        """B×C×H×W → B×K; a model that works in place works on a copy of the images."""
        return answer(self.model(images.clone()), len(images), self.num_classes)


def asked(model: nn.Module, images: Tensor, num_classes: int | None = None) -> Tensor:
    """What a model in eval mode answers, B×K.

    A warning says which of several things that it gives was taken.
    """
    with undisturbed(model), torch.no_grad():
        given = model(images.clone())
        taken = answer(given, len(images), num_classes)
        if not isinstance(given, Tensor):
            (name,) = [name for name, tensor in _tensors(given) if tensor is taken]
            warnings.warn(
                f"the model gives {described(given)}; probed is {name}, its only tensor with a row "
                "an image and a column a class",
                stacklevel=3,
            )
    return taken


def answer(given: Any, B: int, num_classes: int | None = None) -> Tensor:
    """The one tensor B×K among what a model gives.

    That is all that it gives, or an entry of a dict, a sequence or a dataclass; where several have
    two axes, the one with ``num_classes`` columns. Raises KdxError, which names what came.
    """
    fitting = [
        t for _, t in _tensors(given) if t.ndim == 2 and len(t) == B and t.is_floating_point()
    ]
    if len(fitting) > 1:
        fitting = [t for t in fitting if t.shape[1] == num_classes]
    if len(fitting) != 1:
        raise KdxError(
            f"the model gives {described(given)} for {B} images; wanted are logits of shape B×K, "
            "one row an image and one column a class. Wrap the model in a module whose forward "
            "gives them alone"
        )
    if fitting[0].dtype in (torch.float16, torch.bfloat16):
        raise KdxError(computes_in(fitting[0].dtype))
    return fitting[0]


def computes_in(dtype: object) -> str:
    """Why a model is refused that computes in half precision."""
    return (
        f"the model computes in {dtype}, although its parameters do not: too coarse for the angles "
        "of gradients; take torch.autocast out of its forward"
    )


def described(given: Any) -> str:
    """What a model gives, in words: its type, and the shapes of the tensors in it."""
    if isinstance(given, Tensor):
        return f"a tensor of shape {'×'.join(map(str, given.shape)) or '()'} and {given.dtype}"
    parts = [
        f"{name} {'×'.join(map(str, tensor.shape)) or '()'}" for name, tensor in _tensors(given)
    ]
    return f"a {type(given).__name__} of {', '.join(parts) or 'no tensors'}"


def _tensors(given: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested containers, by their names or places."""
    if isinstance(given, Tensor):
        yield name or "the output", given
        return
    if isinstance(given, Mapping):
        entries = [(str(key), value) for key, value in given.items()]
    elif dataclasses.is_dataclass(given) and not isinstance(given, type):
        entries = [(field.name, getattr(given, field.name)) for field in dataclasses.fields(given)]
    elif isinstance(given, list | tuple):
        fields = getattr(given, "_fields", range(len(given)))  # of a named tuple
        entries = [(str(key), value) for key, value in zip(fields, given, strict=True)]
    else:
        return
    for key, value in entries:
        yield from _tensors(value, f"{name}.{key}" if name else key)


def check_logits(outputs: Tensor, model: nn.Module, images: Tensor) -> None:
    """KdxError for outputs without one-vs-rest margins: of one class, or probabilities."""
    _check_several(outputs)
    if surely_probabilities(outputs) or _ends_in_probabilities(model, images, outputs.shape[1]):
        raise KdxError(
            f"the model's outputs look like probabilities ({float(outputs.min()):.3g} to "
            f"{float(outputs.max()):.3g}), not like logits; leave out its last softmax or sigmoid, "
            "or say by margins= how to get from them to margins (margins=torch.logit for either; "
            "for logits that only look so, one_vs_rest_margins of kdx_analysis.objectives)"
        )


def _ends_in_probabilities(model: nn.Module, images: Tensor, num_classes: int) -> bool:
    """By the graph of two images; False for a model that does not run on two."""
    with undisturbed(model), torch.enable_grad():
        try:
            given = model(images[:2].clone().requires_grad_())
            return ends_in_probabilities(answer(given, len(images[:2]), num_classes))
        except Exception:  # whatever it raises, the model is refused later, with that reason
            return False


def pictures(images: Any) -> Tensor:
    """``images`` as one finite floating-point tensor B×C×H×W, B ≥ 1.

    They may be a tensor, an array or a list of either.
    """
    if isinstance(images, list | tuple) and len({tuple(np.shape(image)) for image in images}) > 1:
        raise KdxError(
            "images of different sizes can't be one batch; resize them to one size, as B×C×H×W"
        )
    images = _tensor("images", images)
    if images.ndim != 4 or not len(images) or not images.is_floating_point():
        pixels = "; divide pixels by 255, subtract the mean, divide by std"
        raise KdxError(
            f"images of shape {tuple(images.shape)} and {images.dtype} should be normalised, "
            f"B×C×H×W, B ≥ 1{'' if images.is_floating_point() else pixels}"
        )
    if not images.isfinite().all():
        raise KdxError("images hold values that are not finite; look at how they are normalised")
    return images


def integers(labels: Any) -> Tensor:
    """``labels`` as a tensor, from a tensor, an array or a list."""
    return _tensor("labels", labels)


def _tensor(what: str, given: Any) -> Tensor:
    if isinstance(given, Tensor):
        # One made under torch.inference_mode() can have no gradient outside of it.
        copied = given.is_inference() and not torch.is_inference_mode_enabled()
        return given.clone() if copied else given
    try:
        if isinstance(given, list | tuple) and given and isinstance(given[0], Tensor):
            return torch.stack(list(given))
        return torch.from_numpy(np.array(given))
    except (TypeError, ValueError, RuntimeError) as error:
        raise KdxError(
            f"{what} of type {type(given).__name__} make no tensor ({error}); give a torch.Tensor"
        ) from None


def named(classes: Sequence[str] | None, K: int) -> tuple[str, ...]:
    """The K subtasks' names; by default their numbers."""
    names = tuple(map(str, range(K))) if classes is None else tuple(classes)
    if len(names) != K:
        raise KdxError(f"{len(names)} classes are named, but the model has {K} subtasks")
    return names


def labelled(images: Tensor, labels: Any, K: int) -> Tensor:
    """``labels`` as int64, if they are one of K classes for each of one image or more."""
    labels = integers(labels)
    if (
        labels.shape != (len(images),)
        or not len(images)
        or labels.is_floating_point()
        or labels.is_complex()
    ):
        raise KdxError(
            f"labels of shape {tuple(labels.shape)} and {labels.dtype} don't fit {len(images)} "
            "images; give one integer for each of one image or more"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= K:
        raise KdxError(
            f"labels from {int(labels.min())} to {int(labels.max())} should lie in 0 to {K - 1}"
        )
    return labels.long()


def check_classes(labels: Tensor, classes: Sequence[str]) -> None:
    """KdxError if a class has no label."""
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    lacking = [repr(name) for name, number in zip(classes, counts, strict=False) if not number]
    if lacking:
        raise KdxError(
            f"no image is of class {', '.join(lacking[:5])}; give some images of every class"
        )


def not_finite(values: Tensor) -> list[int]:
    """Subtasks, along the last axis, of which a value is NaN or infinite."""
    return (~values.isfinite()).flatten(0, -2).any(dim=0).nonzero().flatten().tolist()


def finite(margins: Tensor) -> Tensor:
    """``margins`` if they are B×K and finite; else KdxError names the subtasks."""
    if margins.ndim != 2:
        raise KdxError(
            f"the model gives outputs of shape {tuple(margins.shape)}; wanted B×K, one a subtask"
        )
    if wrong := not_finite(margins):
        raise KdxError(f"margins of subtasks {wrong} are not finite; did the run diverge?")
    return margins


def subtasks(
    margins: Tensor, labels: Tensor, classes: Sequence[str] | None
) -> tuple[tuple[str, ...], Tensor]:
    """The subtasks' names, and labels as int64.

    Raises KdxError for margins that are not finite or not of two classes or more, labels that don't
    fit them, and a class without an image.
    """
    names = named(classes, finite(margins).shape[1])
    _check_several(margins)
    labels = labelled(margins, labels, len(names))
    check_classes(labels, names)
    return names, labels


def _check_several(outputs: Tensor) -> None:
    if outputs.shape[1] < 2:
        raise KdxError(
            "a model of one class has no pairs to compare; give one of two classes or more (where "
            "one logit z stands for two classes, let the model give the columns 0 and z)"
        )


def margins_under(objective: ObjectiveConfig) -> Callable[[Tensor], Tensor] | None:
    """What takes a model's outputs to its subtasks' margins; None where they are the same."""
    return one_vs_rest_margins if objective.decomposition == "multiclass" else None


def pair_columns(classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns a, b, a_index, b_index of all pairs of subtasks a < b."""
    names = np.array(classes, dtype=object)
    a, b = np.triu_indices(len(names), k=1)
    return {"a": names[a], "b": names[b], "a_index": a, "b_index": b}
