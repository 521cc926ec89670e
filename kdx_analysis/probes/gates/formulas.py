"""What gating attention says: entropy, expert use, specialisation, routing distance.

Pure functions; axes: K subtasks, N experts, leading axes free. Experts have no identity across
seeds, so only what does not change when experts are permuted may be averaged over runs: everything
returned here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from beartype import beartype
from jaxtyping import Float, Int, jaxtyped
from torch import Tensor

from kdx_analysis.errors import KdxError
from kdx_analysis.metrics import evaluated, metric
from kdx_analysis.models import gates

DEAD_BELOW = 0.01  # of an even share: all subtasks together hardly draw from such an expert

Summary = dict[tuple[str, int, str], tuple[Tensor, int]]


@jaxtyped(typechecker=beartype)
def expert_use(paths: Float[Tensor, "*draws K N"]) -> Float[Tensor, "*draws N"]:
    """u_i = mean_k P_ki, the share of all subtasks that expert i carries; sums to 1.

    >>> expert_use(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    tensor([0.7500, 0.2500])
    """
    return paths.mean(dim=-2)


@jaxtyped(typechecker=beartype)
def use_cv2(paths: Float[Tensor, "*draws K N"]) -> Float[Tensor, "*draws"]:
    """CV² = var(u)/mean(u)² of expert use: 0 when even, N − 1 when one expert carries all.

    The variance divides by N. 1/Σu² = N/(1 + CV²) is the number of experts in effective use.

    >>> use_cv2(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor(1.)
    """
    use = expert_use(paths)
    return use.var(dim=-1, correction=0) / use.mean(dim=-1) ** 2


@jaxtyped(typechecker=beartype)
def dead_share(paths: Float[Tensor, "*draws K N"]) -> Float[Tensor, "*draws"]:
    """Share of experts whose use is below a hundredth of an even share, u_i < 0.01/N; in [0, 1].

    >>> dead_share(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor(0.5000)
    """
    N = paths.shape[-1]
    return (expert_use(paths) < DEAD_BELOW / N).to(paths.dtype).mean(dim=-1)


@metric(
    "gate_entropy",
    title="gate entropy of the heads",
    reads="gates",
    unit="H / ln N",
    range=(0, 1),
    describes="mean H/ln N of the gates into the subtasks' heads",
    definition="mean over subtasks of H/ln N, H = −Σ a ln a",
    asked=True,
    words=("sharper gates", "flatter gates"),
    recorded="entropy_share",
)
@jaxtyped(typechecker=beartype)
def gate_entropy(rows: Float[Tensor, "*draws rows N"]) -> Float[Tensor, "*draws"]:
    """Mean over rows of H/ln N in [0, 1]; NaN for N = 1, where there is nothing to choose.

    >>> gate_entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    tensor(0.5000)
    """
    return gates.entropy_share(rows).mean(dim=-1)


@metric(
    "specialisation",
    title="specialisation of the last level",
    reads="pathways",
    unit="I / ln min(K, N)",
    range=(0, 1),
    describes="I(subtask; expert)/ln min(K, N) on the last level",
    definition="(H(mean_k P_k) − mean_k H(P_k)) / ln min(K, N)",
)
@jaxtyped(typechecker=beartype)
def specialisation(paths: Float[Tensor, "*draws K N"]) -> Float[Tensor, "*draws"]:
    """I(subtask; expert)/ln min(K, N) = (H(mean_k P_k) − mean_k H(P_k))/ln min(K, N); in [0, 1].

    It is 0 where all subtasks go the same way, and NaN for K = 1 or N = 1.

    >>> specialisation(torch.eye(2)), specialisation(torch.full((2, 2), 0.5))
    (tensor(1.), tensor(0.))
    """
    K, N = paths.shape[-2:]
    if min(K, N) == 1:  # of one subtask or expert it would be 0/0
        return paths.new_full(paths.shape[:-2], torch.nan)
    information = gates.entropy(expert_use(paths)) - gates.entropy(paths).mean(dim=-1)
    return information / math.log(min(K, N))


@jaxtyped(typechecker=beartype)
def routing_distance(paths: Float[Tensor, "*draws K N"]) -> Float[Tensor, "*draws K K"]:
    """JSD(P_a, P_b)/ln 2 for all pairs of subtasks; in [0, 1], 0 for the same path, symmetric.

    >>> routing_distance(torch.eye(2))
    tensor([[0., 1.],
            [1., 0.]])
    """
    a, b = paths.unsqueeze(-2), paths.unsqueeze(-3)
    mixed = gates.entropy((a + b) / 2) - (gates.entropy(a) + gates.entropy(b)) / 2
    # Of the same path the difference of entropies is 0, which rounding can take below it.
    return mixed.clamp(min=0) / math.log(2)


@jaxtyped(typechecker=beartype)
def pair_mean(table: Float[Tensor, "*draws K K"]) -> Float[Tensor, "*draws"]:
    """Mean over pairs a < b; NaN for K = 1, which has no pair.

    >>> pair_mean(torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 3.0], [2.0, 3.0, 0.0]]))
    tensor(2.)
    """
    a, b = torch.triu_indices(table.shape[-2], table.shape[-1], offset=1)
    return table[..., a, b].mean(dim=-1)


def summarise(attention: Sequence[Tensor]) -> Summary:
    """Every gate metric of a model's attention and its n, by (of, level, metric).

    n is the number of rows, experts, subtasks or pairs that the metric averages.

    Args:
        attention: α^l or A^l for l = 2…L+1, each *draws×N_l×N_{l−1} (the last one K×N_L).

    ``of`` is ``gates`` for metrics of the rows into a level (averaged over its rows: entropy in
    nats, its share of ln N, effective experts exp H) and ``pathways`` for those of P on a level of
    experts. Gates with a single parent, as those into level 2, have nothing to choose and are left
    out.
    """
    table: Summary = {}
    for level, rows in _choices(attention, 2):
        for name, value in _of_rows(rows).items():
            table["gates", level, name] = value, rows.shape[-2]
    for level, paths in _choices(gates.pathways(attention), 1):
        for name, result in _of_paths(paths).items():
            table["pathways", level, name] = result
    return table


def summarise_samples(
    attention: Sequence[Tensor], labels: Tensor, generator: torch.Generator, shuffles: int = 19
) -> Summary:
    """:func:`summarise` for gates that depend on the input.

    Entropies are taken per sample and then averaged; pathways are composed per sample and then
    averaged. Plug-in mutual information is biased upwards, so from ``specialisation`` the mean over
    ``shuffles`` of ``specialisation_shuffled`` is subtracted, in which every sample's rows are
    permuted over the subtasks. ``class_specialisation``, I(true class; expert)/ln min(K, N) of what
    a sample's subtasks use together, has its own shuffled null, in which labels are permuted over
    samples.

    Args:
        attention: α^l or A^l for l = 2…L+1, each B×N_l×N_{l−1}, or N_l×N_{l−1} where all samples
            share it.
        labels: true classes, B.
        generator: draws the shuffles.
    """
    B = len(labels)
    table: Summary = {}
    for level, rows in _choices(attention, 2):
        every = rows.flatten(0, -2)  # of all samples, whose means are then one mean
        for name, value in _of_rows(every).items():
            table["gates", level, name] = value, len(every)
    for level, paths in _choices(sample_pathways(attention), 1):
        for name, result in _of_paths(paths.mean(dim=0)).items():
            table["pathways", level, name] = result
        use = paths.mean(dim=1)
        orders = [torch.randperm(B, generator=generator) for _ in range(shuffles)]
        by_subtask = torch.stack(
            [shuffled_subtasks(paths, generator).mean(dim=0) for _ in range(shuffles)]
        )
        by_class = torch.stack([class_means(use[order], labels) for order in orders])
        subtask_bias = specialisation(by_subtask).mean()
        class_bias = specialisation(by_class).mean()
        n = B * paths.shape[1]
        of_subtasks = table["pathways", level, "specialisation"][0]
        of_classes = specialisation(class_means(use, labels))
        table["pathways", level, "specialisation"] = of_subtasks - subtask_bias, n
        table["pathways", level, "specialisation_shuffled"] = subtask_bias, n
        table["pathways", level, "class_specialisation"] = of_classes - class_bias, B
        table["pathways", level, "class_specialisation_shuffled"] = class_bias, B
    return table


def sample_pathways(attention: Sequence[Tensor]) -> list[Tensor]:
    """P^l of every sample, B×K×N_l: composed per sample.

    Gates that read the input are B×N_l×N_{l−1}; those that all samples share, N_l×N_{l−1}.
    """
    B = next(len(rows) for rows in attention if rows.ndim == 3)
    return gates.pathways([rows.expand(B, -1, -1) for rows in attention])


@jaxtyped(typechecker=beartype)
def shuffled_subtasks(
    paths: Float[Tensor, "B K N"], generator: torch.Generator
) -> Float[Tensor, "B K N"]:
    """Every sample's rows permuted over the subtasks: no subtask keeps a way of its own.

    >>> paths = torch.tensor([[[1.0, 0.0], [0.25, 0.75]]])
    >>> shuffled_subtasks(paths, torch.Generator()).sum(dim=1)
    tensor([[1.2500, 0.7500]])
    """
    order = torch.rand(paths.shape[:2], generator=generator).argsort(dim=1).to(paths.device)
    return paths.gather(1, order.unsqueeze(-1).expand_as(paths))


@jaxtyped(typechecker=beartype)
def class_means(
    values: Float[Tensor, "B ..."], labels: Int[Tensor, " B"]
) -> Float[Tensor, "classes ..."]:
    """Means over the samples of every class that has any, in the order of the classes.

    >>> class_means(torch.tensor([1.0, 3.0, 10.0]), torch.tensor([0, 0, 2]))
    tensor([ 2., 10.])
    """
    member = F.one_hot(labels.unique(return_inverse=True)[1]).to(values.dtype)
    return torch.einsum("bc,b...->c...", member / member.sum(dim=0), values)


def _choices(tables: Sequence[Tensor], first: int) -> Iterator[tuple[int, Tensor]]:
    """(level, table) of those with more than one expert to choose from."""
    return ((level, table) for level, table in enumerate(tables, first) if table.shape[-1] > 1)


def _of_rows(rows: Tensor) -> dict[str, Tensor]:
    """Metrics of the gates into a level, *draws×rows×N, each averaged over its rows."""
    entropy = gates.entropy(rows)
    declared = {name: each.value for name, each in evaluated("gates", rows).items()}
    return {
        "entropy": entropy.mean(dim=-1),
        **declared,
        "effective_experts": entropy.exp().mean(dim=-1),
    }


def _of_paths(paths: Tensor) -> dict[str, tuple[Tensor, int]]:
    """Metrics of the pathways to a level, *draws×K×N, each with the n that it averages."""
    K, N = paths.shape[-2:]
    declared = {name: (each.value, K) for name, each in evaluated("pathways", paths).items()}
    return {
        "use_cv2": (use_cv2(paths), N),
        "dead_share": (dead_share(paths), N),
        **declared,
        "routing_distance": (pair_mean(routing_distance(paths)), K * (K - 1) // 2),
    }


def random_logits(like: Sequence[Tensor], draws: int, generator: torch.Generator) -> list[Tensor]:
    """Gate logits as an untrained explainer has them, uniform in [0, 1): ``draws`` times.

    Their shapes, precision and device are ``like`` those of these.
    """
    return [torch.rand(draws, *logits.shape, generator=generator).to(logits) for logits in like]


def effective(attention: Sequence[Tensor], spreads: Sequence[Tensor]) -> list[Tensor]:
    """A^l for every α^l of ``attention``; ``spreads`` are s of levels 1…L, each N_l."""
    return [
        gates.effective_attention(alpha, s.expand(alpha.shape[-1]))
        for alpha, s in zip(attention, spreads, strict=True)
    ]


def defined(effective: list[Tensor], n: int) -> list[Tensor]:
    """The ``effective`` attention A^l, l ≥ 2, on ``n`` images.

    Raises KdxError that names a level whose features don't vary.
    """
    for level, rows in enumerate(effective, 2):
        if rows.isnan().any():
            raise KdxError(
                f"the features of level {level - 1} don't vary over the {n} images, so effective "
                "attention is undefined; give two images or more that differ"
            )
    return effective


def averaged(attention: Sequence[Tensor]) -> list[Tensor]:
    """Means over samples, where there is an attention for each."""
    return [rows.mean(dim=0) if rows.ndim == 3 else rows for rows in attention]


def mean_pathways(attention: Sequence[Tensor]) -> list[Tensor]:
    """P^l, K×N_l, of input gates composed per sample and then averaged."""
    return averaged(gates.pathways(attention))


def check_features(features: Sequence[Tensor]) -> None:
    """KdxError if the features of a level, from 1, are not finite."""
    for level, values in enumerate(features, 1):
        if not values.isfinite().all():
            raise KdxError(f"features on level {level} are not finite; did the run diverge?")
