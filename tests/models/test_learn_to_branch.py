import re
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models.learn_to_branch import Released, learn_to_branch
from tests.models.reference_learn_to_branch import checkpoint, released_network

FORMS = ("ce", "nce")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def images(dtype: torch.dtype = torch.float64, channels: int = 3, size: int = 32) -> Tensor:
    """Three of coarse patches, so that they still differ behind three poolings."""
    patches = torch.randn(3, channels, 4, 4, generator=torch.Generator().manual_seed(1))
    return 2 * nn.functional.interpolate(patches, size).to(dtype)


def converted(form: str, dtype: torch.dtype = torch.float64, classes: int = 3, **options):
    reference = released_network(classes, form, **options).to(dtype).eval()
    return reference, Released.read(checkpoint(reference)).explainer().eval()


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_scores_are_those_of_the_released_network_at_every_temperature(form, dtype):
    reference, model = converted(form, dtype)
    x = images(dtype)
    answers = []
    for epoch in (1, 10, 300):
        model.temperature = 5 / epoch
        answers.append(reference(x, 10 / epoch))
        assert model(x).dtype == dtype
        torch.testing.assert_close(model(x), answers[-1], rtol=0, atol=TOLERANCE[dtype])
    hard = model.harden()
    answers.append(reference(x, None))
    torch.testing.assert_close(hard(x), answers[-1], rtol=0, atol=TOLERANCE[dtype])
    gaps = [(a - b).abs().max() for a, b in pairwise(answers)]
    assert min(gaps) > 1e-3  # so a wrong temperature would have been seen
    assert answers[0].std(dim=0).min() > 1e-2  # and the images matter


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("classes", "experts", "channels", "size"),
    [(7, (2, 4, 8), 3, 32), (2, (3, 2, 5), 1, 28), (3, (1, 2, 1), 3, 16)],
)
@torch.no_grad()
def test_classes_experts_and_channels_are_found_in_the_checkpoint(
    form, classes, experts, channels, size
):
    reference, model = converted(form, classes=classes, experts=experts, in_channels=channels)
    model.temperature = 0.5
    assert (model.num_classes, model.experts) == (classes, (1, *experts))
    x = images(channels=channels, size=size)
    torch.testing.assert_close(model(x), reference(x, 1.0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_training_goes_the_same_way(form):
    """Scores, gradients and running statistics with those of the batch in BatchNorm, dropout off."""
    reference, model = converted(form, dropout=0.0)
    reference.train(), without_dropout(model).train()
    model.temperature = 5 / 7
    x, labels = images(), torch.tensor([0, 1, 2])
    scores = {}
    for net, argument in ((reference, (10 / 7,)), (model, ())):
        scores[net] = net(x, *argument)
        nn.functional.cross_entropy(scores[net], labels).backward()
    torch.testing.assert_close(scores[model], scores[reference], rtol=0, atol=1e-10)

    theirs = {name: p.grad for name, p in reference.named_parameters()}
    pairs = list(
        zip(
            [p.grad for p in model.gate_parameters()],
            [theirs[f"branch_{i}.0"] for i in (2, 3, 4)],
            strict=True,
        )
    )
    for number, level in enumerate(model.levels, 2):
        for name, parameter in level.body.named_parameters():
            beside = torch.cat([theirs[f"conv{number}_{i}.{name}"] for i in range(level.experts)])
            pairs.append((parameter.grad, beside))
    for layer, name in zip(
        [model.heads.layers[i] for i in (0, 3, 6)],
        ("fc1_{}.0", "fc2_{}.0", "fc2_{}.3"),
        strict=True,
    ):
        pairs.append(
            (
                layer.weight.grad,
                torch.stack([theirs[f"{name.format(k)}.weight"].T for k in range(3)]),
            )
        )
        pairs.append(
            (layer.bias.grad, torch.stack([theirs[f"{name.format(k)}.bias"] for k in range(3)]))
        )
    assert len(pairs) == len(list(model.parameters()))
    for ours, their in pairs:
        torch.testing.assert_close(ours, their, rtol=1e-8, atol=1e-12)

    reference.eval(), model.eval()
    torch.testing.assert_close(
        model(x), reference(x, 10 / 7), rtol=0, atol=1e-10
    )  # through running statistics


@torch.no_grad()
def test_margins_of_two_logits_are_their_difference():
    reference, model = converted("nce")
    model.temperature = 5.0
    margins = model.heads.margins(model.trace(images()).inputs)
    by_loop = torch.stack([z[:, 1] - z[:, 0] for z in reference.logits(images(), 10.0)], dim=1)
    torch.testing.assert_close(margins, by_loop, rtol=0, atol=1e-10)
    reference, model = converted("ce")
    assert torch.equal(model.heads.margins(model.trace(images()).inputs), model(images()))


def test_the_unused_stem_is_named_and_a_bare_state_is_taken():
    reference = released_network(2, "nce", experts=(1, 2, 3))
    state = checkpoint(reference)["model"]
    released = Released.read(state)
    assert (released.form, released.num_classes, released.experts, released.in_channels) == (
        "nce",
        2,
        (1, 2, 3),
        3,
    )
    assert released.unused == tuple(name for name in state if name.startswith("conv1_0."))
    assert len(released.unused) == 7
    assert (
        Released.read({name: state[name] for name in state if name not in released.unused}).unused
        == ()
    )


WRONG = {
    "no expert at all": (
        lambda s: s.clear(),
        "no expert named like 'conv2_0.0.weight'; it has nothing",
    ),
    "no names": (lambda s: (s.clear(), s.update({0: torch.zeros(2)})), "it has 0$"),
    "an expert's tensor": (
        lambda s: s.pop("conv3_1.4.running_var"),
        "missing: conv3_1.4.running_var",
    ),
    "a whole expert": (
        lambda s: [s.pop(n) for n in list(s) if n.startswith("conv4_0.")],
        "missing: conv4_0.0.bias",
    ),
    "a level": (
        lambda s: [s.pop(n) for n in list(s) if n.startswith("conv3_")],
        "missing: conv3_0.0.bias, .* more",
    ),
    "a gate": (lambda s: s.pop("branch_4.0"), "missing: branch_4.0$"),
    "the last head": (lambda s: s.pop("fc2_1.3.weight"), "missing: fc2_1.3.weight$"),
    "the first head": (lambda s: s.pop("fc2_0.3.weight"), "missing: fc2_0.3.weight"),
    "one more": (lambda s: s.update({"fc.weight": torch.zeros(2)}), "unexpected: fc.weight$"),
    "another shape": (
        lambda s: s.update({"branch_3.0": torch.zeros(2, 3)}),
        r"another shape: branch_3.0 \(2, 3\) instead of \(3, 2\)$",
    ),
    "three logits": (
        lambda s: s.update({"fc2_0.3.weight": torch.zeros(3, 128)}),
        r"fc2_0.3.weight \(3, 128\)",
    ),
    "no tensor": (lambda s: s.update({"branch_2.0": "x"}), r"branch_2.0 str instead of \(2, 1\)$"),
}


@pytest.mark.parametrize(("spoil", "message"), WRONG.values(), ids=WRONG)
def test_other_checkpoints_are_refused_by_name(spoil, message):
    state = checkpoint(released_network(2, "ce", experts=(1, 2, 3)))["model"]
    spoil(state)
    with pytest.raises(KdxError, match=r"this is no .*checkpoint of the released code") as caught:
        Released.read({"model": state})
    assert re.search(message, str(caught.value))


def test_fresh_weights_start_as_the_released_code_has_them():
    torch.manual_seed(0)
    model = learn_to_branch(4, "nce")
    assert model.experts == (1, 2, 4, 8)
    assert model.temperature == 1.0
    for gate, rows in zip(model.gate_parameters(), (4, 8, 4), strict=True):
        assert len(gate) == rows
        assert 0 <= gate.min() < gate.max() < 1
    first, last = model.heads.layers[0], model.heads.layers[6]
    assert first.weight.shape == (4, 1568, 128)
    assert last.weight.shape == (4, 128, 2)
    assert first.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert not first.bias.any()
    assert not last.bias.any()
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [
        0.15,
        0.15,
    ]


def test_experts_start_kaiming_normal_of_the_fan_out():
    torch.manual_seed(0)
    level = learn_to_branch(2).levels[2]
    states = [level.take([i]).body.state_dict() for i in range(8)]
    for state in states:
        assert state["0.weight"].std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)
        assert state["3.weight"].std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.03)
        assert torch.equal(state["1.weight"], torch.ones(64))
        assert not state["4.bias"].any()
    assert not torch.equal(states[0]["0.weight"], states[1]["0.weight"])


@pytest.mark.parametrize("gumbel", [False, True])
@torch.no_grad()
def test_gates_are_noisy_in_training_only_where_that_is_asked_for(gumbel):
    model = learn_to_branch(2, experts=(2, 2, 2), gumbel=gumbel)
    x = images(torch.float32, size=16)
    gates = [model.trace(x).attention[-1] for _ in range(2)]
    assert torch.equal(*gates) != gumbel
    model.eval()
    assert torch.equal(model.trace(x).attention[-1], model.attention()[-1])


def test_weights_drawn_anew_may_keep_running_statistics_as_the_released_code_does():
    _, model = converted("ce", classes=2, experts=(1, 2, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.redraw(statistics=False)
    for name, tensor in model.state_dict().items():
        kept = (
            "running_" in name
            or name.startswith("gates.")
            or name == "tau"
            or name.endswith("num_batches_tracked")
        )
        assert torch.equal(tensor, before[name]) == kept, name
    model.redraw()
    assert not any(
        tensor.any() for name, tensor in model.state_dict().items() if name.endswith("running_mean")
    )


@pytest.mark.parametrize("arguments", [{"form": "bce"}, {"experts": ()}, {"experts": (2, 0)}])
def test_other_forms_and_levels_are_refused(arguments):
    with pytest.raises(KdxError):
        learn_to_branch(3, **arguments)
