"""The network of KDExplainer's released code, and its checkpoints.

That code goes back to Learning to Branch (Guo et al., ICML 2020). It has no trunk: experts of the
first level read the image. The code trains a K-way softmax on multi-class scores, whichever form
its heads have, so nothing in it is binary; here that is the multi-class form of the explainer,
whose call gives those scores, and otherwise its call gives the margins m_k. The code takes log
softmax(W/0.5) and softmaxes that again at t = 10/epoch; a log-softmax only shifts a row, so that is
one softmax with τ = 0.5·t = 5/epoch, and ``temperature`` is τ.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models.heads import GridPool, margins_of
from kdx_analysis.models.hme import HME
from kdx_analysis.models.splitting.experts import Level
from kdx_analysis.models.zoo import plain_stage
from kdx_analysis.registry import unknown

Form = Literal["ce", "nce"]

# All of it as in the released code.
_WIDTH, _LAST_WIDTH, _HIDDEN = 64, 32, 128
_GRID = 7
_DROPOUT = 0.15
_SHOWN = 4  # names of tensors in an error, which may be hundreds


class SubtaskLinear(nn.Module):
    """K linear layers as one batched product: y_bk = x_bk · W_k + c_k; B×K×D to B×K×D'.

    W starts N(0, 0.01²), c at 0.
    """

    def __init__(self, num_classes: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(num_classes, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, 0.0, 0.01)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bkd,kde->bke", x, self.weight) + self.bias


class MLPHeads(nn.Module):
    """Every subtask's head of the released code: three Linear layers to one or two logits.

    ReLU and Dropout follow the first two of them. Calling it gives the logits of gated inputs
    B×K×D: B×K (``ce``) or B×K×2 (``nce``).
    """

    def __init__(self, num_classes: int, form: Form, width: int) -> None:
        super().__init__()
        if form not in get_args(Form):
            raise unknown("form", form, get_args(Form))
        self.form = form
        self.layers = nn.Sequential(
            SubtaskLinear(num_classes, width, _HIDDEN),
            nn.ReLU(),
            nn.Dropout(_DROPOUT),
            SubtaskLinear(num_classes, _HIDDEN, _HIDDEN),
            nn.ReLU(),
            nn.Dropout(_DROPOUT),
            SubtaskLinear(num_classes, _HIDDEN, 1 if form == "ce" else 2),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.layers(inputs)
        return logits[..., 0] if self.form == "ce" else logits

    def margins(self, inputs: Tensor) -> Tensor:
        """m_k, B×K: a subtask's only logit (``ce``) or z_k1 − z_k0 (``nce``).

        Its gated input is B×K×D.
        """
        return margins_of(self(inputs))


def learn_to_branch(
    num_classes: int,
    form: Form = "ce",
    experts: Sequence[int] = (2, 4, 8),
    in_channels: int = 3,
    *,
    gumbel: bool = False,
    multiclass: bool = False,
) -> HME:
    """The released network with fresh weights: images to margins m_k, B×K.

    Images are B×in_channels×H×W, 32×32 in the released code. An expert is conv3×3 BN ReLU conv3×3
    BN ReLU maxpool2, 64 channels wide and 32 where it leaves the last level. Heads read its
    features pooled to 7×7; the pool is linear and commutes with the gates' weighted sum, so
    features are pooled before they are mixed. Convolutions start Kaiming-normal (fan-out), Linear
    N(0, 0.01²), BN 1/0, biases 0, gate logits uniform in [0, 1).

    Args:
        num_classes: K.
        form: ``ce`` has one logit a class, ``nce`` two: z_k1 − z_k0 is the margin, the larger is
            the class's score.
        experts: of every level, from the one that reads the image.
        in_channels: of the images.
        gumbel: Gumbel noise on the gates in train mode, as Learning to Branch has and the code, for
            all its names, has not.
        multiclass: its call gives the scores that the code's K-way softmax is trained on, as the
            code's does.

    Raises KdxError for another form, or a level without experts.
    """
    if not experts or min(experts) < 1:
        raise KdxError(
            f"experts = {tuple(experts)!r} should be numbers above 0, one for each level"
        )
    channels = _channels(len(experts), in_channels)
    levels = [
        Level.of(_expert(*c), n, shared=i == 0)
        for i, (c, n) in enumerate(zip(channels, experts, strict=True))
    ]
    heads = MLPHeads(num_classes, form, _LAST_WIDTH * _GRID**2)
    return HME(
        nn.Identity(),
        levels,
        heads,
        readout=GridPool(_GRID),
        num_classes=num_classes,
        gumbel=gumbel,
        multiclass=multiclass,
    )


@dataclass(frozen=True)
class Released:
    """What a checkpoint of the released code holds.

    Attributes:
        form: of its heads, ``ce`` or ``nce``.
        num_classes: K.
        experts: of every level, from the one that reads the image.
        in_channels: of the images.
        state: its tensors by its own names.
        unused: names of its tensors that its network does not use (a 7×7 stem for other data,
            ``conv1_0``).
    """

    form: Form
    num_classes: int
    experts: tuple[int, ...]
    in_channels: int
    state: Mapping[str, Tensor]
    unused: tuple[str, ...]

    @classmethod
    def read(cls, checkpoint: Mapping[str, Any]) -> Released:
        """Find form, K, experts and channels in names and shapes.

        ``checkpoint`` may be wrapped in ``{'model': …}``. Raises KdxError where tensors are
        missing, unexpected or of another shape, naming them.
        """
        inner = checkpoint.get("model")
        state = {
            str(name): value
            for name, value in (inner if isinstance(inner, Mapping) else checkpoint).items()
        }
        unused = tuple(name for name in state if name.startswith("conv1_0."))
        used = {name: value for name, value in state.items() if name not in unused}
        counts = dict.fromkeys(range(1, _highest(used, r"conv(\d+)_\d+\.")), 1)
        if not counts:
            raise KdxError(
                "this is no checkpoint of the released code: it has no expert named like "
                f"'conv2_0.0.weight'; it has {_some(sorted(state)) or 'nothing'}"
            )
        for level in counts:
            counts[level] = max(1, 1 + _highest(used, rf"conv{level + 1}_(\d+)\."))
        K = max(1, 1 + _highest(used, r"fc1_(\d+)\."))
        first, last = used.get("conv2_0.0.weight"), used.get("fc2_0.3.weight")
        in_channels = first.shape[1] if isinstance(first, Tensor) and first.ndim == 4 else 3
        form: Form = "nce" if isinstance(last, Tensor) and last.shape[:1] == (2,) else "ce"
        released = cls(form, K, tuple(counts.values()), in_channels, used, unused)
        released._check()
        return released

    def explainer(self) -> HME:
        """The same network as an HME, in the checkpoint's precision and with its weights.

        τ is not in the checkpoint: set ``temperature`` to 5/epoch. It is of the multi-class form,
        so that its outputs are those of the released code.
        """
        model = learn_to_branch(
            self.num_classes, self.form, self.experts, self.in_channels, multiclass=True
        )
        model.to(self.state["branch_2.0"].dtype)
        model.load_state_dict({**self.weights(), "tau": model.tau})
        return model

    def weights(self) -> dict[str, Tensor]:
        """Its tensors by the explainer's names.

        Experts of a level stand expert by expert, weights of all heads are stacked.
        """
        ours = {}
        for level, (experts, shapes) in enumerate(
            zip(self.experts, self._expert_shapes(), strict=True), 1
        ):
            for name in shapes:
                each = torch.stack(
                    [self.state[f"conv{level + 1}_{i}.{name}"] for i in range(experts)]
                )
                # Numbers without axes are BatchNorm's counts of batches, the same for all experts.
                together = each.flatten(0, 1) if each.ndim > 1 else each.max()
                ours[f"levels.{level - 1}.body.{name}"] = together
            ours[f"gates.{level - 1}.logits"] = self.state[f"branch_{level + 1}.0"]
        for place, (part, index) in {0: ("fc1", 0), 3: ("fc2", 0), 6: ("fc2", 3)}.items():
            names = [f"{part}_{k}.{index}" for k in range(self.num_classes)]
            ours[f"heads.layers.{place}.weight"] = torch.stack(
                [self.state[f"{name}.weight"].T for name in names]
            )
            ours[f"heads.layers.{place}.bias"] = torch.stack(
                [self.state[f"{name}.bias"] for name in names]
            )
        return ours

    def _expert_shapes(self) -> list[dict[str, torch.Size]]:
        """Shapes of one expert's tensors by name, for every level."""
        levels = []
        for channels in _channels(len(self.experts), self.in_channels):
            with torch.device("meta"):
                expert = _expert(*channels)
            levels.append({name: tensor.shape for name, tensor in expert.state_dict().items()})
        return levels

    def _check(self) -> None:
        wanted = dict(self._shapes())
        wrong = {
            "missing": sorted(wanted.keys() - self.state.keys()),
            "unexpected": sorted(self.state.keys() - wanted.keys()),
            "of another shape": [
                f"{name} {_shape(self.state[name])} instead of {tuple(shape)}"
                for name, shape in wanted.items()
                if name in self.state and _shape(self.state[name]) != tuple(shape)
            ],
        }
        if any(wrong.values()):
            form = f"form {self.form}, {self.num_classes} classes, experts {self.experts}"
            what = "; ".join(f"{kind}: {_some(names)}" for kind, names in wrong.items() if names)
            raise KdxError(
                f"this is no whole checkpoint of the released code (read as {form}): {what}"
            )

    def _shapes(self) -> Iterator[tuple[str, torch.Size]]:
        for level, (experts, shapes) in enumerate(
            zip(self.experts, self._expert_shapes(), strict=True), 1
        ):
            for i in range(experts):
                yield from (
                    (f"conv{level + 1}_{i}.{name}", shape) for name, shape in shapes.items()
                )
        rows = (*self.experts[1:], self.num_classes)
        for level, shape in enumerate(zip(rows, self.experts, strict=True), 1):
            yield f"branch_{level + 1}.0", torch.Size(shape)
        widths = {"fc1_{}.0": (_HIDDEN, _LAST_WIDTH * _GRID**2), "fc2_{}.0": (_HIDDEN, _HIDDEN)}
        widths["fc2_{}.3"] = (1 if self.form == "ce" else 2, _HIDDEN)
        for name, (out, into) in widths.items():
            for k in range(self.num_classes):
                yield f"{name.format(k)}.weight", torch.Size((out, into))
                yield f"{name.format(k)}.bias", torch.Size((out,))


def _expert(into: int, between: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        *plain_stage(into, between, bias=True), *plain_stage(between, out, bias=True, pool=True)
    )


def _channels(levels: int, in_channels: int) -> list[tuple[int, int, int]]:
    """Channels that enter an expert of each level, pass between its convolutions, and leave it."""
    into = (in_channels, *[_WIDTH] * (levels - 1))
    out = (*[_WIDTH] * (levels - 1), _LAST_WIDTH)
    return [(i, _WIDTH, o) for i, o in zip(into, out, strict=True)]


def _highest(names: Mapping[str, Any], pattern: str) -> int:
    """The largest number that ``pattern`` finds at the start of a name; −1 where none has it."""
    return max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=-1)


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
