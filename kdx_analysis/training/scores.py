"""What a model's outputs on a split are worth, by themselves and beside its teacher's."""

from __future__ import annotations

from beartype import beartype
from jaxtyping import Float, Int, jaxtyped
from torch import Tensor

from kdx_analysis.metrics import metric


@metric(
    "accuracy",
    title="accuracy",
    reads="outputs",
    unit="share of images",
    range=(0, 1),
    describes="share of test images right",
    definition="mean over images of 1[argmax_k z_k = y]",
    better="higher",
)
@jaxtyped(typechecker=beartype)
def accuracy(outputs: Float[Tensor, "B K"], labels: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    """Share of samples whose highest output is that of their class, in [0, 1].

    >>> import torch
    >>> accuracy(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]))
    tensor(0.5000, dtype=torch.float64)
    """
    return (outputs.argmax(dim=1) == labels).double().mean()


@metric(
    "agreement",
    title="agreement with the teacher",
    reads="outputs of both",
    unit="share of images",
    range=(0, 1),
    describes="share of test images given the teacher's class",
    definition="mean over images of 1[argmax_k z_k = argmax_k v_k]",
    better="higher",
)
@jaxtyped(typechecker=beartype)
def agreement(
    outputs: Float[Tensor, "B K"], labels: Int[Tensor, " B"], teacher_outputs: Float[Tensor, "B K"]
) -> Float[Tensor, ""]:
    """Share of samples whose highest output is of the teacher's class, in [0, 1].

    >>> import torch
    >>> outputs = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    >>> agreement(outputs, torch.tensor([0, 0]), torch.tensor([[5.0, 1.0], [1.0, 5.0]]))
    tensor(0.5000, dtype=torch.float64)
    """
    return (outputs.argmax(dim=1) == teacher_outputs.argmax(dim=1)).double().mean()
