"""Whether every training went as it should, run by run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from kdx_analysis.runs import Run, RunSet
from kdx_analysis.runs.headlines import last_level

# A loss that falls by less than this share in the last epoch is taken to have settled.
STILL_FALLING = 0.02
# Guessing surpasses its mean by three standard errors once in 740 times.
_ERRORS = 3


@dataclass(frozen=True)
class Health:
    """One training.

    Attributes:
        run: its id.
        role, objective, vam, seed: its keys.
        epochs: trained; 0 for a teacher that was given.
        selected: epoch whose weights are kept, by ``rule``.
        first_loss, last_loss: of training, in the first and last epoch; NaN for a teacher that was
            given.
        fall: share by which the training loss fell from the last epoch but one to the last; NaN
            below two epochs.
        finite: whether the loss of every epoch is.
        accuracy: on the test split.
        chance: the accuracy that guessing among K classes surpasses once in 740 times: 1/K and
            three standard errors; NaN where classes or test images are unknown.
        undefined_pairs, pairs: of subtasks, over all probed epochs and both probe sets, whose
            cosine of hard-loss gradients is undefined, out of so many; None where conflict was not
            probed.
        undefined_gates: probed figures of separation and modulation that are 0/0; None where there
            is none.
        dead: share of the last level's experts that no subtask reaches at the selected epoch; NaN
            without experts.
    """

    run: str
    role: str
    objective: str
    vam: str
    seed: int
    epochs: int
    selected: int
    rule: str
    first_loss: float
    last_loss: float
    fall: float
    finite: bool
    accuracy: float
    chance: float
    undefined_pairs: int | None
    pairs: int | None
    undefined_gates: int | None
    dead: float

    @property
    def concerns(self) -> tuple[str, ...]:
        """What calls for a look at this training."""
        concerns = {
            "loss not finite": not self.finite,
            "loss rose": self.last_loss > self.first_loss,
            "loss still falling": self.fall > STILL_FALLING,
            "accuracy of chance": self.accuracy <= self.chance,
        }
        return tuple(what for what, so in concerns.items() if so)


def health(runs: RunSet) -> list[Health]:
    """Every run's training, in the order of the runs."""
    return [_health(run) for run in runs]


def summary(trainings: Sequence[Health]) -> list[str]:
    """What to know of them, in sentences; the runs that call for a look are counted."""
    trained = [t for t in trainings if t.epochs]
    if not trained:
        return ["No loss of any training was recorded."]
    sentences = [
        _looked_at(trainings),
        _finite(trained),
        _falling(trained),
        _guessing(trainings),
        _dead_experts([t for t in trainings if not math.isnan(t.dead)]),
        _undefined_cosines([t for t in trainings if t.pairs]),
        _undefined_figures([t for t in trainings if t.undefined_gates is not None]),
    ]
    return [sentence for sentence in sentences if sentence]


def _looked_at(trainings: Sequence[Health]) -> str:
    looked = sum(bool(t.concerns) for t in trainings)
    if not looked:
        return f"None of {len(trainings)} trainings calls for a look."
    return f"{looked} of {len(trainings)} trainings call for a look; the table names why."


def _finite(trained: Sequence[Health]) -> str:
    broken = [t.run for t in trained if not t.finite]
    if not broken:
        return f"The loss is finite in every epoch of all {len(trained)} trainings."
    return (
        f"The loss is not finite in {len(broken)} of {len(trained)} trainings: {', '.join(broken)}."
    )


def _falling(trained: Sequence[Health]) -> str:
    falling = sum(t.fall > STILL_FALLING for t in trained)
    end = ": these may not have converged." if falling else "."
    return (
        f"The training loss still fell by more than {100 * STILL_FALLING:g} % in the last epoch of "
        f"{falling} of {len(trained)} trainings{end}"
    )


def _guessing(trainings: Sequence[Health]) -> str:
    guessing = [t.run for t in trainings if t.accuracy <= t.chance]
    return f"No better than chance on the test split: {', '.join(guessing)}." if guessing else ""


def _dead_experts(with_experts: Sequence[Health]) -> str:
    if not with_experts:
        return ""
    dead = [t.dead for t in with_experts if t.dead > 0]
    most = f", at most {100 * max(dead):.0f} % of them" if dead else ""
    return (
        f"In {len(dead)} of {len(with_experts)} explainers some experts of the last level are "
        f"dead (no subtask reaches them){most}."
    )


def _undefined_cosines(probed: Sequence[Health]) -> str:
    if not probed:
        return ""
    undefined = sum(t.undefined_pairs or 0 for t in probed)
    return (
        f"Of {sum(t.pairs or 0 for t in probed)} cosines between subtasks' gradients {undefined} "
        "are undefined (a zero gradient) and left out."
    )


def _undefined_figures(gated: Sequence[Health]) -> str:
    if not gated:
        return ""
    return (
        f"{sum(t.undefined_gates or 0 for t in gated)} figures of separation and modulation are "
        "undefined (0/0); objectives are compared over the epochs at which all of them are defined."
    )


def _health(run: Run) -> Health:
    metrics = run.record("metrics")
    losses = metrics[(metrics["split"] == "train") & (metrics["metric"] == "loss")].sort_values(
        "epoch"
    )["value"]
    loss = [float(value) for value in losses]
    undefined, pairs = _pairs(run)
    return Health(
        run.id,
        run.role,
        run.objective,
        run.vam,
        run.seed,
        len(loss),
        run.selected_epoch,
        run.selection_rule,
        first_loss=loss[0] if loss else math.nan,
        last_loss=loss[-1] if loss else math.nan,
        fall=1 - loss[-1] / loss[-2] if len(loss) > 1 and loss[-2] else math.nan,
        finite=all(map(math.isfinite, loss)),
        accuracy=_accuracy(run.at_selected("metrics")),
        chance=_chance(run),
        undefined_pairs=undefined,
        pairs=pairs,
        undefined_gates=_undefined_gates(run),
        dead=_dead(run),
    )


def _accuracy(selected: pd.DataFrame) -> float:
    right = selected[(selected["split"] == "test") & (selected["metric"] == "accuracy")]["value"]
    return float(right.iloc[-1]) if len(right) else math.nan


def _chance(run: Run) -> float:
    images = run.info["data"]["sizes"].get("test")
    if not images or not run.classes:
        return math.nan
    p = 1 / len(run.classes)
    return p + _ERRORS * math.sqrt(p * (1 - p) / images)


def _hard(run: Run, kind: str) -> pd.DataFrame:
    table = run.record(kind)
    return table[table["term"] == "hard"]


def _pairs(run: Run) -> tuple[int, int] | tuple[None, None]:
    if "conflict_summary" not in run.kinds:
        return None, None
    table = _hard(run, "conflict_summary")
    once = table[(table["level"] == "all") & (table["metric"] == "conflict_rate")]
    undefined = int(once["undefined"].sum())
    return undefined, undefined + int(once["pairs"].sum())


def _undefined_gates(run: Run) -> int | None:
    if "contention" not in run.kinds:
        return None
    table = _hard(run, "contention")
    return int(table.loc[table["metric"].isin(["separation", "modulation"]), "value"].isna().sum())


def _dead(run: Run) -> float:
    if "gate_summary" not in run.kinds:
        return math.nan
    table = run.at_selected("gate_summary")
    chosen = table[(table["metric"] == "dead_share") & (table["attention"] == "effective")]
    last = chosen[chosen["level"] == last_level(run)]["value"]
    return float(last.iloc[0]) if len(last) else math.nan
