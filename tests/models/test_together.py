import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models.together import RandomState, Together, unfit

CPU = torch.device("cpu")


class Counting(nn.Module):
    """Goes on only as long as a sum is positive, which no vmap can do for several at once."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, images):
        outputs = self.layer(images.flatten(1))
        return outputs if outputs.sum() > 0 else -outputs


class Drawing(Counting):
    """Adds noise by a way that is not one of torch's dropouts."""

    def forward(self, images):
        outputs = self.layer(images.flatten(1))
        return outputs + torch.rand_like(outputs)


def normalised(groups=1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=groups),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def states(count, seed=0):
    made = []
    for i in range(count):
        with torch.random.fork_rng():
            torch.manual_seed(seed + i)
            made.append(RandomState(CPU))
    return made


def drawn(make, count=3):
    torch.manual_seed(0)
    return [make().train() for _ in range(count)]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_outputs_gradients_and_statistics_are_those_of_each_model(shared, groups):
    models = drawn(lambda: normalised(groups))
    alone = copy.deepcopy(models)
    images = torch.randn(*(() if shared else (3,)), 5, 2, 2, 2)
    net = Together(models, states(3))
    outputs, _ = net(images, shared=shared)
    outputs.square().sum().backward()
    for i, model in enumerate(alone):
        expected = model(images if shared else images[i])
        expected.square().sum().backward()
        assert torch.allclose(outputs[i], expected, atol=1e-6)
        for name, parameter in model.named_parameters():
            gradient = net.parameters[name].grad[i]
            assert torch.allclose(gradient, parameter.grad, rtol=1e-4, atol=1e-5)
        assert torch.allclose(models[i][1].running_mean, model[1].running_mean, atol=1e-7)
        assert torch.allclose(models[i][1].running_var, model[1].running_var, atol=1e-7)
        assert int(models[i][1].num_batches_tracked) == 1


def test_eval_mode_reads_the_statistics_of_each_model_and_leaves_them():
    models = drawn(normalised)
    for i, model in enumerate(models):
        model.eval()
        model[1].running_mean.fill_(i)
    images = torch.randn(5, 2, 2, 2)
    expected = [model(images) for model in models]
    outputs, _ = Together(models, states(3))(images, shared=True)
    for i, model in enumerate(models):
        assert torch.allclose(outputs[i], expected[i], atol=1e-6)
        assert torch.equal(model[1].running_mean, torch.full((4,), float(i)))


def test_each_model_draws_from_its_own_state_bit_for_bit():
    layers = (nn.Dropout(0.3), nn.Dropout2d(0.4), nn.AlphaDropout(0.2))
    models = [nn.Sequential(*copy.deepcopy(layers), nn.Flatten(), nn.Linear(8, 1)) for _ in "abc"]
    alone, images = copy.deepcopy(models), torch.randn(3, 6, 2, 2, 2)
    before = torch.get_rng_state()
    outputs, _ = Together(models, states(3))(images, shared=False)
    assert torch.equal(torch.get_rng_state(), before)
    for i, model in enumerate(alone):
        torch.manual_seed(i)
        assert torch.allclose(outputs[i], model(images[i]), atol=1e-6)


def test_a_state_goes_on_where_it_was_left():
    (state,) = states(1, seed=7)
    first = []
    for _ in range(2):
        with state.in_place():
            first.append(torch.rand(1))
    torch.manual_seed(7)
    assert torch.equal(torch.cat(first), torch.cat([torch.rand(1), torch.rand(1)]))


def test_what_is_set_on_a_model_is_set_in_the_stack_and_only_there():
    models = drawn(normalised)
    net = Together(models, states(3))
    with torch.no_grad():
        models[1][3].bias.fill_(5)
    assert torch.equal(net.parameters["3.bias"][1], torch.full((3,), 5.0))
    assert not torch.equal(net.parameters["3.bias"][0], torch.full((3,), 5.0))
    net.apart()
    with torch.no_grad():
        models[1][3].bias.fill_(6)
    assert torch.equal(net.parameters["3.bias"][1], torch.full((3,), 5.0))


def test_one_models_nan_stays_its_own():
    models = drawn(normalised)
    with torch.no_grad():
        models[1][0].weight.fill_(torch.nan)
    net = Together(models, states(3))
    outputs, _ = net(torch.randn(5, 2, 2, 2), shared=True)
    F.cross_entropy(outputs.flatten(0, 1), torch.zeros(15, dtype=torch.int64)).backward()
    for tensor in net.parameters.values():
        assert tensor.grad[[0, 2]].isfinite().all()
    assert net.buffers["1.running_mean"][[0, 2]].isfinite().all()


def test_models_of_other_shapes_are_refused():
    with pytest.raises(KdxError, match="can't be trained together"):
        Together([nn.Linear(2, 3), nn.Linear(3, 3)], states(2))


@pytest.mark.parametrize(
    ("model", "reason"), [(Counting(), "data-dependent control flow"), (Drawing(), "random")]
)
def test_what_vmap_can_not_do_is_known_beforehand(model, reason):
    before = copy.deepcopy(model.state_dict())
    assert reason in unfit(model, (1, 2, 2))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_what_it_can_do_is_known_too_and_nothing_is_changed():
    model = normalised()
    before = copy.deepcopy(model.state_dict())
    assert unfit(model, (2, 2, 2)) == ""
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())
