"""Where the figures come from: study, data, teacher, versions, hardware, and what differs between runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from kdx_analysis.report.tables import model_name
from kdx_analysis.runs import ROLES, Run, RunSet

Read = Callable[[Run], Any]


def provenance(runs: RunSet) -> list[tuple[str, list[str]]]:
    """Name and distinct values of every fact; more than one value means that the runs differ in it."""
    teacher = runs.filter(role="teacher")
    others = RunSet.of(run for run in runs if run.role != "teacher")
    explainers, trees = runs.filter(role="explainer"), runs.filter(role="tree")
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
        ("experts by level, trunk first", explainers, _experts),
        ("gates", explainers, _gates),
        ("phase 2", trees, _phase2),
        ("experts of the trees before → after pruning", trees, _pruned),
        ("seeds", others, lambda run: run.seed),
        ("teacher's selection", teacher, _selection),
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
    """Role, configuration key and its values with the number of runs, for keys in which runs of a role differ."""
    rows = []
    for role in ROLES:
        for key, values in runs.filter(role=role).diff().items():
            counts = Counter(_plain(value) for value in values)
            rows.append((role, str(key), [f"{value} ({count})" for value, count in counts.items()]))
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
    config = run.info["config"]
    training: Mapping[str, Any] = config.get("phase2", config).get("training", {})
    return training


def _sizes(run: Run) -> str:
    return ", ".join(f"{split} {size}" for split, size in run.info["data"]["sizes"].items())


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
    facts += [f"frozen in the first {section['warmup_epochs']} epochs"] if section["warmup_epochs"] else []
    return "; ".join(facts)


def _phase2(run: Run) -> str:
    section = run.info["config"]["phase2"]
    return f"gates hardened by {section['by']}, weights {section['weights']}, {section['training']['epochs']} epochs"


def _pruned(run: Run) -> str:
    before, after = (", ".join(map(str, of["experts"])) for of in (run.info["grown_from"], run.info))
    return f"{before} → {after}"


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
