"""Both phases of the released code's training, against a plain loop on the network of the
reference.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx_analysis.config import ObjectiveConfig, TemperatureConfig, TrainingConfig
from kdx_analysis.models import HME
from kdx_analysis.models.learn_to_branch import Released
from kdx_analysis.training import fit
from tests.models.reference_learn_to_branch import ReleasedNetwork, checkpoint, released_network
from tests.toys import RowTeacher, dataset, split

EPOCHS = 6
# The released code's, but for the weights' rates: its 5e-2 throws logits to 1e5 on these few
# images.
PHASE_1 = {
    "optimizer": "adam",
    "lr": 5e-4,
    "gate_lr_factor": 20,
    "weight_decay": 5e-4,
    "gate_weight_decay": 5e-4,
    "schedule": "learn_to_branch",
}
PHASE_2 = {
    "optimizer": "sgd",
    "nesterov": False,
    "lr": 1e-3,
    "weight_decay": 5e-4,
    "schedule": "step",
    "step_epochs": 2,
    "warmup_epochs": 0,
}
KD = ObjectiveConfig(name="kd", decomposition="multiclass")
DATA = dataset(
    train=split("train", 4),
    val=split("val", 1, first_id=12),
    test=split("test", 1),
    pad=0,
    flip=False,
)


class ToDouble(nn.Module):
    """In the place of a trunk: images of float32 for a model of float64."""

    def forward(self, images: Tensor) -> Tensor:
        return images.double()


def reference() -> ReleasedNetwork:
    return released_network(3, "nce", experts=(1, 2, 2), in_channels=1, dropout=0.0).double()


def explainer(network: ReleasedNetwork) -> HME:
    model = Released.read(checkpoint(network)).explainer()
    model.trunk = ToDouble()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def images() -> Tensor:
    return DATA.normalise(DATA.train.images.take(torch.arange(len(DATA.train))))


def by_loop(
    network: ReleasedNetwork, optimizer: torch.optim.Optimizer, factors: list[float], hard: bool
) -> None:
    """One batch of all images an epoch; KD with T = 4: .1·CE + .9·T²·KL."""
    x, labels = images(), DATA.train.labels
    targets = (RowTeacher().eval()(x) / 4).softmax(dim=1).detach()
    rates = [group["lr"] for group in optimizer.param_groups]
    gates = [network.get_parameter(f"branch_{i}.0") for i in (2, 3, 4)]
    network.train()
    for epoch, factor in enumerate(factors, 1):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = factor * rate
        z = network(x.double(), None if hard else 10 / epoch).float()
        divergence = F.kl_div(F.log_softmax(z / 4, dim=1), targets, reduction="batchmean")
        optimizer.zero_grad()
        (0.1 * F.cross_entropy(z, labels) + 0.9 * 16 * divergence).backward()
        if epoch <= 2 and not hard:
            for gate in gates:
                gate.grad = None
        optimizer.step()
    network.eval()


def phase_1(network: ReleasedNetwork, **changes) -> HME:
    model = explainer(network)
    config = TrainingConfig(**{"epochs": EPOCHS, "batch_size": 12, **PHASE_1, **changes})
    fit(
        model,
        DATA,
        KD,
        config,
        seed=0,
        teacher=RowTeacher(),
        temperature=TemperatureConfig(),
        gate_warmup=2,
    )
    return model.eval()


def distance(model: HME, logits: Tensor) -> float:
    return float((model(images()) - logits).abs().max())


@pytest.fixture(scope="module")
def trained() -> tuple[ReleasedNetwork, ReleasedNetwork]:
    """The network before phase 1 and after it."""
    before = reference()
    after = copy.deepcopy(before)
    gates = {f"branch_{i}.0" for i in (2, 3, 4)}
    groups = [
        {
            "params": [
                p
                for name, p in after.named_parameters()
                if name not in gates and "conv1_0" not in name
            ]
        },
        {"params": [p for name, p in after.named_parameters() if name in gates], "lr": 1e-2},
    ]
    optimizer = torch.optim.Adam(groups, lr=5e-4, weight_decay=5e-4)
    by_loop(
        after, optimizer, [0.25, 0.5, 1, 1, 1 - 4 / 6, 1 - 4 / 6], hard=False
    )  # ⌊1.03093·6⌋ = 6
    return before, after


@torch.no_grad()
def test_phase_1_is_that_of_the_released_code(trained):
    before, after = trained
    with torch.enable_grad():
        model = phase_1(before)
        others = [
            phase_1(before, **{key: value})
            for key, value in (("gate_weight_decay", 0.0), ("gate_lr_factor", 10))
        ]
    wanted = after(images().double(), 10 / EPOCHS)
    assert distance(model, wanted) < 1e-6
    for gate, released in zip(
        model.gate_parameters(),
        [after.get_parameter(f"branch_{i}.0") for i in (2, 3, 4)],
        strict=True,
    ):
        torch.testing.assert_close(gate, released, rtol=0, atol=1e-6)
    assert min(distance(other, wanted) for other in others) > 1e-5  # so it would have been seen


@torch.no_grad()
def test_phase_2_is_that_of_the_released_code(trained):
    network = copy.deepcopy(trained[1])
    model = explainer(network).harden()
    with torch.enable_grad():
        weights = [
            p
            for name, p in network.named_parameters()
            if "branch" not in name and "conv1_0" not in name
        ]
        optimizer = torch.optim.SGD(weights, lr=1e-3, momentum=0.9, weight_decay=5e-4)
        by_loop(network, optimizer, [1, 1, 0.5, 0.5], hard=True)
        config = TrainingConfig(epochs=4, batch_size=12, **PHASE_2)
        fit(model, DATA, KD, config, seed=0, teacher=RowTeacher())
    assert distance(model.eval(), network(images().double(), None)) < 1e-6
