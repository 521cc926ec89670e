import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml

import kdx_analysis
from kdx_analysis import cli, plots
from kdx_analysis.data.sources import DATASETS, Source
from kdx_analysis.errors import KdxError
from kdx_analysis.models.survey import attachments
from kdx_analysis.probes.planted.validation import YARDSTICKS
from tests import toys
from tests.models.reference_learn_to_branch import checkpoint, released_network
from tests.probes.fidelity.test_manifest import Nets, written
from tests.report.conftest import quick_figures


@pytest.fixture
def kdx(monkeypatch, capsys, tmp_path):
    """Calls ``kdx`` in an empty directory: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["kdx", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return ended.value.code or 0, told.out, told.err

    return call


def source(**changes) -> Source:
    data = toys.dataset()
    fields = {
        name: getattr(data, name)
        for name in (
            "train",
            "val",
            "test",
            "classes",
            "mean",
            "std",
            "pad",
            "flip",
            "superclasses",
            "source",
        )
    }
    return Source(**({"name": "toy", **fields} | changes))


def small(split):
    """4×4 images."""
    images = type(split.images)(split.images.take(torch.arange(len(split)))[:, :, :4, :4])
    return replace(split, images=images)


def sources() -> dict[str, Source]:
    train, val, test = (getattr(toys.dataset(), name) for name in ("train", "val", "test"))
    return {
        "toy": source(),
        "toy_without_cats": source(train=train.subset((train.labels < 2).nonzero().flatten())),
        "toy_of_few": source(val=val.subset(torch.tensor([0, 1]))),
        "toy_mislabelled": source(test=replace(test, labels=test.labels + 5)),
        "toy_small": source(train=small(train), val=small(val), test=small(test)),
    }


@pytest.fixture
def study_file(monkeypatch, tmp_path):
    """A study in a file, whose named data sets are toys."""
    things = {name: lambda data_dir, made=made: made for name, made in sources().items()}
    monkeypatch.setattr(DATASETS, "_things", DATASETS._things | things)
    value = {
        "name": "little",
        "data": {"name": "toy"},
        "teacher": {"model": "digits_teacher", "training": {"epochs": 1, "batch_size": 16}},
        "student": "digits_student",
        "objectives": ["hard", "kd"],
        "seeds": [0],
        **toys.SECTIONS,
    }
    file = tmp_path / "little.yaml"
    file.write_text(yaml.safe_dump(value))
    return file


BAD_INPUT = {
    "unknown study": (["digitz"], "unknown study 'digitz'; did you mean 'digits'"),
    "no such file": (["none.yaml"], "cannot read study 'none.yaml': No such file"),
    "unknown data set": (["data.name=toyy"], "unknown data set 'toyy'; did you mean 'toy"),
    "unknown model": (
        ["student=digit_student"],
        "unknown model 'digit_student'; did you mean 'digits_student'",
    ),
    "unknown teacher": (
        ["teacher.model=resnet21"],
        "unknown model 'resnet21'; did you mean 'resnet20'",
    ),
    "unknown model of a library": (
        ["student=timm:zzzqqqwww"],
        "unknown model 'timm:zzzqqqwww'; .* are valid, .* list them with 'kdx list models "
        "--library timm'",
    ),
    "unknown objective": (["objectives=[hrad]"], "unknown objective 'hrad'; did you mean 'hard'"),
    "unknown key": (
        ["training.epoch=3"],
        "unknown configuration key 'epoch'; did you mean 'epochs'",
    ),
    "no sample of a class": (
        ["data.name=toy_without_cats"],
        "class 'cat' of toy has no training sample: add images",
    ),
    "few validation samples": (
        ["data.name=toy_of_few"],
        r"toy has fewer validation samples than classes \(2 for 3\): raise data.val_fraction",
    ),
    "labels outside the classes": (
        ["data.name=toy_mislabelled"],
        "label 5 in the test split of toy is no class: the 3 classes are labelled 0 to 2",
    ),
    "smoothing above 1": (
        ["objectives=[{name: label_smoothing, epsilon: 1.5}]"],
        r"objectives\.0\.epsilon = 1\.5: .*less than or equal to 1",
    ),
    "weight below 0": (
        ["objectives=[{name: kd, lambda: -0.1}]"],
        r"lambda = -0\.1: .*greater than or equal to 0",
    ),
    "temperature 0": (["objectives=[{name: kd, T: 0}]"], r"objectives\.0\.T = 0: .*greater than 0"),
    "gate temperature below 0": (
        ["explainer.temperature.start=-1"],
        r"start = -1: .*greater than 0",
    ),
    "channels that do not fit": (
        ["teacher.model=torchvision:resnet18"],
        "takes images of 3 channels, data has 1: choose a model",
    ),
    "size that does not fit": (
        ["data.name=toy_small", "student=vgg8"],
        "images of 1×4×4 do not fit model .*choose another model, or change the images' size",
    ),
    "too many of a class": (["data.per_class=500"], "has only 16 training images: lower per_class"),
    "experts of too few levels": (
        ["explainer.experts=[2]"],
        "experts = .2,. should be a number or 3 numbers",
    ),
    "stages that are not there": (
        ["explainer.stages=[stages.0, stages.9]"],
        r"there is no module 'stages\.9' on the way from images to outputs; there are .*stages\.0",
    ),
    "no such device": (
        ["training.accelerator=abacus"],
        "cannot train with accelerator='abacus'.*Available names",
    ),
    "no such weights": (
        ["teacher.path=none.pt"],
        "cannot load weights from 'none.pt': .*No such file",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_code_2_before_any_training(
    kdx, study_file, tmp_path, monkeypatch, case
):
    monkeypatch.setattr("kdx_analysis.study.steps.fitting", None)
    changes, message = BAD_INPUT[case]
    study, changes = (study_file, changes) if "=" in changes[0] else (changes[0], [])
    code, _, err = kdx(
        "run", study, "--out", "out", *(part for change in changes for part in ("--set", change))
    )
    assert code == 2
    assert err.startswith("kdx: ")
    assert err.count("\n") == 1
    assert pytest.raises(ValueError, match=message).matches(ValueError(err))
    assert [path.name for path in tmp_path.iterdir()] == ["little.yaml"]


def test_a_directory_of_another_study_is_left_as_it_was(kdx, study_file, finished, monkeypatch):
    monkeypatch.setattr("kdx_analysis.study.steps.fitting", None)
    before = sorted((path, path.stat().st_mtime_ns) for path in finished.out.rglob("*"))
    code, _, err = kdx("run", study_file, "--out", finished.out)
    assert (code, err.count("\n")) == (2, 1)
    assert (
        "holds another study: name is 'toy' there and 'little' here; choose another output "
        "directory" in err
    )
    assert sorted((path, path.stat().st_mtime_ns) for path in finished.out.rglob("*")) == before


def test_a_study_runs_and_its_answer_is_printed(kdx, study_file, tmp_path, monkeypatch):
    class Report:
        def __init__(self, runs) -> None:
            self.answers = [
                SimpleNamespace(
                    opening=f"the answer from {len(runs)} runs", details=(), cautions=()
                )
            ]
            self.arms = None
            self.got = [("undivided students", ["what they got"])]
            self.album = "2 figures drawn"

        def save_html(self, out) -> None: ...

    monkeypatch.setattr("kdx_analysis.report.Report", Report)
    options = ("--jobs", 1, "--set", "objectives=[kd]", "--set", "training.epochs=1")
    code, out, err = kdx("run", study_file, *options)
    assert (code, err) == (0, "report: 2 figures drawn\n")
    assert "digits_teacher → digits_student on toy, 48 + 24 + 24 images" in out
    assert "3 runs of 1 epochs, 0 done already" in out
    assert out.index("what they got") < out.index("the answer from")
    assert (
        "probes of every explainer (1 to train): gates, agreement, conflict, claims, affinity; "
        "gates after every epoch, all else on train and validation at epochs 1, with 19 null "
        "draws: at most 44 forward and 24 backward passes over up to 6 images each" in out
    )
    assert "the answer from 3 runs" in out
    assert (tmp_path / "out" / "little" / "study.yaml").is_file()

    assert "a tree of every explainer" not in out
    assert "one at a time; of work: " in out
    assert "kept for the other runs of a seed, in 1,024 MiB at most" in out
    assert "time of all runs: training " in out

    code, out, _ = kdx("run", study_file, *options, "--out", "planned", "--plan")
    assert code == 0
    assert "one at a time" in out
    assert not (tmp_path / "planned").exists()

    code, out, _ = kdx("run", study_file, *options[:-1], "training.epochs=2")
    assert code == 0
    assert "1 done already" in out
    assert (
        "the answer from 3 runs" in out
    )  # the runs of one epoch are there still, and not among them


def test_trees_are_announced(kdx, study_file, monkeypatch):
    def nothing(*_, **__):
        raise KdxError("enough")

    monkeypatch.setattr("kdx_analysis.study.Study.run", nothing)
    code, out, _ = kdx(
        "run", study_file, "--set", "explainer.phase2={by: effective, training: {epochs: 7}}"
    )
    assert code == 2
    assert "7 runs of 2 epochs" in out
    assert (
        "a tree of every explainer: gates hardened by effective, weights redrawn, 7 epochs" in out
    )
    assert "probes of every tree (2 to train): agreement, conflict, claims, affinity;" in out
    assert "all else on train and validation at epochs 7" in out


def test_a_finished_run_is_probed_anew(kdx, study_file, tmp_path, monkeypatch):
    monkeypatch.setattr("kdx_analysis.report.Report.save_html", lambda self, out: out)
    options = (
        "--jobs",
        1,
        "--set",
        "objectives=[hard]",
        "--set",
        "training.epochs=1",
        "--out",
        "out",
    )
    assert kdx("run", study_file, *options)[0] == 0
    (run,) = (tmp_path / "out" / "runs").glob("explainer-*")
    code, out, err = kdx("probe", run)
    assert (code, err) == (0, "")
    assert (
        "on train and val, 6 images; on each 133 forward and 12 backward passes over up to 6 "
        "images each" in out
    )
    assert (
        "affinity with 39; 6 experts are ablated. Affinity is that of the final weights alone, "
        "beside its" in out
    )
    assert "conflict_rate" in out
    folder = tmp_path / "out" / "probes" / run.name
    assert {"gates.parquet", "faithfulness.parquet", "conflict.png", "explanation_val.svg"} <= {
        path.name for path in folder.iterdir()
    }
    code, _, err = kdx("probe", run, "--split", "tset")
    assert (code, err) == (2, "kdx: unknown split 'tset'; valid: both, train, val\n")


def test_a_report_on_finished_runs(kdx, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "FIGURES", quick_figures())
    code, out, err = kdx("report", finished.out, "--out", "page")
    assert code == 0
    assert re.fullmatch(r"\d+ figures? drawn; \d+ s in all\n", err)
    page = tmp_path / out.strip()
    assert page == tmp_path / "page" / "report.html"
    assert "<html" in page.read_text(encoding="utf-8")


def test_runs_are_compared(kdx, finished, tmp_path):
    code, out, err = kdx("compare", finished.out, "--metric", "accuracy", "--metric", "contention")
    assert (code, err) == (0, "")
    assert "minus hard" in out
    assert "No p-value over seeds is given below n = 6." in " ".join(out.split())
    options = (
        "--role",
        "student",
        "--against",
        "kd",
        "--metric",
        "accuracy",
        "--format",
        "latex",
        "--out",
        "a/t.tex",
    )
    assert kdx("compare", finished.out, *options) == (0, "a/t.tex\n", "")
    assert "hard − kd".replace("−", "$-$") in (tmp_path / "a" / "t.tex").read_text(encoding="utf-8")
    for bad, message in (
        (("--format", "latx"), "unknown format 'latx'; did you mean 'latex'"),
        (("--metric", "acuracy"), "unknown headline figure 'acuracy'; did you mean 'accuracy'"),
        (
            ("--by", "training.epoch"),
            "unknown key of runs 'training.epoch'; did you mean 'training.epochs'",
        ),
        (("--against", "kdd"), "unknown objective among the runs 'kdd'; did you mean 'kd'"),
    ):
        code, out, err = kdx("compare", finished.out, *bad)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err


def test_a_report_on_nothing(kdx, tmp_path):
    code, _, err = kdx("report", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "no finished run at or below" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("what", "among"),
    [
        (["studies"], "digits: digits_teacher → digits_student on digits; hard, "),
        (["studies"], "kd multiclass; VAM: plain, vam, vam_entropy\n"),
        (["datasets"], "digits\n"),
        (["models"], "digits_student\n"),
        (["models", "--library", "torchvision"], "torchvision:resnet18\n"),
        (["objectives"], "kd_shuffled: control: "),
        (["figures"], "ladder: The ladder from hard labels to KD\n"),
    ],
)
def test_lists(kdx, what, among):
    code, out, err = kdx("list", *what)
    assert (code, err) == (0, "")
    assert among in out


def test_a_figure_and_its_data(kdx, finished):
    code, out, err = kdx(
        "figure", "entropy", finished.out, "--width", "column", "--format", "pdf", "--out", "paper"
    )
    assert (code, out, err) == (0, "paper/entropy.pdf\npaper/entropy.csv\n", "")
    assert pd.read_csv("paper/entropy.csv")["objective"].unique().tolist() == ["hard", "kd"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["ladderr", "."], "unknown figure 'ladderr'; did you mean 'ladder'?"),
        (["ladder", "."], "no finished run at or below '.'"),
        (["ladder", "nowhere"], "no directory 'nowhere'; give one that holds runs"),
    ],
)
def test_a_figure_that_cannot_be_drawn(kdx, arguments, problem):
    code, out, err = kdx("figure", *arguments)
    assert (code, out, err) == (2, "", f"kdx: {problem}\n")


def test_a_list_of_an_unknown_library(kdx):
    code, _, err = kdx("list", "models", "--library", "tim")
    assert (code, err) == (2, "kdx: unknown library 'tim'; did you mean 'timm'?\n")


@torch.no_grad()
def test_weights_of_the_released_code_are_converted_and_read_back(kdx, tmp_path):
    reference = released_network(3, "nce", experts=(1, 2, 3)).eval()
    torch.save(checkpoint(reference), tmp_path / "best.pth")
    code, out, err = kdx("convert", "best.pth")
    assert (code, err) == (0, "")
    assert "form nce, 3 classes, experts 1, 2, 3\n" in out
    assert "not used: conv1_0.0.weight, " in out
    assert out.endswith("best.safetensors\n")

    model = kdx_analysis.load_learn_to_branch("best.safetensors").eval()
    model.temperature = 0.5
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), reference(images, 1.0), rtol=0, atol=1e-5)

    assert "'best.safetensors' exists: choose another file" in kdx("convert", "best.pth")[2]
    code, _, err = kdx("convert", "best.safetensors", "--out", "again.safetensors")
    assert (code, err.count("\n")) == (2, 1)
    assert "this is no checkpoint of the released code" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pth", "best.safetensors"]


@pytest.mark.parametrize(("error", "code"), [(0.0, 0), (0.2, 1)])
def test_validation_says_by_its_exit_code_whether_the_yardsticks_hold(
    kdx, tmp_path, monkeypatch, error, code
):
    def measure(seed):
        middles = {y: (max(y.low, -1) + min(y.high, 1)) / 2 for y in YARDSTICKS}
        return {(y.name, y.planted): (middle + error, 1) for y, middle in middles.items()}

    monkeypatch.setattr("kdx_analysis.probes.planted.validation.measure", measure)
    ended, out, err = kdx("validate", "planted", "--seeds", 3, "--out", "found.csv")
    assert (ended, err) == (code, "")
    assert "yardsticks hold over 3 seeds" in out
    assert len(pd.read_csv(tmp_path / "found.csv")) == 3 * len(YARDSTICKS)


def test_help_names_the_commands(kdx):
    code, out, _ = kdx("--help")
    assert code == 0
    assert all(
        command in out
        for command in (
            "demo",
            "run",
            "report",
            "import",
            "watch",
            "convert",
            "explain-model",
            "validate",
            "list",
        )
    )


def test_what_vam_does_to_models(kdx, monkeypatch):
    monkeypatch.setattr(
        "kdx_analysis.models.survey.attachments",
        partial(attachments, ["digits_student", "resnet20"]),
    )
    code, out, _ = kdx("list", "models", "--vam")
    header, *rows = (line.split() for line in out.splitlines())
    assert code == 0
    assert header == ["model", "attached", "layers", "added_percent", "attach_error", "fold_error"]
    assert [row[:3] for row in rows] == [["digits_student", "3", "5"], ["resnet20", "20", "22"]]


def test_what_vam_costs(kdx):
    code, out, _ = kdx("bench", "vam", "--rounds", 1, "--batch", 2, "--precision", "float32")
    names = [line.split("  ")[2] for line in out.splitlines() if line.startswith("    ")]
    assert code == 0
    assert names == ["plain", "the same again", "VAM", "plain", "the same again", "VAM", "folded"]
    code, _, err = kdx("bench", "vam", "--precision", "bf61")
    assert (code, err.count("\n")) == (2, 1)
    assert "did you mean 'bf16'" in err


def test_what_can_be_timed(kdx):
    code, out, _ = kdx("list", "benches")
    assert code == 0
    assert "pipeline: an epoch of 1,800 augmented images of 32×32, against torch's" in out


def test_results_from_elsewhere_become_runs(kdx, tmp_path):
    (tmp_path / "results.csv").write_text("method,seed,top1,val_loss\nkd,0,75,1.5\nhard,0,50,2\n")
    options = (
        "--kind",
        "csv",
        "--out",
        "runs",
        "--column",
        "objective=method",
        "--metric",
        "top1=test/accuracy%",
    )
    code, out, err = kdx("import", "results.csv", *options)
    assert (code, err) == (0, "")
    assert "metrics: test/accuracy, val/loss\nunknown: decomposition, model, data set" in out
    assert out.endswith("left out: nothing\n")
    runs = kdx_analysis.RunSet.load(tmp_path / "runs")
    assert runs.paired("accuracy", "kd", "hard", role="student").differences == (0.25,)
    code, _, err = kdx("import", "results.csv", *options[:-1], "top1:accuracy")
    assert (code, err) == (
        2,
        "kdx: --metric 'top1:accuracy' should be NAME=VALUE, once for each name\n",
    )
    code, _, err = kdx("import", "results.csv", "--kind", "state_dict", "--out", "runs")
    assert (code, err.count("\n")) == (2, 1)
    assert "a state_dict needs --model and --data" in err


def test_weights_from_elsewhere_become_a_run(kdx, finished, study_file, tmp_path):
    weights = (
        finished.runs.filter(role="student", objective="kd").runs[0].path / "model.safetensors"
    )
    stated = [
        part
        for key in ("objective=kd", "seed=0", "decomposition=binary")
        for part in ("--key", key)
    ]
    options = (
        "--kind",
        "state_dict",
        "--model",
        "digits_student",
        "--data",
        "toy",
        "--out",
        "runs",
        *stated,
    )
    code, out, err = kdx("import", weights, *options)
    assert (code, err) == (0, "")
    assert "val/accuracy, val/hard_loss, test/accuracy, test/hard_loss" in out
    assert "unknown: images trained on" in out
    (run,) = kdx_analysis.RunSet.load(tmp_path / "runs")
    assert "conflict" in run.kinds


def test_a_study_is_watched_once_where_there_is_no_terminal(kdx, finished, tmp_path):
    for once in ((), ("--once",)):
        code, out, err = kdx("watch", finished.out, *once)
        assert (code, err) == (0, "")
        assert out.startswith(
            f"{finished.out.name}: {len(finished.runs)} of {len(finished.runs)} runs done\n"
        )
        assert out.count("\n") == len(finished.runs) + 2
    code, _, err = kdx("watch", tmp_path)
    assert (code, err.count("\n")) == (2, 1)


def test_fidelity_reads_a_manifest_and_writes_a_page(kdx, tmp_path):
    written(tmp_path, Nets().given())
    code, out, err = kdx("fidelity", "mine.yaml", "--out", "out")
    assert (code, err) == (0, "")
    assert out.startswith("note: all 13 tables were taken as logits\n")
    assert out.endswith("out/report.html\n")
    assert "instance knowledge" in out
    assert (tmp_path / "out" / "whose.csv").exists()
    code, out, err = kdx("fidelity", "mine.yaml", "--out", "out", "--format", "csv")
    assert out.startswith("objective,metric,part,value")
    assert err == "out/report.html\n"


def test_fidelity_says_what_is_wrong_in_one_line(kdx, tmp_path):
    path = written(tmp_path, Nets().given(), teacher="gone.npy")
    code, _, err = kdx("fidelity", path, "--out", "out")
    assert code == 2
    assert err.startswith("kdx: there is no file 'gone.npy'")
    assert err.count("\n") == 1
    code, _, err = kdx("fidelity", path, "--out", "out", "--format", "txt")
    assert "unknown format 'txt'; did you mean 'text'" in err
    assert not (tmp_path / "out").exists()
