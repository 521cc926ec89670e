"""Tables read by a manifest or as arrays: what they are taken as, and what is wrong with them."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file

from kdx_analysis.errors import KdxError
from kdx_analysis.probes.fidelity.files import read_file
from kdx_analysis.probes.fidelity.manifest import read, tables_of

N, K = 240, 5


def softmax(logits):
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


class Nets:
    """Labels and logits of networks that are right on most images, each with noise of its own."""

    def __init__(self, n=N, k=K, seed=0):
        self.generator = np.random.default_rng(seed)
        self.labels = np.arange(n) % k
        self.k = k

    def net(self, right=3.0):
        noise = self.generator.normal(size=(len(self.labels), self.k))
        return (noise + right * np.eye(self.k)[self.labels]).astype(np.float32)

    def given(self, **changes):
        students = {
            (objective, seed): self.net()
            for objective in ("hard", "kd", "hard_T")
            for seed in range(3)
        }
        given = {
            "labels": self.labels,
            "teacher": self.net(),
            "siblings": [self.net() for _ in range(3)],
            "students": students,
        }
        return given | changes


@pytest.fixture
def nets():
    return Nets()


def written(folder, given, **keys):
    """The arrays as .npy files and a manifest of them."""
    np.save(folder / "y.npy", given["labels"])
    np.save(folder / "t0.npy", given["teacher"])
    siblings = [f"t{j}.npy" for j, _ in enumerate(given["siblings"], start=1)]
    for name, logits in zip(siblings, given["siblings"], strict=True):
        np.save(folder / name, logits)
    students = []
    for (objective, seed), logits in given["students"].items():
        np.save(folder / f"{objective}_{seed}.npy", logits)
        students.append({"objective": objective, "seed": seed, "logits": f"{objective}_{seed}.npy"})
    keys = {
        "labels": "y.npy",
        "teacher": "t0.npy",
        "siblings": siblings,
        "students": students,
    } | keys
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


def test_a_manifest_is_read_as_it_says(tmp_path, nets):
    given = nets.given()
    tables = read(written(tmp_path, given))
    assert tables.name == "mine"
    assert tables.classes == ("0", "1", "2", "3", "4")
    assert tables.labels.dtype == torch.int64
    assert np.array_equal(tables.labels, given["labels"])
    assert list(tables.siblings) == ["t1", "t2", "t3"]
    assert [(s.objective, s.seed) for s in tables.students] == list(given["students"])
    for student in tables.students:
        expected = given["students"][student.objective, student.seed]
        assert np.array_equal(student.scores.tensor(), expected)
        assert np.array_equal(student.scores.answers, expected.argmax(axis=1))
    outputs = tables.outputs(tables.teacher)
    assert outputs.num_images == N
    assert not outputs.binary
    assert tables.notes == ("all 13 tables were taken as logits",)


def test_arrays_tensors_frames_and_files_give_the_same(tmp_path, nets):
    given = nets.given()
    from_files = read(written(tmp_path, given))
    tensors = tables_of(
        torch.from_numpy(given["labels"]),
        torch.from_numpy(given["teacher"]).requires_grad_(),
        [
            {"objective": objective, "seed": seed, "logits": pd.DataFrame(logits)}
            for (objective, seed), logits in given["students"].items()
        ],
        {f"t{j}": logits for j, logits in enumerate(given["siblings"], start=1)},
    )
    assert torch.equal(from_files.teacher.tensor(), tensors.teacher.tensor())
    assert list(tensors.siblings) == list(from_files.siblings)
    for one, other in zip(from_files.students, tensors.students, strict=True):
        assert one[:2] == other[:2]
        assert one.scores.same_values(other.scores)
    assert tensors.notes == from_files.notes


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a.npy", None),
        ("a.npz", None),
        ("a.npz", "logits"),
        ("a.pt", None),
        ("a.pt", "logits"),
        ("old.pt", None),
        ("a.safetensors", None),
        ("a.safetensors", "logits"),
        ("a.parquet", None),
        ("a.csv", None),
    ],
)
def test_every_kind_of_file_holds_the_same_numbers(tmp_path, nets, name, key):
    given = nets.given()
    path, logits = tmp_path / name, given["teacher"]
    others = {} if key is None else {"others": logits[:3]}
    if name == "a.npy":
        np.save(path, logits)
    elif name == "a.npz":
        np.savez(path, logits=logits, **others)
    elif path.suffix == ".pt":
        tensors = {k: torch.from_numpy(v) for k, v in {"logits": logits, **others}.items()}
        torch.save(
            tensors["logits"] if key is None else tensors,
            path,
            _use_new_zipfile_serialization=name != "old.pt",
        )
    elif name == "a.safetensors":
        save_file({k: torch.from_numpy(v) for k, v in {"logits": logits, **others}.items()}, path)
    elif name == "a.parquet":
        pd.DataFrame(logits, columns=list("vwxyz")).to_parquet(path)
    else:
        pd.DataFrame(logits).to_csv(path, index=False)
    manifest = written(tmp_path, given, teacher=name if key is None else f"{name}::{key}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tables = read(manifest)
    assert np.array_equal(tables.teacher.tensor().float(), logits)


def test_large_arrays_are_mapped_and_not_read(tmp_path, nets):
    given = nets.given()
    tables = read(written(tmp_path, given))
    np.save(tmp_path / "t0.npy", given["teacher"] + 1)
    # Saved over in place, so what is mapped has changed beneath; a copy would not have.
    assert np.allclose(tables.teacher.tensor(), given["teacher"] + 1)


def test_nothing_in_a_file_is_executed(tmp_path, nets):
    class Mine:
        def __reduce__(self):
            return (print, ("executed",))

    given = nets.given()
    np.save(tmp_path / "evil.npy", np.array([Mine()]), allow_pickle=True)
    torch.save(Mine(), tmp_path / "evil.pt")
    for name, what in (("evil.npy", "objects"), ("evil.pt", "dictionary of tensors")):
        with pytest.raises(KdxError, match=f"cannot read .*{name}.*{what}"):
            read(written(tmp_path, given, teacher=name))
    path = written(tmp_path, given)
    path.write_text("labels: !!python/object/apply:os.system ['echo executed']")
    with pytest.raises(KdxError, match="not valid YAML"):
        read(path)


MANIFESTS = {
    "unknown key": ({"sibling": ["t1.npy"]}, "unknown configuration key 'sibling'; did you mean"),
    "key of a student": (
        {"students": [{"objective": "kd", "sead": 0, "seed": 0, "logits": "kd_0.npy"}]},
        "did you mean 'seed'",
    ),
    "no objective": ({"students": [{"seed": 0, "logits": "kd_0.npy"}]}, "objective' is missing"),
    "scores": ({"scores": "probs"}, "unknown scores 'probs'"),
    "no students": ({"students": []}, "students"),
    "missing file": ({"teacher": "gone.npy"}, r"there is no file 'gone.npy' in .* its own folder"),
    "unknown suffix": ({"teacher": "mine.yaml"}, "suffix that no table is read from"),
    "no such key": ({"teacher": "t0.npy::x"}, "leave ::x out"),
    "sibling is teacher": (
        {"siblings": ["t0.npy"]},
        "'t0.npy' is given twice, for teacher and for sibling t0",
    ),
    "student is teacher": (
        {"students": [{"objective": "kd", "seed": 0, "logits": "./t0.npy"}]},
        "given twice, for teacher and for students: kd, seed 0",
    ),
    "twice": (
        {
            "students": [
                {"objective": "kd", "seed": 0, "logits": "kd_0.npy"},
                {"objective": "kd", "seed": 0, "logits": "kd_1.npy"},
            ]
        },
        "kd, seed 0 is given 2 times",
    ),
    "too few classes": ({"classes": ["a", "b"]}, "2 names of classes and 5 columns"),
    "classes twice": ({"classes": ["a", "b", "c", "d", "a"]}, "two classes are named 'a'"),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_what_is_wrong_in_a_manifest_is_said(tmp_path, nets, what):
    keys, sentence = MANIFESTS[what]
    with pytest.raises(KdxError, match=sentence):
        read(written(tmp_path, nets.given(), **keys))


def test_manifests_that_are_none(tmp_path):
    with pytest.raises(KdxError, match=r"cannot read manifest .*No such file"):
        read(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(KdxError, match="should hold keys and values \\(labels, teacher, students"):
        read(tmp_path / "list.yaml")


def test_damaged_files_are_named(tmp_path, nets):
    given = nets.given()
    for name in ("bad.npy", "bad.npz", "bad.pt", "bad.safetensors", "bad.parquet", "bad.csv"):
        (tmp_path / name).write_bytes(b"\x93no table")
        with pytest.raises(KdxError, match=re.escape(name)):
            read(written(tmp_path, given, teacher=name))


def test_keys_of_archives(tmp_path, nets):
    np.savez(tmp_path / "two.npz", logits=nets.net(), others=nets.net())
    with pytest.raises(KdxError, match=r"holds 2 arrays: add which one, as two.npz::logits"):
        read_file(tmp_path / "two.npz")
    with pytest.raises(KdxError, match="did you mean 'logits'"):
        read_file(tmp_path / "two.npz", "logit")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a;b\n1;2\n", "not parted by commas"),
        (",a,b\n0,1.5,2.5\n", r"has no name: .*index=False"),
        ("1.5,-2.5\n1.0,2.0\n", "add a line of names"),
    ],
)
def test_csv_files_that_would_be_misread(tmp_path, text, sentence):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(KdxError, match=sentence):
        read_file(tmp_path / "a.csv")


# What values are taken as


def test_probabilities_percentages_and_logarithms_are_recognised(nets):
    given = nets.given()
    shares = softmax(given["teacher"].astype(np.float64))
    expected = np.log(shares)
    for table, name in (
        (shares, "probabilities"),
        (shares.astype(np.float32), "probabilities"),
        (100 * shares, "probabilities"),
        (np.log(shares), "log-probabilities"),
    ):
        tables = tables_of(**given | {"teacher": table})
        assert np.allclose(tables.teacher.tensor(), expected, atol=1e-5)
        assert f"teacher: taken as {name}" in tables.notes
        assert ("divided by 100" in " ".join(tables.notes)) == (table.max() > 1)


def test_zeros_are_counted_and_become_minus_infinity(nets):
    given = nets.given()
    shares = softmax(given["teacher"])
    shares[:7, 4] = 0
    shares /= shares.sum(axis=1, keepdims=True)
    tables = tables_of(**given | {"teacher": shares})
    assert (tables.teacher.tensor()[:7, 4] == -torch.inf).all()
    assert any("a probability of 0 in 7 of 240 rows" in note for note in tables.notes)


def test_rounding_and_clipping_are_noticed(nets):
    given = nets.given()
    shares = softmax(3 * given["teacher"].astype(np.float64))
    text = notes(given, shares.round(2))
    assert "teacher: values rounded to 2 decimals" in text
    assert re.search(r"two classes with exactly the same score in \d+ of 240 rows", text)
    clipped = shares.clip(1e-2, 1)
    rows = int(((shares <= 1e-2).sum(axis=1) > 1).sum())
    assert rows > 20
    assert f"values clipped below at 0.01, several classes in {rows} of 240 rows" in notes(
        given, clipped
    )
    text = notes(given, given["teacher"])
    assert "rounded" not in text
    assert "clipped" not in text


def notes(given, teacher):
    return "\n".join(tables_of(**given | {"teacher": teacher}).notes)


def test_half_precision_and_whole_numbers_are_accepted_and_said(nets):
    given = nets.given()
    assert "teacher: stored as float16" in notes(given, given["teacher"].astype(np.float16))
    half = torch.from_numpy(given["teacher"]).bfloat16()
    assert "teacher: stored as bfloat16" in notes(given, half)
    assert "rounded to 0 decimals" in notes(given, (10 * given["teacher"]).astype(np.int32))
    unsigned = (10 * given["teacher"] + 100).astype(np.uint16)
    assert "rounded to 0 decimals" in notes(given, unsigned)
    other_order = given["teacher"].astype(">f8")
    assert notes(given, other_order) == notes(given, given["teacher"])


def test_what_is_declared_overrides_what_is_seen(nets):
    given = nets.given()
    tables = tables_of(**given, scores="margins")
    assert tables.outputs(tables.teacher).binary
    assert "margins" in tables.notes[0]
    sigmoids = {"teacher": (1 / (1 + np.exp(-given["teacher"])))}
    with pytest.raises(KdxError, match=r"say scores: margins"):
        tables_of(**given | sigmoids)
    with pytest.raises(KdxError, match="as sigmoids do"):
        tables_of(**given | sigmoids, scores="margins")
    assert tables_of(**given | sigmoids, scores="logits").teacher.form == "logits"
    with pytest.raises(KdxError, match="declared to hold probabilities, but its values run"):
        tables_of(**given, scores="probabilities")
    with pytest.raises(KdxError, match="declared to hold log-probabilities, but its highest"):
        tables_of(**given, scores="log_probabilities")


def test_what_holds_no_scores_is_refused(nets):
    given = nets.given()
    for teacher, sentence in (
        (np.eye(K)[given["labels"]], "in place of its answers"),
        (np.eye(K, dtype=bool)[given["labels"]], "in place of its answers"),
        (given["labels"], "class numbers, one an image, are no scores"),
        (given["teacher"][:, :1], r"1 columns: .*np.stack\(\[0 \* z, z\]"),
        (given["teacher"][:, 0], "shape 240: it needs two axes"),
        (given["teacher"].astype(str), "no numbers"),
        (given["teacher"].astype(complex), "no numbers"),
        (given["teacher"][:, :4], "hard, seed 0|sibling 1 has 5 columns, teacher has 4"),
        (given["teacher"][:-1], "teacher has 239 rows, and there are 240 labels"),
        (given["teacher"][:0], "teacher has 0 rows"),
    ):
        with pytest.raises(KdxError, match=sentence):
            tables_of(**given | {"teacher": teacher})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_counted_and_placed(nets, value):
    given = nets.given()
    given["students"]["kd", 1][[17, 30], 2] = value
    with pytest.raises(KdxError, match=rf"kd, seed 1 .*2 of 240 rows, the first {value} in row 17"):
        tables_of(**given)


def test_minus_infinity_is_the_logarithm_of_zero(nets):
    given = nets.given()
    given["teacher"][:3, 4] = -np.inf
    assert "teacher: −inf in 3 of 240 rows" in notes(given, given["teacher"])


# What is wrong between tables


def test_another_order_of_the_classes_is_refused_with_columns_and_classes(nets):
    given = nets.given(classes=["ant", "bee", "cat", "dog", "elk"])
    given["students"]["kd", 0] = given["students"]["kd", 0][:, [1, 0, 2, 3, 4]]
    with pytest.raises(KdxError, match=r"kd, seed 0 .*column 0 as 'bee', column 1 as 'ant';"):
        tables_of(**given)


def test_a_weak_network_stands_in_no_other_order():
    """On few images some order fits better by chance, as it would not on others."""
    for seed in range(20):
        nets = Nets(n=40, seed=seed)
        given = nets.given()
        given["students"]["kd", 0] = nets.net(right=0.5)
        tables_of(**given)


def test_shuffled_rows_are_refused_and_a_failed_network_is_not(nets):
    given = nets.given()
    shuffled = nets.generator.permutation(given["students"]["kd", 2])
    with pytest.raises(KdxError, match=r"kd, seed 2 .*rows seem to be in another order; give ids"):
        tables_of(**given | {"students": given["students"] | {("kd", 2): shuffled}})
    failed = nets.net(right=0) + np.float32([9, 0, 0, 0, 0])
    text = "\n".join(tables_of(**given | {"students": {("kd", 2): failed}}).notes)
    assert "kd, seed 2: right no more often than chance" in text


def test_shuffled_labels_are_refused(nets):
    labels = nets.generator.permutation(nets.labels)
    with pytest.raises(KdxError, match=r"the labels seem to be in another order"):
        tables_of(**nets.given(labels=labels))


def test_copies_are_refused_by_their_values(nets):
    given = nets.given()
    teacher = given["teacher"]
    with pytest.raises(KdxError, match="sibling 2 holds the same values as teacher"):
        tables_of(**given | {"siblings": [nets.net(), teacher.astype(np.float64), nets.net()]})
    with pytest.raises(KdxError, match="kd, seed 0 holds the same values as teacher"):
        tables_of(**given | {"students": given["students"] | {("kd", 0): teacher.copy()}})
    twins = given["students"] | {("kd", 0): given["students"]["kd", 1]}
    text = "\n".join(tables_of(**given | {"students": twins}).notes)
    assert "kd, seed 1 holds the same values as kd, seed 0" in text


def test_what_the_design_leaves_undecided_is_said(nets):
    given = nets.given()
    students = given["students"]

    def said(**changes):
        return "\n".join(tables_of(**given | changes).notes)

    assert "there are no siblings" in said(siblings=[])
    assert "there is 1 sibling: from 3 on" in said(siblings=given["siblings"][:1])
    assert "there are 2 siblings: from 3 on" in said(siblings=given["siblings"][:2])
    without = {key: value for key, value in students.items() if key[0] != "hard"}
    assert "no student is of the objective hard" in said(students=without)
    unpaired = {key: value for key, value in students.items() if key != ("hard", 2)}
    assert "hard and kd don't have the same seeds: seed 2 of one" in said(students=unpaired)
    apart = {("hard", 0): nets.net(), ("kd", 1): nets.net()}
    assert "hard and kd have no seed in common" in said(students=apart)
    assert "no negative control (hard_T or label_smoothing)" in said(students=apart)


@pytest.mark.parametrize(
    ("k", "sentence"), [(2, "and second choice three"), (3, "need four classes, so they are")]
)
def test_few_classes_are_said(k, sentence):
    tables = tables_of(**Nets(k=k).given())
    assert any(f"there are {k} classes" in note and sentence in note for note in tables.notes)


def test_classes_with_one_image_or_none_are_said():
    nets = Nets()
    nets.labels[:] = 3
    assert "all labels are '3'" in "\n".join(tables_of(**nets.given()).notes)
    nets.labels = np.arange(N) % 4
    nets.labels[0] = 4
    assert "one image alone is of class '4'" in "\n".join(tables_of(**nets.given()).notes)
    nets.labels[0] = 0
    assert "no image is of class '4'" in "\n".join(tables_of(**nets.given()).notes)


# Labels


def test_labels_as_floats_and_texts(nets):
    given = nets.given()
    tables = tables_of(**given | {"labels": given["labels"].astype(float)})
    assert np.array_equal(tables.labels, given["labels"])
    assert "floating-point" in tables.notes[0]
    names = np.array(["ant", "bee", "cat", "dog", "elk"])
    texts = names[given["labels"]]
    tables = tables_of(**given | {"labels": texts})
    assert tables.classes == tuple(names)
    assert "alphabetical order, from 'ant' to 'elk'" in tables.notes[0]
    tables = tables_of(**given | {"labels": texts}, classes=names)
    assert np.array_equal(tables.labels, given["labels"])
    with pytest.raises(KdxError, match="label 'bee' is none of the classes"):
        tables_of(**given | {"labels": texts}, classes=["ant", "bea", "cat", "dog", "elk"])


def test_labels_that_are_no_classes(nets):
    given = nets.given()
    for labels, sentence in (
        (given["labels"] + 1, "run from 1 to 5, .* subtract 1"),
        (given["labels"] - 1, "run from -1 to 3"),
        (given["labels"] + 0.5, "0.5 is no label"),
        (np.where(given["labels"] == 0, np.nan, 1), "a label is empty"),
        (given["labels"][:0], "there are no labels|has 240 rows"),
        (np.eye(K)[given["labels"]], r"y.argmax\(axis=1\)"),
        (np.array(["a", "b"])[given["labels"] % 2], "2 different texts"),
    ):
        with pytest.raises(KdxError, match=sentence):
            tables_of(**given | {"labels": labels})


# Rows and columns matched


def test_rows_are_matched_by_ids(nets):
    given = nets.given()
    ids = np.arange(1000, 1000 + N)
    order = nets.generator.permutation(N)[:-5]
    student = {"logits": given["students"]["kd", 0][order], "ids": ids[order].astype(str)}
    tables = tables_of(**given | {"students": given["students"] | {("kd", 0): student}}, ids=ids)
    rows = np.sort(order)
    assert np.array_equal(tables.ids, ids[rows].astype(str))
    assert np.array_equal(tables.labels, given["labels"][rows])
    assert np.array_equal(tables.teacher.tensor(), given["teacher"][rows])
    matched = next(s for s in tables.students if s[:2] == ("kd", 0))
    assert np.array_equal(matched.scores.tensor(), given["students"]["kd", 0][rows])
    text = "\n".join(tables.notes)
    assert "5 of 240 images are left out" in text
    assert "has no ids, and is taken to stand in the order of the labels" in text


def test_ids_that_match_nothing(nets):
    given = nets.given()
    ids = np.arange(N)

    def student(logits, ids):
        return {"students": {("kd", 0): {"logits": logits, "ids": ids}}}

    net = nets.net()
    for changes, sentence in (
        (student(net, ids), "kd, seed 0 has ids and the labels have none"),
        ({"ids": ids} | student(net, ids + N), "no id of kd, seed 0 is an id of the labels: '240'"),
        ({"ids": ids} | student(net, ids // 2), "the ids of kd, seed 0 repeat: '0'"),
        ({"ids": ids // 2}, "the ids of labels repeat"),
        ({"ids": ids[:-1]}, "labels has 240 rows and 239 ids"),
        ({"ids": np.where(ids == 3, np.nan, ids)}, "an id of labels is empty"),
    ):
        with pytest.raises(KdxError, match=sentence):
            tables_of(**given | changes)
    more = {"logits": np.vstack([net, net[:4]]), "ids": np.arange(N + 4)}
    tables = tables_of(**given | {"ids": ids, "students": {("kd", 0): more}})
    assert any("has 4 rows whose ids the labels don't have" in note for note in tables.notes)


def test_csv_with_ids_labels_and_names_of_classes(tmp_path, nets):
    """Texts throughout: rows and columns in any order come together by their names."""
    given = nets.given()
    names = np.array(["cat", "ant", "bee", "elk", "dog"])
    for name, logits in (("t0", given["teacher"]), ("s", given["students"]["kd", 0])):
        frame = pd.DataFrame(logits, columns=names).assign(
            id=[f"img{i}" for i in range(N)], label=names[given["labels"]]
        )
        frame = frame if name == "t0" else frame.sample(frac=1, random_state=0)[sorted(frame)]
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    path = written(
        tmp_path,
        given,
        labels="t0.csv",
        teacher="t0.csv",
        siblings=[],
        students=[{"objective": "kd", "seed": 0, "logits": "s.csv"}],
    )
    tables = read(path)
    assert tables.classes == tuple(names)
    assert np.array_equal(tables.labels, given["labels"])
    matched = tables.students[0].scores.tensor()
    assert np.allclose(matched, given["students"]["kd", 0], atol=1e-6)
    assert any("put into the order of the classes" in note for note in tables.notes)
    shuffled = pd.read_csv(tmp_path / "s.csv").drop(columns="id")
    shuffled.to_csv(tmp_path / "s.csv", index=False)
    with pytest.raises(
        KdxError, match=r"column of labels in kd, seed 0 .* differs from the labels"
    ):
        read(path)


def test_frames_with_texts_and_bad_students(nets):
    given = nets.given()
    frame = pd.DataFrame(given["teacher"]).assign(file="a.png")
    with pytest.raises(KdxError, match="column 'file' of teacher holds no numbers"):
        tables_of(**given | {"teacher": frame})
    frame = pd.DataFrame(given["teacher"]).assign(image=range(N))
    with pytest.raises(KdxError, match="column 'image' of teacher holds whole numbers where"):
        tables_of(**given | {"teacher": frame})
    frame = pd.DataFrame(given["teacher"]).convert_dtypes()
    frame.iloc[3, 2] = pd.NA
    with pytest.raises(KdxError, match="teacher holds values that are not finite in 1 of 240"):
        tables_of(**given | {"teacher": frame})
    for students in ({"kd": nets.net()}, [{"seed": 0}], {}, {("kd", "a"): nets.net()}):
        with pytest.raises(KdxError, match="student"):
            tables_of(**given | {"students": students})
    with pytest.raises(KdxError, match="name its table logits"):
        tables_of(**given | {"teacher": {"scores": nets.net()}})


def test_siblings_are_named_apart(tmp_path, nets):
    given = nets.given()
    (tmp_path / "b").mkdir()
    for name in ("own.npy", "t1.npy", "b/t1.npy"):
        np.save(tmp_path / name, nets.net())
    np.savez(tmp_path / "all.npz", one=nets.net(), two=nets.net())
    siblings = ["own.npy", "t1.npy", "b/t1.npy", "all.npz::one", "all.npz::two"]
    tables = read(written(tmp_path, given | {"siblings": []}, siblings=siblings))
    assert list(tables.siblings) == ["own-2", "t1", "t1-2", "one", "two"]
