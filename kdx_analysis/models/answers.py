"""What a classifier answers: logits, or probabilities, which no objective here takes for logits."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kdx_analysis.errors import KdxError

Probabilities = Literal["softmax", "percentages", "sigmoid"]

# A softmax rounded to bfloat16, the coarsest precision, gives rows whose sum is off by up to 2⁻⁸.
_TOLERANCE = 2**-8
# Logits of an untrained model may all lie in [0, 1] too; only values that span half of it are taken
# for a sigmoid's.
_SPREAD = 0.5
# Trained sigmoids come near to both ends; a few outputs of an untrained network span nine tenths of
# [0, 1] hardly ever.
_NEAR = 0.05
_RESHAPING = (
    "Clone",
    "View",
    "UnsafeView",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "ToCopy",
    "Alias",
    "Select",
    "Slice",
)
_SAID = {
    "softmax": "every row of its outputs sums to 1, as a softmax's do: take the softmax off its "
    "end, or wrap it so that it returns their logarithm",
    "percentages": "every row of its outputs sums to 100: take the softmax and the factor off its "
    "end, or wrap it so that it returns the logarithm of outputs / 100",
    "sigmoid": "all its outputs lie in [0, 1], as a sigmoid's do: take the sigmoid off its end, or "
    "wrap it so that it returns log(p / (1 − p))",
}


def probabilities(outputs: Tensor) -> Probabilities | None:
    """Of which kind outputs, B×K, are probabilities rather than logits; None if they may be logits.

    They are where no value is below 0 and every row sums to 1 (softmax), or to 100 (percentages);
    or where all values lie in [0, 1] and span ½ of it or more (sigmoid). Where every row holds one
    value alone they pass for logits, since equal logits have the same softmax; and so do logarithms
    of a softmax, whose softmax is that of the logits. What is not finite is no probability.

    >>> logits = torch.tensor([[4.0, 0.0, -1.0], [0.5, 3.0, 0.0]])
    >>> shares = logits.softmax(dim=1)
    >>> [probabilities(x) for x in (shares, 100 * shares, logits.sigmoid())]
    ['softmax', 'percentages', 'sigmoid']
    >>> [probabilities(x) for x in (logits, logits / 100 + 0.5, logits.log_softmax(dim=1))]
    [None, None, None]
    """
    values = outputs.detach().cpu().double()  # a sum of float16 would be off by itself
    if not values.numel() or not (values >= 0).all() or (values == values[:, :1]).all():
        return None
    sums = values.sum(dim=1)
    if ((sums - 1).abs() <= _TOLERANCE).all():
        return "softmax"
    if ((sums / 100 - 1).abs() <= _TOLERANCE).all():
        return "percentages"
    return "sigmoid" if values.max() <= 1 and values.max() - values.min() >= _SPREAD else None


def surely_probabilities(outputs: Tensor) -> bool:
    """Whether outputs, B×K, are probabilities even of an untrained model on a few images.

    That is, where every row sums to 1 or to 100, or values lie in [0, 1] and come within .05 of
    either end. A few logits of an untrained model may all lie in [0, 1] by accident, and say
    nothing by it.

    >>> logits = torch.tensor([[0.1, 0.7, 0.2], [0.2, 0.6, 0.3]])
    >>> surely_probabilities(logits), surely_probabilities(logits.softmax(dim=1))
    (False, True)
    """
    kind = probabilities(outputs)
    return kind in ("softmax", "percentages") or (
        kind == "sigmoid" and float(outputs.min()) <= _NEAR and float(outputs.max()) >= 1 - _NEAR
    )


def ends_in_probabilities(outputs: Tensor) -> bool:
    """Whether the graph behind ``outputs`` ends in a softmax or a sigmoid.

    Operations that only reshape are passed over.

    >>> logits = torch.tensor([[0.1, 0.7, 0.2], [0.2, 0.6, 0.3]], requires_grad=True)
    >>> shares = logits.softmax(dim=1)
    >>> [ends_in_probabilities(x) for x in (2 * logits, logits.sigmoid()[:, :2], shares)]
    [False, True, True]
    """
    node = outputs.grad_fn
    while node is not None and node.name().startswith(_RESHAPING):
        node = node.next_functions[0][0]
    return node is not None and node.name().startswith(("SoftmaxBackward", "SigmoidBackward"))


def check_logits(outputs: Tensor, num_classes: int, who: str) -> None:
    """Raise KdxError, with what to do, where ``outputs`` can't be logits.

    ``who`` gave them for some images. That is, for another shape than B×K, values that are not
    finite, and probabilities.
    """
    if outputs.ndim != 2 or outputs.shape[1] != num_classes:
        raise KdxError(
            f"{who} gives outputs of shape {'×'.join(map(str, outputs.shape)) or 'a number'}, "
            f"wanted {len(outputs) if outputs.ndim else 1}×{num_classes}: wrap it so that it "
            "returns one logit a class"
        )
    if wrong := int((~outputs.isfinite()).any(dim=1).sum()):
        raise KdxError(
            f"the outputs of {who} are not finite on {wrong} of {len(outputs)} images: look at its "
            "weights and its precision, and where it ends in log(softmax(…)) take log_softmax"
        )
    if (kind := probabilities(outputs)) is not None:
        raise KdxError(f"{who} gives probabilities, not logits: {_SAID[kind]}")
