"""Several trainings of one architecture, whose passes are made together as one net of N copies.

A training is what :func:`kdx_analysis.training.loop.fitting` begins. Each keeps its own loss,
gates, statistics of BatchNorm and state of the optimiser, draws from a random state of its own, and
does everything after an epoch for itself, with its own ordinary model. What it gives is what it
gives alone, to the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.func import vmap

from kdx_analysis.errors import KdxError
from kdx_analysis.models.together import RandomState, Together
from kdx_analysis.objectives import Batch, Objective
from kdx_analysis.training.kept_logits import EpochLogits
from kdx_analysis.training.loop import Pass, Training, logits_of, optimizer_of
from kdx_analysis.training.seconds import TEACHER, TRAINING, Seconds

R = TypeVar("R")
Start = Callable[[], Generator[Pass, float, R]]


def fit_together(
    starts: Sequence[Start[R]], seeds: Sequence[int], device: torch.device
) -> list[R | KdxError]:
    """What each training gives, in order; of one that fails, the error.

    A training whose loss stops being finite touches none of the others.

    Args:
        starts: each begins one training; their models are of one architecture, and they have the
            same configuration and data.
        seeds: each training's, of what it draws from torch's random state.
        device: that they train on.

    Raises KdxError if a training can't begin, or if the models can't be computed side by side.
    """
    members = []
    for start, seed in zip(starts, seeds, strict=True):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            members.append(_Member(start(), RandomState(device)))
    group = None
    try:
        for member in members:
            member.begin()
        group = Group([member.training for member in members], [each.state for each in members])
        while waiting := [member for member in members if member.result is None]:
            losses = group.train_epoch(waiting[0].waits)
            for member, loss in zip(members, losses, strict=True):
                if member.result is None:
                    member.go_on(loss)
    finally:
        for member in members:
            member.steps.close()
        if group is not None:
            group.net.apart()
    return [member.result for member in members if member.result is not None]


class _Member(Generic[R]):
    """One training of a group, which goes on with a random state and a stopwatch of its own."""

    def __init__(self, steps: Generator[Pass, float, R], state: RandomState) -> None:
        self.steps, self.state = steps, state
        self.result: R | KdxError | None = None

    @property
    def training(self) -> Training:
        return self.waits.training

    def begin(self) -> None:
        """Go on to the first pass."""
        with self.state.in_place():
            self.waits = next(self.steps)
        self.training.seconds.rest()

    def go_on(self, loss: float) -> None:
        """Take the mean loss of a pass, and go on to the next one or to the end."""
        seconds = self.training.seconds
        seconds.go_on()
        try:
            with self.state.in_place():
                self.waits = self.steps.send(loss)
        except StopIteration as finished:
            self.result = finished.value
        except KdxError as error:
            self.result = error
        finally:
            seconds.rest()


class Group:
    """What the passes of trainings share: the net of all models, one optimiser, images by seed."""

    def __init__(self, trainings: Sequence[Training], states: Sequence[RandomState]) -> None:
        self.trainings, self.states = trainings, states
        self.first = trainings[0]
        self.net = Together([training.model for training in trainings], states)
        # Of every element for itself: the optimiser of a stack is that of each of its slices.
        self.optimizer = optimizer_of(self.first.model, self.first.config, instead=self.net.stacked)
        self.scheduler = self.first.schedule(self.optimizer)
        self.alike = _alike(trainings)
        # Trainings of one seed draw the same order and augmentation, so one of them draws for all.
        self.leads = {training.seed: training for training in reversed(trainings)}
        asking = [training for training in trainings if training.objective.needs_teacher]
        self.asking = {_place(training): training for training in reversed(asking)}

    def train_epoch(self, waits: Pass) -> list[float]:
        """One pass over train for all; each objective's mean loss.

        It is the pass that one of them ``waits`` for, which is alike for all.
        """
        seconds = Seconds()
        for training in self.trainings:
            training.wrapped.train()
        with seconds.of(TRAINING):
            losses = self._pass(waits, seconds)
        shares = seconds.told()
        for training in self.trainings:
            for part in (TRAINING, TEACHER):
                training.seconds.add(part, shares[part] / len(self.trainings))
        return losses

    def _pass(self, waits: Pass, seconds: Seconds) -> list[float]:
        total = torch.zeros(len(self.trainings), device=self.first.fabric.device)
        kept = {key: training.kept(waits.epoch) for key, training in self.asking.items()}
        orders = {seed: lead.order() for seed, lead in self.leads.items()}
        frozen = [self.net.stacked[parameter] for parameter in self._frozen(waits)]
        for step in range(self.first.steps_per_epoch):
            images = {seed: lead.augmented(orders[seed][step]) for seed, lead in self.leads.items()}
            with seconds.of(TEACHER):
                logits = self._logits({seed: each for seed, (each, _) in images.items()}, kept)
            outputs, entropies = self._outputs(images, penalty=waits.gamma > 0)
            losses = self._losses(outputs, images, logits)
            self.optimizer.zero_grad()
            # Each loss depends on its own model alone, so the sum's gradient is that of each.
            (losses + waits.gamma * entropies if waits.gamma else losses).sum().backward()
            for parameter in frozen:
                parameter.grad = None
            self.optimizer.step()
            self.scheduler.step()
            total += losses.detach()
        means: list[float] = (total / self.first.steps_per_epoch).tolist()
        return means

    def _frozen(self, waits: Pass) -> list[nn.Parameter]:
        """The first model's parameters that stay as they are, from those of any of the models."""
        names = {id(p): name for name, p in waits.training.model.named_parameters()}
        mine = dict(self.first.model.named_parameters())
        return [mine[names[id(parameter)]] for parameter in waits.frozen]

    def _outputs(
        self, images: dict[int, tuple[Tensor, Tensor]], *, penalty: bool
    ) -> tuple[Tensor, Tensor]:
        shared = len(images) == 1
        each = [images[training.seed][0] for training in self.trainings]
        with self.first.fabric.autocast():
            return self.net(
                each[0] if shared else torch.stack(each), shared=shared, penalty=penalty
            )

    def _logits(
        self, images: dict[int, Tensor], kept: dict[tuple[int, int], EpochLogits | None]
    ) -> dict[tuple[int, int], Tensor]:
        """What the teachers give, each for the images of a seed."""
        logits = {}
        for place, training in self.asking.items():
            assert training.teacher is not None
            state = self.states[self.trainings.index(training)]
            with state.in_place() if training.teacher_draws else nullcontext():
                logits[place] = logits_of(
                    training.teacher,
                    images[training.seed],
                    training.fabric.autocast(),
                    kept[place],
                )
        return logits

    def _losses(
        self,
        outputs: Tensor,
        images: dict[int, tuple[Tensor, Tensor]],
        logits: dict[tuple[int, int], Tensor],
    ) -> Tensor:
        """Each training's objective, N, from its own outputs of N×B×K."""
        losses: dict[int, Tensor] = {}
        for numbers in self.alike:
            members = [self.trainings[number] for number in numbers]
            labels = [images[member.seed][1] for member in members]
            taught = [
                logits[_place(member)] for member in members if member.objective.needs_teacher
            ]
            if len(numbers) == 1:
                each = [_loss(members[0], outputs[numbers[0]], labels[0], *taught)]
            else:
                stacked = [torch.stack(tensors) for tensors in (labels, taught) if tensors]
                each = list(vmap(partial(_loss, members[0]))(outputs[numbers], *stacked))
            losses |= dict(zip(numbers, each, strict=True))
        return torch.stack([losses[number] for number in range(len(losses))])


def _loss(
    training: Training, outputs: Tensor, labels: Tensor, taught: Tensor | None = None
) -> Tensor:
    batch = Batch(outputs, labels, taught, training.generators["shuffling"])
    return training.objective.of_batch(batch)


def _alike(trainings: Sequence[Training]) -> list[list[int]]:
    """Places of trainings whose losses are one computation: seeds of an objective.

    An objective that draws random numbers, or that vmap can't compute, is computed run by run.
    """
    places: dict[object, list[int]] = {}
    for number, training in enumerate(trainings):
        objective = training.objective
        same = (objective.config.model_dump_json(), objective.scale)
        places.setdefault(same if _stacks(objective, training) else number, []).append(number)
    return list(places.values())


def _stacks(objective: Objective, training: Training) -> bool:
    """Whether vmap computes an objective, tried on two batches of two samples."""
    K, device = training.data.num_classes, training.fabric.device
    taught = (torch.zeros(2, 2, K, device=device),) if objective.needs_teacher else ()
    batches = (torch.zeros(2, 2, K, device=device), torch.zeros(2, 2, device=device).long())

    def loss(outputs: Tensor, labels: Tensor, logits: Tensor | None = None) -> Tensor:
        return objective.of_batch(Batch(outputs, labels, logits, torch.Generator()))

    try:
        vmap(loss, randomness="error")(*batches, *taught)
    except (RuntimeError, TypeError, ValueError):
        return False
    return True


def _place(training: Training) -> tuple[int, int]:
    """The seed and the teacher; one that draws random numbers gives each training its own."""
    by = training if training.teacher_draws else training.teacher
    return training.seed, id(by)
