"""Conflict of networks built in every way that a user may build one, against plain autograd.

What is to be right stands here a second time and by itself: margins, losses, and K backward passes
of ``torch.autograd.grad``. A new way to build a network is a function with a docstring, and a row
of ``WAYS``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, build_model
from kdx_analysis.models.modes import modes_kept
from kdx_analysis.probes import conflict_of, subtask_grams
from kdx_analysis.validation.outcome import Outcome, Row

# Rounding of float64 through a few layers stays far below, a wrong gradient far above.
_TOLERANCE = 1e-6
_K, _B, _C = 4, 12, 6
# Classifiers and what no output reads; 5 is the classifier of a chain.
_LEFT_OUT = ("head", "unused", "module.head", "_orig_mod.head", "5")


class Net(nn.Module):
    """Two convolutions with ReLU, the mean over positions, and a linear classifier, ``head``."""

    def __init__(self) -> None:
        super().__init__()
        self.a: Any = nn.Conv2d(3, _C, 3, padding=1)
        self.b: Any = nn.Conv2d(_C, _C, 3, padding=1)
        self.head: Any = nn.Linear(_C, _K)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x))))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x).mean(dim=(2, 3)))


class Functional(Net):
    """The second convolution's weights are read, the module is not called."""

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(F.conv2d(torch.relu(self.a(x)), self.b.weight, self.b.bias, padding=1))


class BothWays(Net):
    """The second convolution is called, and its weights are read once more."""

    def features(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        return torch.relu(F.conv2d(x, self.b.weight, self.b.bias, padding=1))


class Recurrent(Net):
    """The second convolution is called three times."""

    def features(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        for _ in range(3):
            x = torch.relu(self.b(x))
        return x


class NeverCalled(Net):
    """A module that no output reads has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Conv2d(3, 3, 1)


class UnusedHeads(Net):
    """A classifier registered first and a head that no output reads; forward can't be traced."""

    def __init__(self) -> None:
        super().__init__()
        parts = dict(self.named_children())
        self._modules.clear()
        self.head, self.unused = parts["head"], nn.Linear(_C, _K)
        self.a, self.b = parts["a"], parts["b"]

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError("colour images are wanted")
        return super().forward(x)


class ImageByImage(Net):
    """A loop over images, which calls the layers on one at a time."""

    def features(self, x: Tensor) -> Tensor:
        return torch.cat([super(ImageByImage, self).features(image[None]) for image in x])


class ByBranch(Net):
    """Every image goes through one layer or two, by its mean."""

    def features(self, x: Tensor) -> Tensor:
        rows = [torch.relu(self.a(image[None])) for image in x]
        return torch.cat(
            [torch.relu(self.b(row)) if float(row.mean()) > 0.3 else row for row in rows]
        )


class Backwards(Net):
    """Layers see the images in another order than the outputs."""

    def features(self, x: Tensor) -> Tensor:
        return super().features(x.flip(0)).flip(0)


class Folded(Net):
    """Layers see every image and its mirror image, as a batch of twice the size."""

    def features(self, x: Tensor) -> Tensor:
        x = torch.stack([x, x.flip(-1)], dim=1).flatten(0, 1)
        return super().features(x).unflatten(0, (-1, 2)).mean(dim=1)


class InPlace(Net):
    """Input, activations and sums are worked on in place."""

    def features(self, x: Tensor) -> Tensor:
        x = F.relu_(self.a(x.sub_(0.1).mul_(1.5)))
        y = self.b(x)
        y += x
        return y.relu_()


class Checkpointed(Net):
    """Activations are computed again in the backward pass."""

    reentrant = False

    def features(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return torch.relu(checkpoint(self.b, x, use_reentrant=self.reentrant))


class ReentrantCheckpoint(Checkpointed):
    """The older kind, which knows no gradients by given tensors."""

    reentrant = True


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class OwnFunction(Net):
    """An autograd function that torch.func can't look into, around a layer that has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Linear(_C, _C)

    def features(self, x: Tensor) -> Tensor:
        last = self.c(super().features(x).movedim(1, -1))
        return _Square.apply(last).movedim(-1, 1)  # type: ignore[no-untyped-call]


class AttentionPooling(Net):
    """A query of the model's own weighs the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(_C))
        self.attend = nn.MultiheadAttention(_C, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.features(x).flatten(2).transpose(1, 2)
        pooled, _ = self.attend(self.query.expand(len(x), 1, -1), tokens, tokens)
        return self.head(pooled[:, 0])


class LongShortTermMemory(Net):
    """Rows of features are read one after the other by an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(_C, _C, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.memory(self.features(x).mean(dim=3).transpose(1, 2))
        return self.head(states[:, -1])


class Embedded(Net):
    """Pixels are rounded to words of a code book, which is added to the features."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, _C)

    def features(self, x: Tensor) -> Tensor:
        words = self.words((x[:, 0] + 2).clamp(0, 4).long()).movedim(-1, 1)
        return torch.relu(self.b(torch.relu(self.a(x)) + words))


class DeepHead(Net):
    """A classifier of two layers, the first of them shared, and a product of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed, self.hidden = nn.Bilinear(_C, _C, _C), nn.Linear(_C, _C)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.features(x).mean(dim=(2, 3))
        return self.head(torch.tanh(self.hidden(self.mixed(pooled, pooled))))


class Structured(Net):
    """Logits come with features, in one of several containers."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        features = self.features(x)
        return self.wrap(super().forward(x), features)


@dataclass
class Result:
    """What a model may give: logits, and nothing where a loss would stand."""

    logits: Tensor
    features: Tensor
    loss: Tensor | None = None


class BatchMean(Net):
    """The head takes the batch's mean off."""

    def __init__(self) -> None:
        super().__init__()
        self.head = _Centred(_C, _K)


class _Centred(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(dim=0))


class Noise(nn.Module):
    """Adds noise in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * torch.randn_like(x)


class AlwaysDropout(nn.Module):
    """A dropout that forgets ``training=self.training``."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3)


class BackboneWithoutGradient(Net):
    """All that subtasks share runs under ``torch.no_grad()``."""

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        return super().features(x)


class PartWithoutGradient(Net):
    """The first convolution's features are detached: its gradient is zero, as in training."""

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x)).detach()))


class SqueezedAway(Net):
    """A head that squeezes, and so takes no batch of one image."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.features(x), 1).squeeze())


class OwnParameters(Net):
    """Parameters in a list and a dict, used by forward itself."""

    def __init__(self) -> None:
        super().__init__()
        self.shifts = nn.ParameterList([torch.randn(1, _C, 1, 1) for _ in range(2)])
        self.scales = nn.ParameterDict({"first": torch.randn(_C)})

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x) * self.shifts[0] + self.shifts[1]
        return x * self.scales["first"].view(1, -1, 1, 1)


def replaced_forward() -> Net:
    """A layer whose forward is another function than its class's."""
    net = Net()
    plain = net.b.forward
    net.b.forward = lambda x: 2 * plain(x)
    return net


class SeededNoise(Net):
    """The same noise in every pass, by its place in the batch."""

    def features(self, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return super().features(x + torch.randn(x.shape, dtype=x.dtype))


class WithoutGradient(Net):
    """A forward for inference alone."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Probabilities(Net):
    """A softmax at the end."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(dim=1)


class LogProbabilities(Net):
    """A log-softmax at the end, which one-vs-rest margins undo."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).log_softmax(dim=1)


class HeadsOfUnits(Net):
    """A hidden layer of one ReLU a class, some of them dead; forward can't be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.ModuleList(
            nn.Sequential(nn.Linear(_C, 1), nn.ReLU(), nn.Linear(1, 1)) for _ in range(_K)
        )
        self.head[0][0].bias.data.fill_(-9)

    def forward(self, x: Tensor) -> Any:
        if x.shape[1] != 3:
            raise ValueError("colour images are wanted")
        pooled = self.features(x).mean(dim=(2, 3))
        return torch.cat([head(pooled) for head in self.head], dim=1)


class Scalar(Net):
    """A factor without axes beside a convolution's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.b.register_parameter("gain", nn.Parameter(torch.tensor(0.7)))

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(self.b.gain * torch.relu(self.a(x))))


class TwoStages(Net):
    """One convolution at two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, _C, 3, 2, 1), nn.Conv2d(_C, _C, 3, 2, 1)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(super().features(x)))


class CountedFirst(Net):
    """The first parameter is a whole number."""

    def __init__(self) -> None:
        super().__init__()
        self.unused_counter = nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)


class Drifting(Net):
    """Statistics that move in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(_C)

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        assert self.norm.running_mean is not None
        self.norm.running_mean.add_(0.1)
        return self.norm(x)


def scripted_part() -> Net:
    """TorchScript in the middle, which tracing can't look into."""
    net = Net()
    net.a.stride = (2, 2)
    net.double()
    net.b = torch.jit.script(net.b)
    return net


def between(*modules: nn.Module) -> Net:
    """Modules behind the first convolution."""
    net = Net()
    net.a = nn.Sequential(net.a, *modules)
    return net


def hooked() -> Net:
    """A forward hook scales channels, a pre-hook shifts the input."""
    net = Net()
    scale = torch.arange(1.0, _C + 1, dtype=torch.float64).view(1, -1, 1, 1)
    net.a.register_forward_hook(lambda module, inputs, output: output * scale)
    net.b.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 0.1,))
    return net


def backward_hooked() -> Net:
    """A backward hook doubles the gradient that a layer hands on."""
    net = Net()
    net.b.register_full_backward_hook(
        lambda module, gradients, behind: tuple(2 * g for g in gradients)
    )
    return net


def normed(norm: Callable[[nn.Module], nn.Module]) -> Net:
    """Both convolutions with weights that are computed, by parametrisation or by a hook."""
    net = Net()
    net.a, net.b = norm(net.a), norm(net.b)
    return net


def pruned() -> Net:
    """Half of the second convolution's weights masked."""
    net = Net()
    prune.random_unstructured(net.b, "weight", 0.5)
    return net


def tied_weights() -> Net:
    """Two modules with one weight."""
    net = Net()
    net.c = nn.Conv2d(_C, _C, 3, padding=1)
    net.c.weight = net.b.weight
    net.b = nn.Sequential(net.b, nn.ReLU(), net.c)
    del net.c
    return net


def frozen() -> Net:
    """The first convolution asks for no gradient, and is probed all the same."""
    net = Net()
    net.a.requires_grad_(False)
    return net


def lazy() -> Net:
    """A module without a shape yet."""
    net = Net()
    net.b = nn.LazyConv2d(_C, 3, padding=1)
    return net


def trained_statistics() -> Net:
    """BatchNorm in eval mode, with statistics that are not those of initialisation."""
    norm = nn.BatchNorm2d(_C)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return between(norm)


def upwards() -> Net:
    """A transposed convolution."""
    net = Net()
    net.b = nn.ConvTranspose2d(_C, _C, 3, stride=2)
    return net


def channels_last() -> Net:
    """Memory in which channels of a pixel lie side by side."""
    return Net().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compiled() -> Any:
    """The whole network in torch.compile's wrapper."""
    return torch.compile(Net(), backend="eager")


def compiled_in_place() -> Net:
    """A module inside that is compiled where it stands."""
    net = Net()
    net.b.compile(backend="eager")
    return net


class OtherDimensions(Net):
    """Convolutions along one axis and along three."""

    def __init__(self) -> None:
        super().__init__()
        self.along, self.deep = nn.Conv1d(_C, _C, 3, padding=1), nn.Conv3d(_C, _C, 3, padding=1)

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        return torch.tanh(self.deep(self.along(x.flatten(2)).view_as(x).unsqueeze(2)).squeeze(2))


class KeywordCalls(Net):
    """Layers are given their input by name."""

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(input=torch.relu(self.a(input=x))))


class Counting(Net):
    """Forward counts its calls and keeps features."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def features(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.kept = super().features(x)
        return self.kept


def explainer(gates: str) -> HME:
    """An explainer made of a student."""
    student = build_model("digits_student", _K, 3)
    return HME.from_student(student, _K, 3, gates=gates)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Way:
    """One way to build a network.

    Attributes:
        name: of the way.
        build: the network, from torch's random state.
        refused: what the refusal must name; empty where conflict can be right.
        logits: from what the network gives to its logits.
        find: whether the probe is to find the shared modules itself.
    """

    name: str
    build: Callable[[], nn.Module]
    refused: str = ""
    logits: Callable[[Any], Tensor] = lambda given: given
    find: bool = False


WAYS: tuple[Way, ...] = (
    Way("two convolutions", Net, find=True),
    Way("weights read by a function", Functional),
    Way("weights read and module called", BothWays),
    Way("a module called three times", Recurrent),
    Way("a module never called", NeverCalled),
    Way("classifier registered first, a head unused", UnusedHeads, find=True),
    Way("a loop over images", ImageByImage),
    Way("branches by image", ByBranch),
    Way("images in another order", Backwards),
    Way("two views folded into the batch", Folded),
    Way("in-place operations", InPlace),
    Way("checkpointed", Checkpointed),
    Way("checkpointed, reentrant", ReentrantCheckpoint),
    Way("an autograd function of its own", OwnFunction),
    Way("attention pooling", AttentionPooling),
    Way("LSTM", LongShortTermMemory),
    Way("embedding", Embedded),
    Way("a head of two layers", DeepHead, find=True),
    Way("forward hooks", hooked),
    Way("backward hooks", backward_hooked),
    Way("weight norm", lambda: normed(parametrizations.weight_norm)),
    Way("weight norm by a hook", lambda: normed(_by_hook(nn.utils.weight_norm))),
    Way("spectral norm", lambda: normed(parametrizations.spectral_norm)),
    Way("spectral norm by a hook", lambda: normed(nn.utils.spectral_norm)),
    Way("pruned", pruned),
    Way("BatchNorm with running statistics", trained_statistics),
    Way("GroupNorm", lambda: between(nn.GroupNorm(2, _C))),
    Way("InstanceNorm", lambda: between(nn.InstanceNorm2d(_C, affine=True))),
    Way(
        "InstanceNorm with running statistics",
        lambda: between(nn.InstanceNorm2d(_C, True, track_running_stats=True)),
    ),
    Way("LayerNorm", lambda: between(nn.LayerNorm([_C, 8, 8]))),
    Way("dropout", lambda: between(nn.Dropout(0.5))),
    Way("transposed convolution", upwards),
    Way("channels last", channels_last),
    Way("frozen part", frozen),
    Way("compiled", compiled),
    Way("compiled inside", compiled_in_place),
    Way("convolutions in one and three dimensions", OtherDimensions),
    Way("input by name", KeywordCalls),
    Way("forward with a state", Counting),
    Way("features detached in the middle", PartWithoutGradient),
    Way("a head that squeezes", SqueezedAway),
    Way("parameters in a list and a dict", OwnParameters),
    Way("forward replaced", replaced_forward),
    Way("data parallel", lambda: nn.DataParallel(Net())),
    Way("TorchScript", lambda: torch.jit.script(nn.Sequential(*_chain()))),
    Way("TorchScript in the middle", scripted_part, find=True),
    Way("a head a class, of dead units", HeadsOfUnits, find=True),
    Way("a parameter without axes", Scalar),
    Way("a module in two stages", TwoStages, find=True),
    Way("a counter as first parameter", CountedFirst, find=True),
    Way("log-probabilities", LogProbabilities),
    Way(
        "outputs in a tuple", lambda: Structured(lambda z, f: (z, f)), logits=lambda given: given[0]
    ),
    Way(
        "outputs in a dict",
        lambda: Structured(lambda z, f: {"x": f, "y": z}),
        logits=lambda given: given["y"],
    ),
    Way("outputs in a dataclass", lambda: Structured(Result), logits=lambda given: given.logits),
    Way("explainer", lambda: explainer("parameter"), find=True),
    Way("explainer whose gates read the input", lambda: explainer("input"), find=True),
    Way("tree", lambda: explainer("parameter").harden(), find=True),
    Way(
        "batch statistics",
        lambda: between(nn.BatchNorm2d(_C, track_running_stats=False)),
        "'a.1' (BatchNorm2d)",
    ),
    Way("a head that takes the batch's mean off", BatchMean, "'head' (_Centred)"),
    Way("noise in eval mode", lambda: between(Noise()), "'a.1' (Noise)"),
    Way("dropout in eval mode", lambda: between(AlwaysDropout()), "'a.1' (AlwaysDropout)"),
    Way("tied weights", tied_weights, "'b.0.weight' and 'b.2.weight'"),
    Way("a state that moves in eval mode", Drifting, "'norm.running_mean'"),
    Way("lazy module", lazy, "'b.weight'"),
    Way("noise of a fixed seed", SeededNoise, "SeededNoise itself"),
    Way("shared part under no_grad", BackboneWithoutGradient, "no gradient reaches 'a', 'b'"),
    Way("forward under no_grad", WithoutGradient, "no gradient reaches 'a', 'b'"),
    Way("probabilities", Probabilities, "look like probabilities"),
    Way(
        "no tensor among the outputs",
        lambda: Structured(lambda z, f: SimpleNamespace(z=z)),
        "SimpleNamespace",
    ),
)


def validate() -> Outcome:
    """Compare conflict of every network in ``WAYS`` with plain autograd.

    In float64 it is right to 1e-6, or refused, by name, where it can't be. Compared are the cosines
    of all pairs over all shared parameters, which :func:`kdx_analysis.probes.conflict_of` gives
    beside a null, and the Gram matrices of :func:`kdx_analysis.probes.subtask_grams`, relative to
    their largest entry, of one set of residuals and of three. No argument, no network access,
    nothing written; some seconds.
    """
    return Outcome("models", [_row(way) for way in WAYS])


def _row(way: Way) -> Row:
    pairs = _K * (_K - 1) // 2
    wanted = f"refused, naming {way.refused}" if way.refused else f"≤ {_TOLERANCE:g}"
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # The older norms are deprecated, and structured outputs warn by design.
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = way.build().double()
        images, labels = torch.randn(_B, 3, 8, 8, dtype=torch.float64), torch.arange(_B) % _K
        try:
            value, note = _difference(way, model, images, labels), ""
        except KdxError as error:
            value, note = math.nan, str(error)
    passed = way.refused in note if way.refused else not note and value <= _TOLERANCE
    return Row("conflict, |probe − plain autograd|", way.name, value, wanted, pairs, passed, note)


def _difference(way: Way, model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The largest difference of a cosine, or of a Gram matrix's entry relative to the largest."""
    groups = None if way.find else [_paths(model)]
    record = conflict_of(model, images, labels, groups=groups, null_draws=19)
    pairs = record.pairs.query("level == 'all'")
    residuals, margins, expected = _reference(way, model, images, labels)
    norms = expected.diagonal().sqrt()
    by_hand = expected / (norms[:, None] * norms)
    cosines = torch.zeros(_K, _K, dtype=torch.float64)
    for a, b, cosine in zip(pairs["a_index"], pairs["b_index"], pairs["cosine"], strict=True):
        cosines[a, b] = cosine
    differences = [(cosines - by_hand).triu(1).abs().max()]
    for sets in (1, 3):
        grams = subtask_grams(
            model, images, residuals.expand(sets, -1, -1), margins=margins, groups=groups
        )
        differences.append((grams.total() - expected).abs().max() / expected.abs().max())
    return float(torch.stack(differences).max())  # NaN if one of them is


def _paths(model: nn.Module) -> list[str]:
    """Modules with parameters, without the classifier and unused ones."""
    paths = [
        path
        for path, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    return [path for path in paths if not path.startswith(_LEFT_OUT)]


def _reference(
    way: Way, model: nn.Module, images: Tensor, labels: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor] | None, Tensor]:
    """Residuals ∂L/∂m (B×K), margins from logits, and the Gram matrix.

    The margins' function is None for an explainer. Gradients are those of K plain backward passes.
    """
    asking = {name: p.requires_grad for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    with modes_kept(model):
        logits = way.logits(model.eval()(images.clone()))
        margins = logits if isinstance(model, HME) else _one_vs_rest(logits)
        one_hot = F.one_hot(labels, _K).double()
        losses = F.binary_cross_entropy_with_logits(margins, one_hot, reduction="none").sum(dim=0)
        g = torch.stack([_gradient(model, loss) for loss in losses])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(asking[name])
    residuals = (margins.sigmoid() - one_hot).detach()
    return residuals, None if isinstance(model, HME) else _one_vs_rest, g @ g.T


def _gradient(model: nn.Module, loss: Tensor) -> Tensor:
    """Of a subtask's loss, over all shared parameters; 0 where none reaches them."""
    loss.backward(retain_graph=True)
    parts = []
    for name, parameter in model.named_parameters():
        if not name.startswith((*_LEFT_OUT, "gates")):
            gradient = parameter.grad
            zero = torch.zeros(parameter.numel()).double()
            parts.append(zero if gradient is None else gradient.flatten())
        parameter.grad = None
    return torch.cat(parts)


def _one_vs_rest(logits: Tensor) -> Tensor:
    """z_k − log Σ_{j≠k} exp z_j, column by column."""
    columns = []
    for k in range(logits.shape[1]):
        others = [logits[:, j] for j in range(logits.shape[1]) if j != k]
        columns.append(logits[:, k] - torch.stack(others, dim=1).logsumexp(dim=1))
    return torch.stack(columns, dim=1)


def _by_hook(norm: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    """``norm`` of a module in float64, whose computed weight ``.double()`` would not reach."""
    return lambda module: norm(module.double())


def _chain() -> Sequence[nn.Module]:
    """Convolutions, pooling and a classifier, the module 5."""
    return (
        nn.Conv2d(3, _C, 3),
        nn.ReLU(),
        nn.Conv2d(_C, _C, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(_C, _K),
    )
