"""Part "nothing": what the toolkit says where nothing is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
import pandas as pd
import torch

from kdx_analysis.report.answers import answer, claims
from kdx_analysis.report.findings import LOWERS, RAISES
from kdx_analysis.runs.statistics.paired import effects_together, paired
from kdx_analysis.validation import coverage
from kdx_analysis.validation.outcome import Outcome, Row

STUDIES = 2000
SEEDS = (3, 5, 10)
MOST = 0.06  # of studies: 5 % and what 2,000 studies may be off by chance, two standard errors
# the objectives of the digits study, whose figures these are, in the order of the draws
RUNGS = ("hard", "hard_T", "kd_flat", "kd_shuffled", "kd", "label_smoothing")

# The digits study, over its objectives: means of its metrics, standard deviations over seeds,
# correlations of the metrics, and the correlation of two objectives of one seed.
MEASURED = (
    "conflict_rate",
    "severity",
    "contention",
    "separation",
    "modulation",
    "gate_entropy",
)
LEVELS = np.array([0.31, 0.056, 0.021, 0.32, 0.015, 0.39])
SPREADS = np.array([0.044, 0.014, 0.016, 0.14, 0.18, 0.055])
CORRELATIONS = np.array(
    [
        [1.00, 0.65, 0.87, -0.32, -0.03, 0.35],
        [0.65, 1.00, 0.40, -0.23, -0.04, -0.21],
        [0.87, 0.40, 1.00, -0.10, 0.22, 0.29],
        [-0.32, -0.23, -0.10, 1.00, 0.82, -0.09],
        [-0.03, -0.04, 0.22, 0.82, 1.00, 0.10],
        [0.35, -0.21, 0.29, -0.09, 0.10, 1.00],
    ]
)
WITHIN_SEED = 0.2


def validate(studies: int = STUDIES, values: int = coverage.VALUES) -> Outcome:
    """Check ranges of nulls and the report's claims on data without any effect.

    - Coverage: how often a fresh draw of a null lies in the range that is printed of it.
    - Claims: ``studies`` in which all objectives have one distribution, with the digits study's
      covariance; the share of them in which any sentence of the claims is false, in which the
      opening says Yes, and in which :meth:`RunSet.compare` has a star.
    - Missing epochs: two objectives that are equal at every epoch that both have, of which one
      lacks the first.

    It takes some ten minutes of two cores; every core has a process of its own.

    Args:
        studies: to simulate, for each number of seeds.
        values: of each null, as for :func:`coverage.coverage`.
    """
    jobs: list[Callable[[], list[Row]]] = [partial(_claims, studies, seeds) for seeds in SEEDS]
    jobs += [partial(coverage.of_room, place, draws, values) for place, draws in coverage.trials()]
    jobs.append(partial(_missing_epochs, studies))
    with ProcessPoolExecutor(
        mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        results = list(pool.map(_done, jobs))
    # Studies take longest, so they go first; they are shown last.
    shown = (*results[len(SEEDS) :], *results[: len(SEEDS)])
    return Outcome("nothing", [row for rows in shown for row in rows])


def _done(job: Callable[[], list[Row]]) -> list[Row]:
    return job()


def null_studies(studies: int, seeds: int, seed: int = 0) -> Iterator[dict[str, pd.DataFrame]]:
    """Studies in which no objective does anything: metric → seeds by rungs.

    :func:`answer` takes them so.
    """
    rng = np.random.default_rng(seed)
    metrics = np.linalg.cholesky(CORRELATIONS)
    K = len(RUNGS)
    rungs = np.linalg.cholesky(WITHIN_SEED + (1 - WITHIN_SEED) * np.eye(K))
    for _ in range(studies):
        noise = np.einsum(
            "nrm,km,or->nok", rng.normal(size=(seeds, K, len(MEASURED))), metrics, rungs
        )
        values = LEVELS + SPREADS * noise
        yield {
            metric: pd.DataFrame(values[:, :, i], columns=list(RUNGS))
            for i, metric in enumerate(MEASURED)
        }


def _claims(studies: int, seeds: int) -> list[Row]:
    labels = {rung: rung for rung in RUNGS}
    false = yes = stars = decided = 0
    expected = 0.0
    for values in null_studies(studies, seeds):
        said = answer(values, labels)
        false += any(claim.verdict in (LOWERS, RAISES) for claim in claims(said, labels, ()))
        yes += said.headline.startswith("Yes")
        decided += sum(finding.alone.changed for finding in said.findings)
        expected += said.by_chance
        effects = effects_together(values, "hard")
        stars += any(
            effect.difference.excludes_zero for several in effects.values() for effect in several
        )
    on = f"studies without any effect, n = {seeds} seeds"
    shares = {
        "a false sentence among the claims": false,
        "an opening that says Yes": yes,
        "a star in a comparison": stars,
    }
    rows = [_at_most(name, on, count / studies, MOST, studies) for name, count in shares.items()]
    ratio = decided / expected
    wanted = "0.7 to 1.3"
    name = "exploratory decisions over those expected by chance"
    return [*rows, Row(name, on, ratio, wanted, decided, 0.7 <= ratio <= 1.3)]


def _missing_epochs(studies: int) -> list[Row]:
    """Equal objectives of which one is undefined at the first epoch.

    There both are far below what they are later.
    """
    rng = np.random.default_rng(1)
    levels, epochs = np.array([0.0, 0.3, 0.6, 0.9]), (1, 9, 16, 24)
    rows = pd.MultiIndex.from_product([range(3), epochs], names=["seed", "epoch"])
    differences, false = [], 0
    for _ in range(studies):
        table = pd.DataFrame(
            np.tile(levels, 3)[:, None] + rng.normal(0, 0.05, (len(rows), 2)),
            index=rows,
            columns=["hard", "kd"],
        )
        table.loc[(slice(None), 1), "hard"] = np.nan
        difference = paired(table, "kd", "hard")
        assert difference is not None
        differences.append(difference.mean)
        false += difference.excludes_zero
    on = "equal objectives, one of them 0/0 at the first epoch"
    bias = float(np.mean(differences))
    most = 4 * float(np.std(differences)) / np.sqrt(studies)  # four standard errors
    return [
        Row("mean difference", on, bias, f"within ± {most:.2g}", studies, abs(bias) <= most),
        _at_most("intervals that exclude 0", on, false / studies, MOST, studies),
    ]


def _at_most(name: str, on: str, value: float, most: float, n: int) -> Row:
    return Row(name, on, value, f"≤ {most:g}", n, value <= most)
