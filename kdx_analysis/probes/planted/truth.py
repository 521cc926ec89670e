"""Planted truth: explainers and data in which the answer is known by construction.

The toolkit's own yardstick (:func:`kdx_analysis.probes.validate`) and a way to test a new metric::

    conflicts = [Conflict(one=(0,), other=(5,), experts=(2,))]
    planted = plant(conflicts, subtasks=12, experts=4, snr=1.0)
    grams = subtask_grams(planted.model, planted.images, planted.residuals[None])
    planted.auroc(-cosine(grams.total()[0]))

How it is made. An image has one channel, N rows and M columns, and expert i looks at row i alone:
its first layer picks the row, its second one, V_i, is what learns. Every head reads the same
channel of V_i's two, with weight 1. The heads' biases are so low that the residual of the hard loss
is −1[y = a]. So subtask a's gradient in expert i is α_ai h^i_a with h^i_a = −Σ_{b: y_b = a} x_b^i,
x_b^i being row i of image b: what is put into the rows is what the gradients are. Rows are
independent Gaussian noise of one size for all classes, plus what is planted; without anything
planted samples are exchangeable, and a test against permuted samples is exact. V_i's other channel
passes one pixel of the row on and is read by no head: features vary, alike in all experts, so that
effective attention equals α, and no gradient changes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor, nn

from kdx_analysis.config import ObjectiveConfig
from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME
from kdx_analysis.models.heads import GridPool, LinearHeads
from kdx_analysis.models.splitting.experts import Level
from kdx_analysis.objectives import Objective
from kdx_analysis.probes.conflict.formulas import upper
from kdx_analysis.probes.conflict.grams import residuals

# Of all heads: σ(−40) = 4e-18, so that the residual is −1[y = a] in float64.
_BIAS = -40.0


@dataclass(frozen=True)
class Conflict:
    """Two camps of subtasks that pull against each other inside some experts.

    The planted gradients of one camp are parallel; those of the other have the cosine −strength
    with them.

    Attributes:
        one: subtasks, from 0.
        other: subtasks, from 0.
        experts: of the level above the trunk, from 0; each holds the same share of the planted
            gradients.
        strength: in (0, 1].
    """

    one: tuple[int, ...]
    other: tuple[int, ...]
    experts: tuple[int, ...]
    strength: float = 1.0

    @property
    def subtasks(self) -> tuple[int, ...]:
        """Both camps."""
        return (*self.one, *self.other)


@dataclass(frozen=True)
class Planted:
    """An explainer, images and labels whose conflicts are known.

    Axes: K subtasks, N experts, M columns.

    Attributes:
        model: trunk (nothing in it) and one level of N experts.
        images: B×1×N×M, float64, as many of every class.
        labels: B.
        conflicts: what was planted.
        snr: ‖planted part of h_a‖/‖rest of h_a‖ over all experts, h being the gradient without the
            gates' factor (so it is that of the actual gradient where a subtask draws from all
            experts alike).
        planted: the planted part of h^i_a, K×N×M; zero for subtasks that stand in no conflict.
        rest: h^i_a without it, K×N×M.
    """

    model: HME
    images: Tensor
    labels: Tensor
    conflicts: tuple[Conflict, ...]
    snr: float
    planted: Tensor
    rest: Tensor

    @property
    def gates(self) -> Tensor:
        """α, K×N."""
        return self.model.attention()[-1].detach()

    @property
    def residuals(self) -> Tensor:
        """∂L/∂m of the hard loss, B×K: −1[y_b = a], up to 4e-18."""
        hard = Objective(ObjectiveConfig(name="hard"))
        with torch.no_grad():
            margins = self.model(self.images)
        return residuals(
            lambda m: hard.terms(m, self.labels, None, torch.Generator())["hard"], margins
        )

    @property
    def conflicting(self) -> Tensor:
        """Whether a and b conflict in some expert, K×K, symmetric."""
        return self.where.any(dim=0)

    @property
    def where(self) -> Tensor:
        """Whether a and b conflict in expert i, N×K×K, symmetric."""
        K, N, _ = self.planted.shape
        table = torch.zeros(N, K, K, dtype=torch.bool)
        for c in self.conflicts:
            for i in c.experts:
                table[i, torch.tensor(c.one)[:, None], torch.tensor(c.other)] = True
        return table | table.transpose(1, 2)

    def auroc(self, scores: Tensor) -> float:
        """Area under the ROC curve of finding the pairs that conflict by ``scores``, K×K.

        Larger scores say more conflict. In [0, 1], .5 by chance: the chance that a conflicting pair
        scores above another one. Raises KdxError where no pair, or every pair, conflicts.
        """
        return auroc(self.conflicting, scores)

    def contention(self, gates: Tensor | None = None) -> float:
        """C* = Σ_i Σ_{a<b} Q_ai Q_bi ρ s^i_a s^i_b 1[a, b conflict in i] / Σ_{a<b} n_a n_b.

        It is contention as planted, in [0, 1] and 0 where nothing is. ρ is the strength, s^i_a the
        norm of the planted part of h^i_a, n_a² = Σ_i Q_ai² (s^i_a² + ‖rest^i_a‖²). What is measured
        also has the inner products of the rest, which are 0 on average, with a deviation of 1/√M of
        the norms' product; as only negative ones count, the measured value is above C* by up to
        .4/√M.

        >>> planted = plant([Conflict((0,), (1,), (0,))], subtasks=2, experts=1, snr=1.0)
        >>> round(planted.contention(), 6)  # half of each gradient's square is planted
        0.5

        Args:
            gates: Q, K×N; by default α.
        """
        q = self.gates if gates is None else gates
        s, rest = self.planted.norm(dim=2), self.rest.norm(dim=2)
        pull, against = q * s, 0.0
        for c in self.conflicts:
            for i in c.experts:
                one, other = (pull[list(camp), i].sum() for camp in (c.one, c.other))
                against += float(c.strength * one * other)
        norms = ((q**2) * (s**2 + rest**2)).sum(dim=1).sqrt().tolist()
        return against / sum(a * b for a, b in combinations(norms, 2))

    def gated(self, gates: Tensor) -> Planted:
        """The same with other gates, K×N, rows on the simplex; images and h stay as they are."""
        return replace(self, model=_explainer(self.images, gates))


def plant(
    conflicts: Sequence[Conflict],
    *,
    subtasks: int,
    experts: int,
    snr: float,
    gates: Tensor | None = None,
    width: int = 32,
    per_class: int = 10,
    seed: int = 0,
) -> Planted:
    """An explainer and images with these conflicts.

    Args:
        conflicts: every subtask stands in one at most; may be empty.
        subtasks: K.
        experts: N.
        snr: norm of a subtask's planted gradient over the norm of the rest of it, exact for every
            one.
        gates: α, K×N, rows on the simplex; by default all 1/N.
        width: M, the length of h^i_a; unrelated gradients have cosines of deviation 1/√(N·M).
        per_class: images of every class.
        seed: of directions and noise.

    Raises:
        KdxError: conflicts that name no subtask or expert, or one twice, or that need more columns.
    """
    _check(conflicts, subtasks, experts, snr, width, per_class)
    generator = torch.Generator().manual_seed(seed)

    # float64, as the yardsticks hold the probes to what was planted, not to rounding.
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    bases = torch.linalg.qr(normal(experts, width, width)).Q.transpose(1, 2)
    noise = normal(subtasks, per_class, experts, width) / math.sqrt(per_class)
    rest = noise.sum(dim=1)
    planted = torch.zeros_like(rest)
    for i, basis in enumerate(bases):
        inside = [c for c in conflicts if i in c.experts]
        for c, (u, v) in zip(inside, zip(basis[::2], basis[1::2], strict=False), strict=False):
            planted[list(c.one), i] = u / math.sqrt(len(c.experts))
            opposed = -c.strength * u + math.sqrt(1 - c.strength**2) * v
            planted[list(c.other), i] = opposed / math.sqrt(len(c.experts))
    planted = planted * snr * rest.norm(dim=(1, 2), keepdim=True)
    images = -(planted.unsqueeze(1) / per_class + noise).flatten(0, 1).unsqueeze(1)
    labels = torch.arange(subtasks).repeat_interleave(per_class)
    if gates is None:
        gates = torch.full((subtasks, experts), 1 / experts)
    return Planted(_explainer(images, gates), images, labels, tuple(conflicts), snr, planted, rest)


def routes(
    assignment: Sequence[int],
    experts: int,
    *,
    share: float = 0.9,
    noise: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Gates α, K×N, in which subtask k draws ``share`` from expert ``assignment[k]``.

    It draws the rest evenly from the others. N is ``experts``. Subtasks of one assignment route
    together. ``noise`` is the deviation of Gaussian noise on the gates' logits. Raises KdxError for
    an assignment to an expert that is not there, a share out of (0, 1), and a single expert.

    >>> routes([0, 1], 2, share=0.75)
    tensor([[0.7500, 0.2500],
            [0.2500, 0.7500]], dtype=torch.float64)
    """
    if not all(0 <= i < experts for i in assignment):
        raise KdxError(f"assignment {list(assignment)} names experts beyond 0 to {experts - 1}")
    if not 0 < share < 1 or experts < 2:
        raise KdxError(
            f"share = {share} of {experts} experts; give a share between 0 and 1, and 2 experts or "
            "more"
        )
    generator = torch.Generator().manual_seed(seed)
    gates = torch.full((len(assignment), experts), (1 - share) / (experts - 1), dtype=torch.float64)
    gates[range(len(assignment)), list(assignment)] = share
    logits = gates.log() + noise * torch.randn(
        gates.shape, generator=generator, dtype=torch.float64
    )
    return logits.softmax(dim=1)


def together(assignment: Sequence[int]) -> Tensor:
    """Whether a and b are assigned to the same expert, K×K.

    >>> together([0, 1, 0])[0]
    tensor([ True, False,  True])
    """
    a = torch.tensor(assignment)
    return a.unsqueeze(0) == a.unsqueeze(1)


def auroc(truth: Tensor, scores: Tensor) -> float:
    """Area under the ROC curve of finding the pairs a < b of ``truth`` by ``scores``.

    Both are K×K, ``truth`` of bools. In [0, 1], .5 by chance. Raises KdxError where all pairs are
    alike.

    >>> truth = torch.tensor([[False, True, False], [True, False, False], [False, False, False]])
    >>> auroc(truth, torch.tensor([[0.0, 2.0, 1.0], [2.0, 0.0, 3.0], [1.0, 3.0, 0.0]]))
    0.5
    """
    from sklearn.metrics import roc_auc_score

    pairs = upper(truth)
    if pairs.all() or not pairs.any():
        raise KdxError("an AUROC needs pairs of both kinds; here all are alike")
    return float(roc_auc_score(pairs.numpy(), upper(scores.detach().cpu()).numpy()))


def _explainer(images: Tensor, gates: Tensor) -> HME:
    """The explainer that this module describes, on ``images``, B×1×N×M.

    Nothing is drawn from torch's random state.
    """
    N, M = images.shape[2:]
    # Sums of float32 gates are 1 up to rounding, which allclose lets through.
    one = torch.ones((), dtype=torch.float64)
    if gates.ndim != 2 or gates.shape[1] != N or not torch.allclose(gates.sum(dim=1).double(), one):
        raise KdxError(
            f"gates of shape {tuple(gates.shape)} should be K×{N} with rows that sum to 1"
        )
    with torch.random.fork_rng(devices=[]):
        picks = nn.Conv2d(1, 1, (N, 1), bias=False)
        level = Level.of(nn.Sequential(picks, nn.Conv2d(1, 2, (1, M), bias=False)), N)
        heads = LinearHeads(len(gates), 2)
        model = HME(
            nn.Identity(), [level], heads, readout=GridPool(), num_classes=len(gates)
        ).double()
    rows, reads = level.parameters()
    with torch.no_grad():
        rows.copy_(torch.eye(N).view_as(rows))
        reads.zero_().view(N, 2, M)[:, 1, 0] = 1 / images[:, 0, :, 0].std(dim=0, correction=0)
        heads.weight.copy_(torch.tensor([1.0, 0.0]))
        heads.bias.fill_(_BIAS)
        next(model.gate_parameters()).copy_(gates.log())
    return model


def _check(
    conflicts: Sequence[Conflict],
    subtasks: int,
    experts: int,
    snr: float,
    width: int,
    per_class: int,
) -> None:
    """KdxError unless conflicts and sizes go together."""
    named = [k for c in conflicts for k in c.subtasks]
    if len(set(named)) < len(named):
        twice = sorted({k for k in named if named.count(k) > 1})
        raise KdxError(
            f"subtasks {twice} stand in more than one conflict, or on both its sides; let each "
            "stand in one"
        )
    if min(subtasks, experts, width, per_class) < 1 or not 0 <= snr < math.inf:
        raise KdxError(
            f"subtasks = {subtasks}, experts = {experts}, width = {width} and per_class = "
            f"{per_class} should be 1 or more, and snr = {snr} 0 or more"
        )
    for c in conflicts:
        _check_conflict(c, subtasks, experts)
    inside = Counter(i for c in conflicts for i in c.experts)
    needed = 2 * max(inside.values(), default=0)  # a direction along which, and one beside it
    if width < needed:
        raise KdxError(
            f"width = {width} is too small for conflicts of {needed} directions in one expert; "
            "raise it"
        )


def _check_conflict(c: Conflict, subtasks: int, experts: int) -> None:
    """KdxError unless a conflict names subtasks and experts that there are."""
    if not c.one or not c.other or not set(c.subtasks) <= set(range(subtasks)):
        raise KdxError(f"{c} should name subtasks from 0 to {subtasks - 1} on both sides")
    each_once = len(set(c.experts)) == len(c.experts)
    if not c.experts or not each_once or not set(c.experts) <= set(range(experts)):
        raise KdxError(f"{c} should name experts from 0 to {experts - 1}, each once")
    if not 0 < c.strength <= 1:
        raise KdxError(f"{c} should have a strength above 0 and up to 1")
