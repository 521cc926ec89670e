import pytest
import torch
from torch import nn

from kdx_analysis.errors import KdxError
from kdx_analysis.training.teacher import check_teacher
from tests.toys import RowTeacher, dataset


class Nearest(nn.Module):
    """Right on pixels in [0, 1]: the class whose rows are nearest to the brightness that bright ones have there."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.mean(dim=(1, 3)).unflatten(1, (4, 2)).mean(dim=2)[:, :3]
        return -(rows - 140 / 255).abs()


class Guess(nn.Module):
    """An untrained teacher: answers that have nothing to do with the image's class."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 7, :3]


def test_a_right_teacher_passes():
    assert check_teacher(RowTeacher(), dataset()) > 0.9
    assert check_teacher(Nearest(), dataset(mean=(0.0,), std=(1.0,))) > 0.9


def test_permuted_classes_are_found_and_named():
    with pytest.raises(KdxError, match=r"another order than the data's: 0% .* 100% when reading") as caught:
        check_teacher(RowTeacher(order=(1, 2, 0)), dataset())
    # rows of 'bee' drive its output 0, which is read as 'ant'
    assert "'ant' as 'bee'" in str(caught.value)
    assert "reorder its outputs to ['ant', 'bee', 'cat']" in str(caught.value)


def test_a_wrong_normalisation_is_found_and_the_right_one_named():
    with pytest.raises(KdxError, match=r"normalised otherwise: .* with pixels in \[0, 1\]; give the data"):
        check_teacher(Nearest(), dataset(mean=(0.0,), std=(0.1,)))


def test_a_teacher_that_only_guesses_is_not_said_to_be_permuted():
    assert check_teacher(Guess(), dataset()) < 0.7


def test_the_teacher_is_left_as_it_was():
    teacher, rng = RowTeacher().train(), torch.get_rng_state()
    check_teacher(teacher, dataset())
    assert teacher.training
    assert teacher.norm.running_mean.item() == 0
    assert torch.equal(torch.get_rng_state(), rng)
