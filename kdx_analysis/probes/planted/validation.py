"""The probes on planted truth: do they find what is there, and nothing where nothing is?

Everything goes the way of a run's figures: gradients of an explainer by ``subtask_grams``, nulls by
``with_null``, metrics by the formulas of conflict and of gates. Only the answer is known
(:mod:`kdx_analysis.probes.planted`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kdx_analysis import null
from kdx_analysis.errors import KdxError
from kdx_analysis.models.gates import pathways, spread
from kdx_analysis.models.modes import undisturbed
from kdx_analysis.probes.conflict.formulas import contention, cosine, modulation, upper
from kdx_analysis.probes.conflict.grams import Grams, subtask_grams, with_null
from kdx_analysis.probes.gates.formulas import effective, routing_distance
from kdx_analysis.probes.planted.truth import Conflict, Planted, auroc, plant, routes, together
from kdx_analysis.probes.record import TableRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXPERTS = 4
SUBTASKS = 36
PAIRS = 12
NULL_DRAWS = 99
NOMINAL = 0.05
PERMUTATIONS = 199

Values = dict[tuple[str, str], tuple[float, int]]


@dataclass(frozen=True)
class Yardstick:
    """What is measured on planted truth, and between which bounds it should lie.

    Attributes:
        name: what is measured.
        planted: on what.
        low, high: bounds, themselves allowed.
        over: whether they hold for the ``mean`` over seeds or for ``each`` seed.
    """

    name: str
    planted: str
    low: float
    high: float
    over: Literal["mean", "each"] = "mean"

    @property
    def wanted(self) -> str:
        """The bounds in words."""
        if self.low == -np.inf:
            bounds = f"≤ {self.high:g}"
        else:
            bounds = f"≥ {self.low:g}" if self.high == np.inf else f"{self.low:g} to {self.high:g}"
        return f"{bounds}, {self.over}"

    def passes(self, values: np.ndarray) -> bool:
        """Whether the values of all seeds do; NaN does not."""
        judged = values.mean(keepdims=True) if self.over == "mean" else values
        return bool(((judged >= self.low) & (judged <= self.high)).all())


AUROC = "AUROC, conflicting pairs by cosine"
AUROC_NULL = "AUROC, conflicting pairs by place in null"
EXPERT = "conflicts found in their expert"
FALSE = f"false positives at p ≤ {NOMINAL:g}"
CONTENTION = "contention, |measured − planted|"
MODULATION = "modulation"
ROUTES = "AUROC, pairs that route together"
NOTHING, AT_1, AT_QUARTER = "nothing planted", "signal-to-noise 1", "signal-to-noise 1/4"
CAMPS, WRONG, RIGHT, ALIKE = (
    "opposed camps",
    "wrong assignments",
    "right assignments",
    "gates all alike",
)
GROUPS = "groups that share experts"

YARDSTICKS = (
    Yardstick(AUROC, AT_1, 0.95, np.inf),
    Yardstick(AUROC, AT_QUARTER, -np.inf, 0.85),
    Yardstick(AUROC_NULL, AT_1, 0.95, np.inf),
    Yardstick(AUROC_NULL, AT_QUARTER, -np.inf, 0.85),
    Yardstick(EXPERT, AT_1, 0.95, np.inf),
    Yardstick(FALSE, NOTHING, NOMINAL - 0.02, NOMINAL + 0.02),
    Yardstick(FALSE, AT_1, NOMINAL - 0.02, NOMINAL + 0.02),
    Yardstick(CONTENTION, CAMPS, 0, 0.05, "each"),
    Yardstick(MODULATION, WRONG, -np.inf, -0.1, "each"),
    Yardstick(MODULATION, RIGHT, 0.1, np.inf, "each"),
    # It is 0, up to the rounding of two sums in different orders.
    Yardstick(MODULATION, ALIKE, -1e-6, 1e-6, "each"),
    Yardstick(ROUTES, GROUPS, 0.95, np.inf),
)


@dataclass(frozen=True, eq=False)
class Validation(TableRecord):
    """The probes against planted truth.

    Attributes:
        values: every yardstick's value and n (pairs, conflicts or explainers that it rests on)
            for each seed.
    """

    FILES: ClassVar = {"values": "validation"}

    values: pd.DataFrame

    @property
    def passed(self) -> bool:
        """Whether every yardstick holds."""
        return bool(self.to_frame()["passed"].all())

    def to_frame(self) -> pd.DataFrame:
        """One row a yardstick: what it gave over all seeds, and whether that was wanted.

        Columns: yardstick, planted, value (mean over seeds), lowest, highest, wanted, n (over all
        seeds), passed.
        """
        rows = []
        for yardstick in YARDSTICKS:
            named = self.values["yardstick"] == yardstick.name
            seeds = self.values[named & (self.values["planted"] == yardstick.planted)]
            values = seeds["value"].to_numpy()
            rows.append(
                {
                    "yardstick": yardstick.name,
                    "planted": yardstick.planted,
                    "value": values.mean(),
                    "lowest": values.min(),
                    "highest": values.max(),
                    "wanted": yardstick.wanted,
                    "n": int(seeds["n"].sum()),
                    "passed": yardstick.passes(values),
                }
            )
        return pd.DataFrame(rows)

    @property
    def caption(self) -> str:
        """How many seeds, and how many yardsticks hold."""
        passed, seeds = self.to_frame()["passed"], self.values["seed"].nunique()
        holding = f"{int(passed.sum())} of {len(passed)} yardsticks hold"
        return f"{holding} over {seeds} seeds of planted truth"

    def plot(self, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
        """Every seed a dot beside what was wanted, a row a yardstick, as (figure, axes)."""
        from kdx_analysis.probes.planted.drawing import plot

        return plot(self, ax)

    def __str__(self) -> str:
        return f"{self._shown().to_string(index=False)}\n{self.caption}"

    def _repr_html_(self) -> str:
        table = self._shown().style.hide(axis="index").format(thousands=" ", escape="html")
        return str(table.set_caption(self.caption).to_html())

    def _shown(self) -> pd.DataFrame:
        frame = self.to_frame()
        # Adding 0.0 makes a −0.0 of rounding one without its sign.
        for column in ("value", "lowest", "highest"):
            frame[column] = frame[column].map(lambda value: f"{round(value, 3) + 0.0:.3f}")
        return frame.assign(passed=frame["passed"].map({True: "yes", False: "NO"}))


def validate(seeds: int = 10) -> Validation:
    """Run the probes on planted truth of this many seeds; some seconds a seed.

    - Conflicting pairs: 12 pairs of 36 subtasks conflict, each in one of 4 experts, others in none.
      Scores are −c_ab, and 1 − p with p the place of c_ab in its null (residuals permuted over
      samples, R = 99). The expert of a conflict is found where G^i_ab is the most negative.
    - False positives: pairs with p ≤ .05, of all pairs where nothing is planted; at signal-to-noise
      1, of pairs with a subtask that stands in no conflict. (Of two subtasks that stand in
      different conflicts the test is conservative: their gradients lie along other directions, from
      which permuting takes them away.)
    - Contention: two camps of 6 of 16 subtasks oppose each other in all experts, at strengths 1 and
      ½, signal-to-noise 1 and 3, under gates that share all, keep camps apart and mix them; the
      largest error.
    - Modulation: 8 pairs conflict wherever they meet; gates give partners one expert (wrong), or
      never (right).
    - Routing: 16 subtasks draw mostly from one of 4 experts, under noise on the gates' logits; by
      routing distance of effective attention.

    Raises:
        KdxError: fewer than one seed.
    """
    if seeds < 1:
        raise KdxError(f"seeds = {seeds} should be 1 or more")
    rows = [
        {"seed": seed, "yardstick": name, "planted": on, "value": value, "n": n}
        for seed in range(seeds)
        for (name, on), (value, n) in measure(seed).items()
    ]
    return Validation(pd.DataFrame(rows))


def measure(seed: int) -> Values:
    """All yardsticks on one seed, each with its n."""
    return _pairs(seed) | _contention(seed) | _modulation(seed) | _routes(seed)


def _pairs(seed: int) -> Values:
    order = torch.randperm(SUBTASKS, generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = zip(order[: 2 * PAIRS : 2], order[1 : 2 * PAIRS : 2], strict=True)
    conflicts = [Conflict((a,), (b,), (i % EXPERTS,)) for i, (a, b) in enumerate(chosen)]
    table: Values = {}
    for on, snr in ((NOTHING, 0.0), (AT_1, 1.0), (AT_QUARTER, 0.25)):
        planted = plant(
            conflicts if snr else (),
            subtasks=SUBTASKS,
            experts=EXPERTS,
            snr=snr,
            seed=_seed(seed, int(100 * snr)),
        )
        grams = _grams(planted, NULL_DRAWS)
        cosines = cosine(grams.total())
        p = torch.from_numpy(null.p_value(cosines[0], cosines[1:], "less"))
        n = SUBTASKS * (SUBTASKS - 1) // 2
        if snr:
            table[AUROC, on] = planted.auroc(-cosines[0]), n
            table[AUROC_NULL, on] = planted.auroc(1 - p), n
        idle = ~planted.conflicting.any(dim=0)
        if on in (NOTHING, AT_1):
            unrelated = upper(p)[upper(idle.unsqueeze(0) | idle.unsqueeze(1))]
            table[FALSE, on] = float((unrelated <= NOMINAL).double().mean()), len(unrelated)
        if on == AT_1:
            table[EXPERT, on] = _located(planted, grams), PAIRS
    return table


def _located(planted: Planted, grams: Grams) -> float:
    """Share of conflicts whose most negative inner product lies in their own expert."""
    expert = grams.experts[-1][0].argmin(dim=0)
    right = planted.where.gather(0, expert.unsqueeze(0))[0]
    return float(right[planted.conflicting].double().mean())


def _contention(seed: int) -> Values:
    one, other = tuple(range(6)), tuple(range(6, 12))
    apart = routes([0, 1] * 3 + [2, 3] * 3 + [0, 1, 2, 3], EXPERTS)
    mixed = routes([0, 0, 1, 1, 2, 2] * 2 + [0, 1, 2, 3], EXPERTS)
    errors = []
    for strength, snr in product((1.0, 0.5), (1.0, 3.0)):
        camps = [Conflict(one, other, tuple(range(EXPERTS)), strength)]
        planted = plant(
            camps, subtasks=16, experts=EXPERTS, snr=snr, width=64, seed=_seed(seed, 1000)
        )
        for variant in (planted, planted.gated(apart), planted.gated(mixed)):
            ungated, alpha = _last_level(variant)
            errors.append(abs(float(contention(ungated, alpha)) - variant.contention()))
    return {(CONTENTION, CAMPS): (max(errors), len(errors))}


def _modulation(seed: int) -> Values:
    partners = [Conflict((2 * i,), (2 * i + 1,), tuple(range(EXPERTS))) for i in range(8)]
    planted = plant(
        partners, subtasks=16, experts=EXPERTS, snr=1.0, width=256, seed=_seed(seed, 2000)
    )
    assigned = {
        WRONG: routes([k // 4 for k in range(16)], EXPERTS),
        RIGHT: routes([k % 4 for k in range(16)], EXPERTS),
        ALIKE: routes([0] * 16, EXPERTS),
    }
    table: Values = {}
    for on, assignment in assigned.items():
        generator = torch.Generator().manual_seed(seed)
        ungated, alpha = _last_level(planted.gated(assignment))
        value, _ = modulation(ungated, alpha, PERMUTATIONS, generator)
        table[MODULATION, on] = float(value), 1
    return table


def _routes(seed: int) -> Values:
    assignment = [k % EXPERTS for k in range(16)]
    alpha = routes(assignment, EXPERTS, noise=0.5, seed=_seed(seed, 3000))
    planted = plant((), subtasks=16, experts=EXPERTS, snr=0, gates=alpha, seed=_seed(seed, 3000))
    with undisturbed(planted.model), torch.no_grad():
        trace = planted.model.trace(planted.images)
    attention = effective(trace.attention, [spread(level) for level in trace.features])
    distance = routing_distance(pathways(attention)[-1])
    return {(ROUTES, GROUPS): (auroc(together(assignment), -distance), 16 * 15 // 2)}


def _grams(planted: Planted, draws: int) -> Grams:
    residuals = with_null(planted.residuals, draws, seed=0)
    return subtask_grams(planted.model, planted.images, residuals)


def _last_level(planted: Planted) -> tuple[Tensor, Tensor]:
    """⟨h^i_a, h^i_b⟩ and the gates, as the probe sees them."""
    grams = _grams(planted, 0)
    assert grams.gates is not None
    return grams.experts[-1][0], grams.gates


def _seed(seed: int, offset: int) -> int:
    """A seed of its own for each thing planted."""
    return 10_000 * (seed + 1) + offset
