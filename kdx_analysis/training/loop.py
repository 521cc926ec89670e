"""The one training loop: teachers, students and explainers alike, on Lightning Fabric."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from kdx_analysis.config import ObjectiveConfig, TemperatureConfig, TrainingConfig, VAMConfig
from kdx_analysis.data import Dataset, Split, augment
from kdx_analysis.errors import KdxError
from kdx_analysis.metrics import evaluated
from kdx_analysis.models import HME
from kdx_analysis.models import vam as attention
from kdx_analysis.models.answers import check_logits
from kdx_analysis.models.gates import ParameterGate, entropy_share
from kdx_analysis.objectives import Objective, scale_to
from kdx_analysis.records import EPOCH, SPLIT, kind, number, text
from kdx_analysis.training.schedules import learning_rate_factor, penalty_at, temperature_at

kind(
    "metrics",
    "One figure of a split after an epoch: a loss, or a metric of the model's outputs.",
    keys=(EPOCH, SPLIT, text("metric", "name of the metric; loss is the objective's own")),
    values=(number("value", "of the metric"), number("n", "images; NaN where nobody says", low=0)),
    home=__name__,
)

_TEACHER_CHECKED = 256
_STREAMS = ("order", "augmentation", "shuffling")


@dataclass(frozen=True)
class Epoch:
    """Where a training stands: what progress shows and what callbacks are handed.

    ``temperature`` is τ, None for models without gates that move; ``gate_entropy`` the mean over
    all gates of H/ln N (of VAM: H/ln M), None where gates are no parameters; ``loss`` is the
    objective's mean over the epoch, without VAM's penalty. ``scores`` are the epoch's rows of the
    history by ``split/metric``.
    """

    epoch: int
    epochs: int
    loss: float
    val_accuracy: float
    temperature: float | None
    gate_entropy: float | None
    scores: Mapping[str, float] = field(default_factory=dict)


Callback = Callable[[Epoch, nn.Module], Any]


@dataclass(frozen=True)
class Fit:
    """A finished training; the model holds the weights of the selected epoch.

    Attributes:
        history: tidy frame with columns epoch, split, metric, value, n.
        epoch: the selected epoch: the last, or the best on validation (``selection: best``).
    """

    history: pd.DataFrame
    epoch: int


@contextmanager
def reproducible(seed: int, threads: int) -> Iterator[None]:
    """Seed torch's random state and have it use so many ``threads`` inside the body; both are as
    before afterwards.
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
    """Fabric with the device, precision and processes of ``config``; Fabric's own complaints become
    KdxErrors.

    Several devices with strategy ``auto`` are spawned processes, which also work from a notebook.
    """
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
        wanted = f"accelerator={config.accelerator!r}, devices={config.devices!r}, strategy={config.strategy!r}"
        raise KdxError(
            f"cannot train with {wanted}, precision={config.precision!r}: {reason}"
        ) from None
    finally:
        logger.setLevel(level)


def fit(
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
) -> Fit:
    """Train ``model`` in place.

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

    Raises:
        KdxError: the objective needs a teacher and there is none, or one whose outputs can't be
            logits; or the loss stops being finite.
    """
    if Objective(objective).needs_teacher and teacher is None:
        raise KdxError(f"objective {objective.name!r} needs a teacher; pass teacher=")
    fabric = fabric or fabric_for(config)
    data = data.to(fabric.device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.to(fabric.device)
    if teacher is not None:
        teacher = copy.deepcopy(teacher).to(fabric.device).eval().requires_grad_(False)
    optimizer = _optimizer(model, config)
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    if teacher is not None and Objective(objective).needs_teacher:
        some = data.train.subset(torch.arange(min(len(data.train), _TEACHER_CHECKED)))
        with fabric.autocast():
            check_logits(predict(teacher, some, data), data.num_classes, "the teacher")
    run = _Training(fabric, wrapped, model, teacher, data, objective, config, seed)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(config, step, run.steps_per_epoch)
    )
    gates = _gate_parameters(model)
    rows: list[dict[str, Any]] = []
    best: tuple[float, int, dict[str, Tensor]] | None = None
    for epoch in range(1, config.epochs + 1):
        tau = None
        if temperature is not None and isinstance(model, HME):
            tau = model.temperature = temperature_at(temperature, epoch, config.epochs)
        gamma = 0.0
        if vam is not None:
            tau = temperature_at(vam.temperature, epoch, config.epochs)
            gamma = penalty_at(vam.gamma, epoch, config.epochs)
            attention.set_temperature(model, tau)
        loss = run.train_epoch(
            epoch, wrapped_optimizer, scheduler, gates if epoch <= gate_warmup else (), gamma
        )
        scores = run.score(data.val)
        scores = [{"split": "train", "metric": "loss", "value": loss, "n": run.samples}, *scores]
        rows += [{"epoch": epoch, **row} for row in scores]
        accuracy = next(row["value"] for row in scores if row["metric"] == "accuracy")
        if config.selection == "best" and (best is None or accuracy > best[0]):
            best = (accuracy, epoch, copy.deepcopy(model.state_dict()))
        entropy = _gate_entropy(model)
        state = Epoch(epoch, config.epochs, loss, accuracy, tau, entropy, by_name(scores))
        if fabric.is_global_zero:
            for callback in callbacks:
                callback(state, model)
        fabric.barrier()
    selected = config.epochs
    if best is not None:
        selected = best[1]
        model.load_state_dict(best[2])
    rows += [{"epoch": selected, **row} for row in run.score(data.test)]
    return Fit(pd.DataFrame(rows), selected)


def by_name(rows: Iterable[Mapping[Any, Any]]) -> dict[str, float]:
    """Rows of a history by ``split/metric``."""
    return {f"{row['split']}/{row['metric']}": row["value"] for row in rows}


@torch.no_grad()
def predict(model: nn.Module, split: Split, data: Dataset, batch_size: int = 512) -> Tensor:
    """Logits or margins of every sample of ``split``, N×K float32 on the CPU, in eval mode on the
    model's device.

    ``batch_size`` samples at a time; the model's training mode is restored. Raises KdxError for a
    model that gives anything but a tensor.
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
    was_training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        indices = torch.arange(len(split)).split(batch_size)
        outputs = [answered(data.normalise(split.images.take(i).to(device))) for i in indices]
    finally:
        for module, training in was_training:
            module.training = training
    return torch.cat(outputs)


def score(
    model: nn.Module,
    split: Split,
    data: Dataset,
    decomposition: str,
    teacher_outputs: Tensor | None = None,
) -> list[dict[str, Any]]:
    """Every metric of outputs, and the hard loss, on ``split``: rows of split, metric, value, n.

    The loss is that of the ``decomposition``, binary or multiclass. ``teacher_outputs`` are the teacher's logits for
    every sample, N×K; without them there is no metric of both.
    """
    outputs, labels = predict(model, split, data), split.labels.cpu()
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


class _Training:
    """What the epochs of one training share."""

    def __init__(
        self,
        fabric: Fabric,
        wrapped: nn.Module,
        model: nn.Module,
        teacher: nn.Module | None,
        data: Dataset,
        objective: ObjectiveConfig,
        config: TrainingConfig,
        seed: int,
    ) -> None:
        self.fabric, self.wrapped, self.model, self.teacher = fabric, wrapped, model, teacher
        self.data, self.config = data, config
        # every process takes its share of one order of samples, and draws for them on its own
        self.generators = {
            stream: torch.Generator().manual_seed(
                len(_STREAMS) * seed + i + (0 if stream == "order" else fabric.global_rank << 40)
            )
            for i, stream in enumerate(_STREAMS)
        }
        self.batch = min(config.batch_size, len(data.train) // fabric.world_size)
        if self.batch < 2:
            raise KdxError(
                f"{len(data.train)} training images are too few for {fabric.world_size} processes"
            )
        self.steps_per_epoch = len(data.train) // (self.batch * fabric.world_size)
        self.samples = self.steps_per_epoch * self.batch * fabric.world_size
        self.objective = Objective(objective)
        if objective.scale_to is not None:
            self.objective = self._scaled(model, objective)
        self.teacher_outputs: dict[str, Tensor] = {}

    def images(self, split: Split, indices: Tensor, augmented: bool = False) -> Tensor:
        images = split.images.take(indices)
        if augmented:
            images = augment(images, self.data.pad, self.data.flip, self.generators["augmentation"])
        normalised = self.data.normalise(images)
        if self.config.channels_last:
            normalised = normalised.contiguous(memory_format=torch.channels_last)
        return normalised

    def teacher_logits(self, images: Tensor) -> Tensor | None:
        if self.teacher is None or not self.objective.needs_teacher:
            return None
        with torch.no_grad(), self.fabric.autocast():
            return self.teacher(images).float()

    def train_epoch(
        self,
        epoch: int,
        optimizer: Any,
        scheduler: Any,
        frozen: Sequence[nn.Parameter],
        gamma: float,
    ) -> float:
        """One pass over train in a fresh order, the last incomplete batch left out; the objective's
        mean loss.
        """
        self.wrapped.train()
        fabric, train = self.fabric, self.data.train
        order = torch.randperm(len(train), generator=self.generators["order"])[: self.samples]
        total = torch.zeros((), device=fabric.device)
        for batch in order.split(self.batch * fabric.world_size):
            indices = batch[fabric.global_rank :: fabric.world_size]
            images = self.images(train, indices, augmented=True)
            labels = train.labels[indices.to(train.labels.device)]
            margins = self.wrapped(images).float()
            loss = self.objective.loss(
                margins, labels, self.teacher_logits(images), self.generators["shuffling"]
            )
            optimizer.zero_grad()
            fabric.backward(loss + gamma * attention.entropy(self.model) if gamma else loss)
            for (
                parameter
            ) in frozen:  # without a gradient the optimiser skips it; DDP must still see one made
                parameter.grad = None
            optimizer.step()
            scheduler.step()
            total += loss.detach()
        mean = float(fabric.all_reduce(total / self.steps_per_epoch, reduce_op="mean"))  # type: ignore[arg-type]
        if not math.isfinite(mean):
            raise KdxError(
                f"the loss of objective {self.objective.config.label!r} is {mean} in epoch "
                f"{epoch}; "
                "lower training.lr or use precision 32-true"
            )
        return mean

    def score(self, split: Split) -> list[dict[str, Any]]:
        with self.fabric.autocast():
            if self.teacher is not None and split.name not in self.teacher_outputs:
                self.teacher_outputs[split.name] = predict(self.teacher, split, self.data)
            decomposition = self.objective.config.decomposition
            outputs = self.teacher_outputs.get(split.name)
            return score(self.wrapped, split, self.data, decomposition, outputs)

    def _scaled(self, model: nn.Module, objective: ObjectiveConfig) -> Objective:
        kd = Objective(objective.model_copy(update={"name": "kd", "scale_to": None}))
        if self.teacher is None:
            raise KdxError(
                f"objective {objective.label!r} is scaled to kd and needs a teacher; pass teacher="
            )
        images = self.images(self.data.train, torch.arange(min(len(self.data.train), 256)))
        labels = self.data.train.labels[: len(images)]
        was_training = model.training
        model.eval()
        parameters = [p for p in model.parameters() if p.requires_grad]
        with torch.no_grad():
            teacher_logits = self.teacher(images).float()
        margins = model(images).float()
        reference, unscaled = (
            each.loss(margins, labels, teacher_logits, torch.Generator().manual_seed(0))
            for each in (kd, Objective(objective))
        )
        factor = scale_to(reference, unscaled, parameters)
        model.train(was_training)
        return Objective(objective, factor)


def _gate_entropy(model: nn.Module) -> float | None:
    if attention.attended_layers(model):
        return float(attention.entropy(model).detach())
    if not isinstance(model, HME) or not all(
        isinstance(gate, ParameterGate) for gate in model.gates
    ):
        return None
    shares = [entropy_share(gate).flatten() for gate in model.attention() if gate.shape[1] > 1]
    return float(torch.cat(shares).detach().mean()) if shares else float("nan")


def _gate_parameters(model: nn.Module) -> list[nn.Parameter]:
    return list(model.gate_parameters()) if isinstance(model, HME) else []


def _optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Weights in one group, gates in another, with a rate and a weight decay of their own; VAM's
    gates never decay.
    """
    gates, vam_gates = _gate_parameters(model), list(attention.gate_parameters(model))
    chosen = {id(p) for p in (*gates, *vam_gates)}
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    groups: list[dict[str, Any]] = [
        {"params": weights, "lr": config.lr, "weight_decay": config.weight_decay}
    ]
    for parameters, decay in ((gates, config.gate_weight_decay), (vam_gates, 0.0)):
        if parameters:
            groups.append(
                {
                    "params": parameters,
                    "lr": config.lr * config.gate_lr_factor,
                    "weight_decay": decay,
                }
            )
    match config.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=config.nesterov)
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, fused=True)
