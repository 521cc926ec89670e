"""The explainer: a hierarchical mixture of experts (KDExplainer, arXiv 2105.04181, section 3)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models.gates import (
    FixedGate,
    InputGate,
    ParameterGate,
    attention,
    sampled,
    strongest,
)
from kdx_analysis.models.heads import GridPool, LinearHeads, TokenPool, margins_of, scores_of
from kdx_analysis.models.redraw import draw_anew
from kdx_analysis.models.splitting.experts import Level
from kdx_analysis.models.splitting.split import Budget, StudentSplit, split_student, with_heads
from kdx_analysis.models.splitting.stages import MAX_STAGES
from kdx_analysis.models.tree import Tree
from kdx_analysis.models.zoo import StagedNet

Gates = Literal["parameter", "input"]


@dataclass(frozen=True)
class Trace:
    """What one forward pass of an explainer computes, from the trunk to the margins.

    Attributes:
        features: per level l = 1…L the experts' features, B×N_l×C_l×H_l×W_l (tokens: B×N_l×T×D);
            level 1 is the trunk, N_1 = 1.
        pooled: the last level's features as the heads read them, B×N_L×D.
        inputs: every subtask's gated input, B×K×D.
        margins: m_k, B×K: a subtask's only logit, or z_k1 − z_k0 where heads have two.
        scores: the released code's multi-class scores, B×K: the only logit, or the larger of two.
        attention: α^l for l = 2…L+1, N_l×N_{l−1} (the last K×N_L); of input gates, B×N_l×N_{l−1}.
    """

    features: tuple[Tensor, ...]
    pooled: Tensor
    inputs: Tensor
    margins: Tensor
    scores: Tensor
    attention: tuple[Tensor, ...]


class HME(nn.Module):
    """Trunk, levels of experts, gates between them, and one binary head per class.

    The input of expert i on level l is Σ_j α^l_ij F_j^{l−1}, the input of subtask k's head Σ_j
    α^{L+1}_kj F_j^L. What heads read of the features is linear in them, as gates are, so it is
    taken before they are mixed. Calling the model gives the margins m_k (B×K), whose argmax over k
    is the multi-class prediction.

    Args:
        trunk: image → B×C_1×H×W, shared by all experts (tokens: B×T×D).
        levels: the levels above it.
        heads: gated inputs B×K×D → one logit a subtask, B×K, or two, B×K×2.
        readout: a level's features → what heads read of them, B×N×… → B×N×D.
        num_classes: K, the number of binary subtasks.
        gates: ``parameter``, one logit per child and parent, or ``input``, a small network on the
            pooled features.
        widths: channels of the experts' features on levels 2…L, which ``input`` gates read.
        top_k: every child draws from its strongest ``top_k`` parents only; None: from all.
        gumbel: Gumbel noise on the logits in train mode.
        multiclass: calling the model gives the multi-class scores on which the released code's
            K-way softmax is trained, in place of the margins; with one logit a subtask they are the
            same.
    """

    tau: Tensor

    def __init__(
        self,
        trunk: nn.Module,
        levels: Sequence[Level],
        heads: nn.Module,
        *,
        readout: nn.Module,
        num_classes: int,
        gates: Gates = "parameter",
        widths: Sequence[int] = (),
        top_k: int | None = None,
        gumbel: bool = False,
        multiclass: bool = False,
    ) -> None:
        super().__init__()
        if not levels:
            raise KdxError("an explainer needs at least one level of experts above the trunk")
        if gates not in get_args(Gates):
            raise KdxError(f"gates = {gates!r} should be one of {', '.join(get_args(Gates))}")
        if top_k is not None and top_k < 1:
            raise KdxError(f"top_k = {top_k} should be 1 or more, or None for all parents")
        self.num_classes = num_classes
        self.experts = (1, *(level.experts for level in levels))
        self.top_k, self.gumbel, self.multiclass = top_k, gumbel, multiclass
        self.split: StudentSplit | None = None
        self.trunk = trunk
        self.levels = nn.ModuleList(levels)
        children = (*self.experts[2:], num_classes)
        pairs = list(zip(children, self.experts[1:], strict=True))
        self.gates = nn.ModuleList(
            ParameterGate(n, m) if gates == "parameter" else InputGate(n, m, width)
            for (n, m), width in zip(pairs, widths or [0] * len(pairs), strict=True)
        )
        self.readout = readout
        self.heads = heads
        self.register_buffer("tau", torch.ones(()))

    @classmethod
    def from_student(
        cls,
        student: nn.Module,
        num_classes: int,
        experts: int | Sequence[int] = 4,
        *,
        budget: Budget = "params",
        gates: Gates = "parameter",
        top_k: int | None = None,
        gumbel: bool = False,
        stages: Sequence[str] | None = None,
        image_shape: Sequence[int] | None = None,
        pool: int | None = None,
        multiple: int = 8,
    ) -> HME:
        """An explainer with the student's blocks: a trunk, and later stages narrowed into experts.

        The trunk is the first stage. What was found stands in ``split``, a table. The weights are
        drawn anew from torch's random state; the student is left as it is.

        Args:
            student: a feed-forward classifier of convolutional stages or transformer blocks.
            num_classes: K.
            experts: of every level, or one number a level.
            budget: what all levels together keep of the stages that they stand for, within a tenth:
                parameters (``params``), floating-point operations (``flops``), or the channels of
                each level (``width``).
            gates, top_k, gumbel: as for the class.
            stages: module paths at whose ends the trunk and each level end, where they should not
                be found by resolution; a StagedNet declares its own.
            image_shape: C×H×W; by default the first common size that fits.
            multiple: experts' widths are multiples of it, with which convolutions are quicker,
                where levels then stay within a tenth of the budget; 1: any widths.
            pool: heads read features averaged over a grid of this size; by default a StagedNet's
                own, else 1.

        Raises:
            KdxError: the student can't be split; names the module and how to declare its stages.
        """
        if stages is None and isinstance(student, StagedNet):
            stages = [f"stages.{i}" for i in range(len(student.stages))][-MAX_STAGES:]
            channels = next(m.in_channels for m in student.modules() if isinstance(m, nn.Conv2d))
            image_shape = image_shape or (channels, 32, 32)
        trunk, levels, parts, split = split_student(
            student,
            experts,
            budget=budget,
            stages=stages,
            image_shape=image_shape,
            multiple=multiple,
        )
        features = [part.shape for part in split.parts[1:]]
        tokens = len(features[-1]) == 2
        size = pool or (student.pool if isinstance(student, StagedNet) else 1)
        readout = TokenPool(first=parts.reads == "token") if tokens else GridPool(size)
        heads = LinearHeads(num_classes, features[-1][1] if tokens else features[-1][0] * size**2)
        like = next(iter(levels[0].parameters()))
        made = cls(
            trunk,
            levels,
            heads.to(like),
            readout=readout,
            num_classes=num_classes,
            gates=gates,
            top_k=top_k,
            widths=[shape[-1] if tokens else shape[0] for shape in features],
            gumbel=gumbel,
        ).to(like)
        made.split = with_heads(split, parts, heads, num_classes)
        return made

    @property
    def temperature(self) -> float:
        """τ, the temperature of all gates; can be set."""
        return float(self.tau)

    @temperature.setter
    def temperature(self, value: float) -> None:
        if not value > 0:
            raise KdxError(f"gate temperature {value!r} should be above 0")
        self.tau.fill_(value)

    @property
    def hard(self) -> bool:
        """Whether every gate is fixed to one parent."""
        return all(isinstance(gate, FixedGate) for gate in self.gates)

    @property
    def input_gated(self) -> bool:
        """Whether attention depends on the images."""
        return any(isinstance(gate, InputGate) for gate in self.gates)

    def gate_parameters(self) -> Iterator[nn.Parameter]:
        """The gates' parameters, for an optimiser group of their own.

        It has no weight decay, which would sharpen or flatten attention.
        """
        return self.gates.parameters()

    def attention(self, logits: Sequence[Tensor] | None = None) -> list[Tensor]:
        """α^l for l = 2…L+1 at the present τ, of the model's own gates or of ``logits``.

        The first, into level 2 from the single trunk, is all ones. Raises KdxError for ``input``
        gates, whose attention depends on the images: see :meth:`trace`.
        """
        if logits is None and self.input_gated:
            raise KdxError(
                "the attention of input gates depends on the images; take trace(images).attention"
            )
        first = self.tau.new_ones(self.experts[1], 1)
        if logits is not None:
            return [first, *(self._attention(w) for w in logits)]
        return [first, *(self._alpha(gate, first, noisy=False) for gate in self.gates)]

    def gated_by(self, gates: Iterable[nn.Module], features: Sequence[Tensor]) -> list[Tensor]:
        """α^l for l = 2…L+1 of other modules, ``gates``, on a trace's ``features``.

        They are at the present τ, without noise.
        """
        first = self.tau.new_ones(self.experts[1], 1)
        pairs = zip(gates, features[1:], strict=True)
        return [
            first,
            *(self._alpha(gate, self._summary(gate, x), noisy=False) for gate, x in pairs),
        ]

    def trace(self, images: Tensor) -> Trace:
        """Run the model and keep what lies on the way; ``images`` are normalised, B×C×H×W."""
        trunk = self.trunk(images)
        x = trunk.unsqueeze(1)
        features = [x]
        alphas = [trunk.new_ones(self.experts[1], 1)]
        if not self._levels[0].shared:
            # Copies put side by side, unlike an expanded view, keep the memory format.
            x = torch.cat([trunk] * self.experts[1], dim=1).unflatten(1, (self.experts[1], -1))
        for level, gate in zip(self.levels, self.gates, strict=True):
            features.append(level(x))
            alphas.append(self._alpha(gate, self._summary(gate, features[-1]), noisy=self.training))
            if len(features) < len(self.experts):
                x = _mix(features[-1], alphas[-1], gate)
        pooled = self.readout(features[-1])
        inputs = _mix(pooled, alphas[-1], self.gates[-1])
        logits = self.heads(inputs)
        return Trace(
            tuple(features), pooled, inputs, margins_of(logits), scores_of(logits), tuple(alphas)
        )

    def outputs(self, trace: Trace) -> Tensor:
        """What calling the model gives, B×K: a trace's margins, or its scores.

        Scores are those of the multi-class form.
        """
        return trace.scores if self.multiclass else trace.margins

    def forward(self, images: Tensor) -> Tensor:
        """The margins m_k, B×K; of the multi-class form the scores."""
        return self.outputs(self.trace(images))

    def giving_margins(self) -> HME:
        """The explainer, or one of the very same modules whose call gives margins.

        The second is for an explainer whose call gives scores.
        """
        if not self.multiclass:
            return self
        shared = copy.copy(self)
        shared.multiclass = False
        return shared

    def harden(self, attention: Sequence[Tensor] | None = None) -> HME:
        """A copy whose every gate is fixed to the parent of its largest attention.

        ``attention`` are α^l or A^l for l = 2…L+1 (the first is not looked at); by default the
        model's own α. Raises KdxError if their shapes are not those of the model's gates.
        """
        chosen = self.attention() if attention is None else list(attention)
        shapes = [
            (n, m) for n, m in zip((*self.experts[1:], self.num_classes), self.experts, strict=True)
        ]
        if [tuple(a.shape) for a in chosen] != shapes:
            raise KdxError(
                f"attention of shapes {[tuple(a.shape) for a in chosen]} does not fit, wanted "
                f"{shapes}"
            )
        copied = copy.deepcopy(self)
        copied.gates = nn.ModuleList(
            FixedGate(a.argmax(dim=-1).tolist(), a.shape[1]).to(self.tau.device) for a in chosen[1:]
        )
        return copied

    def pruned(self) -> HME:
        """A copy of a hard explainer without the experts that no subtask reaches.

        Its outputs are the same. Raises KdxError for an explainer that is not hard.
        """
        if not self.hard:
            raise KdxError("only a hard explainer has dead experts to prune; call harden() first")
        numbers = [str(k) for k in range(self.num_classes)]
        live = [sorted(level) for level in self.tree(numbers).live]
        copied = copy.deepcopy(self)
        copied.experts = tuple(len(level) for level in live)
        copied.levels = nn.ModuleList(
            level.take(kept) for level, kept in zip(self._levels, live[1:], strict=True)
        )
        children = (*live[2:], list(range(self.num_classes)))
        copied.gates = nn.ModuleList(
            gate.taken(kept, below).to(self.tau.device)
            for gate, kept, below in zip(self._fixed, children, live[1:], strict=True)
        )
        return copied

    def redraw(self, *, statistics: bool = True) -> None:
        """Draw the weights of trunk, experts and heads anew; gates and τ stay.

        ``statistics``: BatchNorm's running statistics start anew too; the released code keeps them
        in phase 2.
        """
        before = [buffer.clone() for buffer in self.buffers()]
        draw_anew(self.trunk)
        for level in self._levels:
            level.reset_parameters()
        draw_anew(self.heads)
        if not statistics:
            for buffer, value in zip(self.buffers(), before, strict=True):
                buffer.copy_(value)

    def tree(self, classes: Sequence[str]) -> Tree:
        """Who draws from whom once every gate takes its strongest parent.

        ``classes`` name the subtasks.
        """
        return Tree.from_attention(self.attention(), classes)

    @property
    def _levels(self) -> list[Level]:
        return [level for level in self.levels if isinstance(level, Level)]

    @property
    def _fixed(self) -> list[FixedGate]:
        return [gate for gate in self.gates if isinstance(gate, FixedGate)]

    def _summary(self, gate: nn.Module, features: Tensor) -> Tensor:
        """What an input gate reads: features averaged over positions, B×M×C.

        Other gates read nothing of the features.
        """
        if not isinstance(gate, InputGate):
            return features
        return features.mean(dim=2) if features.ndim == 4 else features.mean(dim=(3, 4))

    def _alpha(self, gate: nn.Module, features: Tensor, *, noisy: bool) -> Tensor:
        logits = gate(features)
        if isinstance(gate, FixedGate):
            return logits
        return self._attention(sampled(logits) if noisy and self.gumbel else logits)

    def _attention(self, logits: Tensor) -> Tensor:
        kept = logits if self.top_k is None else strongest(logits, self.top_k)
        return attention(kept, self.tau)


def _mix(features: Tensor, alpha: Tensor, gate: nn.Module) -> Tensor:
    """Σ_j α_ij F_j for every child: features B×M×…, alpha N×M or B×N×M, result B×N×…."""
    if isinstance(gate, FixedGate):
        return features.index_select(1, gate.parents)
    alpha = alpha.to(features.dtype)
    flat = features.flatten(1, 2) if features.ndim == 5 else None
    if (
        flat is not None
        and alpha.ndim == 2
        and flat.is_contiguous(memory_format=torch.channels_last)
    ):
        # Channels lie innermost: one product over all of them needs no copy of the features.
        C = features.shape[2]
        between = torch.kron(alpha, torch.eye(C, dtype=alpha.dtype, device=alpha.device))
        mixed = F.linear(flat.permute(0, 2, 3, 1), between).permute(0, 3, 1, 2)
        return mixed.unflatten(1, (len(alpha), C))
    return (alpha @ features.flatten(2)).unflatten(2, features.shape[2:])
