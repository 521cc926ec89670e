from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kdx_analysis.config import ObjectiveConfig, TrainingConfig
from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME
from kdx_analysis.objectives import Batch, Objective
from kdx_analysis.objectives.distillers.fitnet import FitNet
from kdx_analysis.probes.conflict.probe import terms_of
from kdx_analysis.training import fit
from kdx_analysis.training.checkpoints import fingerprint
from tests.conftest import toy_study
from tests.toys import RowTeacher, dataset, staged_net

B, K = 4, 3


def fitnet(**options) -> Objective:
    return Objective(ObjectiveConfig(name="fitnet", options=options))


def normal(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def batch(own: torch.Tensor, taught: torch.Tensor, outputs: torch.Tensor | None = None) -> Batch:
    outputs = normal(9, B, K) if outputs is None else outputs
    labels = torch.tensor([0, 2, 1, 0])
    return Batch(outputs, labels, outputs, torch.Generator(), {"s": own}, {"t": taught})


def pooled(x: np.ndarray, height: int, width: int) -> np.ndarray:
    n, c, h, w = x.shape
    return x.reshape(n, c, height, h // height, width, w // width).mean(axis=(3, 5))


def spread(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The gradient of a mean over patches, given that of the means."""
    tall, wide = shape[2] // x.shape[2], shape[3] // x.shape[3]
    return x.repeat(tall, axis=2).repeat(wide, axis=3) / (tall * wide)


def channels_last(x: np.ndarray, height: int, width: int) -> np.ndarray:
    return pooled(x, height, width).transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("own_shape", "taught_shape"),
    [
        ((B, 2, 8, 4), (B, 5, 4, 4)),
        ((B, 2, 4, 4), (B, 5, 8, 4)),
        ((B, 6, 2), (B, 6, 3)),
        ((B, 4), (B, 7)),
    ],
)
def test_hint_and_gradients_are_those_of_numpy_in_float64(own_shape, taught_shape):
    which = fitnet(beta=50.0)
    own, taught = normal(0, *own_shape).requires_grad_(), normal(1, *taught_shape)
    given = batch(own, taught)
    which.distiller.build(given.features, given.teacher_features)
    weight, bias = which.distiller.double().parameters()
    loss = which.of_batch(given)
    of_own, of_weight, of_bias = torch.autograd.grad(loss, (own, weight, bias))

    h, g, grid = own.detach().numpy(), taught.numpy(), own.ndim == 4
    if grid:
        size = min(h.shape[2], g.shape[2]), min(h.shape[3], g.shape[3])
        h, g = channels_last(h, *size), channels_last(g, *size)
    W = weight.detach().numpy().reshape(g.shape[-1], h.shape[-1])
    error = h @ W.T + bias.detach().numpy() - g
    hint = (error**2).reshape(B, -1).mean(axis=1)
    given_hint = which.distiller.on_features(given)["hint"].detach().numpy()
    np.testing.assert_allclose(given_hint, hint, rtol=1e-12)
    hard = float(which.loss(given.outputs, given.labels, None, torch.Generator()))
    assert float(loss.detach()) == pytest.approx(hard + 50 * hint.mean(), rel=1e-12)

    slope = 50 * 2 * error / error.size  # of the mean over samples, channels and positions
    rows, inputs = slope.reshape(-1, g.shape[-1]), h.reshape(-1, h.shape[-1])
    np.testing.assert_allclose(of_weight.reshape(W.shape), rows.T @ inputs, rtol=1e-9)
    np.testing.assert_allclose(of_bias, rows.sum(axis=0), rtol=1e-9, atol=1e-12)
    back = slope @ W
    if grid:
        back = spread(back.transpose(0, 3, 1, 2), own_shape)
    np.testing.assert_allclose(of_own, back, rtol=1e-9)


def test_features_on_the_teachers_own_are_without_a_hint():
    which = fitnet()
    own = normal(0, B, 3, 4, 4)
    given = batch(own, own)
    which.distiller.build(given.features, given.teacher_features)
    regressor = which.distiller.regressor.double()
    nn.init.dirac_(regressor.weight)
    nn.init.zeros_(regressor.bias)
    assert which.distiller.on_features(given)["hint"].abs().max() == 0


def trained(model: nn.Module, teacher: nn.Module, **keys):
    config = TrainingConfig(epochs=2, batch_size=16, lr=0.01, warmup_epochs=0, **keys)
    return fit(model, dataset(), fitnet().config, config, seed=0, teacher=teacher)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("explainer", [False, True])
def test_it_trains_a_student_and_an_explainer_and_leaves_no_trace_in_them(explainer, precision):
    torch.manual_seed(0)
    model, teacher = staged_net(), staged_net()
    if explainer:
        model = HME.from_student(model, K, 2)
    names, before = list(model.state_dict()), fingerprint(teacher)
    state = torch.get_rng_state()
    run = trained(model, teacher, precision=precision, channels_last=True, selection="best")
    loss = run.history[run.history["metric"] == "loss"]["value"].tolist()
    assert loss[1] < loss[0]
    assert list(model.state_dict()) == names
    assert fingerprint(teacher) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for net in (model, teacher) for module in net.modules())


def test_a_seed_gives_the_same_run():
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model, teacher = staged_net(), staged_net()
        trained(model, teacher)
        runs.append(fingerprint(model))
    assert runs[0] == runs[1]


def test_the_regressor_is_trained_with_the_student(monkeypatch):
    made = []
    build = FitNet.build

    def kept(self, *features):
        build(self, *features)
        made.append((self.regressor, self.regressor.weight.detach().clone()))

    monkeypatch.setattr(FitNet, "build", kept)
    trained(staged_net(), staged_net())
    ((regressor, before),) = made
    assert not torch.equal(regressor.weight.detach(), before)


def test_it_can_be_scaled_to_kd():
    config = ObjectiveConfig(name="fitnet", scale_to="kd")
    training = TrainingConfig(epochs=1, batch_size=16, warmup_epochs=0)
    run = fit(staged_net(), dataset(), config, training, seed=0, teacher=staged_net())
    assert run.history["value"].notna().all()


def test_hooks_are_gone_after_a_training_that_fails():
    def fail(module, inputs):
        if module.training:
            raise ZeroDivisionError

    model, teacher = staged_net(), staged_net()
    hook = model.classifier.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        trained(model, teacher)
    hook.remove()
    assert not any(module._forward_hooks for net in (model, teacher) for module in net.modules())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"bta": 3}, "unknown configuration key 'bta'; did you mean 'beta'"),
        ({"beta": -1}, "beta = -1: .*greater than or equal to 0"),
        ({"student_layer": 3}, "student_layer = 3"),
    ],
)
def test_options_are_checked_before_training(options, match):
    with pytest.raises(KdxError, match=match):
        toy_study(objectives=[{"name": "fitnet", "options": options}])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"student_layer": "stages.7"}, "unknown module of the student 'stages.7'; did you mean"),
        ({"teacher_layer": "stage.1"}, "unknown module of the teacher 'stage.1'; did you mean"),
    ],
)
def test_a_path_that_does_not_exist_is_refused_with_near_ones(options, match):
    config = TrainingConfig(epochs=1, batch_size=16)
    with pytest.raises(KdxError, match=match):
        fit(staged_net(), dataset(), fitnet(**options).config, config, seed=0, teacher=staged_net())


def test_a_teacher_without_stages_needs_its_layer_named():
    with pytest.raises(KdxError, match=r"RowTeacher has no stages .* one of norm"):
        trained(staged_net(), RowTeacher())


def test_conflict_is_recorded_of_the_terms_that_it_keeps_by_subtask():
    assert terms_of(fitnet().config) == ("hard", "objective")
    assert fitnet().subtask_terms == ("hard",)
