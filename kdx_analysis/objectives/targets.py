"""What a teacher's logits ask of every subtask: one-vs-rest margins, and targets cut from them."""

from __future__ import annotations

import torch
from beartype import beartype
from jaxtyping import Float, jaxtyped
from torch import Tensor


@jaxtyped(typechecker=beartype)
def one_vs_rest_margins(logits: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """u_k = v_k − log Σ_{j≠k} exp v_j, so that σ(u_k) = softmax(v)_k.

    >>> one_vs_rest_margins(torch.tensor([[2.0, 0.0, 0.0]]))
    tensor([[ 1.3069, -2.1269, -2.1269]])
    """
    highest, top = logits.detach().max(dim=1, keepdim=True)
    is_top = torch.zeros_like(logits, dtype=torch.bool).scatter(1, top, True)
    shares = (logits - highest).exp()
    # Below the top the sum over the others holds exp 0, so a class can be taken off the sum over
    # all without cancellation; for the top itself, all of whose others may be tiny, their sum is
    # taken anew.
    others = highest + (shares.sum(dim=1, keepdim=True) - shares).masked_fill(is_top, 1).log()
    of_top = logits.masked_fill(is_top, -torch.inf).logsumexp(dim=1, keepdim=True)
    return logits - torch.where(is_top, of_top, others)


@jaxtyped(typechecker=beartype)
def teacher_cut(
    logits: Float[Tensor, "B K"], T: float, decomposition: str, cut: str = "two_way"
) -> Float[Tensor, "B K"]:
    """The teacher's targets q at temperature T, in [0, 1], for a ``decomposition``.

    binary has a ``cut``: ``two_way``, σ(u_k/T), its own one-vs-rest margins at the student's
    temperature, or ``softmax_then_cut``, softmax(v/T)_k. multiclass: softmax(v/T).

    >>> teacher_cut(torch.tensor([[2.0, 0.0, 0.0]]), T=2.0, decomposition="binary")
    tensor([[0.6578, 0.2566, 0.2566]])
    >>> teacher_cut(torch.tensor([[2.0, 0.0, 0.0]]), T=2.0, decomposition="multiclass")
    tensor([[0.5761, 0.2119, 0.2119]])
    """
    if decomposition == "binary":
        return torch.sigmoid(teacher_log_odds(logits, T, cut))
    return torch.softmax(logits / T, dim=-1)


def teacher_log_odds(logits: Tensor, T: float, cut: str) -> Tensor:
    """log q − log(1 − q) of the teacher's binary targets q, B×K.

    u/T, or for ``softmax_then_cut`` the one-vs-rest margins of v/T.
    """
    return one_vs_rest_margins(logits) / T if cut == "two_way" else one_vs_rest_margins(logits / T)
