"""Probing a finished run anew, on train and validation side by side."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from kdx_analysis import null
from kdx_analysis.config import ObjectiveConfig, ProbeConfig, StudyConfig
from kdx_analysis.errors import KdxError
from kdx_analysis.extensions import Extension, need
from kdx_analysis.io import write_parquet
from kdx_analysis.models import HME
from kdx_analysis.models.heads import scores_of
from kdx_analysis.objectives import one_vs_rest_margins
from kdx_analysis.plots import save
from kdx_analysis.plots.probed import THROUGH_TRAINING, probed_figures
from kdx_analysis.probes.affinity import NULL_DRAWS, mean_over_epochs
from kdx_analysis.probes.conflict.probe import terms_of
from kdx_analysis.probes.contract import PROBES, configured, switched_on
from kdx_analysis.probes.faithfulness.explanation import Explanation, explain
from kdx_analysis.probes.training_probe import SPLITS, TrainingProbe, training_cost
from kdx_analysis.records import check
from kdx_analysis.runs import Run
from kdx_analysis.study.finished import model_of
from kdx_analysis.study.study import STUDY_FILE, Study
from kdx_analysis.training import Epoch, reproducible

FAITHFULNESS = "faithfulness"
# Kinds that only a finished model has; all others are checked by the probes that give them.
_NOT_OF_TRAINING = {"faithfulness", "faithfulness_agreement", THROUGH_TRAINING}


@dataclass(frozen=True, eq=False)
class Probed:
    """What one run's model shows.

    Attributes:
        tables: kind → table of every metric that applies, with a column split.
        explanations: split → of an explainer or a tree, the subtask most in conflict; its ablation
            is of all subtasks.
    """

    tables: dict[str, pd.DataFrame]
    explanations: dict[str, Explanation]


def study_of(run: Run, data_dir: str | Path | None = None) -> tuple[Study, Path]:
    """The study that a run belongs to, and its directory.

    Raises KdxError if there is none above the run, if its images are others than the run saw, or if
    the run was made with a file of the user's own that is not loaded, or is another one by now:
    what stands in a folder of results is not taken as code to run.
    """
    for folder in run.path.resolve().parents:
        if (folder / STUDY_FILE).is_file():
            config = StudyConfig.load(folder / STUDY_FILE)
            loaded = need(config.extensions)
            _check_extensions(run, loaded)
            named = tuple(
                str(extension.path) for extension in loaded
            )  # never the folder's own path
            study = Study.from_config(config.model_copy(update={"extensions": named}), data_dir)
            break
    else:
        raise KdxError(
            f"no {STUDY_FILE} above {str(run.path)!r}; give a run inside the directory of its study"
        )
    if study.dataset.describe()["fingerprint"] != run.info["data"]["fingerprint"]:
        raise KdxError(
            f"the images of {study.dataset.name} are others than run {run.id!r} was trained on"
        )
    return study, folder


def _check_extensions(run: Run, loaded: Sequence[Extension]) -> None:
    """Raise KdxError for a file that is not what the run was made with."""
    recorded = {each["file"]: each["sha256"] for each in run.info.get("extensions", ())}
    for extension in loaded:
        if recorded.get(extension.path.name, extension.sha256) != extension.sha256:
            raise KdxError(
                f"{str(extension.path)!r} is not the file that run {run.id!r} was made with; give "
                "that one, whose SHA-256 is " + recorded[extension.path.name]
            )


def teacher_of(run: Run, study: Study, folder: Path) -> Path:
    """The directory of the teacher that a run of the study in ``folder`` had.

    Raises KdxError if the study names too few teachers for that.
    """
    number = 0 if run.role == "teacher" else run.teacher
    if number >= (seeds := study.config.teacher.seeds):
        raise KdxError(
            f"run {run.id!r} had teacher {number}, but {STUDY_FILE} has {seeds} of them; set "
            f"teacher.seeds to {number + 1} or more there"
        )
    return study.plan(folder)[number].path


def only(study: Study, names: Sequence[str]) -> Study:
    """The study with no probes of trainings but those among ``names``, whatever it says of them."""
    sections = dict(study.config.probes.sections)
    for name in PROBES:
        if name not in names:
            sections[name] = False
        elif sections.get(name) is False:
            del sections[name]
    probes = study.config.probes.model_copy(update={"sections": sections})
    chosen = copy.copy(study)
    chosen.config = study.config.model_copy(update={"probes": probes})
    return chosen


def probe_run(
    run: Run,
    study: Study,
    teacher: Path,
    splits: Sequence[str] = SPLITS,
    *,
    faithfulness: bool = True,
) -> Probed:
    """Every probe that applies to the run's model.

    Of an explainer all that is recorded through training, of its tree all but gates, and of both
    their faithfulness; of teacher and student conflict of their one-vs-rest losses, stage by stage,
    and what they claim. ``affinity`` is of the final weights alone; beside it stands
    ``affinity_through_training`` as the run recorded it, if it did.

    Args:
        run: a finished one.
        study: the study that it belongs to.
        teacher: directory of the study's teacher's run.
        splits: train, val or both.
        faithfulness: whether an explainer or a tree is asked for it.
    """
    model, initial = model_of(run, study)
    frames: defaultdict[str, list[pd.DataFrame]] = defaultdict(list)
    explanations: dict[str, Explanation] = {}
    with reproducible(run.seed, torch.get_num_threads()):  # one run at a time may have all cores
        for split in splits:
            tables = _probe_split(run, study, teacher, split, model, initial)
            if isinstance(model, HME) and faithfulness:
                explained = next(iter(explanations.values()), None)
                subtask = _in_conflict(tables) if explained is None else explained.subtask
                images, labels = _probe_images(study, split)
                explanations[split] = explain(
                    _asked(model, run), images, labels, subtask, study.dataset.classes
                )
                ablation = explanations[split].ablation
                tables["faithfulness"] = ablation.to_frame()
                tables["faithfulness_agreement"] = ablation.agreement
            for kind, table in tables.items():
                frames[kind].append(table.assign(split=split))
    if "affinity" in run.kinds and study.config.probes.sections.get("affinity") is not False:
        recorded = run.record("affinity")
        frames[THROUGH_TRAINING].append(mean_over_epochs(recorded[recorded["split"].isin(splits)]))
    tables = {kind: pd.concat(parts, ignore_index=True) for kind, parts in frames.items()}
    for kind in _NOT_OF_TRAINING & tables.keys():
        check(kind, tables[kind])
    return Probed(tables, explanations)


def _probe_split(
    run: Run, study: Study, teacher: Path, split: str, model: nn.Module, initial: nn.Module
) -> dict[str, pd.DataFrame]:
    epoch = run.selected_epoch
    probe = TrainingProbe(
        run.role,
        initial,
        study.dataset,
        _objective(run),
        _probes(study),
        epoch,
        None if run.role == "teacher" else study.teacher(teacher),
        splits=(split,),
        finished=True,
    )
    probe(Epoch(epoch, epoch, 0.0, 0.0, None, None), model)
    return {kind: table.drop(columns="epoch") for kind, table in probe.tables().items()}


def _probes(study: Study) -> ProbeConfig:
    """The study's probes; affinity of one epoch is quick enough for a null that has a range."""
    return study.config.probes.with_options("affinity", null_draws=NULL_DRAWS)


def announce(run: Run, study: Study, splits: Sequence[str], *, faithfulness: bool = True) -> str:
    """What probing the run will take, in a sentence; ``faithfulness`` as for :func:`probe_run`."""
    model, _ = model_of(run, study)
    config, objective = _probes(study), _objective(run)
    images, _ = _probe_images(study, splits[0])
    cost = training_cost(
        run.role, model, study.dataset, objective, config, 1, splits[:1], finished=True
    )
    asked = {probe.name: probe for probe in switched_on(config, run.role, finished=True)}
    parts = []
    if "conflict" in asked:
        losses = len(terms_of(objective)) if isinstance(model, HME) else 1
        draws = configured(config, asked["conflict"])[0].null_draws
        plural = "es" if losses > 1 else ""
        parts.append(f"for conflict of {losses} loss{plural} with {draws} null draws")
    if "affinity" in asked:
        parts.append(f"for affinity with {configured(config, asked['affinity'])[1].null_draws}")
    purpose = f", {' and '.join(parts)}" if parts else ""
    ablated = ""
    if isinstance(model, HME) and faithfulness:
        ablated = f"; {sum(model.experts[1:])} experts are ablated"
    recorded = ", beside its mean over the run's probed epochs" if "affinity" in run.kinds else ""
    affinity = f" Affinity is that of the final weights alone{recorded}."
    return (
        f"{run.role} {run.id} on {' and '.join(splits)}, {len(images)} images; on each {cost}"
        f"{purpose}{ablated}.{affinity if 'affinity' in asked else ''}"
    )


def write_probe(probed: Probed, out: Path, classes: Sequence[str]) -> list[Path]:
    """Write tables as Parquet and figures into ``out``; the paths of the figures."""
    for kind, table in probed.tables.items():
        write_parquet(out / f"{kind}.parquet", table)
    figures = probed_figures(probed.tables, classes)
    for split, explanation in probed.explanations.items():
        figures[f"explanation_{split}"] = explanation.plot()[0]
        if not explanation.ablation.agreement.empty:
            figures[f"faithfulness_{split}"] = explanation.ablation.plot()[0]
    return [path for name, figure in figures.items() for path in save(figure, out / name)]


def side_by_side(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Metrics of the plain hard loss and of faithfulness by split, one row a level and metric.

    Each is ``value [null range]``, or says that there is no range; of faithfulness it is the rank
    correlation of ablation with pathways of A, of affinity that of the final weights alone, and
    apart from it the mean over the run's probed epochs.
    """
    parts = []
    for kind in ("conflict_summary", "contention", "affinity", "output_conflict"):
        if kind in tables:
            table = tables[kind]
            table = table[table["term"] == "hard"] if "term" in table else table[table["a"] == ""]
            parts.append(table.assign(of=kind, level=table.get("level", "")))
    if "faithfulness_agreement" in tables:
        table = tables["faithfulness_agreement"].query("attention == 'effective'")
        parts.append(
            table.assign(
                of="faithfulness", level=table["level"].astype(str), metric=table["measure"]
            )
        )
    keys = ["of", "level", "metric"]
    if not parts:  # of the chosen probes none has a figure of its whole
        return pd.DataFrame(columns=keys)
    table = pd.concat(parts, ignore_index=True)
    table["shown"] = [
        _beside_range(*row) for row in table[["value", "null_low", "null_high"]].to_numpy()
    ]
    if THROUGH_TRAINING in tables:
        mean = tables[THROUGH_TRAINING].query("a == ''")
        shown = [
            f"{v:.3f} [null's mean {nulled:.3f}]"
            for v, nulled in mean[["value", "null_mean"]].to_numpy()
        ]
        table = pd.concat(
            [table, mean.assign(of=THROUGH_TRAINING, level="", shown=shown)], ignore_index=True
        )
    return table.pivot_table(
        index=keys, columns="split", values="shown", aggfunc="first", sort=False
    ).reset_index()


def _beside_range(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return "undefined"
    return (
        f"{value:.3f} [{null.NO_RANGE}]"
        if math.isnan(low) or math.isnan(high)
        else f"{value:.3f} [{low:.3f}, {high:.3f}]"
    )


def _probe_images(study: Study, split: str) -> tuple[Tensor, Tensor]:
    return study.dataset.probe_images(
        split, study.config.probes.per_class, study.config.probes.seed
    )


def _in_conflict(tables: Mapping[str, pd.DataFrame]) -> int:
    """The first subtask of the pair with the lowest cosine, of all levels and the hard loss.

    It is the first of all where the study switches conflict off.
    """
    if "conflict" not in tables:
        return 0
    conflict = tables["conflict"]
    pairs = conflict[(conflict["term"] == "hard") & (conflict["level"] == "all")]
    return int(pairs.sort_values("cosine")["a_index"].iloc[0])


def _objective(run: Run) -> ObjectiveConfig:
    """The run's own; of a teacher, whose run names none, the hard loss."""
    plain = {"name": "hard", "decomposition": run.info["decomposition"]}
    return ObjectiveConfig.model_validate(run.info["config"].get("objective", plain))


def _asked(explainer: HME, run: Run) -> HME:
    """The explainer with the margins of the run's subtasks.

    Of a multiclass run these are the one-vs-rest ones of its scores.
    """
    if run.info["decomposition"] == "binary":
        return explainer
    copied = copy.deepcopy(explainer)
    copied.heads = nn.Sequential(copied.heads, _ScoresAgainstRest())
    return copied.giving_margins()


class _ScoresAgainstRest(nn.Module):
    """From logits of heads to the one-vs-rest margins of their multi-class scores, B×K."""

    def forward(self, logits: Tensor) -> Tensor:
        return one_vs_rest_margins(scores_of(logits))
