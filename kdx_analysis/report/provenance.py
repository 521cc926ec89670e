"""Where the figures come from: study, data, teacher, versions, hardware, and what differs between runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from kdx_analysis.report.tables import model_name
from kdx_analysis.runs import Run, RunSet

Read = Callable[[Run], Any]


def provenance(runs: RunSet) -> list[tuple[str, list[str]]]:
    """Name and distinct values of every fact; more than one value means that the runs differ in it."""
    teacher = runs.filter(role="teacher")
    others = RunSet.of(run for run in runs if run.role != "teacher")
    explainers = runs.filter(role="explainer")
    facts: list[tuple[str, RunSet, Read]] = [
        ("study", runs, lambda run: run.info["study"]),
        ("data set", runs, lambda run: run.info["data"]["name"]),
        ("source of the data", runs, lambda run: run.info["data"].get("source")),
        ("images", runs, _sizes),
        ("shape C×H×W", runs, lambda run: "×".join(map(str, run.info["data"]["shape"]))),
        ("subtasks", runs, lambda run: len(run.classes)),
        ("fingerprint of data and split", runs, lambda run: run.info["data"]["fingerprint"]),
        ("teacher", teacher, model_name),
        ("student", others, model_name),
        ("experts by level", explainers, _experts),
        ("seeds", others, lambda run: run.seed),
        ("teacher's selection", teacher, _selection),
        ("selection of students and explainers", others, _selection),
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
    """Role, configuration key and its values with the number of runs, for keys in which runs of a role differ."""
    rows = []
    for role in ("teacher", "student", "explainer"):
        for key, values in runs.filter(role=role).differences().items():
            counts = Counter(_plain(value) for value in values)
            rows.append((role, key, [f"{value} ({count})" for value, count in counts.items()]))
    return rows


def selection(runs: RunSet) -> str:
    """By which rule epochs were chosen, in a sentence."""
    rules = {run.info["selection"]["rule"] for run in runs if run.role != "teacher"}
    rule = {"last": "the last epoch", "best": "the epoch that is best on validation"}
    chosen = " or ".join(rule[name] for name in sorted(rules))
    return f"Accuracy and gates are those of {chosen}; test data never used to select."


def _distinct(runs: RunSet, read: Read) -> list[str]:
    return list(dict.fromkeys(_plain(value) for run in runs if (value := read(run)) is not None))


def _plain(value: Any) -> str:
    return "not set" if value is None else str(value)


def _training(run: Run) -> Mapping[str, Any]:
    training: Mapping[str, Any] = run.info["config"].get("training", {})
    return training


def _sizes(run: Run) -> str:
    return ", ".join(f"{split} {size}" for split, size in run.info["data"]["sizes"].items())


def _experts(run: Run) -> str | None:
    experts = run.info["config"].get("explainer", {}).get("experts")
    return ", ".join(map(str, experts)) if isinstance(experts, list) else experts


def _selection(run: Run) -> str:
    selection = run.info["selection"]
    rule = "the last epoch" if selection["rule"] == "last" else f"the best epoch on {selection['split']}"
    return f"{rule}; test data never used to select"


def _probe_sets(run: Run) -> str | None:
    sets = run.info.get("probe_sets")
    return ", ".join(f"{split} {len(ids)} images" for split, ids in sets.items()) if sets else None


def _draws(run: Run) -> str | None:
    probes = run.info["config"].get("probes")
    return f"{probes['null_draws']}; {probes['permutations']}" if probes else None


def _versions(run: Run) -> str:
    return ", ".join(f"{name} {version}" for name, version in run.info["environment"].get("versions", {}).items())


def _hardware(run: Run) -> str | None:
    hardware = run.info["environment"].get("hardware")
    if not hardware:
        return None
    gpus = ", ".join(hardware.get("gpus") or ["no GPU"])
    return f"{hardware['processor']}, {hardware['cores']} cores, {hardware['memory'] / 2**30:.0f} GiB, {gpus}"
