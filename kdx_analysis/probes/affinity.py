"""Does a step for one subtask help or hurt another? TAG affinity (Fifty et al. 2021, arXiv 2109.04617)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from beartype import beartype
from jaxtyping import Float, jaxtyped
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.probes.gradients import undisturbed

ETA = 0.01


@jaxtyped(typechecker=beartype)
def affinity(before: Float[Tensor, " K"], after: Float[Tensor, "*draws K K"]) -> Float[Tensor, "*draws K K"]:
    """Z_{a→b} = 1 − L_b(after a step for a)/L_b(before): above 0 the step helps, below it hurts; 0/0 is NaN."""
    return 1 - after / before


def subtask_affinity(
    model: nn.Module,
    images: Tensor,
    loss: Callable[[Tensor], Tensor],
    shared: Sequence[str],
    *,
    eta: float = ETA,
    orders: Sequence[Tensor] = (),
) -> Tensor:
    """Z_{a→b} of all pairs of subtasks, (1 + R)×K×K: row a steps θ − η g_a/‖g_a‖ on the shared parameters, column b.

    Every step is taken on copies, so the model is never touched; there is no momentum. A subtask whose gradient is
    zero gives a row of NaN. Takes K(1 + R) backward passes and as many forward ones.

    Args:
        model: images → outputs; BN in eval mode.
        images: normalised, B×C×H×W.
        loss: outputs → loss of every sample and subtask, B×K; the same hard loss for every objective.
        shared: names of the parameters θ.
        eta: length of a step, above 0.
        orders: R permutations of the B samples; the null steps along the gradients of residuals dealt to other
            samples.

    Raises KdxError for a step length that isn't above 0, no shared parameter, and losses that are not finite.
    """
    if not eta > 0:
        raise KdxError(f"a step of length eta = {eta} shows nothing; take one above 0")
    theta = {name: p for name, p in model.named_parameters() if name in set(shared)}
    if not theta:
        raise KdxError("no parameter of the model is among the shared ones; give names as named_parameters() has them")
    rows: list[list[Tensor]] = []
    with undisturbed(model):
        with torch.enable_grad():
            held = {name: p.detach().requires_grad_() for name, p in theta.items()}
            outputs = torch.func.functional_call(model, held, (images,))
            losses = loss(outputs)
            before = losses.detach().mean(dim=0)
            if not before.isfinite().all():
                culprits = (~before.isfinite()).nonzero().flatten().tolist()
                raise KdxError(f"the losses of subtasks {culprits} are not finite; did the run diverge?")
            K = losses.shape[1]
            pulls = [torch.autograd.grad(losses[:, a].mean(), outputs, retain_graph=True)[0] for a in range(K)]
        for order in [torch.arange(len(images)), *orders]:
            rows.append([])
            for pull in pulls:
                gradients = torch.autograd.grad(
                    outputs, list(held.values()), grad_outputs=pull[order.to(pull.device)], retain_graph=True,
                    allow_unused=True, materialize_grads=True,
                )  # fmt: skip
                norm = torch.stack([g.norm() for g in gradients]).norm()
                stepped = {
                    name: p.detach() - eta * g / norm for (name, p), g in zip(held.items(), gradients, strict=True)
                }
                with torch.no_grad():
                    moved = loss(torch.func.functional_call(model, stepped, (images,))).mean(dim=0)
                rows[-1].append(moved)
    return affinity(before, torch.stack([torch.stack(row) for row in rows]))
