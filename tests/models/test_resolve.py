import subprocess
import sys

import pytest
import torch
from torch import nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models.resolve import (
    build_model,
    check_fits,
    count_parameters,
    list_models,
    redrawn,
)
from kdx_analysis.models.zoo import MODELS, StagedNet


def linear(channels: int, side: int, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, num_classes))


def draw(*_: object) -> None:
    torch.rand(1)


def test_zoo_names_are_as_they_are() -> None:
    assert list_models() == sorted(MODELS)
    model = build_model("digits_student", 7, 1)
    assert isinstance(model, StagedNet)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


def test_torchvision_and_timm_by_prefix() -> None:
    assert build_model("torchvision:squeezenet1_1", 7, 3)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    model = build_model("timm:test_resnet", 7, 1).eval()
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("library", "name"), [("torchvision", "torchvision:resnet18"), ("timm", "timm:convnext_atto")]
)
def test_listed_names_are_those_that_build(library: str, name: str) -> None:
    names = list_models(library)
    assert name in names
    assert names == sorted(names)


def test_googlenet_gives_one_output_in_train_mode() -> None:
    model = build_model("torchvision:googlenet", 5, 3).train()
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet19", "'resnet18'"),
        ("torchvision:resnet19", "'torchvision:resnet18'"),
        ("timm:convnext_ato", "'timm:convnext_atto'"),
        ("tim:convnext_atto", "'timm'"),
    ],
)
def test_an_unknown_name_is_answered_with_near_ones_of_its_library(name: str, near: str) -> None:
    with pytest.raises(KdxError, match="unknown model") as caught:
        build_model(name, 10, 3)
    assert near in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_that_would_be_downloaded_are_unknown() -> None:
    for name in ("timm:hf-hub:timm/resnet18.a1_in1k", "torchvision:fasterrcnn_resnet50_fpn"):
        with pytest.raises(KdxError, match="unknown model"):
            build_model(name, 10, 3)


def test_torchvision_takes_three_channels_only() -> None:
    with pytest.raises(
        KdxError, match="3 channels, data has 1: choose a model of the zoo or of timm"
    ):
        build_model("torchvision:resnet18", 10, 1)


def test_the_zoo_needs_neither_torchvision_nor_timm() -> None:
    code = (
        "import sys; from kdx_analysis.models import resolve; resolve.build_model('resnet20', 10, "
        "3);assert not {'torchvision', 'timm'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_model_that_fits_is_left_as_it_was() -> None:
    model = build_model("digits_student", 10, 1).train()
    model.stages[1].eval()  # a frozen stage
    model.add_module("noise", nn.Dropout())
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    model.register_forward_hook(draw)
    check_fits(model, (1, 8, 8), 10)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)


def test_the_forward_pass_runs_in_eval_mode_without_gradients_on_two_images_of_the_models_dtype() -> (
    None
):
    seen = []
    model = linear(1, 4, 3).double()
    model.register_forward_pre_hook(
        lambda m, x: seen.append((x[0], m.training, torch.is_grad_enabled()))
    )
    check_fits(model, (1, 4, 4), 3)
    ((images, training, gradients),) = seen
    assert images.dtype == torch.float64
    assert images.shape == (2, 1, 4, 4)
    assert not training
    assert not gradients


def test_images_that_do_not_fit() -> None:
    model = build_model("vgg8", 10, 3).train()
    rng = torch.get_rng_state()
    with pytest.raises(
        KdxError, match=r"images of 1×8×8 do not fit model StagedNet: .+; "
    ) as caught:
        check_fits(model, (1, 8, 8), 10)
    assert "\n" not in str(caught.value)
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), rng)


def test_outputs_that_do_not_fit() -> None:
    remedy = "model gives 1000 outputs, data has 10 classes: build it with num_classes=10"
    with pytest.raises(KdxError, match=remedy):
        check_fits(linear(1, 8, 1000), (1, 8, 8), 10)
    with pytest.raises(KdxError, match="model gives 2×1×8×8 for 2 images, wanted 2×10"):
        check_fits(nn.Identity(), (1, 8, 8), 10)

    class Tuple(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
            return x, None

    with pytest.raises(KdxError, match="model gives a tuple"):
        check_fits(Tuple(), (1, 8, 8), 10)


def test_count_parameters_counts_frozen_ones_and_shared_ones_once() -> None:
    layer = nn.Linear(3, 4)  # 3·4 + 4
    layer.bias.requires_grad_(False)
    assert count_parameters(nn.Sequential(layer, nn.BatchNorm1d(4), layer)) == 16 + 8


def test_redrawn_is_a_copy_with_other_weights_all_trainable() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3)
    ).eval()
    model[0].requires_grad_(False)
    model[1].running_mean.fill_(7.0)
    model[1].weight.data.fill_(5.0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(0)
    fresh = redrawn(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model[0].weight.requires_grad
    assert not torch.equal(fresh[0].weight, model[0].weight)
    assert not torch.equal(fresh[3].weight, model[3].weight)
    assert fresh[1].running_mean.tolist() == [0, 0]
    assert fresh[1].weight.tolist() == [1, 1]
    assert all(parameter.requires_grad for parameter in fresh.parameters())
    assert fresh.training
    torch.manual_seed(0)
    assert torch.equal(redrawn(model)[3].weight, fresh[3].weight)


def test_redrawn_takes_attention_of_pytorch() -> None:
    model = nn.MultiheadAttention(4, 2)
    assert not torch.equal(redrawn(model).in_proj_weight, model.in_proj_weight)


def test_redrawn_refuses_a_module_that_cannot_draw_its_parameters() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(2))
            self.linear = nn.Linear(2, 2)

    message = r"Sequential anew: 1, a Scaled, holds gamma and has no reset_parameters\(\); add one, or give .* by name"
    with pytest.raises(KdxError, match=message):
        redrawn(nn.Sequential(nn.Linear(2, 2), Scaled()))
    with pytest.raises(KdxError, match="Scaled anew: it, a Scaled, holds gamma"):
        redrawn(Scaled())
