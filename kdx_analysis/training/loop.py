"""The one training loop: teachers, students and explainers alike, on Lightning Fabric."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import pandas as pd
import torch
from torch import Tensor, nn

from kdx_analysis.config import ObjectiveConfig, TemperatureConfig, TrainingConfig, VAMConfig
from kdx_analysis.data import Dataset, Split, augment
from kdx_analysis.errors import KdxError
from kdx_analysis.metrics import evaluated
from kdx_analysis.models import HME
from kdx_analysis.models.answers import check_logits
from kdx_analysis.models.gates import ParameterGate, entropy_share
from kdx_analysis.models.modes import modes_kept
from kdx_analysis.models.vam import attended_layers, entropy, gate_parameters, set_temperature
from kdx_analysis.objectives import Batch, Objective, scale_to
from kdx_analysis.objectives.features import captured
from kdx_analysis.records import EPOCH, SPLIT, kind, number, text
from kdx_analysis.training.kept_logits import EpochLogits, Shelf, computed_by
from kdx_analysis.training.schedules import learning_rate_factor, penalty_at, temperature_at
from kdx_analysis.training.seconds import SCORING, TEACHER, TRAINING, Seconds

if TYPE_CHECKING:
    from lightning_fabric import Fabric

kind(
    "metrics",
    "One figure of a split after an epoch: a loss, or a metric of the model's outputs.",
    keys=(EPOCH, SPLIT, text("metric", "name of the metric; loss is the objective's own")),
    values=(number("value", "of the metric"), number("n", "images; NaN where nobody says", low=0)),
    home=__name__,
)

_TEACHER_CHECKED = 256  # images, on which outputs can be told from logits
_SCALED_ON = 256  # images, enough for the norm of a gradient that is matched once
_STREAMS = ("order", "augmentation", "shuffling")


@dataclass(frozen=True)
class Epoch:
    """Where a training stands: what progress shows and what callbacks are handed.

    ``temperature`` is τ, None for models without gates that move; ``gate_entropy`` the mean over
    all gates of H/ln N (of VAM: H/ln M), None where gates are no parameters; ``loss`` is the
    objective's mean over the epoch, without VAM's penalty. ``scores`` are the epoch's rows of the
    history by ``split/metric``. ``val_accuracy`` is NaN after an epoch without validation (see
    ``validate_every``), and ``scores`` then hold nothing of it. ``val_outputs`` are what the model
    gave on validation, N×K, where there was one in full precision. Before the first epoch,
    ``preparing`` says where a distiller's own phase is.
    """

    epoch: int
    epochs: int
    loss: float
    val_accuracy: float
    temperature: float | None
    gate_entropy: float | None
    scores: Mapping[str, float] = field(default_factory=dict)
    preparing: str = ""
    val_outputs: Tensor | None = field(default=None, repr=False, compare=False)

    @classmethod
    def before(cls, epochs: int, done: int, total: int) -> Epoch:
        """Where a training stands in a distiller's phase before the first of its ``epochs``.

        ``done`` and ``total`` are steps of that phase.
        """
        return cls(0, epochs, math.nan, math.nan, None, None, preparing=f"{done}/{total}")


Callback = Callable[[Epoch, nn.Module], Any]
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Pass:
    """One pass over the training images, for which a training waits.

    Attributes:
        training: that waits for it, and is told the objective's mean loss.
        epoch: from 1.
        frozen: parameters of its model that stay exactly as they are.
        gamma: how many times VAM's entropy is added to the loss.
    """

    training: Training
    epoch: int
    frozen: tuple[nn.Parameter, ...]
    gamma: float

    def make(self) -> float:
        """Make it, for this training alone; the mean loss."""
        return self.training.train_epoch(self.epoch, self.frozen, self.gamma)


@dataclass(frozen=True)
class Fit:
    """A finished training; the model holds the weights of the selected epoch.

    Attributes:
        history: tidy frame with columns epoch, split, metric, value, n.
        epoch: the selected epoch: the last, or the best on validation (``selection: best``).
        outputs: on ``val`` and ``test``, N×K float32 each, at the selected epoch: what that epoch's
            rows of the history are computed from.
    """

    history: pd.DataFrame
    epoch: int
    outputs: Mapping[str, Tensor]


@contextmanager
def reproducible(seed: int, threads: int) -> Iterator[None]:
    """Seed torch's random state and have it use so many ``threads`` inside the body.

    Both are as before afterwards.
    """
    before = torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def fabric_for(config: TrainingConfig) -> Fabric:
    """Fabric with the device, precision and processes of ``config``.

    Fabric's own complaints become KdxErrors.

    Several devices with strategy ``auto`` are spawned processes, which also work from a notebook.
    """
    # Its import takes seconds, which what trains nothing need not wait for.
    from lightning_fabric import Fabric
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        return Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            strategy="ddp_spawn"
            if config.strategy == "auto" and config.devices not in (1, "1")
            else config.strategy,
            precision=config.precision,
        )
    except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
        reason = " ".join(str(error).split())
        wanted = ("accelerator", "devices", "strategy", "precision")
        given = ", ".join(f"{key}={getattr(config, key)!r}" for key in wanted)
        raise KdxError(f"cannot train with {given}: {reason}") from None
    finally:
        logger.setLevel(level)


def by_itself(training: Generator[Pass, float, R]) -> R:
    """What a training gives for which every pass is made when it waits for one."""
    try:
        waits = next(training)
        while True:
            try:
                loss = waits.make()
            except BaseException as error:  # what the training has open is closed by it
                waits = training.throw(error)
            else:
                waits = training.send(loss)
    except StopIteration as finished:
        result: R = finished.value
        return result


def _trains(start: Callable[P, Generator[Pass, float, Fit]]) -> Callable[P, Fit]:
    """A function that trains what ``start`` begins."""

    @wraps(start)
    def fit(*args: P.args, **kwargs: P.kwargs) -> Fit:
        return by_itself(start(*args, **kwargs))

    fit.__name__ = fit.__qualname__ = "fit"
    return fit


def fitting(
    model: nn.Module,
    data: Dataset,
    objective: ObjectiveConfig,
    config: TrainingConfig,
    *,
    seed: int,
    fabric: Fabric | None = None,
    teacher: nn.Module | None = None,
    temperature: TemperatureConfig | None = None,
    gate_warmup: int = 0,
    vam: VAMConfig | None = None,
    callbacks: Sequence[Callback] = (),
    preparing: Callable[[int, int], None] = lambda done, total: None,
    teacher_outputs: Mapping[str, Tensor] | None = None,
    shelf: Shelf | None = None,
    seconds: Seconds | None = None,
) -> Generator[Pass, float, Fit]:
    """Train ``model`` in place.

    It is :func:`fit` that trains; called ``fitting`` it only begins, and whoever drives it makes
    the passes over the training images, as for several runs together.

    Args:
        model: images → B×K logits or margins.
        data: where training, validation and test images come from; only train and validation guide
            the training.
        objective: what is matched.
        config: optimiser, length, precision, selection.
        seed: of the order of samples, the augmentation and the shuffled control; initial weights
            are the caller's.
        fabric: already launched, where there are several processes; made from ``config`` by
            default.
        teacher: images → B×K logits, kept in eval mode without gradients.
        temperature: annealing of an explainer's gates.
        gate_warmup: first epochs in which its gates stay exactly as they are.
        vam: penalty γ·(mean of H/ln M) and temperature of a model that has VAM; by default no
            penalty, and τ stays.
        callbacks: called after every epoch with the unwrapped model.
        preparing: called with steps done and all steps, in a distiller's phase before training.
        teacher_outputs: what the teacher gives on ``val`` and ``test``, N×K each, where that is
            known; it is asked otherwise.
        shelf: where the teacher's logits on the augmented training images are kept for other runs
            of the seed. They are asked for in every step where several processes train, since each
            augments its own images, where the objective compares features, and where the teacher
            draws random numbers.
        seconds: counts what goes into training, teacher and scoring.

    Raises:
        KdxError: the objective needs a teacher and there is none, or one whose outputs can't be
            logits; or the loss stops being finite.
    """
    if Objective(objective).needs_teacher and teacher is None:
        raise KdxError(f"objective {objective.name!r} needs a teacher; pass teacher=")
    seconds = seconds or Seconds()
    run = Training(
        model, data, objective, config, seed, fabric or fabric_for(config), teacher, seconds
    )
    run.teacher_outputs |= teacher_outputs or {}
    run.shelf = shelf
    run.prepare(preparing)
    gates = tuple(_gate_parameters(model))
    rows: list[dict[str, Any]] = []
    selection = _Selection(config)
    for epoch in range(1, config.epochs + 1):
        tau, gamma = _set_schedules(model, temperature, vam, epoch, config.epochs)
        with seconds.of(TRAINING):
            loss = yield Pass(run, epoch, gates if epoch <= gate_warmup else (), gamma)
        scores, outputs = run.scores(loss, epoch)
        rows += [{"epoch": epoch, **row} for row in scores]
        named = by_name(scores)
        accuracy = named.get("val/accuracy", math.nan)
        if outputs is not None:
            selection.see(epoch, accuracy, outputs, model)
        where = Epoch(epoch, config.epochs, loss, accuracy, tau, _gate_entropy(model), named)
        full = outputs if config.precision == "32-true" else None
        run.tell(callbacks, replace(where, val_outputs=full))
    selection.restore(model)
    tested, test_outputs = run.score(run.data.test)
    rows += [{"epoch": selection.epoch, **row} for row in tested]
    outputs_of = {"val": selection.outputs, "test": test_outputs}
    return Fit(pd.DataFrame(rows), selection.epoch, outputs_of)


class _Selection:
    """The epoch that a training ends with: the last, or the first of the best on validation."""

    def __init__(self, config: TrainingConfig) -> None:
        self.rule = config.selection
        self.epoch, self.outputs = 0, torch.empty(0)
        self._accuracy: float | None = None
        self._weights: dict[str, Any] | None = None

    def see(self, epoch: int, accuracy: float, outputs: Tensor, model: nn.Module) -> None:
        """An epoch with validation; the last of all is one of them."""
        if self.rule == "best":
            if self._accuracy is not None and not accuracy > self._accuracy:
                return
            self._accuracy, self._weights = accuracy, _copied(model)
        self.epoch, self.outputs = epoch, outputs

    def restore(self, model: nn.Module) -> None:
        """Give ``model`` the weights of the epoch."""
        if self._weights is not None:
            model.load_state_dict(self._weights)


fit = _trains(fitting)


def by_name(rows: Iterable[Mapping[Any, Any]]) -> dict[str, float]:
    """Rows of a history by ``split/metric``."""
    return {f"{row['split']}/{row['metric']}": row["value"] for row in rows}


@torch.no_grad()
def predict(model: nn.Module, split: Split, data: Dataset, batch_size: int = 512) -> Tensor:
    """Logits or margins of every sample of ``split``, N×K float32 on the CPU.

    The model runs in eval mode on its own device, ``batch_size`` samples at a time; its training
    mode is restored. Raises KdxError for a model that gives anything but a tensor.
    """

    def answered(images: Tensor) -> Tensor:
        outputs = model(images)
        if not isinstance(outputs, Tensor):
            raise KdxError(
                f"{type(model).__name__} gives a {type(outputs).__name__}, not one tensor of "
                "logits: wrap it so that "
                "it returns B×K"
            )
        return outputs.float().cpu()

    device = next((parameter.device for parameter in model.parameters()), split.labels.device)
    with modes_kept(model):
        model.eval()
        indices = torch.arange(len(split)).split(batch_size)
        outputs = [answered(data.normalise(split.images.take(i).to(device))) for i in indices]
    return torch.cat(outputs)


def score(
    outputs: Tensor, split: Split, decomposition: str, teacher_outputs: Tensor | None = None
) -> list[dict[str, Any]]:
    """Every metric of outputs, and the hard loss, on ``split``: rows of split, metric, value, n.

    Args:
        outputs: of :func:`predict` for every sample of ``split``, N×K.
        split: whose labels they are held against.
        decomposition: binary or multiclass, which the loss is of.
        teacher_outputs: the teacher's logits for every sample, N×K; without them there is no metric
            of both.
    """
    labels = split.labels.cpu()
    config = ObjectiveConfig.model_validate({"name": "hard", "decomposition": decomposition})
    loss = Objective(config).loss(outputs, labels, None, torch.Generator())
    values = {name: each.value for name, each in evaluated("outputs", outputs, labels).items()}
    values["hard_loss"] = loss
    if teacher_outputs is not None:
        of_both = evaluated("outputs of both", outputs, labels, teacher_outputs)
        values |= {name: each.value for name, each in of_both.items()}
    return [
        {"split": split.name, "metric": name, "value": float(value), "n": len(split)}
        for name, value in values.items()
    ]


class Training:
    """What the epochs of one training share: models on their device, optimiser, generators."""

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        objective: ObjectiveConfig,
        config: TrainingConfig,
        seed: int,
        fabric: Fabric,
        teacher: nn.Module | None,
        seconds: Seconds,
    ) -> None:
        self.fabric, self.config, self.seed, self.seconds = fabric, config, seed, seconds
        self.data = data.to(fabric.device)
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model.to(fabric.device)
        self.teacher = None if teacher is None else as_teacher(teacher, fabric.device)
        self.generators = self._generators()
        self.objective = Objective(objective)
        self.paths = self._build_distiller()
        self.adapters = list(self.objective.distiller.parameters())
        optimizer = optimizer_of(model, config, self.adapters)
        self.wrapped, self.optimizer = fabric.setup(model, optimizer)
        self.teacher_draws = False
        self._check_teacher()
        self.batch_size = min(config.batch_size, len(data.train) // fabric.world_size)
        if self.batch_size < 2:
            raise KdxError(
                f"{len(data.train)} training images are too few for {fabric.world_size} processes"
            )
        self.steps_per_epoch = len(data.train) // (self.batch_size * fabric.world_size)
        self.samples = self.steps_per_epoch * self.batch_size * fabric.world_size
        self.scheduler = self.schedule(optimizer)
        if objective.scale_to is not None:
            self.objective = self._scaled()
        self.teacher_outputs: dict[str, Tensor] = {}
        self.shelf: Shelf | None = None

    def schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        """The learning rate's, for an optimiser."""
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(self.config, step, self.steps_per_epoch)
        )

    def prepare(self, tell: Callable[[int, int], None]) -> None:
        """The distiller's own phase before training."""
        if self.teacher is not None and self.objective.needs_teacher:
            distiller = self.objective.distiller
            distiller.prepare(self.model, self.teacher, self.data, self.fabric, tell)

    def train_epoch(self, epoch: int, frozen: Sequence[nn.Parameter], gamma: float) -> float:
        """One pass over train in a fresh order; the objective's mean loss.

        The last incomplete batch is left out. Parameters that are ``frozen`` stay as they are, and
        VAM's entropy is added ``gamma`` times.
        """
        self.wrapped.train()
        fabric = self.fabric
        total = torch.zeros((), device=fabric.device)
        kept = self.kept(epoch)
        for drawn in self.order():
            indices = drawn[fabric.global_rank :: fabric.world_size]
            total += self.step(indices, frozen, gamma, kept)
        return float(self._mean_over_processes(total / self.steps_per_epoch))

    def order(self) -> tuple[Tensor, ...]:
        """Positions of the images in each step of an epoch, of all processes together."""
        train = self.data.train
        order = torch.randperm(len(train), generator=self.generators["order"])[: self.samples]
        steps: tuple[Tensor, ...] = order.split(self.batch_size * self.fabric.world_size)
        return steps

    def scores(self, loss: float, epoch: int) -> tuple[list[dict[str, Any]], Tensor | None]:
        """An epoch's rows of the history, and the outputs on validation, where it is asked about.

        Raises KdxError for a mean ``loss`` that is not finite.
        """
        self.check(loss, epoch)
        validated, outputs = self.validate(epoch)
        train = {"split": "train", "metric": "loss", "value": loss, "n": self.samples}
        return [train, *validated], outputs

    def check(self, loss: float, epoch: int) -> None:
        """Raise KdxError for a mean ``loss`` of an ``epoch`` that is not finite."""
        if not math.isfinite(loss):
            raise KdxError(
                f"the loss of objective {self.objective.config.label!r} is {loss} in epoch "
                f"{epoch}; lower training.lr or use precision 32-true"
            )

    def step(
        self,
        indices: Tensor,
        frozen: Sequence[nn.Parameter] = (),
        gamma: float = 0.0,
        kept: EpochLogits | None = None,
    ) -> Tensor:
        """One step on the training images at these positions; its loss, without VAM's penalty."""
        loss = self._loss(indices, kept)
        self.optimizer.zero_grad()
        self.fabric.backward(loss + gamma * entropy(self.model) if gamma else loss)
        # Without a gradient the optimiser skips a parameter; DDP must still see one made.
        for parameter in frozen:
            parameter.grad = None
        self._share_adapters_gradients()
        self.optimizer.step()
        self.scheduler.step()
        return loss.detach()

    def validate(self, epoch: int) -> tuple[list[dict[str, Any]], Tensor | None]:
        """As :meth:`score` on validation; nothing and None after an epoch without it."""
        if epoch % self.config.validate_every and epoch != self.config.epochs:
            return [], None
        return self.score(self.data.val)

    def score(self, split: Split) -> tuple[list[dict[str, Any]], Tensor]:
        """Rows of the history on a split, and the outputs that they are computed from.

        The teacher is asked once for each split.
        """
        with self.fabric.autocast(), self.seconds.of(SCORING):
            if self.teacher is not None and split.name not in self.teacher_outputs:
                with self.seconds.of(TEACHER):
                    self.teacher_outputs[split.name] = predict(self.teacher, split, self.data)
            decomposition = self.objective.config.decomposition
            outputs = predict(self.wrapped, split, self.data)
            taught = self.teacher_outputs.get(split.name)
            return score(outputs, split, decomposition, taught), outputs

    def tell(self, callbacks: Sequence[Callback], epoch: Epoch) -> None:
        """Call them where the first process is; the others wait."""
        if self.fabric.is_global_zero:
            for callback in callbacks:
                callback(epoch, self.model)
        self.fabric.barrier()

    def _generators(self) -> dict[str, torch.Generator]:
        """One for each stream of draws.

        Every process takes its share of one order of samples, and draws for them on its own: its
        rank is in the seed's high bits, where no seed of a study reaches.
        """
        generators = {}
        for i, stream in enumerate(_STREAMS):
            rank = 0 if stream == "order" else self.fabric.global_rank << 40
            seed = len(_STREAMS) * self.seed + i + rank
            generators[stream] = torch.Generator().manual_seed(seed)
        return generators

    def kept(self, epoch: int) -> EpochLogits | None:
        """The teacher's logits in the steps of an epoch, where they are kept; see :func:`fit`."""
        asked = self.objective.needs_teacher and not self.paths[1] and not self.teacher_draws
        if self.shelf is None or not asked or self.fabric.world_size > 1:
            return None
        return self.shelf.epoch(self._decides, epoch, self.samples, self.data.num_classes)

    @cached_property
    def _decides(self) -> dict[str, Any]:
        """Everything that decides the teacher's logits on the augmented images of an epoch."""
        assert self.teacher is not None
        return {
            **computed_by(self.teacher, self.data, self.fabric.device),
            "augmentation": [self.data.pad, self.data.flip],
            "seed": self.seed,
            "batch_size": self.batch_size,
            "precision": self.config.precision,
            "channels_last": self.config.channels_last,
        }

    def augmented(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The training images at these positions, augmented and normalised, and their labels."""
        train = self.data.train
        labels = train.labels[indices.to(train.labels.device)]
        return self._images(train, indices, augmented=True), labels

    def _loss(self, indices: Tensor, kept: EpochLogits | None) -> Tensor:
        """The objective of the training images at these positions, augmented."""
        images, labels = self.augmented(indices)
        taught = self.teacher if self.objective.needs_teacher else None
        batch = self._batch(self.wrapped, taught, images, labels, self.fabric.autocast(), kept)
        return self.objective.of_batch(batch)

    def _batch(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        images: Tensor,
        labels: Tensor,
        precision: AbstractContextManager[Any],
        kept: EpochLogits | None = None,
    ) -> Batch:
        """Both models' outputs and features on some images; the teacher runs in ``precision``.

        It is not asked where ``kept`` has its logits.
        """
        of_student, of_teacher = self.paths
        with captured(self.model, of_student) as features:
            outputs = student(images).float()
        batch = Batch(outputs, labels, None, self.generators["shuffling"], features)
        if teacher is None:
            return batch
        with self.seconds.of(TEACHER), captured(teacher, of_teacher) as features:
            logits = logits_of(teacher, images, precision, kept)
        return replace(batch, teacher_outputs=logits, teacher_features=features)

    def _images(self, split: Split, indices: Tensor, augmented: bool = False) -> Tensor:
        images = split.images.take(indices)
        if augmented:
            images = augment(images, self.data.pad, self.data.flip, self.generators["augmentation"])
        normalised = self.data.normalise(images)
        if self.config.channels_last:
            normalised = normalised.contiguous(memory_format=torch.channels_last)
        return normalised

    def _build_distiller(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Have the distiller make its adapters; the paths whose features it compares.

        Both models run once on two images, which changes nothing in them: in eval mode, without
        gradients, and apart from torch's random state.
        """
        paths = self.objective.paths(self.model, self.teacher)
        if self.teacher is None or not (paths[0] or paths[1]):
            return paths
        images = self._images(self.data.train, torch.arange(min(len(self.data.train), 2)))
        with torch.random.fork_rng(), torch.no_grad(), modes_kept(self.model):
            torch.manual_seed(self.seed)
            self.model.eval()
            with captured(self.model, paths[0]) as features:
                self.model(images)
            with captured(self.teacher, paths[1]) as teacher_features:
                self.teacher(images)
            self.objective.distiller.build(features, teacher_features)
        self.objective.distiller.to(self.fabric.device)
        return paths

    def _check_teacher(self) -> None:
        """Refuse one whose outputs can't be logits; see whether it draws random numbers."""
        if self.teacher is None or not self.objective.needs_teacher:
            return
        train = self.data.train
        first = train.subset(torch.arange(min(len(train), _TEACHER_CHECKED)))
        before = _random_state(self.fabric.device)
        with self.fabric.autocast(), self.seconds.of(TEACHER):
            outputs = predict(self.teacher, first, self.data)
            check_logits(outputs, self.data.num_classes, "the teacher")
        self.teacher_draws = not torch.equal(before, _random_state(self.fabric.device))

    def _share_adapters_gradients(self) -> None:
        """Average them over processes, as data parallelism does for the student's."""
        if self.fabric.world_size == 1:
            return
        for parameter in self.adapters:
            if parameter.grad is not None:
                parameter.grad = self._mean_over_processes(parameter.grad)

    def _mean_over_processes(self, tensor: Tensor) -> Tensor:
        return self.fabric.all_reduce(tensor, reduce_op="mean")  # type: ignore[return-value]

    def _scaled(self) -> Objective:
        """The objective times the factor that gives it KD's gradient norm at initialisation."""
        config = self.objective.config
        kd = Objective(config.model_copy(update={"name": "kd", "scale_to": None, "options": {}}))
        if self.teacher is None:
            raise KdxError(
                f"objective {config.label!r} is scaled to kd and needs a teacher; pass teacher="
            )
        train = self.data.train
        images = self._images(train, torch.arange(min(len(train), _SCALED_ON)))
        labels = train.labels[: len(images)]
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        with modes_kept(self.model):
            self.model.eval()
            batch = self._batch(self.model, self.teacher, images, labels, nullcontext())
            # each draws from a generator of its own, so that neither depends on the other's draws
            reference, unscaled = (
                each.of_batch(replace(batch, generator=torch.Generator().manual_seed(0)))
                for each in (kd, self.objective)
            )
            factor = scale_to(reference, unscaled, parameters)
        return self.objective.scaled(factor)


def as_teacher(teacher: nn.Module, device: torch.device) -> nn.Module:
    """The ``teacher`` on a device, in eval mode and without gradients.

    It is a copy, unless it is so already.
    """
    parameters = list(teacher.parameters())
    trains = any(module.training for module in teacher.modules())
    if not trains and not any(p.requires_grad or p.device != device for p in parameters):
        return teacher
    return copy.deepcopy(teacher).to(device).eval().requires_grad_(False)


def logits_of(
    teacher: nn.Module,
    images: Tensor,
    precision: AbstractContextManager[Any],
    kept: EpochLogits | None,
) -> Tensor:
    """The teacher's logits on images, B×K, from a forward pass in ``precision``.

    It is not asked where ``kept`` has them.
    """
    logits = None if kept is None else kept.take(len(images))
    if logits is not None:
        return logits.to(images.device)
    with torch.no_grad(), precision:
        outputs: Tensor = teacher(images).float()
    if kept is not None:
        kept.add(outputs)
    return outputs


def _copied(model: nn.Module) -> dict[str, Any]:
    """A model's state, of which tensors that are slices of larger ones are copied alone."""
    return {
        name: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in model.state_dict().items()
    }


def _random_state(device: torch.device) -> Tensor:
    """That of torch on the CPU and, behind it, on an accelerator that is used."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def _set_schedules(
    model: nn.Module,
    temperature: TemperatureConfig | None,
    vam: VAMConfig | None,
    epoch: int,
    epochs: int,
) -> tuple[float | None, float]:
    """Give the gates the epoch's τ; that τ, None without gates that move, and VAM's penalty γ."""
    tau = None
    if temperature is not None and isinstance(model, HME):
        tau = model.temperature = temperature_at(temperature, epoch, epochs)
    if vam is None:
        return tau, 0.0
    tau = temperature_at(vam.temperature, epoch, epochs)
    set_temperature(model, tau)
    return tau, penalty_at(vam.gamma, epoch, epochs)


def _gate_entropy(model: nn.Module) -> float | None:
    if attended_layers(model):
        return float(entropy(model).detach())
    if not isinstance(model, HME) or not all(
        isinstance(gate, ParameterGate) for gate in model.gates
    ):
        return None
    shares = [entropy_share(gate).flatten() for gate in model.attention() if gate.shape[1] > 1]
    return float(torch.cat(shares).detach().mean()) if shares else float("nan")


def _gate_parameters(model: nn.Module) -> list[nn.Parameter]:
    return list(model.gate_parameters()) if isinstance(model, HME) else []


def optimizer_of(
    model: nn.Module,
    config: TrainingConfig,
    adapters: Sequence[nn.Parameter] = (),
    instead: Mapping[nn.Parameter, Tensor] | None = None,
) -> torch.optim.Optimizer:
    """Weights in one group, gates in another, with a rate and a weight decay of their own.

    VAM's gates never decay. A distiller's adapters are treated as weights are. ``instead`` are
    tensors that are trained in the place of the model's parameters.
    """
    replaced = instead or {}
    gates, vam_gates = _gate_parameters(model), list(gate_parameters(model))
    apart = {id(p) for p in (*gates, *vam_gates)}
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in apart]
    gate_rate = config.lr * config.gate_lr_factor
    groups: list[dict[str, Any]] = []
    for parameters, rate, decay in (
        ([*weights, *adapters], config.lr, config.weight_decay),
        (gates, gate_rate, config.gate_weight_decay),
        (vam_gates, gate_rate, 0.0),
    ):
        if parameters:
            trained = [replaced.get(parameter, parameter) for parameter in parameters]
            groups.append({"params": trained, "lr": rate, "weight_decay": decay})
    match config.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=config.nesterov)
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, fused=True)
