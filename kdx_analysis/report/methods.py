"""What a paper says of a study: its methods, the definitions of its metrics, the references."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from math import isinf

from kdx_analysis.metrics import METRICS, Metric, together
from kdx_analysis.objectives import OBJECTIVES, Row, ladder_names
from kdx_analysis.probes.conflict.sample import drawn_subtasks
from kdx_analysis.report.provenance import null_draws, selection
from kdx_analysis.report.tables import model_name
from kdx_analysis.runs import Run, RunSet
from kdx_analysis.runs.keys import value_of
from kdx_analysis.runs.tables.numbers import listed
from kdx_analysis.runs.tables.table import apart, conditions

_UNKNOWN = "unknown"  # in imported runs
_ROLES = {
    "student": "the undivided student",
    "explainer": "its explainer",
    "tree": "the explainer's tree",
}


def methods(runs: RunSet, confidences: Mapping[str, float]) -> str:
    """How the runs were made and compared.

    Args:
        confidences: what the intervals of paired differences are corrected over → their confidence.
    """
    explainers = runs.filter(role="explainer")
    others = _taught(runs)
    made_with = _distinct([_software(run) for run in runs])
    sentences = [
        _trained(runs),
        _split(runs, explainers),
        selection(runs),
        _probing(explainers),
        _compared(runs, confidences),
        apart(others),
        f"Made with {made_with}." if made_with else "",
    ]
    return " ".join(filter(None, sentences))


def _trained(runs: RunSet) -> str:
    others = _taught(runs)
    models = [model_name(run) for run in others if model_name(run) != _UNKNOWN]
    arms = list(dict.fromkeys(run.vam for run in others if run.vam))
    details = [_distinct(models), f"arms: {listed(arms)}" if arms else ""]
    trained = listed([name for role, name in _ROLES.items() if len(runs.filter(role=role))])
    what = f"{trained} ({'; '.join(filter(None, details))})" if any(details) else trained
    several = "seed" if len(runs.seeds) == 1 else "seeds"
    seeds = f"{len(runs.seeds)} {several} ({listed(list(map(str, runs.seeds)))})"
    return (
        f"On {_distinct([_data(run) for run in runs])} we {_made(others)} {what}{_teacher(runs)}, "
        f"under {listed(list(runs.objectives))}, with {seeds}."
    )


def _split(runs: RunSet, explainers: RunSet) -> str:
    if not len(explainers):
        return ""
    subtasks = f"{len(runs.classes)} subtasks; " if runs.classes else ""
    experts = _distinct([_experts(run) for run in explainers])
    by_level = f", with {experts} experts by level" if experts else ""
    return (
        "An explainer is the student split into one binary subtask a class "
        f"({subtasks}KDExplainer, Xue et al., 2021){by_level}."
    )


def _probing(explainers: RunSet) -> str:
    probed = _distinct([_probed(run) for run in explainers])
    if not probed:
        return ""
    return (
        f"Conflict was measured between the gradients of the subtasks' hard losses, on {probed}, "
        "without augmentation, batch normalisation in eval mode, averaged over the probed epochs."
        f"{_nulls(explainers)}{_sampled(explainers)}"
    )


def _nulls(explainers: RunSet) -> str:
    """How many draws the null of conflict had, where that is known."""
    drawn = _distinct([draws for run in explainers if (draws := null_draws(run)) is not None])
    return f" Its null permuted residuals over samples, {drawn} times." if drawn else ""


def _sampled(explainers: RunSet) -> str:
    """That pairs of subtasks were drawn, where they were."""
    asked = {(run.info["config"].get("probes") or {}).get("pairs") for run in explainers}
    K = len(explainers.classes or ())
    drawn = sorted({len(drawn_subtasks(K, pairs, 0)) for pairs in asked} - {K})
    if not drawn:
        return ""
    some = listed([f"{m * (m - 1) // 2:,}" for m in drawn])
    return (
        f" Of its {K * (K - 1) // 2:,} pairs of subtasks {some} were looked at, those among "
        f"{listed(list(map(str, drawn)))} subtasks drawn at random, the same in every run: figures "
        "of conflict estimate means over all pairs, with the standard errors that are recorded, "
        "which are too small where a single subtask carries the conflict; intervals over seeds are "
        "for these pairs."
    )


def _compared(runs: RunSet, confidences: Mapping[str, float]) -> str:
    if len(runs.seeds) < 2 or not confidences:
        return ""
    at = [f"{100 * value:.4g} % (Bonferroni over {over})" for over, value in confidences.items()]
    return (
        "Runs were paired by seed; effects are means of the paired differences with Student's "
        f"t-intervals at {listed(at)}{conditions(_taught(runs))}."
    )


@dataclass(frozen=True)
class Definition:
    """A metric or an objective as the report defines it.

    Attributes:
        name: its key.
        title: its name in sentences.
        formula: in signs.
        meaning: what one unit of a metric means.
        facts: a metric's unit, range, null and better side; what an objective adds and whether a
            teacher enters it; the source of either.
        home: where it is declared, as ``module.function``.
    """

    name: str
    title: str
    formula: str
    meaning: str
    facts: tuple[str, ...]
    home: str


def definitions(runs: RunSet) -> list[Definition]:
    """The metrics that the report shows, as they are declared.

    Those of which the runs hold a value; where there are explainers also those of conflict that
    were not measured, since contrasts list these too.
    """
    shown = set(runs.to_frame().dropna(subset="value")["metric"])
    if len(runs.filter(role="explainer")):
        shown |= {metric.name for metric in together()}
    return [_definition(metric) for metric in METRICS.values() if metric.name in shown]


def definitions_named(names: Iterable[str]) -> list[Definition]:
    """The metrics of these ``names``, as they are declared."""
    return [_definition(METRICS[name]) for name in names]


def objectives_defined(runs: RunSet) -> list[Definition]:
    """The objectives that runs were trained under, and where there are explainers all rungs."""
    names = {value_of(run, "objective.name") for run in runs}
    if len(runs.filter(role="explainer")):
        names |= set(ladder_names())
    return [_objective(row) for row in OBJECTIVES.values() if row.name in names]


def _objective(row: Row) -> Definition:
    facts = (
        f"adds {listed(row.adds)}" if row.adds else "",
        "the teacher enters it" if row.needs_teacher else "no teacher enters it",
        f"source: {row.source}" if row.source else "",
    )
    return Definition(row.name, row.title, row.definition, "", tuple(filter(None, facts)), row.home)


def _definition(metric: Metric) -> Definition:
    facts = (
        f"unit: {metric.unit}" if metric.unit else "",
        f"range: {_range(metric.range)}",
        f"null: {metric.input.null}" if metric.input.null else "",
        f"{metric.better} is better" if metric.better else "",
        f"source: {metric.source}" if metric.source else "",
    )
    return Definition(
        metric.name,
        metric.title,
        metric.definition,
        metric.describes,
        tuple(filter(None, facts)),
        metric.home,
    )


def _range(ends: tuple[float, float]) -> str:
    """``[0, 1]``; an end without limit is open."""
    low, high = ends
    start = "(−∞" if isinf(low) else f"[{low:g}"
    end = "∞)" if isinf(high) else f"{high:g}]"
    return f"{start}, {end}".replace("-", "−")


def given(runs: RunSet) -> str:
    """What the runs share that conclusions are given, and what they don't share, in sentences.

    '' if neither is known. That teachers have no teacher of their own does not count.
    """
    others = _taught(runs)
    shared = conditions(others).removeprefix(", ").capitalize()
    return " ".join(filter(None, [shared and f"{shared}.", apart(others)]))


def bibtex() -> str:
    """The paper whose method this is, and this package."""
    paper = (
        "@inproceedings{xue2021kdexplainer,",
        "  title     = {{KDExplainer}: A Task-oriented Attention Model for Explaining Knowledge "
        "Distillation},",
        "  author    = {Xue, Mengqi and Song, Jie and Wang, Xinchao and Chen, Ying and Wang, "
        "Xingen and Song, Mingli},",
        "  booktitle = {Proceedings of the Thirtieth International Joint Conference on Artificial "
        "Intelligence},",
        "  year      = {2021},",
        "  note      = {arXiv 2105.04181}",
        "}",
    )
    version = metadata.version("kdx_analysis")
    package = (
        "@software{kdx_analysis,",
        r"  title     = {kdx\_analysis: what did the student get from the teacher?},",
        r"  author    = {{The kdx\_analysis authors}},",
        f"  version   = {{{version}}}",
        "}",
    )
    return "\n".join([*paper, *package])


def _taught(runs: RunSet) -> RunSet:
    return RunSet.of(run for run in runs if run.role != "teacher")


def _distinct(values: list[str]) -> str:
    return listed([value for value in dict.fromkeys(values) if value])


def _made(runs: RunSet) -> str:
    """What we did to have these runs."""
    imported = [run for run in runs if "source" in run.info]
    if not imported:
        return "trained"
    trained = "runs of our own and " if len(imported) < len(runs) else ""
    sources = _distinct([run.info["source"]["name"] for run in imported])
    return f"compared {trained}runs imported from {sources}:"


def _teacher(runs: RunSet) -> str:
    """Who taught the runs, as far as it is known.

    Runs made here all had a teacher, if maybe none among ``runs``.
    """
    imported = {"source" in run.info for run in runs}
    if len(imported) > 1:
        return ""
    if taught := _distinct(
        [model_name(run) for run in runs.filter(role="teacher") if model_name(run) != _UNKNOWN]
    ):
        return f", taught by {taught}"
    return "" if True in imported else ", under a given teacher"


def _data(run: Run) -> str:
    if run.info["data"]["name"] == _UNKNOWN:
        return "data that are not known"
    sizes = run.info["data"]["sizes"]
    names = {"train": "training", "val": "validation", "test": "test"}
    counts = listed([f"{n:,} {names.get(split, split)}" for split, n in sizes.items()])
    drawn = run.info["data"].get("test_per_class")
    tested = f"; {drawn:,} test images of every class" if drawn is not None else ""
    name = str(run.info["data"]["name"])
    return f"{name} ({counts} images{tested})" if counts else name


def _experts(run: Run) -> str:
    return ", ".join(map(str, run.info.get("experts") or ()))


def _probed(run: Run) -> str:
    sets = run.info.get("probe_sets") or {}
    names = {"train": "of the training split", "val": "apart, of the validation split"}
    return listed([f"{len(ids)} images {names.get(split, split)}" for split, ids in sets.items()])


def _software(run: Run) -> str:
    environment = run.info["environment"]
    versions = environment.get("versions", {})
    commit = environment.get("commit")
    if not environment:
        return ""
    package = f"kdx_analysis {versions.get('kdx_analysis', '')}".rstrip() + (
        f" (commit {commit[:12]})" if commit else ""
    )
    return package + (f" on PyTorch {versions['torch']}" if "torch" in versions else "")
