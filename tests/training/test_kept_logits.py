from dataclasses import replace

import pytest
import torch

from kdx_analysis.config import ObjectiveConfig, TrainingConfig
from kdx_analysis.models import HME
from kdx_analysis.training import fit, reproducible
from kdx_analysis.training.checkpoints import fingerprint
from kdx_analysis.training.kept_logits import Shelf
from tests.toys import RowTeacher, dataset, staged_net

EPOCH = 3 * 16  # batches of 16 of the 48 training images
FILE = EPOCH * 3 * 4  # bytes of its numbers: three classes, float32


class Counted(RowTeacher):
    """Counts the training batches of 16 that it is asked about."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.asked: list[int] = [0]

    def __deepcopy__(self, memo) -> "Counted":
        copied = Counted(scale=self.scale.item())
        copied.asked = self.asked
        return copied

    def forward(self, images):
        self.asked[0] += len(images) == 16
        return super().forward(images)


def trained(shelf, name="kd_shuffled", seed=0, teacher=None, **changes):
    """Fingerprint, history and the number of batches that the teacher was asked about."""
    keys = {"epochs": 2, "batch_size": 16, "lr": 0.01, "warmup_epochs": 0} | changes
    teacher = teacher or Counted()
    with reproducible(seed, threads=1):
        model = HME.from_student(staged_net(), 3, 2)
        run = fit(
            model,
            dataset(),
            ObjectiveConfig(name=name),
            TrainingConfig(**keys),
            seed=seed,
            teacher=teacher,
            shelf=shelf,
        )
    return fingerprint(model), run.history.to_numpy().tolist(), teacher.asked[0]


@pytest.fixture
def shelf(tmp_path) -> Shelf:
    return Shelf(tmp_path / "logits" / "seed0", 10**6)


@pytest.mark.parametrize(
    "changes", [{}, {"precision": "bf16-mixed", "channels_last": True}], ids=["full", "mixed"]
)
def test_a_run_that_reads_the_teachers_logits_is_the_run_that_asks_it(shelf, changes):
    *alone, asked = trained(None, **changes)
    assert asked == 2 * 3
    *first, asked = trained(shelf, **changes)
    assert (first, asked) == (alone, 2 * 3)
    *second, asked = trained(shelf, **changes)
    assert (second, asked) == (alone, 0)


def test_another_objective_and_another_length_read_the_same_logits(shelf):
    trained(shelf, epochs=1)
    *alone, _ = trained(None, "kd", epochs=2)
    *read, asked = trained(shelf, "kd", epochs=2)
    assert (read, asked) == (alone, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"teacher": Counted(scale=7.0)},
        {"batch_size": 24},
        {"precision": "bf16-mixed"},
        {"channels_last": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_nothing_is_read_that_is_of_something_else(shelf, changes):
    trained(shelf)
    kept = set(shelf.path.iterdir())
    trained(shelf, **changes)
    assert len(set(shelf.path.iterdir()) - kept) == 2


def test_whole_epochs_that_fit_are_kept_and_the_others_asked_for(shelf):
    small = replace(shelf, limit=2 * FILE + 1024)
    trained(small)
    assert len(list(shelf.path.iterdir())) == 1
    assert trained(small)[2] == 3
    none = Shelf(shelf.path.parents[1] / "other" / "seed0", FILE)
    assert trained(none) == trained(None)
    assert not none.path.exists()


def test_a_damaged_file_is_computed_anew(shelf):
    whole = trained(shelf)
    for file in shelf.path.iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    assert trained(shelf) == whole
    assert trained(shelf)[2] == 0


def test_a_teacher_that_draws_random_numbers_is_always_asked(shelf):
    class Noisy(Counted):
        def forward(self, images):
            return super().forward(images) + torch.rand(())

        def __deepcopy__(self, memo):
            return self

    teacher = Noisy()
    trained(shelf, teacher=teacher)
    assert not shelf.path.exists()


def test_an_objective_without_a_teacher_keeps_nothing(shelf):
    assert trained(shelf, "hard")[2] == 0
    assert not shelf.path.exists()
