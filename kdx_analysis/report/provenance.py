"""Where the figures come from: study, data, versions, and what differs between runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kdx_analysis.config import ProbeConfig
from kdx_analysis.report.tables import model_name
from kdx_analysis.runs import ROLES, Run, RunSet, own_teachers
from kdx_analysis.runs.spent import duration, spent

Read = Callable[[Run], Any]


def provenance(runs: RunSet) -> list[tuple[str, list[str]]]:
    """Name and distinct values of every fact; the runs differ in those of several values."""
    teacher = runs.filter(role="teacher")
    taught = own_teachers(runs)
    others = RunSet.of(run for run in runs if run.role != "teacher")
    explainers, trees = runs.filter(role="explainer"), runs.filter(role="tree")
    facts: list[tuple[str, RunSet, Read]] = [
        ("study", runs, lambda run: run.info["study"]),
        ("runs made elsewhere", runs, _source),
        ("data set", runs, lambda run: run.info["data"]["name"]),
        ("source of the data", runs, lambda run: run.info["data"].get("source")),
        ("images", runs, _sizes),
        ("shape C×H×W", runs, lambda run: "×".join(map(str, run.info["data"]["shape"])) or None),
        ("subtasks", runs, lambda run: len(run.classes) or "unknown"),
        ("fingerprint of data and split", runs, lambda run: run.info["data"]["fingerprint"]),
        ("teacher", taught, model_name),
        ("siblings of the teacher", teacher, lambda run: _sibling(run, taught)),
        ("student", others, model_name),
        ("experts by level, trunk first", explainers, _experts),
        ("gates", explainers, _gates),
        ("phase 2", trees, _phase2),
        ("experts of the trees before → after pruning", trees, _pruned),
        ("VAM", others, _vam),
        ("seeds", others, lambda run: run.seed),
        ("teacher's selection", taught, _selection),
        ("selection of students, explainers and trees", others, _selection),
        ("probe sets", explainers, _probe_sets),
        ("null draws; permutations of modulation", explainers, _draws),
        ("threads per run", runs, lambda run: _training(run).get("threads")),
        ("precision", runs, lambda run: _training(run).get("precision")),
        ("commit", runs, lambda run: run.info["environment"].get("commit")),
        ("python", runs, lambda run: run.info["environment"].get("python")),
        ("versions", runs, _versions),
        ("platform", runs, lambda run: run.info["environment"].get("platform")),
        ("hardware", runs, _hardware),
    ]
    table = [(name, _distinct(chosen, read)) for name, chosen, read in facts]
    return [(name, values) for name, values in table if values]


def differing(runs: RunSet) -> list[tuple[str, str, list[str]]]:
    """Role, configuration key, and its values with the number of runs.

    Of the keys in which runs of a role differ.
    """
    rows = []
    for role in ROLES:
        for key, values in runs.filter(role=role).diff().items():
            counts = Counter(_plain(value) for value in values)
            rows.append((role, str(key), [f"{value} ({count})" for value, count in counts.items()]))
    return rows


def time_spent(runs: RunSet) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Names of columns, and for every role what stands in them; no rows where no run tells it."""
    table = spent(runs)
    parts = [name for name in table.columns if name != "runs"]
    rows = []
    for role, row in table.iterrows():
        seconds = [duration(row[part]) for part in parts]
        rows.append((str(role), [f"{row['runs']:.0f}", *seconds, duration(row[parts].sum())]))
    return ["runs", *parts, "together"], rows


def selection(runs: RunSet) -> str:
    """By which rule epochs were chosen, in a sentence."""
    rules = {run.selection_rule for run in runs if run.role != "teacher"}
    rule = {
        "last": "the last epoch",
        "best": "the epoch that is best on validation",
        "unknown": "an epoch chosen elsewhere, by a rule that is not known",
    }
    chosen = " or ".join(rule[name] for name in sorted(rules))
    return f"Accuracy and gates are those of {chosen}{_unselected(runs)}."


def _distinct(runs: RunSet, read: Read) -> list[str]:
    return list(dict.fromkeys(_plain(value) for run in runs if (value := read(run)) is not None))


def _plain(value: Any) -> str:
    return "not set" if value is None else str(value)


def _training(run: Run) -> Mapping[str, Any]:
    config = run.info["config"]
    training: Mapping[str, Any] = config.get("phase2", config).get("training", {})
    return training


def _source(run: Run) -> str | None:
    """What a run that was imported rests on, and what is not known of it."""
    if (source := run.info.get("source")) is None:
        return None
    return f"{source['kind']} {source['name']} (unknown: {', '.join(source['unknown'])})"


def _sibling(run: Run, taught: RunSet) -> str | None:
    """A teacher that taught none of the runs; of a given one, whose word makes it a sibling."""
    if run in taught.runs:
        return None
    return f"seed {run.seed}{' (declared)' if run.info.get('declared') else ''}"


def _sizes(run: Run) -> str | None:
    data = run.info["data"]
    drawn = data.get("test_per_class")
    facts = [f"{split} {size}" for split, size in data["sizes"].items()]
    facts += (
        [] if drawn is None else [f"test images drawn, {drawn} of every class, by a fixed seed"]
    )
    return ", ".join(facts) or None


def _experts(run: Run) -> str | None:
    return ", ".join(map(str, experts)) if (experts := run.info.get("experts")) else None


def _gates(run: Run) -> str | None:
    if not (section := run.info["config"].get("explainer")):
        return None
    tau = section["temperature"]
    end = f" to {tau['end']:g}" if tau["schedule"] in ("exponential", "cosine") else ""
    facts = [f"{section['gates']} gates", f"τ {tau['schedule']} from {tau['start']:g}{end}"]
    facts += [f"the {section['top_k']} largest kept"] if section["top_k"] else []
    facts += ["Gumbel noise"] if section["gumbel"] else []
    facts += (
        [f"frozen in the first {section['warmup_epochs']} epochs"]
        if section["warmup_epochs"]
        else []
    )
    return "; ".join(facts)


def _vam(run: Run) -> str | None:
    arm = f"{run.vam}: " if run.vam else ""
    if not (section := run.info["config"].get("vam")):
        return f"{arm}none" if arm else None
    size = (
        f"{section['blocks']} blocks"
        if section["channels"] is None
        else f"{section['channels']} channels a block"
    )
    facts = [size, _scheduled("γ", section["gamma"]), _scheduled("τ", section["temperature"])]
    return f"{arm}{', '.join([*facts, section['scale']])}"


def _scheduled(name: str, schedule: Mapping[str, Any]) -> str:
    """``τ 1 to 0.1``, or where it stays ``τ 1``."""
    ends = ("start",) if schedule["schedule"] == "constant" else ("start", "end")
    return f"{name} {' to '.join(f'{schedule[end]:g}' for end in ends)}"


def _phase2(run: Run) -> str | None:
    if (section := run.info["config"].get("phase2")) is None:
        return None
    epochs = section["training"]["epochs"]
    return f"gates hardened by {section['by']}, weights {section['weights']}, {epochs} epochs"


def _pruned(run: Run) -> str | None:
    if run.info["grown_from"] is None:
        return None
    before, after = (
        ", ".join(map(str, info["experts"])) for info in (run.info["grown_from"], run.info)
    )
    return f"{before} → {after}"


def _selection(run: Run) -> str:
    rules = {"last": "the last epoch", "unknown": "by a rule that is not known"}
    rule = rules.get(run.selection_rule, f"the best epoch on {run.selection_split}")
    return f"{rule}{_unselected([run])}"


def _unselected(runs: Iterable[Run]) -> str:
    """What is sure of runs made here alone."""
    return "" if any(run.info.get("source") for run in runs) else "; test data never used to select"


def _probe_sets(run: Run) -> str | None:
    sets = run.info.get("probe_sets")
    return ", ".join(f"{split} {len(ids)} images" for split, ids in sets.items()) if sets else None


def _draws(run: Run) -> str | None:
    probes = run.info["config"].get("probes")
    return f"{null_draws(run)}; {probes['permutations']}" if probes else None


def null_draws(run: Run) -> str | None:
    """How many draws nulls of a run's probes have, in words; None where that is not known."""
    probes = run.info["config"].get("probes")
    if not probes:
        return None
    inner = probes.get("inner_null_draws")
    return ProbeConfig(null_draws=probes["null_draws"], inner_null_draws=inner).drawn


def _versions(run: Run) -> str | None:
    versions = run.info["environment"].get("versions", {})
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or None


def _hardware(run: Run) -> str | None:
    hardware = run.info["environment"].get("hardware")
    if not hardware:
        return None
    gpus = ", ".join(hardware.get("gpus") or ["no GPU"])
    memory = f"{hardware['memory'] / 2**30:.0f} GiB"
    return f"{hardware['processor']}, {hardware['cores']} cores, {memory}, {gpus}"
