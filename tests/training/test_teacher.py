import pytest
import torch
from torch import nn

from kdx_analysis.config import ObjectiveConfig, TrainingConfig
from kdx_analysis.errors import KdxError
from kdx_analysis.training import fit
from kdx_analysis.training.checkpoints import fingerprint
from kdx_analysis.training.teacher import check_teacher
from tests.toys import RowTeacher, dataset, staged_net

CONFIG = TrainingConfig(epochs=1, batch_size=16, warmup_epochs=0)


class Nearest(nn.Module):
    """Right on pixels in [0, 1]: the class whose rows are nearest to the brightness that bright
    ones have there.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.mean(dim=(1, 3)).unflatten(1, (4, 2)).mean(dim=2)[:, :3]
        return -(rows - 140 / 255).abs()


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, outputs: torch.Tensor) -> torch.Tensor:
        return self.factor * outputs


class Guess(nn.Module):
    """An untrained teacher: answers that have nothing to do with the image's class."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 7, :3]


def test_a_right_teacher_passes():
    assert check_teacher(RowTeacher(), dataset()) > 0.9
    assert check_teacher(Nearest(), dataset(mean=(0.0,), std=(1.0,))) > 0.9


def test_permuted_classes_are_found_and_named():
    with pytest.raises(
        KdxError, match=r"another order than the data's: 0% .* 100% when reading"
    ) as caught:
        check_teacher(RowTeacher(order=(1, 2, 0)), dataset())
    # rows of 'bee' drive its output 0, which is read as 'ant'
    assert "'ant' as 'bee'" in str(caught.value)
    assert "reorder its outputs to ['ant', 'bee', 'cat']" in str(caught.value)


def test_a_wrong_normalisation_is_found_and_the_right_one_named():
    with pytest.raises(
        KdxError, match=r"normalised otherwise: .* with pixels in \[0, 1\]; give the data"
    ):
        check_teacher(Nearest(), dataset(mean=(0.0,), std=(0.1,)))


def test_a_teacher_that_only_guesses_is_not_said_to_be_permuted():
    assert check_teacher(Guess(), dataset()) < 0.7


def test_the_teacher_is_left_as_it_was():
    teacher, rng = RowTeacher().train(), torch.get_rng_state()
    check_teacher(teacher, dataset())
    assert teacher.training
    assert teacher.norm.running_mean.item() == 0
    assert torch.equal(torch.get_rng_state(), rng)


class Ending(nn.Module):
    """A right teacher with something at its end."""

    def __init__(self, end) -> None:
        super().__init__()
        self.net, self.end = RowTeacher(), end

    def forward(self, images: torch.Tensor):
        return self.end(self.net(images))


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (
            nn.Softmax(dim=1),
            r"the teacher gives probabilities, not logits: every row .* take the softmax off",
        ),
        (
            nn.Sigmoid(),
            r"the teacher gives probabilities, not logits: all its outputs .* take the sigmoid off",
        ),
        (lambda z: 100 * z.softmax(dim=1), r"sums to 100"),
        (lambda z: z.softmax(dim=1).half(), r"every row of its outputs sums to 1"),
        (lambda z: z / 0, r"the outputs of the teacher are not finite on 24 of 24 images"),
        (lambda z: (z, z), r"Ending gives a tuple, not one tensor of logits: wrap it"),
        (lambda z: {"logits": z}, r"Ending gives a dict, not one tensor of logits: wrap it"),
        (lambda z: z[:, :2], r"outputs of shape 24×2, wanted 24×3"),
        (lambda z: z.argmax(dim=1), r"outputs of shape 24, wanted 24×3"),
    ],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_what_can_be_no_logits_is_refused_whatever_its_argmax(end, message, autocast):
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        pytest.raises(KdxError, match=message),
    ):
        check_teacher(Ending(end), dataset())


@pytest.mark.parametrize(
    "end",
    [
        nn.LogSoftmax(dim=1),
        nn.LogSigmoid(),
        lambda z: z / 100,
        lambda z: z / 4 + 50,
        lambda z: z / 4 - 3,
    ],
)
def test_outputs_whose_targets_may_be_those_of_logits_pass(end):
    assert check_teacher(Ending(end), dataset()) > 0.9


@pytest.mark.parametrize("end", [torch.zeros_like, torch.ones_like])
def test_a_teacher_that_knows_nothing_gives_logits_too(end):
    assert check_teacher(Ending(end), dataset()) == pytest.approx(1 / 3)


def test_training_by_hand_refuses_such_a_teacher_before_the_first_step():
    model = staged_net()
    before = fingerprint(model)
    for name in ("kd", "kd_flat", "kd_shuffled"):
        with pytest.raises(KdxError, match="the teacher gives probabilities, not logits"):
            fit(
                model,
                dataset(),
                ObjectiveConfig(name=name),
                CONFIG,
                seed=0,
                teacher=Ending(nn.Sigmoid()),
            )
    assert fingerprint(model) == before
    fit(
        model, dataset(), ObjectiveConfig(name="hard"), CONFIG, seed=0, teacher=Ending(nn.Sigmoid())
    )  # not asked


@pytest.mark.parametrize("end", [nn.Sigmoid(), nn.Softmax(dim=1)])
def test_a_soft_end_is_told_by_the_graph(end):
    """Outputs that hardly differ, as an untrained model's logits do."""
    with pytest.raises(KdxError, match="probabilities, not logits"):
        check_teacher(nn.Sequential(RowTeacher(), Times(0.01), end), dataset())
