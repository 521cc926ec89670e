import pytest
import torch
from torch import nn

from kdx_analysis.errors import KdxError
from kdx_analysis.objectives.features import captured, middle_stage
from tests.toys import staged_net


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_features_are_what_a_module_gives_and_hooks_are_gone():
    model, images = staged_net().eval(), torch.rand(2, 1, 8, 8)
    with captured(model, ["stages.0", "classifier"]) as features:
        outputs = model(images)
    torch.testing.assert_close(features["classifier"], outputs)
    torch.testing.assert_close(features["stages.0"], model.stages[0](images))
    features["stages.0"].sum().backward()
    assert model.stages[0][0].weight.grad is not None
    assert hooks(model) == 0


def test_hooks_are_gone_when_the_body_raises():
    model = staged_net()
    with pytest.raises(ZeroDivisionError), captured(model, ["stages.0"]):
        raise ZeroDivisionError
    assert hooks(model) == 0


def test_a_wrapped_model_is_looked_into():
    model = nn.DataParallel(staged_net())
    with captured(model, ["stages.1"]) as features:
        model(torch.rand(2, 1, 8, 8))
    assert features["stages.1"].shape == (2, 4, 8, 8)


def test_half_precision_becomes_float32():
    model = staged_net()
    with torch.autocast("cpu", torch.bfloat16), captured(model, ["classifier"]) as features:
        assert model(torch.rand(2, 1, 8, 8)).dtype == torch.bfloat16
    assert features["classifier"].dtype == torch.float32


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("stages.9", "unknown module of StagedNet 'stages.9'; did you mean"),
        ("stages", "'stages' of StagedNet did not run"),
    ],
)
def test_modules_that_have_no_features(path, match):
    model = staged_net()
    with pytest.raises(KdxError, match=match), captured(model, [path]):
        model(torch.rand(2, 1, 8, 8))
    assert hooks(model) == 0


def test_the_middle_stage():
    assert middle_stage(staged_net()) == "stages.1"
    with pytest.raises(KdxError, match=r"has no stages .* one of 0, 1"):
        middle_stage(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
