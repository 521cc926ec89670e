"""The released code's network, built from its description alone: plain loops, its names, its two
softmaxes.

An independent reference for the preset: nothing here comes from the package.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def expert(channels: tuple[int, int, int]) -> nn.Sequential:
    a, b, c = channels
    return nn.Sequential(
        nn.Conv2d(a, b, 3, padding=1),
        nn.BatchNorm2d(b),
        nn.ReLU(),
        nn.Conv2d(b, c, 3, padding=1),
        nn.BatchNorm2d(c),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


class ReleasedNetwork(nn.Module):
    """Images B×3×32×32 to scores B×K; ``form`` is ``ce`` (one logit a class) or ``nce`` (two)."""

    def __init__(
        self,
        num_classes: int,
        form: str,
        experts: tuple[int, int, int] = (2, 4, 8),
        in_channels: int = 3,
        dropout: float = 0.15,
    ) -> None:
        super().__init__()
        self.K, self.form, self.experts = num_classes, form, experts
        self.conv1_0 = nn.Sequential(
            nn.Conv2d(in_channels, 64, 7, stride=2, padding=3), nn.BatchNorm2d(64), nn.ReLU()
        )
        channels = {1: (in_channels, 64, 64), 2: (64, 64, 64), 3: (64, 64, 32)}
        rows = {2: experts[1], 3: experts[2], 4: num_classes}
        for level in (1, 2, 3):
            for i in range(experts[level - 1]):
                setattr(self, f"conv{level + 1}_{i}", expert(channels[level]))
            below = experts[level - 1]
            gate = nn.Parameter(torch.rand(rows[level + 1], below))
            setattr(self, f"branch_{level + 1}", nn.ParameterList([gate]))
        for k in range(num_classes):
            setattr(
                self,
                f"fc1_{k}",
                nn.Sequential(nn.Linear(1568, 128), nn.ReLU(), nn.Dropout(dropout)),
            )
            last = nn.Linear(128, 1 if form == "ce" else 2)
            setattr(
                self,
                f"fc2_{k}",
                nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Dropout(dropout), last),
            )

    def attention(self, level: int, t: float | None) -> torch.Tensor:
        """Rows of the gates above ``level`` at the code's temperature t = 10/epoch; one-hot if t is
        None.
        """
        logits = getattr(self, f"branch_{level + 1}")[0]
        log_probabilities = torch.log(torch.softmax(logits / 0.5, dim=1))
        if t is None:
            return F.one_hot(log_probabilities.argmax(dim=1), logits.shape[1]).to(logits.dtype)
        return torch.softmax(log_probabilities / t, dim=1)

    def forward(self, images: torch.Tensor, t: float | None) -> torch.Tensor:
        return torch.stack(self.scores(images, t), dim=1)

    def scores(self, images: torch.Tensor, t: float | None) -> list[torch.Tensor]:
        return [
            z[:, 0] if self.form == "ce" else torch.maximum(z[:, 0], z[:, 1])
            for z in self.logits(images, t)
        ]

    def logits(self, images: torch.Tensor, t: float | None) -> list[torch.Tensor]:
        """Every subtask's one or two logits, B×1 or B×2."""
        features = [getattr(self, f"conv2_{i}")(images) for i in range(self.experts[0])]
        for level in (2, 3):
            alpha = self.attention(level - 1, t)
            outputs = []
            for i in range(self.experts[level - 1]):
                mixed = sum(alpha[i, j] * features[j] for j in range(len(features)))
                outputs.append(getattr(self, f"conv{level + 1}_{i}")(mixed))
            features = outputs
        alpha = self.attention(3, t)
        logits = []
        for k in range(self.K):
            mixed = sum(alpha[k, j] * features[j] for j in range(len(features)))
            flat = F.adaptive_avg_pool2d(mixed, 7).flatten(1)
            logits.append(getattr(self, f"fc2_{k}")(getattr(self, f"fc1_{k}")(flat)))
        return logits


def released_network(
    num_classes: int, form: str, seed: int = 0, **options: object
) -> ReleasedNetwork:
    """With random weights, gates far from uniform, and random BatchNorm weights and running
    statistics.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    net = ReleasedNetwork(num_classes, form, **options)  # type: ignore[arg-type]
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            uniform(module.weight, 0.5, 1.5)
            uniform(module.bias, -0.5, 0.5)
            uniform(module.running_mean, -0.5, 0.5)
            uniform(module.running_var, 0.5, 2.0)
            module.num_batches_tracked.fill_(7)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            uniform(module.weight, -bound * 2, bound * 2)
            uniform(module.bias, -0.2, 0.2)
    for level in (1, 2, 3):
        uniform(getattr(net, f"branch_{level + 1}")[0], 0.0, 1.0)
    return net


def checkpoint(net: ReleasedNetwork) -> dict[str, object]:
    """As the released code saves it."""
    return {"model": {name: tensor.clone() for name, tensor in net.state_dict().items()}}
