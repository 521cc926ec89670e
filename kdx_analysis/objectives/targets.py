"""Targets: what the distillation term of an objective asks of every subtask.

One entry of ``TARGETS`` a rung of the ladder. A target function takes the teacher's cut (B×K, what ``kd`` itself
would match), the labels and a generator, and gives the targets q (B×K) that stand in its place.
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
    """u_k = v_k − log Σ_{j≠k} exp v_j, so that σ(u_k) = softmax(v)_k."""
    K = logits.shape[1]
    others = logits.unsqueeze(1).expand(-1, K, -1)
    diagonal = torch.eye(K, dtype=torch.bool, device=logits.device)
    return logits - others.masked_fill(diagonal, -torch.inf).logsumexp(dim=-1)


@jaxtyped(typechecker=beartype)
def teacher_cut(
    logits: Float[Tensor, "B K"], T: float, decomposition: str, cut: str = "two_way"
) -> Float[Tensor, "B K"]:
    """The teacher's targets q at temperature T, for a ``decomposition`` and, if it is binary, a ``cut``.

    binary, ``two_way``: σ(u_k/T), its own one-vs-rest margins at the student's temperature. binary,
    ``softmax_then_cut``: softmax(v/T)_k. multiclass: softmax(v/T).
    """
    if decomposition == "binary" and cut == "two_way":
        return torch.sigmoid(one_vs_rest_margins(logits) / T)
    return torch.softmax(logits / T, dim=-1)


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
    """The wrong classes' targets permuted anew for every sample: uneven softness without class structure.

    Its mean over permutations is ``kd_flat``.
    """
    B, K = cut.shape
    wrong = torch.arange(K - 1, device=cut.device).expand(B, -1)
    wrong = wrong + (wrong >= labels.unsqueeze(1))  # the columns other than the label's
    order = torch.rand(B, K - 1, generator=generator).argsort(dim=1).to(cut.device)
    return cut.scatter(1, wrong, cut.gather(1, wrong.gather(1, order)))
