"""The command line: parse, call, print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdx_analysis.errors import KdxError

if TYPE_CHECKING:
    from kdx_analysis.study import Study

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Explain knowledge distillation: what did the student get from the teacher?",
)
lists = typer.Typer(no_args_is_help=True, help="What can be named in a study.")
app.add_typer(lists, name="list")

Out = Annotated[Path | None, typer.Option(help="Directory for the runs and the report; by default out/NAME.")]
Jobs = Annotated[int, typer.Option(min=1, help="Runs trained side by side, one-threaded on CPU by default.")]
DataDir = Annotated[Path | None, typer.Option(help="Where data sets lie; by default $KDX_DATA, else ./data.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="Change a key of the study: data.per_class=500.", metavar="KEY=VALUE")
]


@app.command()
def demo(out: Out = None, jobs: Jobs = 2) -> None:
    """Train, probe and report on 1,797 images of handwritten digits, in minutes on two cores."""
    _run("digits", [], out, jobs, None)


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="A YAML file, or a ready study's name (kdx list studies).")],
    change: Changes = None,
    out: Out = None,
    jobs: Jobs = 2,
    data_dir: DataDir = None,
) -> None:
    """Run a study: train what is not done yet, probe it, write the report."""
    _run(study, change or [], out, jobs, data_dir)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Directories that hold runs.")],
    out: Annotated[Path, typer.Option(help="The page; its figures lie beside it.")] = Path("report/report.html"),
) -> None:
    """Write the report on finished runs."""
    from kdx_analysis.report import Report
    from kdx_analysis.runs import RunSet

    typer.echo(Report(RunSet.load(*runs)).save_html(out))


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Of KDExplainer's released code: .pth, .pt or .safetensors.")],
    out: Annotated[Path | None, typer.Option(help="By default CHECKPOINT with the suffix .safetensors.")] = None,
) -> None:
    """Turn weights of the released code into an explainer's (kdx.load_learn_to_branch reads them)."""
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


@lists.command()
def studies() -> None:
    """Ready studies that come with the package."""
    from kdx_analysis.config import StudyConfig
    from kdx_analysis.study import ready_studies

    for name, path in ready_studies().items():
        study = StudyConfig.load(path)
        objectives = ", ".join(objective.label for objective in study.objectives)
        typer.echo(f"{name}: {study.teacher.model} → {study.student} on {study.data.name}; {objectives}")


@lists.command()
def datasets() -> None:
    """Data sets by name; any folder of images can be given by its path."""
    from kdx_analysis.data import DATASETS

    _print_names(DATASETS)


@lists.command()
def models(
    library: Annotated[str, typer.Option(help="zoo, torchvision or timm.")] = "zoo",
) -> None:
    """Models by name."""
    from kdx_analysis.models import list_models
    from kdx_analysis.registry import unknown

    if library not in ("zoo", "torchvision", "timm"):
        raise unknown("library", library, ("zoo", "torchvision", "timm"))
    _print_names(list_models(library))  # type: ignore[arg-type]


@lists.command()
def objectives() -> None:
    """Objectives, the ladder of controls among them."""
    from kdx_analysis.objectives import OBJECTIVES

    for name, meaning in OBJECTIVES.items():
        typer.echo(f"{name}: {meaning}")


def main() -> None:
    """Entry point; what the user can put right is one line and exit code 2."""
    try:
        app()
    except KdxError as error:
        typer.echo(f"kdx: {error}", err=True)
        sys.exit(2)


def _run(name: str, changes: list[str], out: Path | None, jobs: int, data_dir: Path | None) -> None:
    from kdx_analysis.study import Study
    from kdx_analysis.training.progress import rich_progress

    study = Study.load(name, changes, data_dir)
    out = out or Path("out") / study.config.name
    _announce(study, out, jobs)
    runs = study.run(out, jobs=jobs, progress=rich_progress)
    from kdx_analysis.report import Report

    for answer in Report(runs).answers:
        typer.echo("\n" + "\n".join([answer.opening, *answer.details, *answer.cautions]))
    typer.echo(f"\n{out / 'report' / 'report.html'}")


def _announce(study: Study, out: Path, jobs: int) -> None:
    from kdx_analysis.probes.recorder import checkpoints

    config, data = study.config, study.dataset
    steps = study.plan(out)
    done = sum(step.done for step in steps)
    sizes = f"{len(data.train)} + {len(data.val)} + {len(data.test)} images (train, validation, test)"
    typer.echo(f"study {config.name}: {config.teacher.model} → {config.student} on {data.name}, {sizes}")
    typer.echo(f"  objectives {', '.join(o.label for o in config.objectives)}; seeds {config.seeds}")
    typer.echo(f"  {len(steps)} runs of {config.training.epochs} epochs, {done} done already, {jobs} at a time → {out}")
    if (phase2 := config.explainer.phase2) is not None:
        typer.echo(
            f"  a tree of every explainer: gates hardened by {phase2.by}, weights {phase2.weights}, "
            f"{config.training_of('tree').epochs} epochs"
        )
    epochs = len(checkpoints(config.training.epochs, config.probes.checkpoints))
    typer.echo(
        f"  conflict of every explainer at {epochs} epochs on two probe sets: {2 * epochs * data.num_classes} backward "
        f"passes over up to {config.probes.per_class * data.num_classes} images each"
    )


def _print_names(names: object) -> None:
    for name in names:  # type: ignore[attr-defined]
        typer.echo(name)
