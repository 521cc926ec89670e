"""What is planted, pixel by pixel and label by label, and direct tests on outputs made by hand."""

import numpy as np
import pytest
import torch

from kdx_analysis.errors import KdxError
from kdx_analysis.probes.fidelity import planted


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(number: int, size: int = 8) -> torch.Tensor:
    return torch.randint(200, (number, 2, size, size), generator=drawn()).to(torch.uint8)


def test_a_share_of_one_class_is_relabelled_and_nothing_else():
    labels = torch.arange(5).repeat(20)
    confused = planted.confuse(labels, 3, 1, 0.3, drawn())
    changed = confused != labels
    assert changed.sum() == 6
    assert set(labels[changed].tolist()) == {3}
    assert set(confused[changed].tolist()) == {1}
    assert torch.equal(confused, planted.confuse(labels, 3, 1, 0.3, drawn()))
    assert not torch.equal(confused, planted.confuse(labels, 3, 1, 0.3, drawn(1)))
    assert labels.bincount().tolist() == [20] * 5  # what was handed in stays


@pytest.mark.parametrize(
    ("a", "b", "rate", "said"),
    [(1, 1, 0.5, "name two classes"), (7, 1, 0.5, "has images"), (1, 2, 1.5, "share of 1.5")],
)
def test_a_confusion_that_can_t_be_planted_is_refused(a, b, rate, said):
    with pytest.raises(KdxError, match=said):
        planted.confuse(torch.tensor([0, 1, 2]), a, b, rate, drawn())


def test_a_patch_covers_its_corner_alone():
    images = noise(3)
    stamped = planted.stamp(images, 2)
    assert (stamped[:, :, 6:, 6:] == 255).all()
    assert torch.equal(stamped[:, :, :6], images[:, :, :6])
    assert torch.equal(stamped[..., :6], images[..., :6])
    assert images.max() < 200
    for size in (0, 8):
        with pytest.raises(KdxError, match="choose a size between"):
            planted.stamp(images, size)


@pytest.mark.parametrize(("share", "number"), [(0.0, 0), (0.2, 2), (1.0, 10)])
def test_so_many_images_are_patched_or_turned_as_is_asked_for(share, number):
    images = noise(10)
    some, places = planted.stamp_some(images, 2, share, drawn())
    changed = (some != images).flatten(1).any(dim=1)
    assert changed.nonzero().flatten().tolist() == places.tolist()
    assert len(places) == number
    turned = planted.rotate_some(images, 30.0, share, drawn())
    assert int((turned != images).flatten(1).any(dim=1).sum()) == number


def test_a_quarter_turn_is_exact_and_every_image_has_its_own_angle():
    images = noise(3)
    turned = planted.rotate(images, torch.tensor([90.0, 0.0, -90.0]))
    expected = [images[0].rot90(1, (1, 2)), images[1], images[2].rot90(-1, (1, 2))]
    assert torch.equal(turned, torch.stack(expected))


def test_the_second_guess_is_the_strongest_wrong_class():
    scores = torch.randn(200, 6, generator=drawn())
    labels = torch.arange(200) % 6
    others = scores[labels == 2].numpy().copy()
    others[:, 2] = -np.inf
    for b in (0, 5):
        share = float((others.argmax(axis=1) == b).mean())
        assert planted.second_guess(scores, labels, 2, b) == pytest.approx(share, abs=1e-12)
    # Wherever the true class stands, and with probabilities of 0.
    sure = torch.full((1, 5), -torch.inf)
    sure[0, 1] = 0.0
    assert planted.second_guess(sure, torch.tensor([1]), 1, 4) == 0.25
    with pytest.raises(KdxError, match="name two classes"):
        planted.second_guess(scores, labels, 3, 3)


def test_only_answers_that_the_patch_changes_count_as_turned():
    one_hot = torch.eye(3)
    labels = torch.tensor([0, 1, 1, 2])
    plain, stamped = one_hot[[0, 2, 1, 2]], one_hot[[2, 2, 2, 2]]
    # The second was answered 2 already, and the last is of class 2.
    assert planted.turned_to(plain, stamped, labels, 2) == pytest.approx(2 / 3)
    assert planted.turned_to(plain, plain, labels, 2) == 0
    with pytest.raises(KdxError, match="every image is of class 1"):
        planted.turned_to(plain[:1], plain[:1], torch.tensor([1]), 1)


def test_kept_answers_are_those_that_stay_whatever_their_scores():
    one_hot = torch.eye(3)
    assert planted.kept(one_hot, 5 * one_hot) == 1
    assert planted.kept(one_hot, one_hot[[0, 2, 1]]) == pytest.approx(1 / 3)
