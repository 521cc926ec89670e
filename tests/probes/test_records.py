import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from torch import nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, build_model
from kdx_analysis.models import gates as gating
from kdx_analysis.probes import conflict_of, gates_of, subtask_grams
from kdx_analysis.probes.conflict.grams import Grams
from kdx_analysis.probes.conflict.record import ConflictRecord
from kdx_analysis.probes.conflict.tables import conflict_tables, contention_table
from kdx_analysis.probes.gates import formulas as gates
from kdx_analysis.probes.gates.record import GateRecord
from tests.probes.subjects import rescaled

K = 4
LABELS = torch.arange(12) % K


def pictures() -> torch.Tensor:
    return torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def explainer(how: str = "parameter", seed: int = 0) -> HME:
    torch.manual_seed(seed)
    model = HME.from_student(build_model("digits_student", K, 1), K, 3, gates=how)
    model.temperature = 0.3
    return model


def probed(model: nn.Module, **options: object) -> ConflictRecord:
    return conflict_of(model, pictures(), LABELS, null_draws=39, permutations=19, **options)


@pytest.mark.parametrize("how", ["parameter", "input"])
def test_batches_of_gates_merge_to_the_whole(how, tmp_path) -> None:
    model = explainer(how)
    whole = gates_of(model, pictures(), LABELS)
    parts = [
        gates_of(model, x, y) for x, y in zip(pictures().split(5), LABELS.split(5), strict=True)
    ]
    merged = parts[0].merge(*parts[1:])
    pd.testing.assert_frame_equal(merged.to_frame(), whole.to_frame(), rtol=1e-5)
    pd.testing.assert_frame_equal(
        merged.summary(null_draws=19), whole.summary(null_draws=19), rtol=1e-5
    )
    with torch.no_grad():
        spreads = [gating.spread(f) for f in model.eval().trace(pictures()).features]
    for own, expected in zip(whole.spreads, spreads, strict=True):
        torch.testing.assert_close(own.float(), expected, rtol=1e-4, atol=1e-6)
    whole.save(tmp_path)
    again = GateRecord.load(tmp_path)
    pd.testing.assert_frame_equal(again.to_frame(), whole.to_frame(), rtol=0, atol=0)
    assert torch.equal(again.labels, whole.labels)
    assert all(torch.equal(a, b) for a, b in zip(again.alpha, whole.alpha, strict=True))


def test_identities_of_use_and_information_hold_on_a_record() -> None:
    record = gates_of(explainer(), pictures(), LABELS)
    table = record.summary(null_draws=19).set_index(["of", "level", "attention", "metric"])["value"]
    paths = gating.pathways(record.effective)[-1]
    use = paths.mean(dim=0)
    assert 1 / float((use**2).sum()) == pytest.approx(
        3 / (1 + table["pathways", 4, "effective", "use_cv2"])
    )
    information = gating.entropy(use) - gating.entropy(paths).mean()
    assert table["pathways", 4, "effective", "specialisation"] == pytest.approx(
        float(information / torch.tensor(3.0).log()), rel=1e-5
    )


def test_gates_of_another_model_are_not_merged_and_a_model_without_gates_is_refused() -> None:
    one, other = (gates_of(explainer(seed=seed), pictures(), LABELS) for seed in (0, 1))
    with pytest.raises(KdxError, match="another model"):
        one.merge(other)
    alike = explainer("input"), explainer("input", seed=1)
    with pytest.raises(KdxError, match="another model"):
        gates_of(alike[0], pictures(), LABELS).merge(gates_of(alike[1], pictures(), LABELS))
    with pytest.raises(KdxError, match="has no gates"):
        gates_of(build_model("digits_student", K, 1), pictures(), LABELS)  # type: ignore[arg-type]


def test_teacher_student_and_explainer_are_probed_by_one_call() -> None:
    models = {name: build_model(f"digits_{name}", K, 1) for name in ("teacher", "student")}
    for model in (
        *models.values(),
        explainer(),
        explainer("input"),
        explainer().harden(),
        explainer().harden().pruned(),
    ):
        record = probed(model)
        frame = record.to_frame()
        assert frame["cosine"].between(-1, 1).all()
        metrics = set(record.summary["metric"])
        assert {"conflict_rate", "severity", "contention", "magnitude_similarity"} <= metrics
        assert ("modulation" in metrics) == (isinstance(model, HME) and not model.input_gated)
        assert not record.pairs.isna().any(axis=None)


def test_permuting_classes_permutes_tables_and_splitting_the_set_in_memory_changes_nothing() -> (
    None
):
    model = build_model("digits_student", K, 1)
    order = torch.tensor([2, 0, 3, 1])

    class Permuted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.inner(images)[:, order]

    paths = [["inner.stages.0.0", "inner.stages.1.0"]]
    assert next(model.get_submodule("stages.0.0").parameters(), None) is not None
    place = order.argsort()
    moved = conflict_of(Permuted(), pictures(), place[LABELS], groups=paths, null_draws=19)
    own = conflict_of(
        model,
        pictures(),
        LABELS,
        groups=[[p[6:] for p in paths[0]]],
        null_draws=19,
        max_memory=2**19,
    )
    tables = []
    for record in (moved, own):
        table = torch.eye(K, dtype=torch.float64)
        frame = record.to_frame().query("level == 'all'")
        a, b = torch.tensor(frame["a_index"].to_numpy()), torch.tensor(frame["b_index"].to_numpy())
        table[a, b] = table[b, a] = torch.tensor(frame["cosine"].to_numpy())
        tables.append(table)
    torch.testing.assert_close(tables[0], tables[1][order][:, order], rtol=1e-4, atol=1e-5)


def test_scaling_one_loss_leaves_cosines() -> None:
    model, r = explainer(), torch.randn(1, 12, K, generator=torch.Generator().manual_seed(0))
    scaled = r * torch.tensor([1.0, 7.0, 0.1, 3.0])
    from kdx_analysis.probes.conflict.formulas import cosine

    own, other = (cosine(subtask_grams(model, pictures(), x).total()) for x in (r, scaled))
    torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)


def test_probes_merge_into_means_and_survive_parquet(tmp_path) -> None:
    one, other = probed(explainer()), probed(explainer(seed=1))
    both = one.merge(other)
    assert both.probes == 2
    mean = (one.to_frame()["cosine"] + other.to_frame()["cosine"]) / 2
    pd.testing.assert_series_equal(both.to_frame()["cosine"], mean)
    assert (both.to_frame()["values"] == 2).all()
    both.save(tmp_path)
    again = ConflictRecord.load(tmp_path)
    pd.testing.assert_frame_equal(again.pairs, both.pairs)
    pd.testing.assert_frame_equal(again.summary, both.summary)
    with pytest.raises(KdxError, match="other subtasks"):
        one.merge(probed(explainer(), classes=("a", "b", "c", "d")))


def test_an_undefined_pair_is_counted_when_probes_merge() -> None:
    one = probed(explainer())
    broken = ConflictRecord(one.pairs.assign(cosine=float("nan")), one.summary)
    merged = one.merge(broken).to_frame()
    assert (merged["undefined"] == 1).all()
    pd.testing.assert_series_equal(merged["cosine"], one.to_frame()["cosine"])


def test_a_null_that_there_is_not_is_said_not_to_be() -> None:
    """Gates that read the input: random ones would have to read it too, which a record does not
    hold.
    """
    table = gates_of(explainer("input"), pictures(), LABELS).summary(null_draws=5)
    assert (table["null_draws"] == 0).all()
    assert table["null_mean"].isna().all()
    assert (table["null_undefined"] == 0).all()


def test_rescaled_experts_have_the_same_null() -> None:
    """The same function, the same A, another α: the null beside A stays, as that beside α does."""
    model = explainer().eval()
    moved = rescaled(model, 0.05)
    with torch.no_grad():
        torch.testing.assert_close(moved(pictures()), model(pictures()))
    before, after = (gates_of(one, pictures(), LABELS).summary() for one in (model, moved))
    effective = before["attention"] == "effective"
    pd.testing.assert_frame_equal(before[effective], after[effective], rtol=1e-5)
    nulls = ["null_mean", "null_low", "null_high"]
    pd.testing.assert_frame_equal(before[nulls], after[nulls])
    assert not torch.allclose(model.attention()[-1], moved.attention()[-1], atol=0.05)


@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_random_gates_have_as_many_parents_as_the_record_s(top_k: int | None) -> None:
    model = explainer()
    model.top_k = top_k
    table = gates_of(model, pictures(), LABELS).summary(null_draws=99)
    table = table[(table["of"] == "gates") & (table["metric"] == "entropy_share")]
    assert (table["null_low"] <= table["value"]).all()
    assert (table["value"] <= table["null_high"]).all()
    if top_k == 1:
        assert (table["null_mean"] == 0).all()


def test_zero_gradients_are_counted_per_pair_and_per_measure() -> None:
    """Of subtask 1 all residuals are 0: two of three pairs have no cosine, one no magnitudes to
    compare with null.
    """
    r = torch.randn(4, 12, K, generator=torch.Generator().manual_seed(0))
    r[:, :, :2] = 0
    grams = subtask_grams(explainer(), pictures(), r)
    pairs, summary = conflict_tables(grams, tuple("abcd"))
    of = pairs.query("level == 'all'").set_index(["a", "b"])
    assert of["undefined"].tolist() == [2, 1, 1, 1, 1, 0]  # a, b: neither cosine nor magnitudes
    assert of["null_undefined"].tolist() == [3, 3, 3, 3, 3, 0]
    counted = summary.query("level == 'all'").set_index("metric")[["pairs", "undefined"]]
    assert counted.loc["severity"].tolist() == [1, 5]
    assert counted.loc["magnitude_similarity"].tolist() == [5, 1]
    assert not summary["value"].isna().any()
    nothing, alone = conflict_tables(subtask_grams(explainer(), pictures(), 0 * r), tuple("abcd"))
    assert (nothing["undefined"] == 2).all()
    assert (alone["pairs"] == 0).all()
    assert alone["value"].isna().all()
    assert (alone["null_undefined"] == 3).all()


def test_what_is_0_by_0_on_the_last_level_is_counted() -> None:
    """No two subtasks contend, so separation and modulation compare nothing with nothing."""
    peace = torch.eye(K, dtype=torch.float64).expand(3, 2, K, K)
    table = contention_table(peace, torch.full((K, 2), 0.5), 19, 0).set_index("metric")
    assert table["undefined"].to_dict() == {
        "contention": 0,
        "contention_uniform": 0,
        "separation": 6,
        "modulation": 6,
    }
    assert table["pairs"].to_dict() == {
        "contention": 6,
        "contention_uniform": 6,
        "separation": 0,
        "modulation": 0,
    }
    assert table["null_undefined"].tolist() == [0, 0, 2, 2]


def test_records_show_themselves() -> None:
    for record in (probed(explainer()), gates_of(explainer(), pictures(), LABELS)):
        figure, axes = record.plot()
        assert axes.shape == (1,)
        assert axes[0].get_figure() is figure
        own, ax = plt.subplots()
        assert record.plot(ax)[0] is own
        plt.close("all")
        assert "n = 12" in record._repr_html_() or "12 images" in record._repr_html_()


def test_bad_input_is_refused() -> None:
    model = explainer()
    with pytest.raises(KdxError, match="no image is of class '3'"):
        conflict_of(model, pictures(), LABELS.clamp(max=2))
    with pytest.raises(KdxError, match="labels from 0 to 4"):
        conflict_of(model, pictures(), torch.arange(12) % 5)
    with pytest.raises(
        KdxError, match=r"labels of shape \(11,\) and torch.int64 don't fit 12 images"
    ):
        conflict_of(model, pictures(), LABELS[:11])
    with pytest.raises(KdxError, match="19 or more"):
        conflict_of(model, pictures(), LABELS, null_draws=3)
    with pytest.raises(KdxError, match="B ≥ 1"):
        conflict_of(model, pictures()[:0], LABELS[:0])
    for probe in (conflict_of, gates_of):
        with pytest.raises(KdxError, match="images hold values that are not finite"):
            probe(model, pictures() * torch.nan, LABELS)
    with pytest.raises(KdxError, match="2 classes are named"):
        gates_of(model, pictures(), LABELS, ("a", "b"))
    two = HME.from_student(build_model("digits_student", 2, 1), 2, 1)
    record = conflict_of(two, pictures(), LABELS % 2, null_draws=19, permutations=19)
    modulation = record.summary.query("metric == 'modulation'")["value"].item()
    assert modulation == pytest.approx(0, abs=1e-9) or modulation != modulation
    assert (gates.routing_distance(torch.ones(2, 1)) == 0).all()


@pytest.mark.parametrize("how", ["parameter", "input"])
def test_two_classes_and_a_level_of_one_expert_have_gates_without_gaps(how) -> None:
    torch.manual_seed(0)
    model = HME.from_student(build_model("digits_student", 2, 1), 2, [1, 2, 2], gates=how)
    record = gates_of(model, pictures(), LABELS % 2)
    assert not record.to_frame().isna().any(axis=None)
    assert record.summary(null_draws=19)["value"].notna().all()


@pytest.mark.parametrize("how", ["parameter", "input"])
def test_a_single_image_has_no_effective_attention_until_it_is_merged(how) -> None:
    model = explainer(how)
    one, rest = (
        gates_of(model, pictures()[part], LABELS[part]) for part in (slice(1), slice(1, None))
    )
    for asked in (one.to_frame, one.summary):
        with pytest.raises(KdxError, match="level 1 don't vary over the 1 images"):
            asked()
    assert not one.merge(rest).to_frame().isna().any(axis=None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_probed_as_a_float32_copy(dtype) -> None:
    model = explainer().to(dtype)
    full = explainer().to(dtype).float()
    pd.testing.assert_frame_equal(probed(model).pairs, probed(full).pairs)
    pd.testing.assert_frame_equal(
        gates_of(model, pictures(), LABELS).to_frame(),
        gates_of(full, pictures(), LABELS).to_frame(),
    )
    assert next(model.parameters()).dtype == dtype


def test_a_summary_and_its_null_are_over_the_same_pairs() -> None:
    """The third subtask has no gradient, so its pairs have no cosine; dealt residuals give it some."""
    own = torch.tensor([[1.0, -0.5, 0.0], [-0.5, 1.0, 0.0], [0.0, 0.0, 0.0]])
    dealt = torch.tensor([[1.0, 0.5, -0.5], [0.5, 1.0, -0.5], [-0.5, -0.5, 1.0]])
    grams = Grams((torch.stack([own, *[dealt] * 39]).unsqueeze(1).double(),), None)
    _, summary = conflict_tables(grams, ["a", "b", "c"])
    rate = summary[(summary["level"] == "all") & (summary["metric"] == "conflict_rate")].iloc[0]
    assert (rate["value"], rate["pairs"], rate["undefined"]) == (1.0, 1, 2)
    assert (
        rate["null_mean"] == 0.0
    )  # of the one pair that the value has; of all three it would be ⅔
