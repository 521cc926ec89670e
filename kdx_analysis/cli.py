"""The command line: parse, call, print."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdx_analysis import __version__
from kdx_analysis.errors import KdxError

if TYPE_CHECKING:
    from kdx_analysis.config import TeacherConfig
    from kdx_analysis.runs import Run
    from kdx_analysis.study.study import Study

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Explain knowledge distillation: what did the student get from the teacher?",
)
lists = typer.Typer(no_args_is_help=True, help="What can be named in a study or a command.")
app.add_typer(lists, name="list")

Out = Annotated[
    Path | None, typer.Option(help="Directory for the runs and the report; by default out/NAME.")
]
Jobs = Annotated[
    int, typer.Option(min=1, help="Runs trained side by side, one-threaded on CPU by default.")
]
Together = Annotated[
    int,
    typer.Option(
        min=1,
        help="Runs of one architecture trained as one net of so many copies; for GPUs that one run "
        "doesn't fill.",
    ),
]
DataDir = Annotated[
    Path | None, typer.Option(help="Where data sets lie; by default $KDX_DATA, else ./data.")
]


def _load(paths: list[Path] | None) -> list[Path] | None:
    from kdx_analysis.extensions import load_all

    load_all(paths or ())
    return paths


Load = Annotated[
    list[Path] | None,
    typer.Option(
        help="A Python file of your own metrics, objectives, probes, figures, models or data sets.",
        callback=_load,
        is_eager=True,
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Change a key of the study: data.per_class=500.", metavar="KEY=VALUE"
    ),
]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"kdx_analysis {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        # eager, so that it is answered before typer misses a command
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """What stands before a command."""


@app.command()
def demo(out: Out = None, jobs: Jobs = 2) -> None:
    """Train, probe and report on 1,797 images of handwritten digits, in minutes on two cores."""
    _run("digits", [], out, jobs, None)


@app.command()
def run(
    study: Annotated[
        str, typer.Argument(help="A YAML file, or a ready study's name (kdx list studies).")
    ],
    change: Changes = None,
    out: Out = None,
    jobs: Jobs = 2,
    together: Together = 1,
    data_dir: DataDir = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be done and how long it takes, and stop.")
    ] = False,
    load: Load = None,
) -> None:
    """Run a study: train what is not done yet, probe it, write the report."""
    _run(study, change or [], out, jobs, data_dir, together, only_plan=plan)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Directories that hold runs.")],
    out: Annotated[
        Path, typer.Option(help="FILE.html, FILE.md or FILE.pdf; figures lie beside the first two.")
    ] = Path("report/report.html"),
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that draw figures; by default a core each, 4 at most."),
    ] = None,
    load: Load = None,
) -> None:
    """Write the report on finished runs; figures whose data are the same are kept."""
    from kdx_analysis.report import Report
    from kdx_analysis.runs import RunSet

    began = time.perf_counter()
    made = Report(RunSet.load(*runs))
    path = made.save(out, jobs=jobs)
    typer.echo(f"{made.album}; {time.perf_counter() - began:.0f} s in all", err=True)
    typer.echo(path)


@app.command()
def figure(
    name: Annotated[str, typer.Argument(help="As kdx list figures gives it.")],
    runs: Annotated[list[Path], typer.Argument(help="Directories that hold runs.")],
    width: Annotated[str, typer.Option(help="column (3.4 inches) or page (7).")] = "page",
    format: Annotated[str, typer.Option(help="svg, pdf (text stays text in both) or png.")] = "svg",
    out: Annotated[
        Path, typer.Option(help="Directory for NAME.FORMAT and its data, NAME.csv.")
    ] = Path("figures"),
    load: Load = None,
) -> None:
    """Draw one figure of finished runs, with the tidy table that it shows beside it."""
    from kdx_analysis.plots import FIGURES
    from kdx_analysis.runs import RunSet

    chosen = FIGURES[name]
    for path in chosen.write(RunSet.load(*runs), out, width, format):  # type: ignore[arg-type]
        typer.echo(path)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Directories that hold runs.")],
    form: Annotated[
        str, typer.Option("--format", help="text, markdown, csv or latex (booktabs).")
    ] = "text",
    metric: Annotated[
        list[str] | None, typer.Option(help="By default all that the runs hold.")
    ] = None,
    by: Annotated[
        str, typer.Option(help="What to compare: objective, role, training.lr, ...")
    ] = "objective",
    against: Annotated[
        str | None, typer.Option(help="The value to compare with; by default the first.")
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(help="explainer, student or tree; the first of them that there is."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A file for what is otherwise printed.")] = None,
    load: Load = None,
) -> None:
    """Compare runs: means with intervals, paired differences over seeds, and what else differs."""
    from kdx_analysis import io
    from kdx_analysis.registry import unknown
    from kdx_analysis.runs import Comparison, RunSet

    writers: dict[str, Callable[[Comparison], str]] = {
        "text": str,
        "markdown": Comparison.to_markdown,
        "csv": Comparison.to_csv,
        "latex": Comparison.to_latex,
    }
    if form not in writers:
        raise unknown("format", form, writers)
    compared = RunSet.load(*runs).compare(metric or None, by=by, against=against, role=role)
    text = writers[form](compared)
    if out is None:
        typer.echo(text, nl=False)
    else:
        io.write_text(out, text)
        typer.echo(out)


@app.command()
def fidelity(
    manifest: Annotated[
        Path,
        typer.Argument(
            help="A YAML file that names tables of logits (docs/logits.md), or a directory of runs."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory for report.html, tables and figure.")],
    form: Annotated[
        str, typer.Option("--format", help="text, markdown, latex (booktabs) or csv.")
    ] = "text",
) -> None:
    """Tell what students got from their teacher, and from whom, from tables of logits alone."""
    from kdx_analysis.registry import unknown

    if form not in (forms := ("text", "markdown", "latex", "csv")):
        raise unknown("format", form, forms)
    from kdx_analysis.report.fidelity_page import FidelityPage
    from kdx_analysis.runs.ways_in import fidelity

    page = FidelityPage(fidelity(manifest), manifest.stem)
    path = page.save(out)
    typer.echo(page.printed(form), nl=False)
    typer.echo(path, err=form != "text")


Keys = Annotated[
    list[str] | None,
    typer.Option(help="A key of every run: objective, seed, role, study.", metavar="KEY=VALUE"),
]
ColumnNames = Annotated[
    list[str] | None,
    typer.Option(help="The column or parameter of a key: seed=random_state.", metavar="KEY=NAME"),
]
MetricNames = Annotated[
    list[str] | None,
    typer.Option(
        help="What a name stands for: top1=test/accuracy%, or without % for a share.",
        metavar="NAME=SPLIT/METRIC",
    ),
]
ModelName = Annotated[str | None, typer.Option(help="Of a state_dict: the model's name.")]
Images = Annotated[
    str | None, typer.Option(help="Of a state_dict: a data set's name or an image folder.")
]
Teacher = Annotated[
    str | None,
    typer.Option(help="Of a state_dict: its teacher, NAME@WEIGHTS or a run's directory."),
]


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="A CSV, a TensorBoard directory, an MLflow store or its CSV, or a file of weights."
        ),
    ],
    kind: Annotated[str, typer.Option(help="csv, tensorboard, mlflow or state_dict.")],
    out: Annotated[Path, typer.Option(help="Directory for the runs.")],
    key: Keys = None,
    column: ColumnNames = None,
    metric: MetricNames = None,
    steps_per_epoch: Annotated[
        int | None, typer.Option(min=1, help="If steps are no epochs.")
    ] = None,
    model: ModelName = None,
    data: Images = None,
    teacher: Teacher = None,
    data_dir: DataDir = None,
    load: Load = None,
) -> None:
    """Make runs of what was trained elsewhere, for kdx report and the figures."""
    from kdx_analysis.imports import KINDS, import_runs
    from kdx_analysis.registry import unknown

    if kind not in (kinds := (*KINDS, "state_dict")):
        raise unknown("kind of source", kind, kinds)
    keys = _pairs("--key", key)
    if kind == "state_dict":
        runs = [_import_weights(source, model, data, teacher, out, keys, data_dir)]
    else:
        options = {"columns": _pairs("--column", column), "metrics": _pairs("--metric", metric)}
        runs = list(
            import_runs(source, kind, out, keys=keys, steps_per_epoch=steps_per_epoch, **options)
        )
    for run in runs:
        typer.echo(run.path)
    metrics: list[str] = []
    unknown_names: list[str] = []
    left_out: list[str] = []
    for run in runs:
        metrics += _metric_names(run)
        unknown_names += run.info["source"]["unknown"]
        left_out += run.info["source"]["left_out"]
    for heading, names in (
        ("metrics", metrics),
        ("unknown", unknown_names),
        ("left out", left_out),
    ):
        typer.echo(f"{heading}: {', '.join(dict.fromkeys(names)) or 'nothing'}")


def _import_weights(
    source: Path,
    model: str | None,
    data: str | None,
    teacher: str | None,
    out: Path,
    keys: dict[str, str],
    data_dir: Path | None,
) -> Run:
    from kdx_analysis.data import load_dataset
    from kdx_analysis.imports.weights import import_weights

    if model is None or data is None:
        raise KdxError(
            "a state_dict needs --model and --data: it tells neither its architecture nor its "
            "images"
        )
    images = load_dataset(data, data_dir=data_dir)
    return import_weights(source, model, images, out, keys=keys, teacher=teacher)


@app.command()
def watch(
    study: Annotated[
        Path, typer.Argument(help="The directory of a study that runs (kdx run --out).")
    ],
    once: Annotated[
        bool, typer.Option("--once", help="Print it once, as where there is no terminal.")
    ] = False,
) -> None:
    """Watch a study while it runs: epochs, loss, accuracy, gate entropy, time left."""
    from rich.console import Console

    from kdx_analysis.study import monitor

    console = Console()
    if once or not console.is_terminal:
        typer.echo(monitor.watched(study))
    else:
        monitor.watch(study, console)


@app.command()
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="Of KDExplainer's released code: .pth, .pt or .safetensors.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="By default CHECKPOINT with the suffix .safetensors.")
    ] = None,
) -> None:
    """Turn weights of KDExplainer's released code into an explainer's."""
    from kdx_analysis.training.checkpoints import convert_learn_to_branch

    out = out or checkpoint.with_suffix(".safetensors")
    if out.exists():
        raise KdxError(f"{str(out)!r} exists: choose another file with --out")
    released = convert_learn_to_branch(checkpoint, out)
    experts = ", ".join(map(str, released.experts))
    typer.echo(f"form {released.form}, {released.num_classes} classes, experts {experts}")
    if released.unused:
        typer.echo(f"not used: {', '.join(released.unused)}")
    typer.echo("the gates' temperature is not in the checkpoint: set model.temperature to 5/epoch")
    typer.echo(out)


ProbeOut = Annotated[
    Path | None, typer.Option("--out", help="By default probes/RUN beside the study's runs.")
]
Probes = Annotated[
    list[str] | None,
    typer.Option(
        "--probe",
        help="Chosen probes alone: of kdx list probes, faithfulness, or properties (where it "
        "looks, what fools it, what it ignores, beside teacher and siblings, on test images).",
    ),
]


@app.command()
def probe(
    run: Annotated[
        Path, typer.Argument(help="The directory of a finished run, inside its study's.")
    ],
    split: Annotated[str, typer.Option(help="train, val or both.")] = "both",
    name: Probes = None,
    layer: Annotated[
        str | None,
        typer.Option(help="Of properties: module whose features Grad-CAM reads; the last maps."),
    ] = None,
    teacher_layer: Annotated[
        str | None, typer.Option(help="Of properties: that of the teachers.")
    ] = None,
    epsilon: Annotated[
        float, typer.Option(help="Of properties: the most that an attack moves a pixel, in [0, 1].")
    ] = 8 / 255,
    out: ProbeOut = None,
    data_dir: DataDir = None,
    load: Load = None,
) -> None:
    """Probe a finished run anew, train beside validation: gates, conflict, claims, faithfulness."""
    from kdx_analysis.probes import PROBES
    from kdx_analysis.registry import unknown
    from kdx_analysis.runs import Run
    from kdx_analysis.study.probe_run import FAITHFULNESS, only, study_of
    from kdx_analysis.study.properties_run import PROPERTIES

    splits = {"both": ("train", "val"), "train": ("train",), "val": ("val",)}
    if split not in splits:
        raise unknown("split", split, splits)
    valid = (*PROBES, FAITHFULNESS, PROPERTIES)
    for each in name or ():
        if each not in valid:
            raise unknown("probe", each, valid)
    chosen = Run.load(run)
    study, folder = study_of(chosen, data_dir)
    out = out or folder / "probes" / chosen.id
    if name is None:
        _probe_splits(chosen, study, folder, splits[split], out, True)
    elif asked := [each for each in name if each != PROPERTIES]:
        narrowed = only(study, asked)
        _probe_splits(chosen, narrowed, folder, splits[split], out, FAITHFULNESS in asked)
    if name and PROPERTIES in name:
        _probe_properties(chosen, study, folder, (layer, teacher_layer, epsilon), out)
    typer.echo(out)


def _probe_splits(
    run: Run, study: Study, folder: Path, splits: tuple[str, ...], out: Path, faithfulness: bool
) -> None:
    from kdx_analysis.study.probe_run import (
        announce,
        probe_run,
        side_by_side,
        teacher_of,
        write_probe,
    )

    typer.echo(announce(run, study, splits, faithfulness=faithfulness))
    teacher = teacher_of(run, study, folder)
    probed = probe_run(run, study, teacher, splits, faithfulness=faithfulness)
    write_probe(probed, out, run.classes)
    typer.echo(side_by_side(probed.tables).to_string(index=False))


def _probe_properties(
    run: Run,
    study: Study,
    folder: Path,
    options: tuple[str | None, str | None, float],
    out: Path,
) -> None:
    from kdx_analysis.probes.fidelity.properties import Attacked
    from kdx_analysis.study.properties_run import Asked, probe_properties, shown, write_properties

    layer, teacher_layer, epsilon = options
    asked = Asked(Attacked(epsilon=epsilon), layer, teacher_layer)
    properties = probe_properties(run, study, folder, asked)
    write_properties(properties, out)
    typer.echo(shown(properties, study))


@app.command()
def explain_model(
    model: Annotated[str, typer.Argument(help="A model's name, as kdx list models gives it.")],
    experts: Annotated[
        str, typer.Option(help="Experts of every level, or of each: 4 or 2,4,8.")
    ] = "4",
    budget: Annotated[str, typer.Option(help="params, flops or width.")] = "params",
    stages: Annotated[
        str | None,
        typer.Option(
            help="Where trunk and levels end, if not where they are found: layer1,layer2,layer3."
        ),
    ] = None,
    classes: Annotated[int, typer.Option(min=2, help="Subtasks.")] = 10,
    image: Annotated[
        str | None, typer.Option(help="C,H,W; by default the first common size that fits.")
    ] = None,
    load: Load = None,
) -> None:
    """Show how a model would be split into an explainer, before any training."""
    from kdx_analysis.models import HME, build_model
    from kdx_analysis.models.splitting.tracing import on_meta

    shape = None if image is None else _numbers("--image", image)
    counts = _numbers("--experts", experts)
    student = build_model(model, classes, 3 if shape is None else shape[0])
    explainer = HME.from_student(
        on_meta(student),
        classes,
        counts[0] if len(counts) == 1 else counts,
        budget=budget,  # type: ignore[arg-type]
        stages=None if stages is None else stages.split(","),
        image_shape=shape,
    )
    typer.echo(explainer.split)


@app.command()
def validate(
    parts: Annotated[
        list[str] | None,
        typer.Argument(help="planted, nothing, models, teachers; by default one after another."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of planted truth.")] = 10,
    out: Annotated[
        Path | None, typer.Option(help="A CSV file for the value of every yardstick and seed.")
    ] = None,
) -> None:
    """Hold the toolkit against what is known; exit code 1 if a yardstick fails.

    planted: do the probes find what was planted? nothing: what is said where nothing is there?
    models: is conflict that of plain autograd, however a network is built? teachers: does KD pass
    planted secrets on, and is nothing called the teacher's own where it isn't?
    """
    import pandas as pd

    from kdx_analysis import io
    from kdx_analysis.validation import PARTS

    outcomes = {}
    for name in parts or PARTS:
        outcomes[name] = PARTS[name](seeds)
        typer.echo(outcomes[name])
    if out is not None:
        tables = []
        for name, outcome in outcomes.items():
            tables.append(outcome.values.rename(columns={"planted": "on"}).assign(part=name))
        io.write_text(out, pd.concat(tables).to_csv(index=False))
    if not all(outcome.passed for outcome in outcomes.values()):
        raise typer.Exit(1)


@lists.command()
def metrics(load: Load = None) -> None:
    """Metrics of the tables, the figures and the answer, each with its formula's place."""
    from kdx_analysis.metrics import METRICS

    for name, metric in METRICS.items():
        typer.echo(f"{name}: {metric.meant} ({metric.home})")


@lists.command()
def studies(load: Load = None) -> None:
    """Ready studies that come with the package."""
    from kdx_analysis.config import StudyConfig
    from kdx_analysis.study.study import ready_studies

    for name, path in ready_studies().items():
        study = StudyConfig.load(path)
        objectives = ", ".join(objective.label for objective in study.objectives)
        arms = f"; VAM: {', '.join(study.arms)}" if len(study.arms) > 1 else ""
        typer.echo(
            f"{name}: {study.teacher.model} → {study.student} on {study.data.name}; "
            f"{objectives}{arms}"
        )


@lists.command()
def datasets(load: Load = None) -> None:
    """Data sets by name; any folder of images can be given by its path."""
    from kdx_analysis.data import DATASETS

    _print_names(DATASETS)


@lists.command()
def models(
    library: Annotated[str, typer.Option(help="zoo, torchvision or timm.")] = "zoo",
    split: Annotated[
        bool,
        typer.Option(
            "--split",
            help="Make explainers of the zoo and of every family of torchvision and timm.",
        ),
    ] = False,
    vam: Annotated[
        bool,
        typer.Option(
            "--vam", help="Attach VAM to the zoo and to four of torchvision, and check it."
        ),
    ] = False,
    load: Load = None,
) -> None:
    """Models by name."""
    from kdx_analysis.models import list_models
    from kdx_analysis.registry import unknown

    if split:
        _print_splits()
        return
    if vam:
        from kdx_analysis.models.survey import attachments

        typer.echo(attachments().to_string(index=False, float_format="{:.3g}".format))
        return
    if library not in ("zoo", "torchvision", "timm"):
        raise unknown("library", library, ("zoo", "torchvision", "timm"))
    _print_names(list_models(library))  # type: ignore[arg-type]


@lists.command()
def objectives(load: Load = None) -> None:
    """Objectives, the ladder of controls among them."""
    from kdx_analysis.objectives import OBJECTIVES

    for row in OBJECTIVES.values():
        typer.echo(f"{row.name}: {row.summary}")


@lists.command()
def probes(load: Load = None) -> None:
    """Probes, each a section under probes: in a study, with the kinds of records that it writes."""
    from kdx_analysis.probes import PROBES
    from kdx_analysis.probes.contract import STUDY_PROBES

    for name, probe in PROBES.items():
        roles = ", ".join([*probe.roles, *(f"finished {role}" for role in probe.afterwards)])
        typer.echo(f"{name}: {probe.title}, of {roles}; writes {', '.join(probe.kinds)}")
    for name, after in STUDY_PROBES.items():
        typer.echo(
            f"{name}: {after.title}, of a study's finished models where it is asked for; writes "
            f"{', '.join(after.kinds)}"
        )


@lists.command()
def records(load: Load = None) -> None:
    """Kinds of records that a run may hold, each with its columns."""
    from kdx_analysis.records import RECORDS

    for name, kind in RECORDS.items():
        typer.echo(f"{name}: {kind.doc}")
        typer.echo(f"  {', '.join(column.name for column in kind.columns)}")


@lists.command()
def figures(load: Load = None) -> None:
    """Figures of finished runs (kdx figure NAME RUNS)."""
    from kdx_analysis.plots import FIGURES

    for name, figure in FIGURES.items():
        typer.echo(f"{name}: {figure.title}")


@lists.command()
def benches(load: Load = None) -> None:
    """Benches: what is timed on this machine, and against what."""
    from kdx_analysis.bench import BENCHES

    for name, bench in BENCHES.items():
        typer.echo(f"{name}: {bench.title}, against {bench.against}")


@app.command()
def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help="As kdx list benches gives them; by default all.")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Timings of each contestant; slow contests have fewer.")
    ] = 15,
    threads: Annotated[int, typer.Option(min=1, help="Of every contestant.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    batch: Annotated[
        int | None, typer.Option(min=2, help="Images in a batch of a training step.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="float32 or bf16, of benches that have both.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="A file for all numbers.")] = None,
    load: Load = None,
) -> None:
    """Time what the package does against plain implementations and the machine's limits."""
    from kdx_analysis.bench.command import bench_all, chosen, setting_of

    setting = setting_of(device, threads, batch, precision)
    bench_all(chosen(names or (), setting), setting, rounds, json, typer.echo)


def main() -> None:
    """Entry point; what the user can put right is one line and exit code 2."""
    try:
        app()
    except KdxError as error:
        typer.echo(f"kdx: {error}", err=True)
        sys.exit(2)


def _run(
    name: str,
    changes: list[str],
    out: Path | None,
    jobs: int,
    data_dir: Path | None,
    together: int = 1,
    *,
    only_plan: bool = False,
) -> None:
    import time

    from kdx_analysis.runs.spent import duration, spent
    from kdx_analysis.study.study import Study
    from kdx_analysis.training.progress import rich_progress

    study = Study.load(name, changes, data_dir)
    out = out or Path("out") / study.config.name
    study.check()
    _announce(study, out, jobs, together)
    if study.config.keep_teacher:
        typer.echo(
            f"  the teacher's logits on training images are kept for the other runs of a seed, in "
            f"{study.config.keep_teacher / 2**20:,.0f} MiB at most (keep_teacher)"
        )
    typer.echo(f"  {study.estimate(out, jobs=jobs, together=together)}")
    if only_plan:
        return
    runs = study.run(out, jobs=jobs, together=together, progress=rich_progress, report=False)
    from kdx_analysis.report import Report

    start = time.perf_counter()
    report = Report(runs)
    report.save_html(out / "report")
    typer.echo(f"report: {report.album}", err=True)
    reported = time.perf_counter() - start
    for i, (who, sentences) in enumerate(report.got):
        _tell([f"The same, asked of {who}:", *sentences] if i else sentences)
    for answer in report.answers:
        _tell([answer.opening, *answer.details, *answer.cautions])
    if report.arms is not None:
        _tell([report.arms.opening, *report.arms.details, *report.arms.cautions])
    of_runs = spent(runs).drop(columns="runs", errors="ignore").sum()
    parts = [f"{part} {duration(seconds)}" for part, seconds in of_runs.items()]
    typer.echo(f"\ntime of all runs: {', '.join([*parts, f'report {duration(reported)}'])}")
    typer.echo(out / "report" / "report.html")


def _tell(sentences: list[str]) -> None:
    typer.echo("\n" + "\n".join(sentences))


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in given or []:
        name, equals, value = text.rpartition("=") if option == "--metric" else text.partition("=")
        if not name or not equals or not value or name in pairs:
            raise KdxError(f"{option} {text!r} should be NAME=VALUE, once for each name")
        pairs[name] = value
    return pairs


def _metric_names(run: Run) -> list[str]:
    metrics = run.record("metrics")
    return [
        f"{split}/{metric}"
        for split, metric in zip(metrics["split"], metrics["metric"], strict=True)
    ]


def _print_splits() -> None:
    """Row by row, since each takes seconds."""
    from kdx_analysis.models.survey import splits

    heading = (
        "model",
        "levels",
        "stages' params",
        "levels' params",
        "error",
        "FLOPs' error",
        "classifier",
        "heads",
    )
    form = "{:<32} {:>6} {:>14} {:>14} {:>7} {:>12} {:>11} {:>7}  {}"
    typer.echo(form.format(*heading, "loss, one step"))
    for row in splits():
        errors = (f"{row['params']:+.1%}", f"{row['flops']:+.1%}")
        sizes = (f"{row['stages']:,}", f"{row['experts']:,}")
        ends = (f"{row['classifier']:,}", f"{row['heads']:,}", row["step"])
        typer.echo(form.format(row["model"], row["levels"], *sizes, *errors, *ends))


def _teachers(teacher: TeacherConfig) -> str:
    """What is trained, or asked for outputs, beside one teacher; '' if nothing."""
    parts = []
    if teacher.seeds > 1:
        parts.append(f"{teacher.seeds} teachers, each with students of its own")
    if n := teacher.sibling_count:
        are = "trained before any student" if isinstance(teacher.siblings, int) else "given"
        which = "the teacher" if teacher.seeds == 1 else "the teachers"
        parts.append(f"{n} sibling{'' if n == 1 else 's'} of {which}, {are}")
    return "; ".join(parts)


def _announce(study: Study, out: Path, jobs: int, together: int) -> None:
    from kdx_analysis.probes.contract import checkpoints, switched_on

    config, data = study.config, study.dataset
    groups = study.groups(out, together)
    steps = groups.planned
    done = sum(step.done for step in steps)
    sizes = (
        f"{len(data.train)} + {len(data.val)} + {len(data.test)} images (train, validation, test)"
    )
    typer.echo(
        f"study {config.name}: {config.teacher.model} → {config.student} on {data.name}, {sizes}"
    )
    typer.echo(
        f"  objectives {', '.join(o.label for o in config.objectives)}; seeds {config.seeds}"
    )
    typer.echo(
        f"  {len(steps)} runs of {config.training.epochs} epochs, {done} done already, {jobs} at a "
        f"time → {out}"
    )
    for line in groups.lines():
        typer.echo(f"  {line}")
    if line := _teachers(config.teacher):
        typer.echo(f"  {line}")
    if (phase2 := config.explainer.phase2) is not None:
        typer.echo(
            f"  a tree of every explainer: gates hardened by {phase2.by}, weights "
            f"{phase2.weights}, {config.training_of('tree').epochs} epochs"
        )
    if len(config.arms) > 1:
        typer.echo(f"  a student under every arm of VAM: {', '.join(config.arms)}")
    if config.extensions:
        typer.echo(f"  files of your own: {', '.join(config.extensions)}")
    from kdx_analysis.study.shift_run import announced

    if shift := announced(study, out):
        typer.echo(f"  {shift}")
    if "explainer" not in config.roles:
        return
    for role in ("explainer", "tree") if config.explainer.phase2 is not None else ("explainer",):
        epochs = ", ".join(
            map(str, checkpoints(config.training_of(role).epochs, config.probes.checkpoints))
        )
        waiting = sum(step.role == role and not step.done for step in steps)
        typer.echo(
            f"  probes of every {role} ({waiting} to train): "
            f"{', '.join(probe.name for probe in switched_on(config.probes, role))}; gates after "
            f"every epoch, all else on train and validation at epochs {epochs}, with "
            f"{config.probes.drawn} null draws: at most {study.probing_cost(role)}"
        )


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise KdxError(
            f"{option} {text!r} should be whole numbers with commas between them"
        ) from None


def _print_names(names: object) -> None:
    for name in names:  # type: ignore[attr-defined]
        typer.echo(name)
