"""Heads of two logits a class: m_k = z_k1 − z_k0 in training and probes alike, and the released
code's scores apart.
"""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kdx_analysis as kdx
from kdx_analysis.config import ObjectiveConfig, TrainingConfig
from kdx_analysis.models import HME
from kdx_analysis.models.learn_to_branch import Released, learn_to_branch
from kdx_analysis.models.modes import undisturbed
from kdx_analysis.objectives import one_vs_rest_margins
from kdx_analysis.probes.affinity import subtask_affinity
from kdx_analysis.probes.subtasks import OneVsRest
from kdx_analysis.study import probe_run as probing
from kdx_analysis.training import fit
from tests.conftest import toy_study
from tests.models.reference_learn_to_branch import checkpoint, released_network
from tests.toys import dataset, split

K, LABELS = 3, torch.arange(6) % 3
IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def released(**options) -> HME:
    """With random weights, so that margins and scores differ in sign; of the multi-class form."""
    network = released_network(K, "nce", experts=(1, 2, 2), dropout=0.0, **options).double()
    model = Released.read(checkpoint(network)).explainer().eval()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def both_forms() -> tuple[HME, HME]:
    """The same weights, once giving margins and once giving scores."""
    scores = released()
    margins = copy.deepcopy(scores)
    margins.multiclass = False
    return margins, scores


def by_hand(model: HME, images: Tensor = IMAGES) -> Tensor:
    logits = model.heads.layers(model.trace(images).inputs)
    return logits[..., 1] - logits[..., 0]


@torch.no_grad()
def test_a_trace_holds_margins_and_scores_and_the_call_says_which():
    margins, scores = both_forms()
    for model in (margins, scores):
        trace = model.trace(IMAGES)
        logits = model.heads.layers(trace.inputs)
        assert torch.equal(trace.margins, logits[..., 1] - logits[..., 0])
        assert torch.equal(trace.margins, model.heads.margins(trace.inputs))
        assert torch.equal(trace.scores, logits.amax(dim=-1))
    assert ((trace.margins > 0) != (trace.scores > 0)).any()
    assert torch.equal(margins(IMAGES), trace.margins)
    assert torch.equal(scores(IMAGES), trace.scores)
    fresh = kdx.learn_to_branch(4, "nce").eval()
    x = IMAGES.float()
    assert torch.equal(fresh(x), fresh.heads.margins(fresh.trace(x).inputs))


def test_margins_and_scores_in_training_are_of_one_pass_through_dropout():
    model = learn_to_branch(K, "nce", (1, 2, 2)).train()
    seen = []
    model.heads.layers.register_forward_hook(lambda module, inputs, logits: seen.append(logits))
    trace = model.trace(IMAGES.float())
    (logits,) = seen
    assert torch.equal(trace.margins, logits[..., 1] - logits[..., 0])
    assert torch.equal(trace.scores, logits.amax(dim=-1))


@torch.no_grad()
@pytest.mark.parametrize("form", ["ce", "nce"])
def test_with_one_logit_margins_and_scores_are_the_same(form):
    trace = learn_to_branch(K, form, (1, 2, 2)).eval().trace(IMAGES.float())
    assert torch.equal(trace.margins, trace.scores) == (form == "ce")


@torch.no_grad()
@pytest.mark.parametrize("multiclass", [False, True])
def test_copies_trees_and_saved_weights_give_the_same_kind(multiclass, tmp_path):
    model = both_forms()[multiclass]
    hard = model.harden()
    tree = hard.pruned()
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), hard, tree):
        trace = copied.trace(IMAGES)
        assert torch.equal(copied(IMAGES), trace.scores if multiclass else trace.margins)
    torch.testing.assert_close(tree(IMAGES), hard(IMAGES))
    other = learn_to_branch(K, "nce", (1, 2, 2), multiclass=multiclass).double().eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(IMAGES), model(IMAGES))
    other.redraw()
    assert other.multiclass == multiclass


@torch.no_grad()
@pytest.mark.parametrize("multiclass", [False, True])
def test_an_exported_model_gives_what_the_model_gives(multiclass):
    model = both_forms()[multiclass]
    program = torch.export.export(model, (IMAGES,))
    torch.testing.assert_close(program.module()(IMAGES), model(IMAGES))


def test_the_margins_form_shares_the_modules_and_leaves_the_model():
    _, scores = both_forms()
    shared = scores.giving_margins()
    assert torch.equal(shared(IMAGES), by_hand(scores))
    assert scores.multiclass
    assert [id(p) for p in shared.parameters()] == [id(p) for p in scores.parameters()]
    scores.train()
    with undisturbed(shared):
        assert not any(module.training for module in scores.levels.modules())
    assert all(module.training for module in scores.modules())


def test_conflict_and_claims_are_those_of_the_difference():
    margins, scores = both_forms()
    shared = [p for part in (scores.trunk, scores.levels) for p in part.parameters()]
    m = by_hand(scores)
    one_hot = F.one_hot(LABELS, K).double()
    losses = F.binary_cross_entropy_with_logits(m, one_hot, reduction="none").sum(dim=0)
    rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
    g = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    cosines = F.normalize(g) @ F.normalize(g).T
    for model in (margins, scores):
        pairs = kdx.probes.conflict_of(model, IMAGES, LABELS, null_draws=19).pairs.query(
            "level == 'all'"
        )
        wanted = cosines.numpy()[pairs["a_index"], pairs["b_index"]]
        np.testing.assert_allclose(pairs["cosine"], wanted, rtol=1e-6, atol=1e-9)
        asked = OneVsRest.of(model, IMAGES, LABELS, None, None)
        assert torch.equal(asked.outputs > 0, m > 0)
    of_scores = kdx.probes.conflict_of(
        scores, IMAGES, LABELS, margins=one_vs_rest_margins, null_draws=19
    )
    apart = of_scores.pairs.query("level == 'all'")["cosine"] - pairs["cosine"]
    assert apart.abs().max() > 0.01


def test_every_other_probe_gives_one_answer_for_both_forms():
    margins, scores = both_forms()
    z = [
        kdx.probes.affinity_of(model, IMAGES, LABELS, null_draws=1)["value"]
        for model in (margins, scores)
    ]
    np.testing.assert_allclose(*z)
    asked = OneVsRest.of(margins, IMAGES, LABELS, None, None)
    torch.testing.assert_close(
        *[subtask_affinity(model, IMAGES, asked.loss) for model in (margins, scores)]
    )
    drops = [
        kdx.probes.ablate(model, IMAGES, LABELS, permutations=19).drops
        for model in (margins, scores)
    ]
    torch.testing.assert_close(*drops)
    few = IMAGES[:2]
    maps = [
        kdx.probes.integrated_gradients(model, few, 1, steps=32).maps for model in (margins, scores)
    ]
    torch.testing.assert_close(*maps)
    with torch.no_grad():
        change = by_hand(scores, few)[:, 1] - by_hand(scores, torch.zeros_like(few))[:, 1]
    torch.testing.assert_close(maps[0].sum(dim=(1, 2)), change, rtol=0.1, atol=0.02)


DATA = dataset(
    train=split("train", 4),
    val=split("val", 2, first_id=12),
    test=split("test", 2),
    pad=0,
    flip=False,
)


class ToDouble(nn.Module):
    """In the place of a trunk: images of float32 for a model of float64."""

    def forward(self, images: Tensor) -> Tensor:
        return images.double()


@pytest.mark.parametrize("decomposition", ["binary", "multiclass"])
def test_one_step_of_training_is_on_margins_or_on_the_released_codes_scores(decomposition):
    model = released(in_channels=1)
    model.trunk, model.multiclass = ToDouble(), decomposition == "multiclass"
    images = DATA.normalise(DATA.train.images.take(torch.arange(len(DATA.train))))
    labels = DATA.train.labels
    before = copy.deepcopy(model).train()
    logits = before.heads.layers(before.trace(images).inputs).float()
    if decomposition == "multiclass":
        loss = F.cross_entropy(logits.amax(dim=-1), labels)
    else:
        one_hot = F.one_hot(labels, K).float()
        difference = logits[..., 1] - logits[..., 0]
        loss = (
            F.binary_cross_entropy_with_logits(difference, one_hot, reduction="none")
            .sum(dim=1)
            .mean()
        )
    loss.backward()
    lr = 1e-3
    config = TrainingConfig(
        epochs=1,
        batch_size=len(labels),
        lr=lr,
        optimizer="sgd",
        nesterov=False,
        weight_decay=0,
        schedule="constant",
        warmup_epochs=0,
    )
    objective = ObjectiveConfig.model_validate({"name": "hard", "decomposition": decomposition})
    told = fit(model, DATA, objective, config, seed=0).history.query(
        "split == 'train' and metric == 'loss'"
    )
    assert told["value"].item() == pytest.approx(loss.item(), rel=1e-5)
    last, first = model.heads.layers[6], before.heads.layers[6]
    torch.testing.assert_close(
        last.weight, first.weight - lr * first.weight.grad, rtol=1e-6, atol=1e-9
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A study of both decompositions with two logits a class, its trees too."""
    explainer = {
        "preset": "learn_to_branch",
        "form": "nce",
        "experts": [1, 2, 2],
        "phase2": {"weights": "kept"},
    }
    objectives = [{"name": "hard", "decomposition": name} for name in ("binary", "multiclass")]
    study = toy_study(objectives=objectives, seeds=1, explainer=explainer, roles=["explainer"])
    return study, study.run(tmp_path_factory.mktemp("both"), report=False)


@pytest.mark.parametrize("role", ["explainer", "tree"])
@pytest.mark.parametrize("decomposition", ["binary", "multiclass"])
def test_runs_of_a_study_are_scored_and_probed_on_what_they_are_trained_on(
    both, decomposition, role
):
    study, runs = both
    (run,) = [run for run in runs.filter(role=role) if run.info["decomposition"] == decomposition]
    model, _ = probing.model_of(run, study)
    images = study.dataset.normalise(
        study.dataset.test.images.take(torch.arange(len(study.dataset.test)))
    )
    labels = study.dataset.test.labels
    with torch.no_grad():
        logits = model.heads.layers(model.trace(images).inputs)
        difference, largest = logits[..., 1] - logits[..., 0], logits.amax(dim=-1)
        binary = F.binary_cross_entropy_with_logits(
            difference, F.one_hot(labels, K).float(), reduction="none"
        )
        loss = (
            binary.sum(dim=1).mean()
            if decomposition == "binary"
            else F.cross_entropy(largest, labels)
        )
    told = run.record("metrics").query("split == 'test' and metric == 'hard_loss'")["value"].item()
    assert told == pytest.approx(loss.item(), rel=1e-4)

    asked = probing._asked(model, run)
    wanted = difference if decomposition == "binary" else one_vs_rest_margins(largest)
    with torch.no_grad():
        torch.testing.assert_close(asked(images), wanted)
    if role == "tree":
        return
    teacher = runs.filter(role="teacher").runs[0]
    tables = probing.probe_run(run, study, teacher.path, ("val",)).tables
    probe_images, probe_labels = study.dataset.probe_images("val", study.config.probes.per_class)
    with torch.no_grad():
        claimed = (asked(probe_images) > 0).sum(dim=1)
    orphans = tables["output_conflict"].query("metric == 'orphans'")["value"].item()
    assert orphans == pytest.approx((claimed == 0).double().mean().item())
    pairs = tables["conflict"].query("term == 'hard' and level == 'all'")["cosine"].to_numpy()
    options = {"margins": one_vs_rest_margins} if decomposition == "multiclass" else {}
    alone = kdx.probes.conflict_of(model, probe_images, probe_labels, null_draws=19, **options)
    cosines = alone.pairs.query("level == 'all'")["cosine"].to_numpy()
    np.testing.assert_allclose(pairs, cosines, rtol=1e-3, atol=1e-4)
