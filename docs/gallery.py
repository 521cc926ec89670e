"""The pictures of the tour and of the API reference: ``make gallery``, or ``python docs/gallery.py
FOLDER``.

They are drawn from two studies on digits, the whole ladder as in the notebooks and VAM's arms,
trained in FOLDER first.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import matplotlib.figure
import torch
from PIL import Image

import kdx_analysis as kdx
from kdx_analysis import plots, probes
from kdx_analysis.errors import KdxError
from kdx_analysis.plots import FIGURES
from kdx_analysis.study.probe_run import model_of, study_of

FOLDER = Path(__file__).parent / "figures"
SUBTASK, DPI, COLOURS = 3, 110, 128
LADDER = (
    "objectives=[hard, hard_T, kd_flat, kd_shuffled, kd]",
    "seeds=[0, 1, 2]",
    "training.epochs=10",
    "teacher.training.epochs=10",
    "probes.null_draws=39",
)
VAM = (
    "objectives=[{name: hard, decomposition: multiclass}, {name: kd, decomposition: multiclass}]",
    "training.epochs=10",
    "teacher.training.epochs=10",
)


def of_runs(*studies: kdx.RunSet) -> dict[str, matplotlib.figure.Figure]:
    """Every registered figure, of the first study that holds what it shows."""
    drawn: dict[str, matplotlib.figure.Figure] = {}
    for figure in FIGURES.values():
        for runs in studies:
            try:
                drawn[figure.name] = figure(runs)[0]
                break
            except KdxError as error:
                print(f"{figure.name}: {error}")
    return drawn


def of_one_explainer(runs: kdx.RunSet) -> dict[str, matplotlib.figure.Figure]:
    """The figures of results on one explainer, under KD, on validation images."""
    run = runs.filter(role="explainer", objective="kd").runs[0]
    study, _ = study_of(run)
    model, _ = model_of(run, study)
    assert isinstance(model, kdx.HME)
    split = study.dataset.probe_set("val", per_class=20)
    images, labels = (
        study.dataset.normalise(split.images.take(torch.arange(len(split)))),
        split.labels,
    )
    classes, shown = study.dataset.classes, images[labels == SUBTASK][:6]

    def maps(of: torch.nn.Module) -> torch.Tensor:
        return probes.integrated_gradients(of, shown, SUBTASK).maps

    results = {
        "ablation": probes.ablate(model, images, labels, classes),
        "attribution": probes.integrated_gradients(model, shown, SUBTASK),
        "conductance": probes.conductance(model, shown, SUBTASK, level=len(model.experts)),
        "conflict_record": probes.conflict_of(
            model, images, labels, classes=classes, null_draws=39
        ),
        "faithfulness": probes.explain(model, images, labels, SUBTASK, classes),
        "gate_record": probes.gates_of(model, images, labels, classes),
        "randomisation": probes.randomisation(maps, model, draws=3),
        "tree_of": run.tree,
    }
    return {name: result.plot()[0] for name, result in results.items()}


def write(figure: matplotlib.figure.Figure, path: Path) -> None:
    """A small PNG."""
    with plots.style(), io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", dpi=DPI)
        image = Image.open(buffer).convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE)
        image.save(path, optimize=True)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    ladder = kdx.Study.load("digits", LADDER).run(out / "ladder", jobs=2)
    vam = kdx.Study.load("vam_digits", VAM).run(out / "vam", jobs=2)
    for name, figure in (of_runs(ladder, vam) | of_one_explainer(ladder)).items():
        write(figure, FOLDER / f"{name}.png")
    print(f"{sum(path.stat().st_size for path in FOLDER.glob('*.png')) / 1e6:.2f} MB in {FOLDER}")
