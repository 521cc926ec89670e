"""The probe of one explainer or tree in training: called after every epoch, it makes tidy tables of
what it sees.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from kdx_analysis import null
from kdx_analysis.config import ObjectiveConfig, ProbeConfig
from kdx_analysis.data import Dataset, Split
from kdx_analysis.models import HME, Trace
from kdx_analysis.models import gates as gating
from kdx_analysis.models.gates import ParameterGate
from kdx_analysis.models.redraw import draw_anew
from kdx_analysis.objectives import Objective, one_vs_rest_margins
from kdx_analysis.probes.affinity import affinity_cost, affinity_of
from kdx_analysis.probes.agreement import (
    agreement_table,
    class_tree_distance,
    confusion_distance,
    teacher_distance,
)
from kdx_analysis.probes.claims import output_table
from kdx_analysis.probes.conflict import formulas as conflict
from kdx_analysis.probes.conflict import tables as measures
from kdx_analysis.probes.conflict.grams import (
    Cost,
    in_full,
    probing_cost,
    residuals,
    subtask_grams,
    undisturbed,
    with_null,
)
from kdx_analysis.probes.gates import formulas as gates
from kdx_analysis.probes.gates.record import child_columns
from kdx_analysis.probes.subtasks import pair_columns
from kdx_analysis.records import with_undefined
from kdx_analysis.training import Epoch, predict

SPLITS = ("train", "val")
AFFINITY_DRAWS = (
    2  # K forward passes each: 39 at every checkpoint would add more time than the training takes
)
RANDOM_INPUT_GATES = 39  # at most, since each costs a summary of every sample after every epoch
_GATE_SUMMARY = [
    "of",
    "level",
    "attention",
    "metric",
    "value",
    "initial",
    *null.COLUMNS,
    "null_draws",
    "n",
    "tau",
]
_VALUES = ("alpha", "effective", "distance", "value", "initial")


def checkpoints(epochs: int, count: int) -> tuple[int, ...]:
    """``count`` epochs (or fewer, where they coincide) spread evenly from the first to the last."""
    return (
        tuple(sorted({round(float(e)) for e in np.linspace(1, epochs, count)}))
        if count > 1
        else (epochs,)
    )


def terms_of(objective: ObjectiveConfig) -> tuple[str, ...]:
    """The losses whose conflict is recorded: the plain hard one, and of the binary decomposition
    the run's own.
    """
    if objective.decomposition == "multiclass":
        return ("hard",)
    return (*Objective(objective).subtask_terms, "objective")


def margins_of(objective: ObjectiveConfig) -> Callable[[Tensor], Tensor] | None:
    """From a model's outputs to the margins of its subtasks; None where they are the outputs
    themselves.
    """
    return one_vs_rest_margins if objective.decomposition == "multiclass" else None


def recording_cost(
    model: nn.Module,
    images: Tensor,
    num_classes: int,
    objective: ObjectiveConfig,
    config: ProbeConfig,
    affinity_draws: int = AFFINITY_DRAWS,
) -> Cost:
    """What conflict, its nulls and affinity take at one epoch on one probe set, ``images``."""
    margins = margins_of(objective)
    sets = len(terms_of(objective)) * (1 + config.null_draws)
    options: dict[str, Any] = {"margins": margins, "max_memory": config.max_memory}
    conflicts = probing_cost(model, images, num_classes, sets, **options)
    return conflicts + affinity_cost(model, images, num_classes, affinity_draws, **options)


@dataclass(frozen=True, eq=False)
class Initial:
    """An explainer before training, on the first probe set: what untrained gates are to be seen
    beside.

    A of initial or random logits takes these spreads, not those of trained experts, in which
    trained logits would be missing: where experts are rescaled at equal outputs and equal A, the
    null so stays as it is.

    Attributes:
        gates: its own.
        spreads: s of every level's experts, each N_l.
        read: features of every level averaged over positions, which is what gates that read the
            input read.
    """

    gates: nn.ModuleList
    spreads: list[Tensor]
    read: list[Tensor]


class ExplainerProbe:
    """Records an explainer's gates after every epoch and its subtasks' conflicts at some.

    Tables (``tables()``), each keyed by epoch; levels count from the trunk, 1, and L + 1 are the
    heads. ``undefined`` in each counts the NaN among a row's values, or the pairs that could not go
    into it, and ``null_undefined``, beside null_high wherever there is a null, its draws that could
    not. Below 39 draws of a null, as of affinity's, its null_low and null_high are NaN:

    - ``gates``: level, child, child_index, parent, alpha, effective (NaN where none of the parents'
      features vary over the images), tau.
    - ``gate_summary``: of, level, attention, metric, value, initial (the run's initial logits at
      the same τ), null_mean, null_low, null_high (random gates at the same τ), null_draws, n, tau.
      A of initial and random logits is that of the initial model's spreads.
    - ``pathways``: level, subtask, subtask_index, expert, alpha, effective.
    - ``gates_by_class`` at the probed epochs and ``gates_by_sample`` at the last of them, of gates
      that read the input (whose ``gates`` and ``pathways`` are means over the train probe set):
      level, id, true_class, child, child_index, parent, alpha, effective.
    - ``routing``: level, attention, a, b, distance.
    - ``agreement`` of routing distance with the model's own ``confusion`` on validation, with the
      ``teacher``'s similarity of classes and with a given ``class_tree``: level, attention,
      reference, method, value, p, null_mean, null_low, null_high (classes permuted), null_draws,
      pairs.
    - ``output_conflict``: split, metric, a, b ('' where all subtasks are meant), value, null_…,
      null_draws, n.
    - ``conflict``: split, term, level, a, b, cosine, null_mean, null_low, null_high,
      magnitude_similarity, null_draws, n.
    - ``conflict_summary``: split, term, level, metric, value, null_…, null_draws, pairs, undefined,
      n; contention of the actual gradients among the metrics of every level.
    - ``affinity``: split, metric, a, b ('' where all are meant), value, undefined, null_…,
      null_draws, eta, n.
    - ``contention`` on the last level, and what other gates would make of it: split, term, metric,
      value, null_…, null_draws, p, n.
    - ``contention_by_expert`` of the actual gradients, on levels of several experts; a level's sum
      is its contention: split, term, level, expert, value, null_…, null_draws, n.

    The null of conflict and contention permutes the rows of the residual ∂L/∂m over samples with
    the model fixed. Terms: ``hard``, the same plain hard loss for every objective; ``distillation``
    and ``objective``, the run's own; of a distiller those terms that it keeps by subtask. For the multiclass decomposition conflict is that of the
    one-vs-rest margins' hard loss, and there is no contention, which rests on heads that share
    nothing; neither is there for gates that read the input, since their gradients don't factorise
    into a gate and the rest. Of a hard explainer all but gates is recorded, which are its tree;
    there A and α are the same, since every expert has one parent.

    Args:
        model: the explainer before training.
        data: whose train and validation splits the probe sets are drawn from, un-augmented and
            class-balanced.
        objective: of the run.
        config: sizes, checkpoints, null draws.
        epochs: of the training.
        teacher: logits are taken from it once; None for runs without one.
        splits: that probe sets are drawn from; gates are those on the first.
        affinity_draws: of affinity's null; by default 2, which give its mean and no range, since
            each is K forward passes at every checkpoint. :func:`affinity_of` draws 39.
    """

    def __init__(
        self,
        model: HME,
        data: Dataset,
        objective: ObjectiveConfig,
        config: ProbeConfig,
        epochs: int,
        teacher: nn.Module | None = None,
        splits: Sequence[str] = SPLITS,
        affinity_draws: int = AFFINITY_DRAWS,
    ) -> None:
        self.data, self.objective, self.config = data, Objective(objective), config
        self.affinity_draws = affinity_draws
        self.conflict_epochs = checkpoints(epochs, config.checkpoints)
        model = in_full(model)
        self.sets = {name: data.probe_set(name, config.per_class, config.seed) for name in splits}
        self.main = splits[0]
        self.margins = margins_of(objective)
        self.teacher_logits = {
            name: self._logits(teacher, split) for name, split in self.sets.items()
        }
        generator = torch.Generator().manual_seed(config.seed)
        self.random_gates = _untrained(model, config) if model.input_gated else []
        own = [gate.logits for gate in model.gates if isinstance(gate, ParameterGate)]
        self.random = gates.random_logits(own, config.null_draws, generator)
        self.initial = None if model.hard else self._initial(model)
        self._frames: defaultdict[str, list[pd.DataFrame]] = defaultdict(list)

    @property
    def ids(self) -> dict[str, list[int]]:
        """Ids of the images in each probe set."""
        return {name: split.ids.tolist() for name, split in self.sets.items()}

    def __call__(self, epoch: Epoch, model: nn.Module) -> None:
        assert isinstance(model, HME)
        model = in_full(model)
        if model.hard:
            own = [path.double().cpu() for path in gating.pathways(model.attention())]
            paths = dict.fromkeys(("alpha", "effective"), own)
        else:
            with undisturbed(model), torch.no_grad():
                paths = self._gates(epoch.epoch, model, model.trace(self._images(self.main)))
        if epoch.epoch in self.conflict_epochs:
            self._routing(epoch.epoch, paths)
            self._agreement(epoch.epoch, model, paths)
            for split in self.sets:
                self._conflict(epoch.epoch, model, split)
                self._affinity(epoch.epoch, model, split)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Kind → table of all probed epochs so far."""
        return {kind: pd.concat(frames, ignore_index=True) for kind, frames in self._frames.items()}

    def _add(self, kind: str, epoch: int, columns: dict[str, Any]) -> None:
        table = pd.DataFrame({"epoch": epoch, **columns})
        if "undefined" not in table:
            table = with_undefined(table, [name for name in _VALUES if name in table])
        self._frames[kind].append(table)

    def _images(self, split: str) -> Tensor:
        images = self.sets[split].images
        return self.data.normalise(images.take(torch.arange(len(self.sets[split]))))

    def _initial(self, model: HME) -> Initial:
        with undisturbed(model), torch.no_grad():
            features = model.trace(self._images(self.main)).features
        return Initial(
            gates=copy.deepcopy(model.gates),
            spreads=[gating.spread(level.float()).double().cpu() for level in features],
            read=[
                level.mean(dim=2 if level.ndim == 4 else (3, 4), keepdim=True) for level in features
            ],
        )

    def _logits(self, teacher: nn.Module | None, split: Split) -> Tensor | None:
        if teacher is None:
            return None
        with undisturbed(teacher), torch.no_grad():
            return teacher(self._images(split.name)).float()

    def _gates(self, epoch: int, model: HME, trace: Trace) -> dict[str, list[Tensor]]:
        """Record gates and pathways; returns P^l of α and of A, averaged over samples where gates
        read the input.
        """
        gates.check_features(trace.features)
        tau, classes = model.temperature, self.data.classes
        labels = self.sets[self.main].labels.cpu()
        spreads = [gating.spread(features.float()).double().cpu() for features in trace.features]

        assert self.initial is not None
        present = _both(trace.attention, spreads)
        initial = _both(model.gated_by(self.initial.gates, self.initial.read), self.initial.spreads)
        drawn = [
            _both(attention, self.initial.spreads)
            for attention in self._random(model, self.initial)
        ]
        draws = self.config.null_draws if not model.input_gated else len(drawn)
        for level, (alpha, effective) in enumerate(
            zip(*map(gates.averaged, present.values()), strict=True), 2
        ):
            heads = level == len(model.experts) + 1
            self._add(
                "gates",
                epoch,
                {
                    "level": level,
                    **child_columns(self.data.classes, *alpha.shape, heads=heads),
                    "alpha": alpha.flatten().numpy(),
                    "effective": effective.flatten().numpy(),
                    "tau": tau,
                },
            )
        if model.input_gated and epoch in self.conflict_epochs:
            self._samples(epoch, model, present, labels)
        paths = {kind: gates.mean_pathways(attention) for kind, attention in present.items()}
        for level, (alpha, effective) in enumerate(
            zip(paths["alpha"], paths["effective"], strict=True), 1
        ):
            K, N = alpha.shape
            self._add(
                "pathways",
                epoch,
                {
                    "level": level,
                    "subtask": np.repeat(classes, N),
                    "subtask_index": np.repeat(np.arange(K), N),
                    "expert": np.tile(np.arange(N), K),
                    "alpha": alpha.flatten().numpy(),
                    "effective": effective.flatten().numpy(),
                },
            )
        rows_: list[dict[str, Any]] = []
        for kind, attention in present.items():
            own, untrained = (
                self._summary(model, attention, labels),
                self._summary(model, initial[kind], labels),
            )
            random = [self._summary(model, one[kind], labels, shuffles=1) for one in drawn]
            for (of, level, metric), (value, n) in own.items():
                rows_.append(
                    {
                        "of": of,
                        "level": level,
                        "attention": kind,
                        "metric": metric,
                        "value": float(value),
                        "initial": float(untrained[of, level, metric][0]),
                        **null.beside_one(
                            torch.stack([one[of, level, metric][0] for one in random]).flatten()
                        ),
                        "null_draws": draws,
                        "n": n,
                        "tau": tau,
                    }
                )
        self._add("gate_summary", epoch, dict(pd.DataFrame(rows_, columns=_GATE_SUMMARY)))
        return paths

    def _random(self, model: HME, initial: Initial) -> list[list[Tensor]]:
        """Attention of untrained gates: one list, all draws in front; of gates that read the input,
        one list a draw.
        """
        if model.input_gated:
            return [model.gated_by(drawn, initial.read) for drawn in self.random_gates]
        drawn = model.attention(self.random)
        drawn[0] = drawn[0].expand(self.config.null_draws, -1, -1)
        return [drawn]

    def _summary(
        self, model: HME, attention: list[Tensor], labels: Tensor, shuffles: int = 19
    ) -> gates.Summary:
        if not model.input_gated:
            return gates.summarise(attention)
        return gates.summarise_samples(
            attention, labels, torch.Generator().manual_seed(self.config.seed), shuffles
        )

    def _samples(
        self, epoch: int, model: HME, present: dict[str, list[Tensor]], labels: Tensor
    ) -> None:
        """Gates that read the input: their means over the samples of every true class, and those of
        every sample.
        """
        ids = self.sets[self.main].ids.cpu().numpy()
        classes = np.array(self.data.classes, dtype=object)
        for level, (alpha, effective) in enumerate(zip(*present.values(), strict=True), 2):
            if alpha.ndim == 2:
                continue
            rows, parents = alpha.shape[1:]
            heads = level == len(model.experts) + 1
            child = child_columns(self.data.classes, rows, parents, heads=heads)
            apart = {
                "id": ids,
                "true_class": classes[labels.numpy()],
                "true_class_index": labels.numpy(),
            }
            found = labels.unique().numpy()
            kinds = {
                "gates_by_class": (
                    {"true_class": classes[found], "true_class_index": found},
                    gates.class_means(alpha, labels),
                    gates.class_means(effective, labels),
                ),
                "gates_by_sample": (apart, alpha, effective),
            }
            last = epoch == self.conflict_epochs[-1]
            for kind, (of, a, e) in kinds.items():
                if kind == "gates_by_sample" and not last:
                    continue
                self._add(
                    kind,
                    epoch,
                    {
                        "level": level,
                        **{name: np.repeat(values, rows * parents) for name, values in of.items()},
                        **{name: np.tile(values, len(a)) for name, values in child.items()},
                        "alpha": a.flatten().numpy(),
                        "effective": e.flatten().numpy(),
                    },
                )

    def _routing(self, epoch: int, paths: dict[str, list[Tensor]]) -> None:
        for attention, levels in paths.items():
            for level, path in enumerate(levels, 1):
                if path.shape[1] > 1:
                    distance = conflict.upper(gates.routing_distance(path))
                    columns = {
                        "level": level,
                        "attention": attention,
                        **pair_columns(self.data.classes),
                    }
                    self._add("routing", epoch, {**columns, "distance": distance.numpy()})

    def _agreement(self, epoch: int, model: HME, paths: dict[str, list[Tensor]]) -> None:
        K, labels = self.data.num_classes, self.data.val.labels.cpu()
        choices = predict(model, self.data.val, self.data).argmax(dim=1)
        references = {"confusion": confusion_distance(choices, labels, K)}
        logits = self.teacher_logits[self.main]
        if logits is not None:
            own = self.sets[self.main].labels
            references["teacher"] = teacher_distance(
                logits.cpu(), own.cpu(), self.objective.config.T
            )
        if self.data.superclasses is not None:
            references["class_tree"] = class_tree_distance(
                self.data.classes, self.data.superclasses
            )
        table = agreement_table(paths, references, self.config.permutations, self.config.seed)
        self._add("agreement", epoch, dict(table))

    def _conflict(self, epoch: int, model: HME, split: str) -> None:
        images, labels = self._images(split), self.sets[split].labels
        with undisturbed(model), torch.no_grad():
            trace = model.trace(images)
        margins = trace.margins if self.margins is None else self.margins(model.outputs(trace))
        terms = self._residuals(margins, labels, self.teacher_logits[split])
        draws = [with_null(r, self.config.null_draws, self.config.seed) for r in terms.values()]
        grams = subtask_grams(
            model,
            images,
            torch.cat(draws),
            margins=self.margins,
            max_memory=self.config.max_memory,
        )
        for i, term in enumerate(terms):
            own = grams.subset(slice(i * len(draws[0]), (i + 1) * len(draws[0])))
            columns = {
                "split": split,
                "term": term,
                "null_draws": self.config.null_draws,
                "n": len(images),
            }
            pairs, summary = measures.conflict_tables(own, self.data.classes)
            self._add("conflict", epoch, {**columns, **dict(pairs)})
            self._add("conflict_summary", epoch, {**columns, **dict(summary)})
            self._add(
                "contention_by_expert",
                epoch,
                {**columns, **dict(measures.expert_contention_table(own))},
            )
            if own.gates is not None:
                seed = self.config.seed
                table = measures.contention_table(
                    own.experts[-1], own.gates, self.config.permutations, seed
                )
                self._add("contention", epoch, {**columns, **dict(table)})
        claimed = output_table(
            margins.float(), self.data.classes, self.config.null_draws, self.config.seed
        )
        self._add("output_conflict", epoch, {"split": split, **dict(claimed)})

    def _affinity(self, epoch: int, model: HME, split: str) -> None:
        table = affinity_of(
            model,
            self._images(split),
            self.sets[split].labels,
            classes=self.data.classes,
            margins=self.margins,
            null_draws=self.affinity_draws,
            seed=self.config.seed,
            max_memory=self.config.max_memory,
        )
        self._add("affinity", epoch, {"split": split, **dict(table)})

    def _residuals(
        self, margins: Tensor, labels: Tensor, teacher_logits: Tensor | None
    ) -> dict[str, Tensor]:
        """∂L/∂m (B×K) of every term."""
        plain, unused = Objective(ObjectiveConfig(name="hard")), torch.Generator()

        def own(m: Tensor) -> dict[str, Tensor]:
            generator = torch.Generator().manual_seed(self.config.seed)
            return self.objective.terms(m, labels, teacher_logits, generator)

        def loss(term: str, m: Tensor) -> Tensor:
            if term == "hard":
                return plain.terms(m, labels, None, unused)["hard"]
            terms = own(m)
            return (
                torch.stack(list(terms.values())).sum(dim=0) if term == "objective" else terms[term]
            )

        names = terms_of(self.objective.config)
        return {term: residuals(partial(loss, term), margins) for term in names}


def _both(attention: Sequence[Tensor], spreads: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """α, and A of experts with these ``spreads``."""
    alpha = [rows.detach().double().cpu() for rows in attention]
    return {"alpha": alpha, "effective": gates.effective(alpha, spreads)}


def _untrained(model: HME, config: ProbeConfig) -> list[nn.ModuleList]:
    """Copies of the gates with weights drawn anew."""
    drawn = [copy.deepcopy(model.gates) for _ in range(min(config.null_draws, RANDOM_INPUT_GATES))]
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        for gates_ in drawn:
            draw_anew(gates_)
    return drawn
