import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.probes import ConflictProbe, conflict_of, subtask_gradients
from kdx_analysis.probes.conflict.grams import subtask_grams
from tests.probes.subjects import K, explainer

LABELS = torch.arange(12) % K
OPTIONS = {"null_draws": 19, "permutations": 19}


@pytest.fixture
def images() -> Tensor:
    return torch.randn(12, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def seen(model: nn.Module, images: Tensor, labels: Tensor, size: int) -> ConflictProbe:
    probe = ConflictProbe(model)
    for batch in torch.arange(len(images)).split(size):
        probe.update(images[batch], labels[batch])
    return probe


@pytest.mark.parametrize("size", [1, 5])
def test_any_split_into_batches_gives_the_whole(images: Tensor, size: int) -> None:
    model = explainer()
    whole, parts = (
        conflict_of(model, images, LABELS, **OPTIONS),
        seen(model, images, LABELS, size).compute(**OPTIONS),
    )
    for name in ("pairs", "summary"):
        pd.testing.assert_frame_equal(
            getattr(parts, name), getattr(whole, name), rtol=1e-10, atol=1e-10
        )


def test_probes_of_several_processes_merge_to_the_whole(images: Tensor) -> None:
    model = explainer()
    probes = [
        seen(model, images[part], LABELS[part], 2)
        for part in (slice(0, 3), slice(3, 7), slice(7, 12))
    ]
    merged = probes[0].merge(*probes[1:]).compute(classes="abcde", max_memory=2**22, **OPTIONS)
    whole = conflict_of(model, images, LABELS, classes="abcde", **OPTIONS)
    pd.testing.assert_frame_equal(merged.pairs, whole.pairs, rtol=1e-10, atol=1e-10)
    assert len(probes[0].images) == 2


def test_a_mean_over_batches_would_not_be_the_whole(images: Tensor) -> None:
    """Why batches are kept: cosines of one probe set's halves do not average to its own."""
    model, labels = explainer(), torch.arange(10) % K
    whole = conflict_of(model, images[:10], labels, **OPTIONS)
    halves = [
        conflict_of(model, images[part], labels[part], **OPTIONS)
        for part in (slice(0, 5), slice(5, 10))
    ]
    apart = halves[0].merge(halves[1]).to_frame()["cosine"] - whole.to_frame()["cosine"]
    assert apart.abs().max() > 0.01


def test_gradients_of_batches_add_up_to_those_of_the_whole(images: Tensor) -> None:
    model, r = explainer(), torch.randn(2, 12, K, dtype=torch.float64)
    whole = subtask_gradients(model, images, r)
    parts = [subtask_gradients(model, images[b], r[:, b]) for b in torch.arange(12).split(5)]
    added = {name: sum(part[name] for part in parts) for name in whole}
    flat = torch.cat([g.flatten(2) for g in added.values()], dim=2)
    for name, gradient in whole.items():
        torch.testing.assert_close(added[name], gradient, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        flat @ flat.mT, subtask_grams(model, images, r).total(), rtol=1e-10, atol=1e-10
    )


def test_what_cannot_be_merged_or_computed_is_refused(images: Tensor) -> None:
    model = explainer()
    probe = ConflictProbe(model)
    with pytest.raises(KdxError, match="has seen no images"):
        probe.compute()
    with pytest.raises(KdxError, match="images hold values that are not finite"):
        probe.update(images * torch.nan, LABELS)
    with pytest.raises(KdxError, match="don't fit 12 images"):
        probe.update(images, LABELS[:3])
    assert probe.images == []
    probe.update(images[:3], LABELS[:3])
    with pytest.raises(KdxError, match="no image is of class '3', '4'"):
        probe.compute()
    other = explainer()
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    with pytest.raises(KdxError, match="models of other weights"):
        probe.merge(ConflictProbe(other))
    probe.update(images, LABELS)
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    with pytest.raises(KdxError, match="the model was changed"):
        probe.compute()


def test_a_loader_may_use_its_buffers_again(images: Tensor) -> None:
    model, labels = explainer(), torch.arange(len(images)) % K
    expected = seen(model, images, labels, len(images)).compute(null_draws=19)
    buffers = images.clone(), labels.clone()
    probe = ConflictProbe(model)
    probe.update(*buffers)
    for buffer in buffers:
        buffer.zero_()
    pd.testing.assert_frame_equal(probe.compute(null_draws=19).pairs, expected.pairs)
