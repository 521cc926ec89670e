"""The pictures of the tour and of the API reference: ``make gallery``.

``python tools/gallery.py FOLDER`` trains two studies on digits in FOLDER, the whole ladder as in
the notebooks and VAM's arms, draws from them every figure that is declared and every result of one
explainer, and writes the tour into the README.
"""

from __future__ import annotations

import io
import re
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

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FOLDER = ROOT / "docs" / "figures"
RESULTS = {  # class of a result → what its picture says
    "Explanation": "What does one subtask's path look at, and what is each expert worth?",
    "Faithfulness": "Do gates say what an ablation confirms?",
    "Attribution": "Which pixels speak for a class, which against?",
    "Conductance": "Through which expert does the evidence pass?",
    "Randomisation": "Is it the model that says so, or the image?",
    "GateRecord": "The gates of one model of yours",
    "ConflictRecord": "The conflict of one model of yours",
    "Tree": "The tree of one run",
}
SUBTASK, DPI, COLOURS = 3, 110, 128
LADDER = (
    "objectives=[hard, hard_T, kd_flat, kd_shuffled, kd]",
    "seeds=[0, 1, 2]",
    "training.epochs=10",
    "teacher.training.epochs=10",
    "probes.null_draws=39",
    "probes.shift=on",
)
VAM = (
    "objectives=[{name: hard, decomposition: multiclass}, {name: kd, decomposition: multiclass}]",
    "training.epochs=10",
    "teacher.training.epochs=10",
)


def of_runs(*studies: kdx.RunSet) -> dict[str, matplotlib.figure.Figure]:
    """Every declared figure, of the first study that holds what it shows."""
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
    images = study.dataset.normalise(split.images.take(torch.arange(len(split))))
    labels, classes = split.labels, study.dataset.classes
    chosen = images[labels == SUBTASK][:6]

    def maps(model: torch.nn.Module) -> torch.Tensor:
        return probes.integrated_gradients(model, chosen, SUBTASK).maps

    results = [
        probes.explain(model, images, labels, SUBTASK, classes),
        probes.ablate(model, images, labels, classes),
        probes.integrated_gradients(model, chosen, SUBTASK),
        probes.conductance(model, chosen, SUBTASK, level=len(model.experts)),
        probes.randomisation(maps, model, draws=3),
        probes.gates_of(model, images, labels, classes),
        probes.conflict_of(model, images, labels, classes=classes, null_draws=39),
        run.tree,
    ]
    return {f"results/{type(result).__name__}": result.plot()[0] for result in results}


def tour() -> str:
    """The README's table of all pictures: figures in the order of a report, then results."""
    entries = [(name, f"`{name}`: {figure.title}") for name, figure in FIGURES.items()]
    entries += [(f"results/{name}", f"`{name}.plot()`: {says}") for name, says in RESULTS.items()]
    cells = [_cell(f"docs/figures/{name}.png", says) for name, says in entries]
    cells += [""] * (-len(cells) % 3)
    rows = [cells[i : i + 3] for i in range(0, len(cells), 3)]
    lines = ["| | | |", "| --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def _cell(picture: str, says: str) -> str:
    image = f'<img src="{picture}" width="260" alt="{Path(picture).stem}">'
    return f'<a href="{picture}">{image}</a><br>{says}'


def with_tour(readme: str) -> str:
    """The text of the README with its table of pictures made anew."""
    table = tour() + "\n"
    return re.sub(r"(?m)^\| \| \| \|\n(?:\|.*\n)+", lambda _: table, readme, count=1)


def write(figure: matplotlib.figure.Figure, path: Path) -> None:
    """A small PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
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
    README.write_text(with_tour(README.read_text(encoding="utf-8")), encoding="utf-8")
    size = sum(path.stat().st_size for path in FOLDER.rglob("*.png"))
    print(f"{size / 1e6:.2f} MB in {FOLDER}")
