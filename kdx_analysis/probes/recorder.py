"""The probe of one explainer in training: called after every epoch, it turns what it sees into tidy tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from kdx_analysis.config import ObjectiveConfig, ProbeConfig
from kdx_analysis.data import Dataset, Split
from kdx_analysis.models import HME, Trace
from kdx_analysis.models import gates as gating
from kdx_analysis.objectives import Objective, one_vs_rest_margins
from kdx_analysis.probes import conflict, gates
from kdx_analysis.probes.gradients import Grams, residuals, subtask_grams, undisturbed
from kdx_analysis.training import Epoch

SPLITS = ("train", "val")


def checkpoints(epochs: int, count: int) -> tuple[int, ...]:
    """``count`` epochs (or fewer, where they coincide) spread evenly from the first to the last."""
    return tuple(sorted({round(float(e)) for e in np.linspace(1, epochs, count)})) if count > 1 else (epochs,)


class ExplainerProbe:
    """Records an explainer's gates after every epoch and its subtasks' conflicts at some.

    Tables (``tables()``), each keyed by epoch; levels count from the trunk, 1, and L + 1 are the heads:

    - ``gates``: level, child, child_index, parent, alpha, effective, tau.
    - ``gate_summary``: of, level, attention, metric, value, initial (the run's initial logits at the same τ),
      null_mean, null_low, null_high (random gates at the same τ), null_draws, n, tau.
    - ``pathways``: level, subtask, subtask_index, expert, alpha, effective.
    - ``routing``: level, attention, a, b, distance.
    - ``conflict``: split, term, level, a, b, cosine, null_mean, null_low, null_high, null_draws, n.
    - ``conflict_summary``: split, term, level, metric, value, null_…, null_draws, pairs, undefined, n.
    - ``contention``: split, term, metric, value, null_…, null_draws, p, n.

    The null of conflict and contention permutes the rows of the residual ∂L/∂m over samples with the model
    fixed. Terms: ``hard``, the same plain hard loss for every objective; ``distillation`` and ``objective``, the
    run's own. For the multiclass decomposition conflict is that of the one-vs-rest margins' hard loss, and there
    is no contention, which rests on heads that share nothing.

    Args:
        model: the explainer before training.
        data: whose train and validation splits the probe sets are drawn from, un-augmented and class-balanced.
        objective: of the run.
        config: sizes, checkpoints, null draws.
        epochs: of the training.
        teacher: logits are taken from it once; None for runs without one.
    """

    def __init__(
        self,
        model: HME,
        data: Dataset,
        objective: ObjectiveConfig,
        config: ProbeConfig,
        epochs: int,
        teacher: nn.Module | None = None,
    ) -> None:
        self.data, self.objective, self.config = data, Objective(objective), config
        self.conflict_epochs = checkpoints(epochs, config.checkpoints)
        self.initial = [gate.logits.detach().clone() for gate in model.gates]
        self.sets = {name: data.probe_set(name, config.per_class, config.seed) for name in SPLITS}
        self.teacher_logits = {name: self._logits(teacher, split) for name, split in self.sets.items()}
        generator = torch.Generator().manual_seed(config.seed)
        self.random = gates.random_logits(self.initial, config.null_draws, generator)
        self._frames: defaultdict[str, list[pd.DataFrame]] = defaultdict(list)

    @property
    def ids(self) -> dict[str, list[int]]:
        """Ids of the images in each probe set."""
        return {name: split.ids.tolist() for name, split in self.sets.items()}

    def __call__(self, epoch: Epoch, model: nn.Module) -> None:
        assert isinstance(model, HME)
        with undisturbed(model), torch.no_grad():
            trace = model.trace(self._images("train"))
            attention = self._gates(epoch.epoch, model, trace)
        if epoch.epoch in self.conflict_epochs:
            self._routing(epoch.epoch, attention)
            for split in SPLITS:
                self._conflict(epoch.epoch, model, split)

    def tables(self) -> dict[str, pd.DataFrame]:
        return {kind: pd.concat(frames, ignore_index=True) for kind, frames in self._frames.items()}

    def _add(self, kind: str, epoch: int, columns: dict[str, Any]) -> None:
        self._frames[kind].append(pd.DataFrame({"epoch": epoch, **columns}))

    def _images(self, split: str) -> Tensor:
        images = self.sets[split].images
        return self.data.normalise(images.take(torch.arange(len(self.sets[split]))))

    def _logits(self, teacher: nn.Module | None, split: Split) -> Tensor | None:
        if teacher is None:
            return None
        with undisturbed(teacher), torch.no_grad():
            return teacher(self._images(split.name)).float()

    def _gates(self, epoch: int, model: HME, trace: Trace) -> dict[str, list[Tensor]]:
        spreads = [gating.spread(features.float()) for features in trace.features]
        tau, classes = model.temperature, self.data.classes
        chosen: dict[str, dict[str, list[Tensor]]] = {}
        for source, logits in (("value", None), ("initial", self.initial), ("null", self.random)):
            drawn = [a.detach().double().cpu() for a in model.attention(logits)]
            if source == "null":
                drawn[0] = drawn[0].expand(self.config.null_draws, -1, -1)
            spread = [s.double().cpu() for s in spreads]
            chosen[source] = {"alpha": drawn, "effective": gates.effective(drawn, spread)}
        present = chosen["value"]
        for level, (alpha, effective) in enumerate(zip(present["alpha"], present["effective"], strict=True), 2):
            rows, parents = alpha.shape
            names = classes if level == len(model.experts) + 1 else [f"expert {i}" for i in range(rows)]
            self._add("gates", epoch, {
                "level": level,
                "child": np.repeat(names, parents),
                "child_index": np.repeat(np.arange(rows), parents),
                "parent": np.tile(np.arange(parents), rows),
                "alpha": alpha.flatten().numpy(),
                "effective": effective.flatten().numpy(),
                "tau": tau,
            })  # fmt: skip
        paths = {kind: gating.pathways(attention) for kind, attention in present.items()}
        for level, (alpha, effective) in enumerate(zip(paths["alpha"], paths["effective"], strict=True), 1):
            K, N = alpha.shape
            self._add("pathways", epoch, {
                "level": level,
                "subtask": np.repeat(classes, N),
                "subtask_index": np.repeat(np.arange(K), N),
                "expert": np.tile(np.arange(N), K),
                "alpha": alpha.flatten().numpy(),
                "effective": effective.flatten().numpy(),
            })  # fmt: skip
        rows_: list[dict[str, Any]] = []
        for kind in present:
            initial, null = gates.summarise(chosen["initial"][kind]), gates.summarise(chosen["null"][kind])
            for (of, level, metric), (value, n) in gates.summarise(present[kind]).items():
                rows_.append({
                    "of": of, "level": level, "attention": kind, "metric": metric, "value": float(value),
                    "initial": float(initial[of, level, metric][0]),
                    **gates.quantiles(null[of, level, metric][0]),
                    "null_draws": self.config.null_draws, "n": n, "tau": tau,
                })  # fmt: skip
        self._add("gate_summary", epoch, dict(pd.DataFrame(rows_)))
        return paths

    def _routing(self, epoch: int, paths: dict[str, list[Tensor]]) -> None:
        for attention, levels in paths.items():
            for level, path in enumerate(levels, 1):
                if path.shape[1] > 1:
                    distance = conflict.upper(gates.routing_distance(path))
                    columns = {"level": level, "attention": attention, **self._pairs()}
                    self._add("routing", epoch, {**columns, "distance": distance.numpy()})

    def _pairs(self) -> dict[str, Any]:
        classes = np.array(self.data.classes, dtype=object)
        a, b = np.triu_indices(len(classes), k=1)
        return {"a": classes[a], "b": classes[b], "a_index": a, "b_index": b}

    def _conflict(self, epoch: int, model: HME, split: str) -> None:
        images, labels = self._images(split), self.sets[split].labels
        multiclass = self.objective.config.decomposition == "multiclass"
        with undisturbed(model), torch.no_grad():
            outputs = model(images)
        margins = one_vs_rest_margins(outputs) if multiclass else outputs
        terms = self._residuals(margins, labels, self.teacher_logits[split], multiclass)
        generator = torch.Generator().manual_seed(self.config.seed)
        orders = [torch.randperm(len(images), generator=generator) for _ in range(self.config.null_draws)]
        draws = [torch.stack([r, *(r[order.to(r.device)] for order in orders)]) for r in terms.values()]
        grams = subtask_grams(
            model,
            images,
            torch.cat(draws),
            margins=one_vs_rest_margins if multiclass else None,
            max_memory=self.config.max_memory,
        )
        for i, term in enumerate(terms):
            own = grams.subset(slice(i * len(draws[0]), (i + 1) * len(draws[0])))
            columns = {"split": split, "term": term, "null_draws": len(orders), "n": len(images)}
            self._cosines(epoch, own, columns)
            if own.gates is not None:
                self._contention(epoch, own.experts[-1].double().cpu(), own.gates.double().cpu(), columns)

    def _residuals(
        self, margins: Tensor, labels: Tensor, teacher_logits: Tensor | None, multiclass: bool
    ) -> dict[str, Tensor]:
        """∂L/∂m (B×K) of every term."""
        plain, unused = Objective(ObjectiveConfig(name="hard")), torch.Generator()
        table = {"hard": residuals(lambda m: plain.terms(m, labels, None, unused)["hard"], margins)}
        if multiclass:
            return table

        def own(m: Tensor) -> dict[str, Tensor]:
            generator = torch.Generator().manual_seed(self.config.seed)
            return self.objective.terms(m, labels, teacher_logits, generator)

        if self.objective.distils:
            table["distillation"] = residuals(lambda m: own(m)["distillation"], margins)
        table["objective"] = residuals(lambda m: torch.stack(list(own(m).values())).sum(dim=0), margins)
        return table

    def _cosines(self, epoch: int, grams: Grams, columns: dict[str, Any]) -> None:
        levels: Sequence[tuple[str, Tensor]] = [
            *((str(level), grams.level(level)) for level in range(1, len(grams.experts) + 1)),
            ("all", grams.total()),
        ]
        for level, gram in levels:
            cosines = conflict.cosine(gram.double().cpu())
            pairs = conflict.upper(cosines)
            null = pairs[1:]
            low, high = torch.nanquantile(null, torch.tensor([0.025, 0.975], dtype=null.dtype), dim=0).numpy()
            self._add("conflict", epoch, {
                **columns, "level": level, **self._pairs(), "cosine": pairs[0].numpy(),
                "null_mean": null.nanmean(dim=0).numpy(), "null_low": low, "null_high": high,
            })  # fmt: skip
            undefined = int(conflict.undefined(cosines[0]).sum())
            metrics = {
                "conflict_rate": conflict.conflict_rate(cosines),
                "severity": conflict.severity(cosines),
                "mean_cosine": conflict.mean_cosine(cosines),
            }
            rows = [
                {"metric": metric, "value": float(values[0]), **gates.quantiles(values[1:])}
                for metric, values in metrics.items()
            ]
            counts = {"level": level, "pairs": pairs.shape[1] - undefined, "undefined": undefined}
            self._add("conflict_summary", epoch, {**columns, **counts, **dict(pd.DataFrame(rows))})

    def _contention(self, epoch: int, ungated: Tensor, alpha: Tensor, columns: dict[str, Any]) -> None:
        uniform = torch.full_like(alpha, 1 / alpha.shape[1])
        own, shared = conflict.contention(ungated, alpha), conflict.contention(ungated, uniform)
        generator = torch.Generator().manual_seed(self.config.seed)
        modulation, p = conflict.modulation(ungated[0], alpha, self.config.permutations, generator)
        nulled = torch.stack([
            conflict.modulation(draw, alpha, 19, generator)[0] for draw in ungated[1:]
        ])  # fmt: skip
        rows = [
            {"metric": "contention", "value": float(own[0]), **gates.quantiles(own[1:])},
            {"metric": "contention_uniform", "value": float(shared[0]), **gates.quantiles(shared[1:])},
        ]
        separated = conflict.bounded_difference(shared, own)
        rows.append({"metric": "separation", "value": float(separated[0]), **gates.quantiles(separated[1:])})
        rows.append({"metric": "modulation", "value": float(modulation), **gates.quantiles(nulled)})
        frame = pd.DataFrame(rows)
        frame["p"] = np.where(frame["metric"] == "modulation", p, np.nan)
        self._add("contention", epoch, {**columns, **dict(frame)})
