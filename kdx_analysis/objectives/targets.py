"""Targets: what the distillation term of an objective asks of every subtask.

One entry of ``TARGETS`` a rung of the ladder. A target function takes the teacher's cut (B×K, what
``kd`` itself would match), the labels and a generator, and gives the targets q (B×K) that stand in
its place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from beartype import beartype
from jaxtyping import Float, Int, jaxtyped
from torch import Tensor

from kdx_analysis.registry import Registry

Target = Callable[[Tensor, Tensor, torch.Generator], Tensor]
TARGETS: Registry[Target] = Registry("distillation target")


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
    """The teacher's targets q at temperature T, for a ``decomposition`` and, if it is binary, a
    ``cut``.

    binary, ``two_way``: σ(u_k/T), its own one-vs-rest margins at the student's temperature. binary,
    ``softmax_then_cut``: softmax(v/T)_k. multiclass: softmax(v/T).
    """
    if decomposition == "binary":
        return torch.sigmoid(teacher_log_odds(logits, T, cut))
    return torch.softmax(logits / T, dim=-1)


def teacher_log_odds(logits: Tensor, T: float, cut: str) -> Tensor:
    """log q − log(1 − q) of the teacher's binary targets q, B×K: u/T, or for ``softmax_then_cut``
    those of v/T.
    """
    return one_vs_rest_margins(logits) / T if cut == "two_way" else one_vs_rest_margins(logits / T)


@TARGETS.register("kd")
def kd(cut: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """The teacher's own targets."""
    return cut


@TARGETS.register("hard_T")
def hard_T(cut: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """One-hot targets in KD's form: only temperature and loss scale are left of KD."""
    return F.one_hot(labels, cut.shape[1]).to(cut.dtype)


@TARGETS.register("kd_flat")
def kd_flat(cut: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """The true class's target kept, the others' replaced by their mean: softness without structure."""
    true = F.one_hot(labels, cut.shape[1]).bool()
    mean = cut.masked_fill(true, 0).sum(dim=1, keepdim=True) / (cut.shape[1] - 1)
    return torch.where(true, cut, mean)


@TARGETS.register("kd_shuffled")
@jaxtyped(typechecker=beartype)
def kd_shuffled(
    cut: Float[Tensor, "B K"], labels: Int[Tensor, " B"], generator: torch.Generator
) -> Float[Tensor, "B K"]:
    """The wrong classes' targets permuted anew for every sample: uneven softness without class
    structure.

    Its mean over permutations is ``kd_flat``.
    """
    B, K = cut.shape
    wrong = torch.arange(K - 1, device=cut.device).expand(B, -1)
    wrong = wrong + (wrong >= labels.unsqueeze(1))  # the columns other than the label's
    order = torch.rand(B, K - 1, generator=generator).argsort(dim=1).to(cut.device)
    return cut.scatter(1, wrong, cut.gather(1, wrong.gather(1, order)))
