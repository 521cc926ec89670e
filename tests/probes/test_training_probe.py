"""The recorder's tables say what the model does, row by row, and name it rightly."""

import copy
import dataclasses

import numpy as np
import pandas as pd
import pytest
import timm
import torch

from kdx_analysis import _compat  # noqa: F401  # isort: split
from kdx_analysis.config import ObjectiveConfig, ProbeConfig
from kdx_analysis.data import Dataset, load_dataset
from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, build_model
from kdx_analysis.models import gates as gating
from kdx_analysis.models.modes import undisturbed
from kdx_analysis.objectives import one_vs_rest_margins
from kdx_analysis.probes import TrainingProbe
from kdx_analysis.probes.affinity import ETA, AffinityOptions, affinity_of
from kdx_analysis.probes.conflict import formulas as conflict
from kdx_analysis.probes.conflict import probe as conflict_probe
from kdx_analysis.probes.conflict.grams import subtask_grams
from kdx_analysis.probes.contract import Cost, checkpoints
from kdx_analysis.probes.gates import formulas as gates
from kdx_analysis.probes.training_probe import training_cost
from kdx_analysis.training import Epoch
from tests.probes.subjects import rescaled

EPOCHS, DRAWS = 3, 39
CONFIG = ProbeConfig(per_class=3, checkpoints=2, null_draws=DRAWS, permutations=39)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("digits", val_fraction=0.2)


def explainer() -> HME:
    torch.manual_seed(0)
    model = HME.from_student(build_model("digits_student", 10, 1), 10, (2, 3, 4))
    with torch.no_grad():
        model(
            torch.randn(64, 1, 8, 8)
        )  # running statistics of BN that are not those of initialisation
    return model


def record(
    data: Dataset, objective: ObjectiveConfig, teacher: torch.nn.Module | None
) -> tuple[HME, TrainingProbe]:
    model = explainer()
    probe = TrainingProbe("explainer", model, data, objective, CONFIG, EPOCHS, teacher)
    with torch.no_grad():
        for logits in model.gate_parameters():
            logits.add_(torch.randn_like(logits))  # what training would do
    model.temperature = 0.5
    for epoch in range(1, EPOCHS + 1):
        probe(Epoch(epoch, EPOCHS, 0.0, 0.0, 0.5, 0.0), model)
    return model, probe


@pytest.fixture(scope="module")
def recorded(data: Dataset) -> tuple[HME, TrainingProbe, dict[str, pd.DataFrame]]:
    torch.manual_seed(1)
    model, probe = record(data, ObjectiveConfig(name="kd"), build_model("digits_teacher", 10, 1))
    return model, probe, probe.tables()


def images(data: Dataset, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = data.probe_set(split, CONFIG.per_class, CONFIG.seed)
    return data.normalise(chosen.images.take(torch.arange(len(chosen)))), chosen.labels


def at_end(frame: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    frame = frame[frame["epoch"] == EPOCHS]
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


def test_gates_name_child_and_parent(recorded, data) -> None:
    model, _, tables = recorded
    attention = model.attention()
    with undisturbed(model), torch.no_grad():
        spreads = [gating.spread(f) for f in model.trace(images(data, "train")[0]).features]
    for level, (alpha, spread) in enumerate(zip(attention, spreads, strict=True), 2):
        rows = at_end(tables["gates"], level=level)
        table = rows.pivot(index="child_index", columns="parent", values="alpha").to_numpy()
        np.testing.assert_allclose(table, alpha.detach(), rtol=1e-6)
        effective = rows.pivot(index="child_index", columns="parent", values="effective").to_numpy()
        np.testing.assert_allclose(
            effective, gating.effective_attention(alpha, spread).detach(), rtol=1e-5
        )
    heads = at_end(tables["gates"], level=5).drop_duplicates("child").sort_values("child_index")
    assert tuple(heads["child"]) == data.classes
    assert set(tables["gates"]["epoch"]) == {1, 2, 3}
    assert set(at_end(tables["gates"])["tau"]) == {0.5}


def test_pathways_are_the_composed_gates(recorded, data) -> None:
    model, _, tables = recorded
    for level, paths in enumerate(gating.pathways(model.attention()), 1):
        rows = at_end(tables["pathways"], level=level)
        table = rows.pivot(index="subtask_index", columns="expert", values="alpha").to_numpy()
        np.testing.assert_allclose(table, paths.detach(), rtol=1e-5)
        named = rows.drop_duplicates("subtask").sort_values("subtask_index")
        assert tuple(named["subtask"]) == data.classes
    sums = at_end(tables["pathways"]).groupby(["level", "subtask"])["effective"].sum()
    np.testing.assert_allclose(sums, 1, rtol=1e-6)


def test_gate_summary_stands_beside_the_initial_gates_at_the_same_temperature(recorded) -> None:
    model, probe, tables = recorded
    row = at_end(tables["gate_summary"], level=5, attention="alpha", metric="entropy_share").iloc[0]
    assert row["value"] == pytest.approx(
        gating.entropy_share(model.attention()[-1]).mean().item(), rel=1e-6
    )
    initial = gating.attention(probe.probes["gates"].initial.gates[-1].logits.detach(), 0.5)
    assert row["initial"] == pytest.approx(gating.entropy_share(initial).mean().item(), rel=1e-6)
    assert row["null_low"] <= row["null_mean"] <= row["null_high"]
    assert (row["n"], row["null_draws"], row["tau"]) == (10, DRAWS, 0.5)
    assert set(tables["gate_summary"]["level"]) == {2, 3, 4, 5}
    specialised = at_end(
        tables["gate_summary"], level=4, attention="alpha", metric="specialisation"
    ).iloc[0]
    expected = gates.specialisation(model.attention()[-1].detach())
    assert specialised["value"] == pytest.approx(expected.item(), rel=1e-4)


def test_rescaled_experts_have_the_same_null(data) -> None:
    """The same function and the same A: initial and random gates beside them must not move either."""
    initial = explainer()
    trained = copy.deepcopy(initial)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    trained.temperature = 0.5
    x, _ = images(data, "train")
    with undisturbed(trained), torch.no_grad():
        torch.testing.assert_close(rescaled(trained, 20.0)(x), trained(x))
    tables = []
    for model in (trained, rescaled(trained, 20.0)):
        probe = TrainingProbe("explainer", initial, data, ObjectiveConfig(name="hard"), CONFIG, 9)
        probe(Epoch(2, 9, 0.0, 0.0, 0.5, None), model)
        tables.append(probe.tables()["gate_summary"].query("attention == 'effective'"))
    pd.testing.assert_frame_equal(*tables, rtol=1e-5)
    assert not tables[0].isna().any(axis=None)


@pytest.mark.parametrize("gates_", ["parameter", "input"])
def test_initial_and_random_gates_stand_on_the_initial_model(data, gates_) -> None:
    """Whatever training does to weights and gates, at one temperature what it began from is the
    same.
    """
    torch.manual_seed(0)
    model = HME.from_student(build_model("digits_student", 10, 1), 10, 3, gates=gates_)
    probe = TrainingProbe("explainer", model, data, ObjectiveConfig(name="hard"), CONFIG, 9)
    columns = ["initial", "null_mean", "null_low", "null_high", "null_undefined", "null_draws"]
    for epoch in (2, 3):
        probe(Epoch(epoch, 9, 0.0, 0.0, 1.0, None), model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    before, after = (
        of.reset_index(drop=True) for _, of in probe.tables()["gate_summary"].groupby("epoch")
    )
    pd.testing.assert_frame_equal(before[columns], after[columns])
    np.testing.assert_allclose(
        before["value"], before["initial"], rtol=1e-5, atol=1e-6
    )  # before any training
    assert (before["null_draws"] == DRAWS).all()
    assert (before["null_undefined"] == 0).all()
    assert not np.allclose(before["value"], after["value"], rtol=1e-2)


def test_conflict_is_recorded_at_the_checkpoints_on_both_probe_sets_for_all_terms(recorded) -> None:
    _, _, tables = recorded
    assert checkpoints(12, 4) == (1, 5, 8, 12)
    assert checkpoints(2, 4) == (1, 2)
    assert checkpoints(9, 1) == (9,)
    assert set(tables["conflict"]["epoch"]) == {1, 3}
    keys = tables["conflict"].drop_duplicates(["split", "term", "level"])
    assert set(keys["split"]) == {"train", "val"}
    assert set(keys["term"]) == {"hard", "distillation", "objective"}
    assert set(keys["level"]) == {"1", "2", "3", "4", "all"}
    assert set(tables["conflict"]["n"]) == {30}


@pytest.mark.parametrize("split", ["train", "val"])
def test_cosines_of_the_hard_loss_are_those_of_separate_backward_passes(
    recorded, data, split
) -> None:
    model, _, tables = recorded
    x, y = images(data, split)
    shared = [p for part in (model.trunk, *model.levels) for p in part.parameters()]
    with undisturbed(model):
        losses = torch.nn.functional.binary_cross_entropy_with_logits(
            model(x), torch.nn.functional.one_hot(y, 10).float(), reduction="none"
        ).sum(dim=0)
        rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
    g = torch.stack([torch.cat([p.flatten() for p in row]) for row in rows]).double()
    expected = conflict.cosine(g @ g.T)
    pairs = at_end(tables["conflict"], split=split, term="hard", level="all")
    for row in pairs.itertuples():
        assert (row.a, row.b) == (data.classes[row.a_index], data.classes[row.b_index])
        assert row.cosine == pytest.approx(expected[row.a_index, row.b_index].item(), abs=1e-4)
    summary = at_end(tables["conflict_summary"], split=split, term="hard", level="all").set_index(
        "metric"
    )
    assert summary.loc["conflict_rate", "value"] == pytest.approx((pairs["cosine"] < 0).mean())
    assert summary.loc["severity", "value"] == pytest.approx(
        (-pairs["cosine"]).clip(lower=0).mean()
    )
    assert (summary["pairs"] == 45).all()


def test_contention_separation_and_modulation_belong_together(recorded) -> None:
    _, _, tables = recorded
    for _, rows in tables["contention"].groupby(["epoch", "split", "term"]):
        value = rows.set_index("metric")["value"]
        own, shared = value["contention"], value["contention_uniform"]
        assert 0 <= own <= 1
        assert value["separation"] == pytest.approx((shared - own) / (shared + own))
        assert -1 <= value["modulation"] <= 1
        p = rows.set_index("metric")["p"]
        assert 1 / 40 <= p["modulation"] <= 1
        assert p.drop("modulation").isna().all()


def test_the_null_permutes_residuals_and_leaves_the_model(recorded, data) -> None:
    """Redo one null draw by hand: the same residual rows, dealt to other images."""
    model, _, tables = recorded
    x, y = images(data, "train")
    with undisturbed(model), torch.no_grad():
        r = torch.sigmoid(model(x)) - torch.nn.functional.one_hot(y, 10)
    generator = torch.Generator().manual_seed(CONFIG.seed)
    orders = [torch.randperm(30, generator=generator) for _ in range(DRAWS)]
    cosines = conflict.cosine(
        subtask_grams(model, x, torch.stack([r[o] for o in orders])).total().double()
    )
    row = at_end(
        tables["conflict_summary"], split="train", term="hard", level="all", metric="mean_cosine"
    ).iloc[0]
    assert row["null_mean"] == pytest.approx(conflict.mean_cosine(cosines).mean().item(), abs=1e-4)


def test_multiclass_conflict_is_that_of_one_vs_rest_margins_and_has_no_contention(data) -> None:
    model, probe = record(data, ObjectiveConfig(name="hard", decomposition="multiclass"), None)
    tables = probe.tables()
    assert "contention" not in tables
    assert set(tables["conflict"]["term"]) == {"hard"}
    x, y = images(data, "train")
    with undisturbed(model), torch.no_grad():
        r = torch.sigmoid(one_vs_rest_margins(model(x))) - torch.nn.functional.one_hot(y, 10)
    expected = conflict.cosine(
        subtask_grams(model, x, r[None], margins=one_vs_rest_margins).total()[0]
    )
    pair = at_end(tables["conflict"], split="train", level="all", a="3", b="8").iloc[0]
    assert pair["cosine"] == pytest.approx(expected[3, 8].item(), abs=1e-4)


def test_probe_sets_are_balanced_apart_and_named(recorded, data) -> None:
    _, probe, _ = recorded
    assert {name: len(ids) for name, ids in probe.ids.items()} == {"train": 30, "val": 30}
    assert not set(probe.ids["train"]) & set(probe.ids["val"])
    assert not set(probe.ids["val"]) & set(data.test.ids.tolist())


def tokens_student() -> torch.nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=8,
        patch_size=2,
        embed_dim=48,
        depth=4,
        num_heads=4,
        num_classes=10,
        in_chans=1,
    )


@pytest.mark.parametrize(
    "kind", ["input", "tokens", "input tokens", "hard", "pruned", "one expert", "half"]
)
def test_every_kind_of_explainer_has_complete_tables(data, kind) -> None:
    torch.manual_seed(0)
    student = tokens_student() if "tokens" in kind else build_model("digits_student", 10, 1)
    how = {"gates": "input" if "input" in kind else "parameter", "image_shape": (1, 8, 8)}
    model = HME.from_student(student, 10, 1 if kind == "one expert" else 2, **how)
    if kind in ("hard", "pruned"):
        model = model.harden()
    if kind == "pruned":
        model = model.pruned()
    config = CONFIG.model_copy(update={"per_class": 2})
    model = model.bfloat16() if kind == "half" else model
    probe = TrainingProbe("explainer", model, data, ObjectiveConfig(name="hard"), config, 1)
    probe(Epoch(1, 1, 0.0, 0.0, 1.0, None), model)
    tables = probe.tables()
    if model.hard:
        measured = {
            "conflict",
            "conflict_summary",
            "contention",
            "contention_by_expert",
            "output_conflict",
            "affinity",
        }
        assert set(tables) == {"routing", "agreement", *measured}
    else:
        assert {"gates", "pathways", "gate_summary"} <= set(tables)
    assert ("contention" in tables) == ("input" not in kind)
    assert ("gates_by_sample" in tables) == ("input" in kind)
    for name in ("gates", "pathways", "gates_by_class", "gates_by_sample"):
        if name in tables:
            assert not tables[name].isna().any(axis=None)
            keys = ["level", "child", "id", "true_class", "subtask"]
            keys = [key for key in keys if key in tables[name]]
            np.testing.assert_allclose(
                tables[name].groupby(keys)[["alpha", "effective"]].sum(), 1, rtol=1e-6
            )
    assert tables["conflict"]["cosine"].notna().all()
    contention = tables["conflict_summary"].query("metric == 'contention'")
    assert set(contention["level"]) == {str(level + 1) for level in range(len(model.experts))}
    assert contention["value"].between(0, 1).all()
    keys = ["split", "term", "level"]
    by_expert = tables["contention_by_expert"].groupby(keys)["value"].sum().to_dict()
    whole = contention.astype({"level": int}).set_index(keys)["value"].to_dict()
    assert by_expert == pytest.approx({key: whole[key] for key in by_expert})
    assert bool(by_expert) == (kind != "one expert")


def test_a_tree_routes_as_its_parents_say(data) -> None:
    """Distance 1 where two subtasks stand under different experts of a level, else 0; agreement is
    that of the tree.
    """
    torch.manual_seed(3)
    model = HME.from_student(build_model("digits_student", 10, 1), 10, 3).harden()
    superclasses = {"low": tuple("01234"), "high": tuple("56789")}
    data = dataclasses.replace(data, superclasses=superclasses)
    probe = TrainingProbe(
        "explainer",
        model,
        data,
        ObjectiveConfig(name="hard"),
        CONFIG,
        1,
        build_model("digits_teacher", 10, 1),
    )
    probe(Epoch(1, 1, 0.0, 0.0, None, None), model)
    tables = probe.tables()
    tree = model.tree(data.classes)
    assert len({tuple(path) for path in tree.paths}) > 1
    for attention in ("alpha", "effective"):
        rows = tables["routing"][tables["routing"]["attention"] == attention]
        assert set(rows["level"]) == {2, 3, 4}
        apart = [
            tree.paths[r.a_index][r.level - 1] != tree.paths[r.b_index][r.level - 1]
            for r in rows.itertuples()
        ]
        np.testing.assert_allclose(rows["distance"], apart, atol=1e-12)
    found = tables["agreement"]
    assert set(found["reference"]) == {"teacher", "confusion", "class_tree"}
    same = {name: k < 5 for k, name in enumerate(data.classes)}
    row = found.query(
        "level == 4 and attention == 'alpha' and reference == 'class_tree' and method == 'pearson'"
    )
    rows = tables["routing"].query("level == 4 and attention == 'alpha'")
    crossing = [same[a] != same[b] for a, b in zip(rows["a"], rows["b"], strict=True)]
    assert row["value"].item() == pytest.approx(np.corrcoef(rows["distance"], crossing)[0, 1])
    assert row["p"].item() >= 1 / 40


@pytest.mark.parametrize("split", ["train", "val"])
def test_affinity_is_recorded_at_the_checkpoints_beside_its_null(recorded, data, split) -> None:
    model, _, tables = recorded
    table = tables["affinity"]
    assert set(table["epoch"]) == {1, 3}
    assert set(table["eta"]) == {ETA}
    assert set(table["null_draws"]) == {AffinityOptions().null_draws}
    assert (
        table[["null_low", "null_high"]].isna().all(axis=None)
    )  # two draws have a mean and no range
    x, y = images(data, split)
    expected = affinity_of(
        model, x, y, classes=data.classes, null_draws=AffinityOptions().null_draws, seed=CONFIG.seed
    )
    rows = at_end(table, split=split).drop(columns=["epoch", "split"]).reset_index(drop=True)
    # Steps go along conflict's gradients, sums in another order; Z is a difference of float32.
    pd.testing.assert_frame_equal(rows, expected, rtol=0, atol=1e-5)


def test_the_cost_is_known_beforehand_and_true(recorded, data, monkeypatch) -> None:
    """Backward passes are counted where autograd is asked, forward passes where the model is
    called.
    """
    model, _, _ = recorded
    objective = ObjectiveConfig(name="kd")
    teacher = build_model("digits_teacher", 10, 1)
    plan = ("explainer", model, data, objective)
    whole = training_cost(*plan, CONFIG, 1, ("train",))
    config = CONFIG.model_copy(update={"max_memory": whole.memory - 1})
    cost = training_cost(*plan, config, 1, ("train",))
    assert cost.backwards > whole.backwards
    assert cost.memory < whole.memory
    probe = TrainingProbe(*plan, config, 1, teacher)
    calls: list[int] = []
    handle = model.trunk.register_forward_hook(
        lambda module, inputs, output: calls.append(len(output))
    )
    setting = probe.probes["conflict"].setting
    moment = probe._moment(model, setting, "train", 1, True, True)
    moment.gradient_sets = 0  # each probe by itself
    for name in ("conflict", "affinity"):
        probe.probes[name](moment)
    assert 0 <= len(calls) - cost.forwards <= 1  # conflict's margins are one pass more
    assert max(calls) <= cost.batch
    assert cost.forward_passes == cost.forwards + 2 * cost.backwards
    apart = len(calls)
    calls.clear()
    moment = probe._moment(model, setting, "train", 1, True, True)
    for name in ("conflict", "affinity"):
        probe.probes[name](moment)
    handle.remove()
    assert moment.kept is not None
    assert len(calls) < apart


def test_weights_that_are_not_finite_are_named_at_any_epoch(data) -> None:
    model = explainer()
    probe = TrainingProbe("explainer", model, data, ObjectiveConfig(name="hard"), CONFIG, 9)
    assert 2 not in probe.probes["conflict"].setting.probed
    with torch.no_grad():
        next(model.levels[1].parameters()).fill_(torch.nan)
    with pytest.raises(KdxError, match="features on level 3 are not finite"):
        probe(Epoch(2, 9, 0.0, 0.0, 1.0, None), model)


@pytest.mark.parametrize("gates_", ["parameter", "input"])
def test_two_classes_leave_only_what_two_cannot_tell(data, gates_) -> None:
    def two(split):
        return split.subset((split.labels < 2).nonzero().flatten())

    splits = {name: two(getattr(data, name)) for name in ("train", "val", "test")}
    data = dataclasses.replace(data, classes=data.classes[:2], **splits)
    torch.manual_seed(0)
    model = HME.from_student(build_model("digits_student", 2, 1), 2, 2, gates=gates_)
    probe = TrainingProbe("explainer", model, data, ObjectiveConfig(name="hard"), CONFIG, 1)
    probe(Epoch(1, 1, 0.0, 0.0, 1.0, None), model)
    tables = probe.tables()
    for name in ("gates", "pathways", "routing", "conflict", "conflict_summary", "output_conflict"):
        assert not tables[name].isna().any(axis=None)
    assert (tables["agreement"]["null_draws"] == 0).all()
    assert tables["agreement"]["p"].isna().all()


def test_input_gates_are_averaged_over_samples_and_their_pathways_composed_per_sample(data) -> None:
    torch.manual_seed(0)
    model = HME.from_student(build_model("digits_student", 10, 1), 10, 3, gates="input")
    probe = TrainingProbe("explainer", model, data, ObjectiveConfig(name="hard"), CONFIG, 1)
    x, y = images(data, "train")
    with undisturbed(model), torch.no_grad():
        untrained = model.trace(x).attention
    with torch.no_grad():
        for gate in model.gates:
            gate.out.weight.mul_(20)
    probe(Epoch(1, 1, 0.0, 0.0, 1.0, None), model)
    tables = probe.tables()
    with undisturbed(model), torch.no_grad():
        attention = [a.double() for a in model.trace(x).attention]
    heads = (
        tables["gates"]
        .query("level == 5")
        .pivot(index="child_index", columns="parent", values="alpha")
    )
    np.testing.assert_allclose(heads, attention[3].mean(dim=0), rtol=1e-6)
    sevens = tables["gates_by_class"].query("level == 5 and true_class == '7'")
    sevens = sevens.pivot(index="child_index", columns="parent", values="alpha")
    np.testing.assert_allclose(sevens, attention[3][y == 7].mean(dim=0), rtol=1e-6)
    sample = tables["gates_by_sample"].query(f"level == 3 and id == {probe.ids['train'][5]}")
    sample = sample.pivot(index="child_index", columns="parent", values="alpha")
    np.testing.assert_allclose(sample, attention[1][5], rtol=1e-6)
    paths = (attention[3] @ attention[2]).mean(dim=0)
    of_level3 = (
        tables["pathways"]
        .query("level == 3")
        .pivot(index="subtask_index", columns="expert", values="alpha")
    )
    np.testing.assert_allclose(of_level3, paths, rtol=1e-6)
    assert not np.allclose(paths, attention[3].mean(dim=0) @ attention[2].mean(dim=0), rtol=1e-3)
    summary = (
        tables["gate_summary"].query("attention == 'alpha'").set_index(["of", "level", "metric"])
    )
    entropy = summary.loc[("gates", 5, "entropy")]
    assert entropy["value"] == pytest.approx(gating.entropy(attention[3]).mean().item(), rel=1e-6)
    assert entropy["initial"] == pytest.approx(gating.entropy(untrained[3]).mean().item(), rel=1e-5)
    assert entropy["n"] == 30 * 10
    mean = gates.specialisation(attention[3].mean(dim=0)).item()
    parts = [
        summary.loc[("pathways", 4, m), "value"]
        for m in ("specialisation", "specialisation_shuffled")
    ]
    assert sum(parts) == pytest.approx(mean, rel=1e-6)


def test_routing_is_held_against_teacher_and_confusion(recorded, data) -> None:
    _, probe, tables = recorded
    rows = at_end(tables["agreement"])
    assert set(rows["reference"]) == {"teacher", "confusion"}
    assert set(rows["level"]) == {2, 3, 4}
    row = at_end(
        tables["agreement"], level=4, attention="alpha", reference="teacher", method="spearman"
    ).iloc[0]
    routed = at_end(tables["routing"], level=4, attention="alpha")["distance"]
    taught = probe._teacher_logits[probe.probes["agreement"].setting.first]
    q = (taught / 4).softmax(dim=1).unflatten(0, (10, 3)).mean(dim=1)  # three images a class
    pairs = conflict.upper(q + q.T)
    assert row["value"] == pytest.approx(
        -pd.Series(pairs.numpy()).corr(routed.reset_index(drop=True), "spearman")
    )
    assert 1 / 40 <= row["p"] <= 1
    assert (row["null_draws"], row["pairs"]) == (39, 45)


def test_claims_of_subtasks_are_counted_beside_their_null(recorded, data) -> None:
    model, _, tables = recorded
    x, _ = images(data, "val")
    with undisturbed(model), torch.no_grad():
        claims = model(x) > 0
    rows = at_end(tables["output_conflict"], split="val")
    whole = rows[rows["a"] == ""].set_index("metric")
    assert whole.loc["orphans", "value"] == pytest.approx(
        (~claims.any(dim=1)).float().mean().item()
    )
    assert whole.loc["double_claims", "value"] == pytest.approx(
        (claims.sum(dim=1) > 1).float().mean().item()
    )
    pair = rows[(rows["a"] == "3") & (rows["b"] == "8")].iloc[0]
    assert pair["value"] == pytest.approx((claims[:, 3] & claims[:, 8]).float().mean().item())
    assert len(rows) == 2 + 45


def test_equal_losses_are_computed_once_and_told_under_both_names(data, monkeypatch) -> None:
    """The objective ``hard`` is the plain hard loss: one set of gradients makes both terms."""
    asked = []
    grams = conflict_probe.subtask_grams

    def counting(model, images, residuals, **options):
        asked.append(len(residuals))
        return grams(model, images, residuals, **options)

    monkeypatch.setattr(conflict_probe, "subtask_grams", counting)
    _, probe = record(data, ObjectiveConfig(name="hard"), None)
    assert set(asked) == {1 + DRAWS}
    for kind in ("conflict", "conflict_summary", "contention", "contention_by_expert"):
        table = probe.tables()[kind]
        hard, own = (
            table[table["term"] == term].drop(columns="term").reset_index(drop=True)
            for term in ("hard", "objective")
        )
        assert len(hard)
        pd.testing.assert_frame_equal(hard, own)
    asked.clear()
    record(data, ObjectiveConfig(name="label_smoothing"), None)
    assert set(asked) == {2 * (1 + DRAWS)}


def test_nulls_have_fewer_draws_before_the_last_probed_epoch(data) -> None:
    whole = conflict_at(data, CONFIG)
    table = conflict_at(data, CONFIG.model_copy(update={"inner_null_draws": 19}))
    assert dict(table.groupby("epoch")["null_draws"].unique().map(list)) == {1: [19], 3: [39]}
    assert table[table["epoch"] == 1]["null_low"].isna().all()
    at_end = table["epoch"] == 3
    pd.testing.assert_frame_equal(table[at_end], whole[at_end])
    # The value is the same, and the null's first 19 draws are.
    np.testing.assert_allclose(table["cosine"], whole["cosine"], atol=1e-5)
    assert (table["null_mean"] != whole["null_mean"]).any()


def conflict_at(data: Dataset, config: ProbeConfig) -> pd.DataFrame:
    """Of the epochs 1 and 3 of 3."""
    model = explainer()
    only = {"affinity": False, "agreement": False, "gates": False}
    config = config.model_copy(update={"sections": only})
    probe = TrainingProbe(
        "explainer", model, data, ObjectiveConfig(name="hard"), config, 3, splits=("train",)
    )
    for epoch in (1, 3):
        probe(Epoch(epoch, 3, 0.0, 0.0, 0.5, 0.0), model)
    return probe.tables()["conflict"]


def test_fewer_draws_and_pairs_are_announced(data) -> None:
    model = explainer()

    def cost(**options: int) -> Cost:
        sections = {"affinity": False}
        config = CONFIG.model_copy(update={"sections": sections, **options})
        return training_cost(
            "explainer", model, data, ObjectiveConfig(name="kd"), config, 3, ("train",)
        )

    full, fewer = cost(), cost(inner_null_draws=19)
    assert fewer.values * (2 * 40) == full.values * (20 + 40)
    assert fewer.memory == full.memory
    assert cost(pairs=45) == full


def test_one_sample_of_pairs_serves_all_epochs_splits_and_terms() -> None:
    classes = 12
    torch.manual_seed(0)
    images = torch.randint(256, (20 * classes, 1, 8, 8), dtype=torch.uint8)
    pairs = images, torch.arange(20 * classes) % classes
    data = Dataset.from_tensors(pairs, pairs, val_fraction=0.2, name="twelve")
    model = HME.from_student(build_model("digits_student", classes, 1), classes, (2, 3, 4))
    config = CONFIG.model_copy(
        update={"pairs": 50, "per_class": 1, "sections": {"affinity": False, "agreement": False}}
    )
    objective = ObjectiveConfig(name="label_smoothing")
    probe = TrainingProbe("explainer", model, data, objective, config, 1)
    probe(Epoch(1, 1, 0.0, 0.0, 0.5, 0.0), model)
    tables = probe.tables()
    chosen = [
        list(zip(rows["a_index"], rows["b_index"], strict=True))
        for _, rows in tables["conflict"].groupby(["split", "term", "level"])
    ]
    assert len(chosen[0]) == 45
    assert all(each == chosen[0] for each in chosen)
    assert set(tables["conflict_summary"]["all_pairs"]) == {66}
    assert not {"contention", "contention_by_expert"} & set(tables)
