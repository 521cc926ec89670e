"""kdx probe RUN --probe properties: what a finished student got from its teacher beside answers.

The run is set beside its own teacher and that one's siblings, and beside ``hard`` and the negative
controls of its seed, which are loaded from the study's folder; what is missing there is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from kdx_analysis.errors import KdxError
from kdx_analysis.io import write_parquet, write_text
from kdx_analysis.objectives import one_vs_rest_margins
from kdx_analysis.probes.fidelity.properties import (
    IGNORES,
    TRANSFORMS,
    Attacked,
    Network,
    properties_of,
)
from kdx_analysis.probes.fidelity.shift import shift_images
from kdx_analysis.probes.fidelity.whose import BASELINE, CONTROLS
from kdx_analysis.records import check
from kdx_analysis.runs import Run, RunSet
from kdx_analysis.runs.shifted import is_own
from kdx_analysis.study.finished import finished_model
from kdx_analysis.study.study import Study
from kdx_analysis.training import reproducible

PROPERTIES = "properties"
IMAGES = 500  # test images: a share is then known to 4 points, and PGD takes minutes on a CPU
_KEYS = ["property", "metric", "variant"]


@dataclass(frozen=True)
class Asked:
    """How properties are looked for.

    Attributes:
        attacked: how images are made that fool a teacher.
        layer, teacher_layer: paths of the modules whose features Grad-CAM reads, of students and of
            teachers; by default the last maps of each.
        images: of the test split, at most.
    """

    attacked: Attacked = field(default_factory=Attacked)
    layer: str | None = None
    teacher_layer: str | None = None
    images: int = IMAGES


@dataclass(frozen=True, eq=False)
class Properties:
    """What one run shares with its teacher beside answers.

    Attributes:
        record: the record ``properties`` of it, of what stands beside it, and of its teachers.
        objectives: run → what a column is called: its objective, ``own`` or ``sibling N``.
        run: the run's id.
        missing: sentences on what the study's folder lacks.
    """

    record: pd.DataFrame
    objectives: Mapping[str, str]
    run: str
    missing: tuple[str, ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """One row a property and teacher, networks side by side.

        Columns property, metric, variant, teacher (own, sibling N, or '' where networks stand
        alone), a value for the run and for each network beside it, n of the run.
        """
        table = self.record.assign(
            teacher=self.record["teacher"].map({"": "", **self.objectives}),
            network=self.record["run"].map(self.objectives),
        )
        keys = [*_KEYS, "teacher"]
        values = table.pivot_table(
            index=keys, columns="network", values="value", aggfunc="first", sort=False, dropna=False
        ).dropna(how="all")
        n = table[table["run"] == self.run].set_index(keys)["n"].rename("n")
        named = [name for name in self.objectives.values() if name in values]
        return values[named].join(n).reset_index()

    def parts(self) -> pd.DataFrame:
        """own of every property: nearer to the own teacher than to siblings, beyond ``hard``.

        (L(o, t₀) − mean of L(o, t_j)) − the same of ``hard``. One row a property that is taken
        beside teachers, one column a network beside ``hard``; NaN where a part of it is undefined.
        """
        frame = self.to_frame()
        frame = frame[frame["teacher"] != ""]
        rows = []
        for keys, beside in frame.groupby(_KEYS, sort=False):
            by_teacher = beside.set_index("teacher").drop(columns=[*_KEYS, "n"])
            siblings = by_teacher.drop(index="own", errors="ignore")
            if "own" not in by_teacher.index or siblings.empty or BASELINE not in by_teacher:
                continue
            # Where one sibling's figure is undefined, so is the mean over siblings.
            nearer = by_teacher.loc["own"] - siblings.mean(skipna=False)
            networks = self._beside_hard(by_teacher)
            rows.append([*keys, *(nearer[name] - nearer[BASELINE] for name in networks)])
        networks = self._beside_hard(frame)
        return pd.DataFrame(rows, columns=[*_KEYS, *networks])

    def _beside_hard(self, frame: pd.DataFrame) -> list[str]:
        names = [name for name in self.objectives.values() if name in frame.columns]
        return [n for n in names if n != BASELINE and n != "own" and not n.startswith("sibling")]


def probe_properties(run: Run, study: Study, folder: Path, asked: Asked) -> Properties:
    """Look at a finished run, at its teachers, and at ``hard`` and the controls of its seed.

    Args:
        run: of a student, an explainer or a tree.
        study: that it belongs to.
        folder: of the study, with its other runs.
        asked: how.

    Raises:
        KdxError: for a teacher; where the own teacher's run is missing; for networks whose maps
            Grad-CAM can't read.
    """
    if run.role == "teacher":
        raise KdxError(
            f"{run.id!r} is a teacher's run: properties are what a student has from its teacher; "
            "give a run of a student or an explainer"
        )
    runs = RunSet.load(folder)
    teachers = _teachers(run, runs)
    beside, missing = _beside(run, runs)
    if len(teachers) == 1:
        missing.append("no sibling of the teacher, so that own can't be told from kind")
    binary = run.info["decomposition"] == "binary"
    networks = {
        each.id: Network(finished_model(each, study), asked.layer, None, binary)
        for each in (run, *beside)
    }
    to_margins = one_vs_rest_margins if binary else None
    taught = {
        each.id: Network(finished_model(each, study), asked.teacher_layer, to_margins, binary)
        for each in teachers
    }
    seed = study.config.probes.seed
    split = shift_images(study.dataset, max(asked.images, study.dataset.num_classes), seed)
    with reproducible(run.seed, study.config.training.threads):
        record = properties_of(networks, taught, split, study.dataset, asked.attacked, seed)
    names = {each.id: each.objective for each in (run, *beside)}
    names[teachers[0].id] = "own"
    names |= {each.id: f"sibling {i}" for i, each in enumerate(teachers[1:], 1)}
    return Properties(check(PROPERTIES, record), names, run.id, tuple(missing))


def _teachers(run: Run, runs: RunSet) -> list[Run]:
    """The run's own teacher, then the others."""
    teachers = sorted(
        (each for each in runs if each.role == "teacher"), key=lambda each: not is_own(run, each)
    )
    if not teachers or not is_own(run, teachers[0]):
        raise KdxError(
            f"the teacher of {run.id!r} has no run in its study's folder; give the whole folder"
        )
    return teachers


def _beside(run: Run, runs: RunSet) -> tuple[list[Run], list[str]]:
    """``hard`` and the negative controls that differ from the run in nothing else, and what lacks.

    Those see no teacher, so that whose student they are called does not matter.
    """
    alike = [each for each in runs if _setting(each) == _setting(run)]
    beside, missing = [], []
    for name in (BASELINE, *CONTROLS):
        named = [each for each in alike if _name(each) == name]
        if _name(run) == name:
            continue
        if named:
            beside.append(named[0])
        else:
            missing.append(f"no {run.role} of {name} with seed {run.seed}")
    return beside, missing


def _setting(run: Run) -> list[object]:
    """What runs share that are set beside each other, but for the objective."""
    return [run.keys[key] for key in ("role", "decomposition", "vam", "seed")]


def _name(run: Run) -> str:
    return str(run.info["config"].get("objective", {}).get("name", ""))


def trained_on(study: Study) -> dict[str, str]:
    """Whether a study's teacher was trained on each transform: yes, no, or unknown of a given one.

    Training crops at random from padded images, which moves them, and mirrors them.
    """
    data = study.dataset
    if study.given_teacher is not None:
        return dict.fromkeys(TRANSFORMS, "unknown")
    yes = {"translation by 1/8": data.pad > 0, "mirroring": data.flip}
    return {name: "yes" if yes.get(name) else "no" for name in TRANSFORMS}


def write_properties(properties: Properties, out: Path) -> None:
    """Write the record as Parquet, and the table and own as CSV, into ``out``."""
    write_parquet(out / f"{PROPERTIES}.parquet", properties.record)
    write_text(out / f"{PROPERTIES}.csv", properties.to_frame().to_csv(index=False))
    write_text(out / f"{PROPERTIES}_own.csv", properties.parts().to_csv(index=False))


def shown(properties: Properties, study: Study) -> str:
    """The tables as text: what networks share with each teacher, own, and what is missing."""
    trained = trained_on(study)
    frame = properties.to_frame()
    taught = [trained.get(variant, "") for variant in frame["variant"]]
    at = list(frame).index("teacher")
    frame.insert(at, "teacher trained on it", np.where(frame["property"] == IGNORES, taught, ""))
    parts = properties.parts()
    lines = [frame.to_string(index=False, float_format="{:.3f}".format)]
    if not parts.empty:
        lines += [
            "",
            "own: nearer to its own teacher than to siblings, beyond hard",
            parts.to_string(index=False, float_format="{:+.3f}".format),
        ]
    lines += [f"missing: {sentence}" for sentence in properties.missing]
    return "\n".join(lines)
