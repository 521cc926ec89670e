import pytest
import torch
from torch import nn

from kdx_analysis.config import Phase2Config
from kdx_analysis.models import HME, Tree
from kdx_analysis.models.tree.record import tree_record
from kdx_analysis.study.roles import grow
from kdx_analysis.training.checkpoints import fingerprint
from tests.toys import CLASSES, dataset, staged_net

IMAGES = dataset().normalise(dataset().train.images.take(torch.arange(12)))


def explainer(seed: int = 0, **options) -> HME:
    """Two levels of two experts, a little trained statistics in its normalisations."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = HME.from_student(staged_net(), 3, 2, image_shape=(1, 8, 8), **options)
    model(IMAGES)
    return model.eval()


def outputs(model: HME) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IMAGES)


def set_gates(model: HME, *logits: list[list[float]]) -> None:
    for gate, rows in zip(model.gates, logits, strict=True):
        gate.logits.data = torch.tensor(rows)


def test_a_tree_of_kept_weights_starts_as_the_hard_explainer():
    model = explainer()
    set_gates(
        model, [[1.0, 0.0], [0.0, 1.0]], [[2.0, 1.0]] * 3
    )  # expert 1 of the last level is dead, then its parent
    tree = grow(model, IMAGES, Phase2Config(weights="kept"))
    assert tree.hard
    assert tree.experts == (1, 1, 1)
    torch.testing.assert_close(outputs(tree), outputs(model.harden()))
    assert not torch.allclose(outputs(tree), outputs(model))
    assert fingerprint(tree) == fingerprint(model.harden().pruned())


def test_a_tree_of_redrawn_weights_has_the_same_gates():
    model = explainer()
    set_gates(model, [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    tree, kept = (
        grow(model, IMAGES, Phase2Config(weights=weights)) for weights in ("redrawn", "kept")
    )
    assert tree.tree(CLASSES) == kept.tree(CLASSES) == model.tree(CLASSES)
    for a, b in zip(tree.parameters(), kept.parameters(), strict=True):
        assert a.shape == b.shape
        assert a.ndim == 1 or not torch.equal(a, b)


def test_trees_of_one_seed_start_with_the_same_weights_where_they_share_experts():
    started = []
    for last in ([[1.0, 0.0]] * 3, [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]):
        model = explainer(seed=len(started))
        set_gates(model, [[1.0, 0.0], [0.0, 1.0]], last)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            started.append(grow(model, IMAGES, Phase2Config()))
    one, two = started
    assert (one.experts, two.experts) == ((1, 1, 1), (1, 2, 2))
    for part in ("trunk", "heads"):
        for a, b in zip(
            getattr(one, part).parameters(), getattr(two, part).parameters(), strict=True
        ):
            assert torch.equal(a, b)
    for level, shared in zip(one.levels, two.levels, strict=True):
        for a, b in zip(level.parameters(), shared.parameters(), strict=True):
            assert torch.equal(a, b[: len(a)])


def test_a_loud_expert_with_little_attention_is_chosen_by_effective_attention():
    model = explainer()
    set_gates(model, [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0]] * 3)  # α about (.73, .27)
    scale = [module for module in model.levels[-1].modules() if isinstance(module, nn.BatchNorm2d)][
        -1
    ].weight
    scale.data[: len(scale) // 2] *= 0.01  # expert 0 is as good as constant; its shift is 0
    chosen = {
        by: grow(model, IMAGES, Phase2Config(weights="kept", by=by))
        for by in ("alpha", "effective")
    }
    first = torch.ones(2, 1)
    for by, parent in (("alpha", 0), ("effective", 1)):
        heads = torch.eye(2)[[parent] * 3]
        torch.testing.assert_close(
            outputs(chosen[by]), outputs(model.harden([first, torch.eye(2), heads]))
        )


def test_gates_that_read_the_input_are_hardened_by_their_mean():
    model = explainer(gates="input")
    with torch.no_grad():
        _, *attention = model.trace(IMAGES).attention
    tree = grow(model, IMAGES, Phase2Config(weights="kept"))
    means = [torch.ones(2, 1), *(gate.mean(dim=0) for gate in attention)]
    torch.testing.assert_close(outputs(tree), outputs(model.harden(means)))


@pytest.mark.parametrize("weights", ["redrawn", "kept"])
def test_the_explainer_is_left_as_it_was(weights):
    model = explainer().train()
    before = fingerprint(model)
    grow(model, IMAGES, Phase2Config(weights=weights))
    assert fingerprint(model) == before
    assert model.training


def test_the_record_of_a_tree_by_hand():
    record = tree_record(Tree(("a", "b"), (1, 2, 1), ((0, 0), (1,), (0, 0))))
    assert record.to_dict("split")["data"] == [
        [2, 0, 0, ""],
        [2, 1, 0, ""],
        [3, 0, 1, ""],
        [4, 0, 0, "a"],
        [4, 1, 0, "b"],
    ]
    assert list(record.columns) == ["child_level", "child", "parent", "subtask"]
