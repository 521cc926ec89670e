"""Probes hold what they take for granted against the model, and leave it as it was found."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx_analysis import probes
from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, build_model
from kdx_analysis.models.modes import undisturbed
from kdx_analysis.probes import (
    ConflictProbe,
    affinity_of,
    conflict_of,
    gates_of,
    subtask_gradients,
    subtask_grams,
)
from kdx_analysis.probes.conflict import grams as gradients_room
from kdx_analysis.validation.models import AlwaysDropout, Net, Noise, Scalar

K = 4
IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % K


def net(build: Callable[[], nn.Module] = Net) -> nn.Module:
    torch.manual_seed(0)
    return build()


def cosines(model: nn.Module, images: Tensor = IMAGES, **options: Any) -> np.ndarray:
    record = conflict_of(
        model, images, LABELS[: len(images)], null_draws=19, permutations=19, **options
    )
    return record.pairs.query("level == 'all'")["cosine"].to_numpy()


class BatchShare(Net):
    """The head takes a share of the batch's mean off."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.features(x).mean(dim=(2, 3))
        return self.head(pooled - self.share * pooled.mean(dim=0))


@pytest.mark.parametrize("share", [1.0, 0.05, -0.05])
def test_a_model_that_reads_other_images_is_refused_by_every_probe(share: float) -> None:
    model = net(lambda: BatchShare(share))
    calls: list[Callable[[], object]] = [
        lambda: cosines(model),
        lambda: affinity_of(model, IMAGES, LABELS, null_draws=1),
        lambda: probes.integrated_gradients(model, IMAGES, 0, steps=2),
        lambda: subtask_grams(model, IMAGES, torch.randn(1, 24, K), groups=[["a", "b"]]),
    ]
    for call in calls:
        with pytest.raises(
            KdxError, match=r"the forward of BatchShare itself computes an image's outputs from the"
        ):
            call()


def test_explainers_with_batch_statistics_are_refused_by_the_gates_and_ablation_too() -> None:
    model = net(lambda: HME.from_student(build_model("digits_student", K, 3), K, 2))
    model.trunk = nn.Sequential(model.trunk, nn.BatchNorm2d(24, track_running_stats=False))
    for call in (gates_of, probes.ablate, conflict_of):
        with pytest.raises(KdxError, match=r"'trunk.1' \(BatchNorm2d\).*track_running_stats=True"):
            call(model, IMAGES, LABELS)


def test_halves_that_are_the_same_images_hide_nothing() -> None:
    twice = IMAGES[:12].repeat(2, 1, 1, 1)
    with pytest.raises(KdxError, match="from the other images"):
        cosines(net(lambda: BatchShare(1.0)), twice)


def test_noise_is_refused_by_name_and_moves_no_random_state() -> None:
    model = net(lambda: nn.Sequential(Noise(), Net()))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    with pytest.raises(KdxError, match=r"module '0' \(Noise\) is random in eval mode"):
        cosines(model)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


class Forgetful(nn.Dropout):
    """Stays in train mode, as Monte-Carlo dropout does."""

    def train(self, mode: bool = True) -> Forgetful:
        return super().train(True)


@pytest.mark.parametrize("layer", [Forgetful, AlwaysDropout])
def test_dropout_that_ignores_eval_is_named(layer: Callable[[], nn.Module]) -> None:
    model = net()
    model.a = nn.Sequential(model.a, layer())
    with pytest.raises(KdxError, match=r"module 'a.1' \(\w+\) is random in eval mode"):
        cosines(model)


@pytest.mark.parametrize("name", ["resnet20", "wrn_40_2"])
def test_honest_deep_networks_in_float32_are_taken_by_their_rules(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever float32 rounds in a hundred images and dozens of layers: no layer falls back, none
    is refused.
    """
    torch.manual_seed(0)
    model, images = build_model(name, K, 3), torch.randn(100, 3, 8, 8)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
    monkeypatch.setattr(
        gradients_room, "_plainly", lambda *_: pytest.fail("fell back to plain autograd")
    )
    monkeypatch.setattr(
        "kdx_analysis.probes.conflict.per_sample._by_functions", lambda *_: pytest.fail("fell back")
    )
    assert subtask_grams(model, images, torch.randn(2, 100, K)).total().isfinite().all()


def test_a_layer_whose_rule_is_one_percent_wrong_is_taken_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, r = net().double(), torch.randn(3, 24, K, dtype=torch.float64)
    right = subtask_grams(model, IMAGES.double(), r, groups=[["a", "b"]]).total()
    from kdx_analysis.probes.conflict import layer_rules

    rule = layer_rules._RULES[nn.Conv2d]
    wrong = layer_rules.Rule(rule.prepare, lambda *given: 1.01 * rule.gradient(*given))
    for which in ("rule", "functions"):
        if which == "functions":
            monkeypatch.setattr(
                "kdx_analysis.probes.conflict.per_sample._by_functions", lambda *_: {}
            )
        with monkeypatch.context() as patched:
            patched.setitem(layer_rules._RULES, nn.Conv2d, wrong)
            found = subtask_grams(model, IMAGES.double(), r, groups=[["a", "b"]]).total()
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-10)


def test_an_error_in_one_subtask_of_many_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are compared over all subtasks at once, each image of each with a weight of its own."""
    from kdx_analysis.probes.conflict import per_sample

    model, r = net().double(), torch.randn(3, 24, K, dtype=torch.float64)
    right = subtask_grams(model, IMAGES.double(), r, groups=[["a", "b"]]).total()
    own = per_sample.Pass._deltas

    def wrong(self: per_sample.Pass, k: int) -> list[Tensor]:
        return [1.01 * delta if k == 2 else delta for delta in own(self, k)]

    monkeypatch.setattr(per_sample.Pass, "_deltas", wrong)
    torch.testing.assert_close(
        subtask_grams(model, IMAGES.double(), r, groups=[["a", "b"]]).total(), right
    )


def test_margins_that_read_other_images_are_refused_and_those_that_know_their_rows_are_not() -> (
    None
):
    model, groups = net(), [["a", "b"]]
    with pytest.raises(
        KdxError, match="margins= computes an image's margins from the outputs of other images"
    ):
        cosines(model, margins=lambda z: z - z.mean(dim=0), groups=groups)
    with pytest.raises(KdxError, match="margins= gives no gradient"):
        cosines(model, margins=torch.Tensor.detach, groups=groups)
    signs = 2 * F.one_hot(LABELS, K) - 1
    assert np.isfinite(cosines(model, margins=lambda z: z.abs() * signs, groups=groups)).all()


def test_a_model_that_takes_one_batch_size_alone_is_refused() -> None:
    class Fixed(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.view(24, 3, 8, 8))

    with pytest.raises(KdxError, match=r"runs on 24 images and not on 12 of them"):
        cosines(net(Fixed), groups=[["a", "b"]])


def test_an_explainer_with_a_hook_on_it_is_refused_only_if_that_changes_it() -> None:
    model = net(lambda: HME.from_student(build_model("digits_student", K, 3), K, 2))
    plain = cosines(model)
    with model.register_forward_hook(lambda module, inputs, output: None):
        np.testing.assert_array_equal(cosines(model), plain)
    with (
        model.register_forward_hook(lambda module, inputs, output: 2 * output),
        pytest.raises(KdxError, match="a hook on the explainer"),
    ):
        cosines(model)


def test_rare_draws_and_moving_states_are_refused_by_what_they_are() -> None:
    class Rare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if random.random() < 1 else torch.zeros_like(x)

    model = net()
    model.a = nn.Sequential(model.a, Rare())
    with pytest.raises(KdxError, match=r"module 'a.1' \(Rare\) is random in eval mode: it draws"):
        cosines(model)

    class Moving(Net):
        def features(self, x: Tensor) -> Tensor:
            self.a.bias.data += 0.1
            return super().features(x)

    with pytest.raises(KdxError, match=r"no fixed function in eval mode.* as it changes 'a.bias'"):
        cosines(net(Moving))


def test_layers_under_autocast_are_refused_by_its_name() -> None:
    class Flat(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x).float()

    model = net(lambda: Flat(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, K)))
    with pytest.raises(KdxError, match=r"computes in torch.bfloat16.*torch.autocast"):
        cosines(model, groups=[["1"]])
    model = net(lambda: Flat(Net()))
    with pytest.raises(KdxError, match=r"computes in torch.bfloat16.*torch.autocast"):
        cosines(model, groups=[["0.a", "0.b"]])


def test_precisions_may_mix_and_complex_numbers_stay_outside() -> None:
    class Both(Net):
        def features(self, x: Tensor) -> Tensor:
            return torch.relu(self.b(torch.relu(self.a(x)).to(self.b.weight.dtype))).to(x.dtype)

    model = net(Both)
    expected = cosines(model, groups=[["a", "b"]])
    model.b.double()
    np.testing.assert_allclose(cosines(model, groups=[["a", "b"]]), expected, atol=1e-5)
    affinity_of(model, IMAGES, LABELS, null_draws=1, groups=[["a", "b"]])
    for dtype in (torch.complex64, torch.int8):
        model = net()
        parts = dict(model.named_children())
        model._modules.clear()
        model.add_module(
            "first",
            nn.ParameterList([nn.Parameter(torch.zeros(2, dtype=dtype), requires_grad=False)]),
        )
        model._modules.update(parts)
        np.testing.assert_array_equal(cosines(model, groups=[["a", "b"]]), expected)
    model.first[0] = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(KdxError, match=r"'first.0' is in torch.complex64"):
        cosines(model, groups=[["first", "a"]])


def test_scalars_have_affinity_too() -> None:
    model = net(Scalar)
    found = subtask_gradients(model, IMAGES, torch.ones(1, 24, K), groups=[["a", "b"]])
    (expected,) = torch.autograd.grad(model(IMAGES)[:, 1].sum(), [model.b.gain])
    torch.testing.assert_close(found["b.gain"][0, 1], expected)
    assert len(affinity_of(model, IMAGES, LABELS, null_draws=1, groups=[["a", "b"]]))


def test_logits_are_told_from_other_tensors_by_every_probe() -> None:
    class Two(Net):
        def forward(self, x: Tensor) -> Any:
            z = super().forward(x)
            return {"logits": z, "twice": torch.cat([z, z], dim=1)}

    model, groups = net(Two), [["a", "b"]]
    warnings.simplefilter("ignore")  # of what is taken
    probe = ConflictProbe(model, num_classes=K)
    for rows in torch.arange(24).split([3, 21]):
        probe.update(IMAGES[rows], LABELS[rows])
    found = probe.compute(null_draws=19, groups=groups).pairs.query("level == 'all'")["cosine"]
    np.testing.assert_allclose(found, cosines(net(), groups=groups))
    z = [
        affinity_of(m, IMAGES, LABELS, null_draws=1, groups=groups)["value"] for m in (model, net())
    ]
    np.testing.assert_allclose(*z)

    class Soft(Two):
        def forward(self, x: Tensor) -> Any:
            return {name: (z / 9).sigmoid() for name, z in super().forward(x).items()}

    with pytest.raises(KdxError, match="look like probabilities"):
        cosines(net(Soft), groups=groups)


class Rescaling(Net):
    """Whatever a forward may do to its own module."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.spectral_norm(self.a)
        self.b = nn.utils.weight_norm(self.b)
        self.register_buffer("calls", torch.zeros(()))
        self.ends = ""

    def features(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.ends == "draws":
            random.random()
            np.random.rand()
            torch.rand(2)
        self.kept = torch.zeros(2)
        self.added = self.calls
        if self.ends == "fails" and self.calls > 1:
            raise ZeroDivisionError
        return super().features(x)


def everything(model: nn.Module) -> list[object]:
    """What a probe must leave alone, by identity or value."""
    seen: list[object] = [
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
    ]
    seen += [
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
    ]
    seen += [(name, tensor.tolist()) for name, tensor in model.state_dict().items()]
    seen += [(id(p), id(p.grad), p.requires_grad) for p in model.parameters()]
    for module in model.modules():
        attributes = {
            name: id(value) for name, value in vars(module).items() if not isinstance(value, dict)
        }
        hooks = [len(value) for name, value in vars(module).items() if "hooks" in name]
        seen += [attributes, hooks, module.training]
    return seen


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("ends", ["", "fails", "draws"])
def test_everything_is_left_as_it_was_found(ends: str) -> None:
    model = net(Rescaling).train()
    F.cross_entropy(model(IMAGES), LABELS).backward()
    model.a.eval()
    model.head.weight.requires_grad_(False)
    model.calls.zero_()
    model.ends = ends
    options: dict[str, Any] = {"groups": [["a", "b"]]}
    r = torch.randn(3, 24, K)
    calls: list[Callable[[], object]] = [
        lambda: cosines(model, **options),
        lambda: affinity_of(model, IMAGES, LABELS, null_draws=1, **options),
        lambda: subtask_gradients(model, IMAGES, r, **options),
    ]
    if not ends:  # tracing runs no layer
        calls.append(lambda: probes.module_groups(model, image_shape=(3, 8, 8)))
    for call in calls:
        before = everything(model)
        if ends:
            with pytest.raises(
                (KdxError, ZeroDivisionError)
            ):  # in a half, or in the step's own forward pass
                call()
        else:
            call()
        assert everything(model) == before


def test_reading_a_computed_weight_in_train_mode_does_not_change_it() -> None:
    model = net(
        lambda: nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), Net()
        )
    )
    model[2].a = nn.Conv2d(8, 6, 3)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cosines(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_graph_that_waits_for_its_backward_pass_is_not_spoilt() -> None:
    model = net().train()
    loss = F.cross_entropy(model(IMAGES), LABELS)
    cosines(model)
    loss.backward()


def test_probing_works_under_inference_mode_and_no_grad() -> None:
    model = net()
    expected = cosines(model)
    with torch.no_grad():
        np.testing.assert_array_equal(cosines(model), expected)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        np.testing.assert_array_equal(cosines(model, IMAGES.clone()), expected)
        probe = ConflictProbe(model)
        probe.update(IMAGES.clone(), LABELS.clone())
        affinity_of(model, IMAGES.clone(), LABELS.clone(), null_draws=1)
        probes.integrated_gradients(model, IMAGES.clone(), 0, steps=2)
        r = torch.randn(3, 24, K)
        grams = subtask_grams(model, IMAGES.clone(), r, groups=[["a", "b"]]).total()
    torch.testing.assert_close(
        subtask_grams(model, IMAGES, r.clone(), groups=[["a", "b"]]).total(), grams.clone()
    )
    probe.compute(null_draws=19)


def test_models_that_cannot_be_probed_where_they_are_say_why() -> None:
    with torch.inference_mode():
        born = net()
    for model, words in (
        (born, r"'a.weight' was made under torch.inference_mode\(\)"),
        (net().to("meta"), "lies on the meta device"),
        (
            nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(K)),
            "'0.weight' has no shape yet",
        ),
    ):
        with pytest.raises(KdxError, match=words):
            cosines(model)
    halved = net()
    halved.a.to("meta")
    with pytest.raises(KdxError, match="meta"):
        cosines(halved)


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")]
)
def test_wrappers_give_what_the_model_gives_under_their_own_names(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    model = net()
    wrapped = wrap(copy.deepcopy(model))
    np.testing.assert_array_equal(cosines(wrapped), cosines(model))
    groups = probes.module_groups(wrapped, image_shape=(3, 8, 8))
    np.testing.assert_array_equal(cosines(wrapped, groups=groups), cosines(model))
    found = subtask_gradients(wrapped, IMAGES, torch.randn(1, 24, K), groups=groups)
    assert found.keys() <= dict(wrapped.named_parameters()).keys()


def test_a_compiled_explainer_keeps_its_levels() -> None:
    model = net(lambda: HME.from_student(build_model("digits_student", K, 3), K, 2))
    compiled = torch.compile(model, backend="eager")
    pairs = conflict_of(compiled, IMAGES, LABELS, null_draws=19).pairs
    assert set(pairs["level"]) == {"1", "2", "3", "4", "all"}
    np.testing.assert_array_equal(pairs.query("level == 'all'")["cosine"], cosines(model))
    assert len(gates_of(compiled, IMAGES, LABELS).alpha) == 4


def test_groups_that_name_nothing_or_one_module_twice_are_refused() -> None:
    model = net()
    for groups, words in (
        ([], "names no level"),
        ([["a"], []], "a level without modules"),
        ([["a"], ["a"]], "names 'a' twice"),
        ([["aa"]], "unknown module 'aa'; did you mean 'a'"),
    ):
        with pytest.raises(KdxError, match=words):
            cosines(model, groups=groups)


def test_a_named_module_brings_the_parametrisation_of_its_weight_along() -> None:
    model = net()
    model.a = nn.utils.parametrizations.weight_norm(model.a)
    found = subtask_gradients(model, IMAGES, torch.randn(1, 24, K), groups=[["a"]])
    assert {name.rsplit(".", 1)[1] for name in found} == {"bias", "original0", "original1"}


def test_undisturbed_restores_buffers_that_were_replaced() -> None:
    model = nn.BatchNorm2d(3)
    buffer = model.running_mean
    with undisturbed(model):
        model.running_mean = torch.ones(3)
        model.weight.data.add_(1)
        model.new = torch.ones(1)
    assert model.running_mean is buffer
    assert torch.equal(model.weight, torch.ones(3))
    assert not hasattr(model, "new")


class Given(Net):
    """Logits in some container."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(super().forward(x))


@pytest.mark.parametrize(
    "wrap", [lambda z: (z, None), lambda z: {"logits": z, "loss": z.mean()}, lambda z: [z]]
)
def test_one_tensor_among_others_is_taken_and_said_once(wrap: Callable[[Tensor], Any]) -> None:
    model, expected = net(lambda: Given(wrap)), cosines(net())
    for call in (
        lambda: cosines(model, groups=[["a", "b"]]),
        lambda: affinity_of(model, IMAGES, LABELS, null_draws=1, groups=[["a", "b"]]),
        lambda: probes.integrated_gradients(model, IMAGES, 0, steps=2),
        lambda: ConflictProbe(model).update(IMAGES, LABELS),
    ):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            call()
        assert [str(w.message) for w in said if "probed is" in str(w.message)].__len__() == 1
    with pytest.warns(UserWarning, match="probed is"):
        np.testing.assert_allclose(cosines(model, groups=[["a", "b"]]), expected)


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda z: (z, 2 * z), "a tuple of 0 24×4, 1 24×4"),
        (lambda z: {"z": z[:, :, None]}, "a dict of z 24×4×1"),
        (lambda z: z[:, :, None], "a tensor of shape 24×4×1"),
        (lambda z: z.mean(), r"a tensor of shape \(\)"),
        (lambda z: z[0], "a tensor of shape 4"),
        (lambda z: None, "a NoneType of no tensors"),
        (lambda z: z.bfloat16(), "computes in torch.bfloat16"),
        (lambda z: z.argmax(dim=1), "a tensor of shape 24 and torch.int64"),
        (lambda z: z[:, :1], "the columns 0 and z"),
    ],
)
def test_outputs_that_are_no_logits_are_refused_by_what_they_are(
    wrap: Callable[[Tensor], Any], words: str
) -> None:
    model = net(lambda: Given(wrap))
    for probe in (conflict_of, affinity_of):
        with pytest.raises(KdxError, match=words):
            probe(
                model, IMAGES, torch.zeros(24, dtype=torch.int64) if "columns" in words else LABELS
            )


@pytest.mark.parametrize(
    "last", [torch.sigmoid, lambda z: z.softmax(dim=1), lambda z: (2 * z).sigmoid()]
)
def test_probabilities_are_refused_unless_margins_are_given(
    last: Callable[[Tensor], Tensor],
) -> None:
    model = net(lambda: Given(last))
    with torch.no_grad():
        model.head.weight *= 15
    for probe in (conflict_of, affinity_of):
        with pytest.raises(KdxError, match=r"look like probabilities.*margins=torch.logit"):
            probe(model, IMAGES, LABELS)
    assert np.isfinite(cosines(model, margins=torch.logit)).all()


def test_log_probabilities_are_as_good_as_logits() -> None:
    np.testing.assert_allclose(
        cosines(net(lambda: Given(lambda z: z.log_softmax(dim=1)))), cosines(net()), rtol=1e-3
    )


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ((255 * IMAGES.sigmoid()).byte(), "divide pixels by 255"),
        (IMAGES[0], "should be normalised, B×C×H×W"),
        (IMAGES[:0], "B ≥ 1"),
        (IMAGES / 0, "images hold values that are not finite"),
        ([IMAGES[0], IMAGES[1, :, :4]], "images of different sizes"),
        ("images", "images of type str make no tensor"),
    ],
)
def test_images_that_are_none_are_refused_by_every_probe(images: Any, words: str) -> None:
    model = net(lambda: HME.from_student(build_model("digits_student", K, 3), K, 2))
    labels = LABELS[: len(images)]
    for call in (
        lambda: conflict_of(model, images, labels),
        lambda: affinity_of(model, images, labels),
        lambda: ConflictProbe(model).update(images, labels),
        lambda: gates_of(model, images, labels),
        lambda: probes.ablate(model, images, labels),
        lambda: probes.explain(model, images, labels, 0),
        lambda: probes.integrated_gradients(model, images, 0),
    ):
        with pytest.raises(KdxError, match=words):
            call()


def test_arrays_and_lists_serve_as_images_and_labels() -> None:
    model = net()
    expected = cosines(model)
    for images, labels in (
        (IMAGES.numpy(), LABELS.numpy()),
        (list(IMAGES), LABELS.tolist()),
        (list(IMAGES.numpy()), LABELS.to(torch.uint8)),
        (IMAGES.double(), LABELS.int()),
    ):
        record = conflict_of(model, images, labels, null_draws=19).pairs.query("level == 'all'")
        np.testing.assert_allclose(record["cosine"], expected, rtol=1e-5)
    with pytest.raises(KdxError, match="labels from 0 to 4 should lie in 0 to 3"):
        conflict_of(model, IMAGES, (LABELS + (LABELS == 3)).tolist())
    with pytest.raises(KdxError, match="give one integer for each"):
        conflict_of(model, IMAGES, LABELS.double())
