"""What several benches share: weights from one seed, images, a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx_analysis.bench.contract import Precision, Run
from kdx_analysis.data import Dataset

_SEED = 0  # any; the same for all contestants, so that they start from the same weights
Loss = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def seeded() -> Iterator[None]:
    """Random numbers of torch that are the same at each call; its state is as before afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        yield


def random_images(batch: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Normalised images, B×C×H×W."""
    with seeded():
        return torch.randn(batch, *shape).to(device)


def in_turn(batch: int, num_classes: int, device: torch.device) -> Tensor:
    """Labels, B: every class in its turn."""
    return (torch.arange(batch) % num_classes).to(device)


def made_up(num_classes: int, train: int, test: int, shape: tuple[int, int, int]) -> Dataset:
    """A data set of random images, as many of every class, padded and mirrored as CIFAR's are."""
    with seeded():
        images = torch.randint(256, (train + test, *shape), dtype=torch.uint8)
    labels = torch.arange(train + test) % num_classes
    pairs = [(images[:train], labels[:train]), (images[train:], labels[train:])]
    return Dataset.from_tensors(*pairs, val_fraction=0.1, pad=4, flip=True)


def one_vs_rest(outputs: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of all subtasks, the hard loss of the binary decomposition."""
    targets = F.one_hot(labels, outputs.shape[1]).to(outputs.dtype)
    return F.binary_cross_entropy_with_logits(outputs, targets)


def placed(
    model: nn.Module, images: Tensor, memory_format: torch.memory_format = torch.channels_last
) -> tuple[nn.Module, Tensor]:
    """The model on the images' device, and both in a memory format."""
    # of whose overloads the types of PyTorch lack this one
    model = model.to(images.device, memory_format=memory_format)  # type: ignore[call-overload]
    return model, images.contiguous(memory_format=memory_format)


def training_step(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss: Loss = one_vs_rest,
    precision: Precision = "float32",
) -> Run:
    """Forward pass, loss, backward pass and a step of AdamW, fused as in the package's training."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    model.train()

    def run() -> None:
        value = loss(answered(model, images, precision), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return run


def answered(model: nn.Module, images: Tensor, precision: Precision = "float32") -> Tensor:
    """The model's outputs in float32, in which losses are taken."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        outputs: Tensor = model(images)
    return outputs.float()


def outputs_and_gradients(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    named: Callable[[Any, Callable[[Tensor], Tensor]], Mapping[str, Tensor]],
    loss: Loss = one_vs_rest,
) -> dict[str, Tensor]:
    """What a training step computes: outputs, and all gradients by the names that ``named`` gives.

    ``named`` is called with the model and with what takes a parameter's gradient.
    """
    model.train()
    outputs = model(images)
    loss(outputs, labels).backward()

    def gradient(parameter: Tensor) -> Tensor:
        assert parameter.grad is not None
        return parameter.grad

    return {"outputs": outputs.detach(), **named(model, gradient)}
