"""Memory is a promise: gradients are cut until they fit, and cut ones are the same."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from kdx_analysis.models import build_model
from kdx_analysis.probes import probing_cost
from kdx_analysis.probes.conflict.grams import products, subtask_grams

WITHIN = """
import sys, torch
from torch import nn
from kdx_analysis.probes.conflict.grams import probing_cost, subtask_grams

torch.set_num_threads(1)
K, sets, most = map(int, sys.argv[1:])
torch.manual_seed(0)
wide = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 256, 3, stride=2),
    nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, K)).eval()
images, residuals = torch.randn(20, 3, 8, 8), torch.randn(sets, 20, K)
groups = [["0"], ["2"]]

def resident(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) * 1024

# Libraries take what they take once.
subtask_grams(wide, images[:2], residuals[:2, :2], groups=groups, max_memory=most)
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before = resident("VmRSS")
cost = probing_cost(wide, images, K, sets, groups=groups, max_memory=most)
subtask_grams(wide, images, residuals, groups=groups, max_memory=most)
print(resident("VmHWM") - before, cost.memory)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(("classes", "sets"), [(10, 20), (100, 3)])
def test_a_probe_takes_no_more_than_it_may(classes: int, sets: int) -> None:
    """The sums of the wide layer alone would take 120 and 236 MB."""
    most = 96_000_000
    run = subprocess.run(
        [sys.executable, "-c", WITHIN, str(classes), str(sets), str(most)],
        capture_output=True,
        text=True,
        check=True,
    )
    peak, told = map(int, run.stdout.split())
    assert peak <= 1.3 * most
    assert told <= most


@pytest.mark.parametrize("classes", [10, 100])
def test_the_memory_told_is_within_that_allowed_on_wide_networks(classes: int) -> None:
    model = build_model("torchvision:resnet18", classes, 3)
    cost = probing_cost(model, torch.zeros(20 * classes, 3, 32, 32), classes, 50)
    assert 2**28 < cost.memory <= 2**30
    assert cost.values == 50 * classes * sum(
        p.numel() for name, p in model.named_parameters() if not name.startswith("fc")
    )


class Random(nn.Module):
    """Convolutions of drawn sizes, one of them called twice, with groups, strides and biases."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        groups, stride, dilation = (int(torch.randint(1, 3, ())) for _ in range(3))
        width = 2 * int(torch.randint(2, 5, ()))
        self.a = nn.Conv2d(2, width, (3, 2), stride=stride, padding=(1, 2), bias=seed % 2 == 0)
        self.norm = nn.BatchNorm2d(width)
        self.b = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, groups=groups)
        self.c = nn.Conv2d(width, 6, 1, groups=2, bias=False)
        self.head = nn.Linear(6, 3)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x)).tanh()
        x = self.b(self.b(x).tanh()).tanh()
        return self.head(self.c(x).tanh().mean(dim=(2, 3)))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_grams_are_those_of_plain_gradients_however_they_are_cut(
    seed: int, dtype: torch.dtype
) -> None:
    model = Random(seed).to(dtype).eval()
    images, residuals = torch.randn(9, 2, 7, 7, dtype=dtype), torch.randn(4, 9, 3, dtype=dtype)
    groups = [["a", "norm"], ["b"], ["c"]]
    plain = Random(seed).double().eval()
    plain.load_state_dict(model.state_dict())
    margins = plain(images.double())
    for most in (2**30, 200_000):
        grams = subtask_grams(model, images, residuals, groups=groups, max_memory=most)
        for level, paths in enumerate(groups, 1):
            parameters = [p for path in paths for p in plain.get_submodule(path).parameters()]
            for draw, r in enumerate(residuals.double()):
                rows = []
                for loss in (r * margins).sum(dim=0):
                    given = torch.autograd.grad(loss, parameters, retain_graph=True)
                    rows.append(torch.cat([g.flatten() for g in given]))
                expected = torch.stack(rows) @ torch.stack(rows).T
                lengths = expected.diagonal().sqrt()
                error = (grams.level(level)[draw] - expected).abs() / torch.outer(lengths, lengths)
                assert error.max() < (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_products_are_right_to_a_millionth_of_the_lengths_at_any_scale(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    sums = torch.randn(4, 3, 5, 700, generator=generator) * scale  # U×R×K×D, two units an expert
    sums[0, 0, 0] = 0
    wide = sums.double().unflatten(0, (2, 2)).permute(2, 0, 3, 1, 4).flatten(3)
    expected = wide @ wide.mT
    lengths = expected.diagonal(dim1=-2, dim2=-1).sqrt()
    error = (products(sums, 2) - expected).abs()
    assert bool((error <= 1e-6 * lengths.unsqueeze(-1) * lengths.unsqueeze(-2)).all())
