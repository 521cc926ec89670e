import math

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from kdx_analysis.config import ObjectiveConfig, ProbeConfig, TrainingConfig
from kdx_analysis.errors import KdxError
from kdx_analysis.models import MODELS, vam
from kdx_analysis.probes import TrainingProbe
from kdx_analysis.probes.vam import block_gates, block_norms, block_rms, row_entropies
from kdx_analysis.training import fit
from tests import toys


def test_norms_of_blocks_by_hand() -> None:
    weight = torch.tensor([[3.0, 4, 1], [0, 0, 2]])[
        ..., None
    ]  # outputs 0 and 1 apart; inputs 0, 1 | 2
    norms = block_norms(weight, torch.tensor([0, 1]), torch.tensor([0, 0, 1]))
    torch.testing.assert_close(norms, torch.tensor([[5.0, 1], [0, 2]]))


def test_rms_of_blocks_by_hand_and_over_groups() -> None:
    columns = torch.tensor([0, 0, 1])
    rms = block_rms(torch.tensor([1.0, 3, 9]), columns)
    torch.testing.assert_close(rms, torch.tensor([math.sqrt(2), 3]))
    rms = block_rms(torch.tensor([1.0, 3, 9, 5, 7, 1]), columns)  # two groups of three channels
    torch.testing.assert_close(rms, torch.tensor([2.0, math.sqrt(5)]))


class Grouped(nn.Module):
    """A layer of 2 groups of 4 channels, read by a Linear on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 1)
        self.grouped = nn.Conv2d(8, 6, 3, groups=2)
        self.tokens = nn.Linear(6, 7)
        self.classifier = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.tokens(self.grouped(self.stem(x)).flatten(2).mT)).mean(dim=1)


def grouped() -> Grouped:
    torch.manual_seed(0)
    model = Grouped()
    vam.attach(model, 3)
    with torch.no_grad():
        for logits in vam.gate_parameters(model):
            logits.normal_()
    return model


def test_flow_of_every_pair_of_blocks_is_that_of_the_masked_layer() -> None:
    model, x = grouped().double(), torch.randn(4, 1, 5, 5, dtype=torch.float64)
    frame = block_gates(model, x).set_index(["layer", "row", "column"])
    entering = model.stem(x)
    within = entering.view(4, 2, 4, 5, 5)
    rows, columns = ([0, 0, 1, 1, 2, 2], [0, 0, 1, 2])
    for r in range(3):
        for m in range(3):
            outs, ins = (
                [i for i, b in enumerate(blocks) if b == w]
                for blocks, w in ((rows, r), (columns, m))
            )
            norm = model.grouped.weight[outs][:, ins].norm()
            rms = within[:, :, ins].square().mean().sqrt()
            row = frame.loc[("grouped", r, m)]
            assert row["flow"] == pytest.approx((norm * rms).item())
            assert row["alpha"] == pytest.approx(vam.attention(model)["grouped"][r, m].item())
            assert row["scale"] == pytest.approx(model.grouped.vam.scales()[r, m].item())
    tokens = model.grouped(entering).flatten(2).mT
    expected = (
        model.tokens.weight[:3, :2].norm() * tokens[..., :2].square().mean().sqrt()
    )  # 7 outputs: blocks of 3, 2, 2
    assert frame.loc[("tokens", 0, 0), "flow"] == pytest.approx(expected.item())
    assert frame.groupby(["layer", "row"])[
        ["alpha", "share", "uniform_share"]
    ].sum().to_numpy() == pytest.approx(1.0)


def test_shares_do_not_change_where_the_weight_takes_over_attention() -> None:
    model, x = grouped().double(), torch.randn(4, 1, 5, 5, dtype=torch.float64)
    before = block_gates(model, x)
    with torch.no_grad():
        for layer in vam.attended_layers(model).values():
            layer.plain_weight.copy_(layer.weight)
            layer.vam.logits.zero_()
    after = block_gates(model, x)
    assert after["share"].to_numpy() == pytest.approx(before["share"].to_numpy())
    assert after["uniform_share"].to_numpy() == pytest.approx(before["share"].to_numpy())
    assert not after["alpha"].equals(before["alpha"])


def test_entropies_by_hand() -> None:
    gates = pd.DataFrame(
        {
            "layer": "a",
            "row": [0, 0, 1, 1],
            "column": [0, 1, 0, 1],
            "alpha": [0.5, 0.5, 1, 0],
            "share": [1, 0, 0.5, 0.5],
            "uniform_share": [0.5, 0.5, 1, 0],
            "tau": 1.0,
        }
    )
    entropies = row_entropies(gates).set_index(["row", "attention"])
    assert entropies["value"].to_dict() == {
        (0, "alpha"): 1,
        (0, "share"): 0,
        (1, "alpha"): 0,
        (1, "share"): 1,
    }
    assert entropies["initial"].to_dict() == {
        (0, "alpha"): 1,
        (0, "share"): 1,
        (1, "alpha"): 1,
        (1, "share"): 0,
    }


def test_the_model_is_left_as_it_was_found_also_where_its_forward_pass_raises() -> None:
    model = grouped().train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for images, fails in ((torch.randn(2, 1, 5, 5), False), (torch.randn(2, 3, 5, 5), True)):
        if fails:
            with pytest.raises(RuntimeError):
                block_gates(model, images)
        else:
            block_gates(model, images)
        assert all(module.training for module in model.modules())
        assert not any(module._forward_pre_hooks for module in model.modules())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    vam.detach(model)
    with pytest.raises(KdxError, match="no VAM"):
        block_gates(model, torch.randn(2, 1, 5, 5))


def test_a_bypassed_forward_pass_has_no_flow() -> None:
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(4, 8), block, nn.Linear(8, 3))
    vam.attach(model, 4)
    frame = (
        block_gates(model, torch.randn(2, 5, 4))
        .groupby("layer")["flow"]
        .apply(lambda flow: flow.isna().all())
    )
    assert frame["1.self_attn.out_proj"]


def test_a_training_is_recorded_epoch_by_epoch() -> None:
    data = toys.dataset()
    torch.manual_seed(0)
    student = MODELS["digits_student"](3, 1)
    vam.attach(student)
    objective = ObjectiveConfig.model_validate({"name": "hard", "decomposition": "multiclass"})
    probe = TrainingProbe("student", student, data, objective, ProbeConfig(per_class=2), 2)
    fit(
        student,
        data,
        objective,
        TrainingConfig(epochs=2, batch_size=16, lr=0.05),
        seed=0,
        callbacks=[probe],
    )
    tables = probe.tables()
    assert {split: len(ids) for split, ids in probe.ids.items()} == {"train": 6}
    assert len(tables["vam_gates"]) == 2 * 3 * 64
    entropies = tables["vam_entropy"]
    assert len(entropies) == 2 * 3 * 8 * 2
    assert (entropies.groupby(["epoch", "attention"])["value"].mean() < 1).all()
    last = tables["vam_gates"].query("epoch == 2 and layer == 'stages.1.0'")["alpha"].to_numpy()
    assert last == pytest.approx(vam.attention(student)["stages.1.0"].detach().flatten().numpy())
