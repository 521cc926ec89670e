"""What gradients take up in memory, and how they are cut so that this is no more than it may be.

A Gram matrix is a sum over parameters, and a subtask's gradient one over images. So layers are cut
into pieces, which are summed in one sweep over all images or in several, and a sweep goes over some
images at a time and, with gradients of single images, over some subtasks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from kdx_analysis.errors import KdxError
from kdx_analysis.models.modes import undisturbed
from kdx_analysis.probes.conflict.parts import Layer, Parts, Piece
from kdx_analysis.probes.conflict.per_sample import captured

# Of a pass. Beyond 16 images of a small network per-call overhead is past, and what a layer's rule
# prepares for so many still lies in a processor's cache: 16 MB of it.
_CACHE = 2**24
# Subtasks of which a layer's rule uses what it prepared: with 5 that takes a few per cent of the
# time, and more of them only take memory.
_SUBTASKS = 5
# The share of the memory that sums may take. More of them mean fewer sweeps and fewer images at a
# time; each sweep costs backward passes, images at a time hardly anything.
_SHARE = 0.6


@dataclass(frozen=True)
class Footprint:
    """What one image takes up in a pass, in bytes, as measured on the model.

    Attributes:
        graph: what is kept for the way back.
        model: its parameters and buffers; not of an image.
        outputs: of each layer with a rule, all its calls together.
        prepared: what a layer's rule makes of its input, of its largest call.
    """

    graph: int
    model: int
    outputs: Mapping[str, int]
    prepared: Mapping[str, int]

    @classmethod
    def of(cls, parts: Parts, images: Tensor) -> Footprint:
        """Measured on one image or two, as some models can't take one."""
        few = images[:2]
        kept: dict[int, int] = {}
        tensors = [*parts.model.parameters(), *parts.model.buffers()]
        weights = {tensor.untyped_storage().data_ptr() for tensor in tensors}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        ruled = [layer for layer in parts.layers if layer.rule is not None]
        outputs: dict[str, int] = {}
        prepared: dict[str, int] = {}
        with ExitStack() as stack:
            stack.enter_context(undisturbed(parts.model))
            stack.enter_context(torch.enable_grad())
            for layer in parts.layers:
                for parameter in layer.parameters.values():
                    parameter.requires_grad_()
            calls, _ = stack.enter_context(captured(parts, ruled, len(few)))
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x))
            # Margins may know every image by its row, and take up next to nothing. The outputs are
            # in memory until all is counted, so that no address serves twice.
            results = dataclasses.replace(parts, margins=None).outputs(few)
            for call in calls:
                name, rule = call.layer.name, call.layer.rule
                assert rule is not None
                pack(call.given)
                outputs[name] = outputs.get(name, 0) + call.output.nbytes // len(few)
                made = rule.prepare(call.layer.module, call.given, call.layer.shape[0])
                prepared[name] = max(prepared.get(name, 0), made.nbytes // len(few))
            del results
        graph = sum(size for address, size in kept.items() if address not in weights)
        model = sum(tensor.nbytes for tensor in tensors)
        return cls(math.ceil(graph / len(few)), model, outputs, prepared)


@dataclass(frozen=True)
class Sweep:
    """The pieces that are summed in one sweep over all images.

    Attributes:
        pieces: of layers, at most one of each.
        images: that a pass goes over.
        subtasks: whose gradients of single images are there together.
        memory: bytes in all.
    """

    pieces: tuple[Piece, ...]
    images: int
    subtasks: int
    memory: int


@dataclass(frozen=True)
class Demand:
    """What gradients of ``images`` images for ``sets`` sets of ``classes`` residuals take up.

    Attributes:
        footprint: of an image.
        images: B.
        sets: R, with the one drawn for the proof.
        classes: K.
        itemsize: bytes of a number.
        levels: of experts, N_l each.
    """

    footprint: Footprint
    images: int
    sets: int
    classes: int
    itemsize: int
    levels: Sequence[int]

    def sweeps(self, layers: Sequence[Layer], max_memory: int) -> list[Sweep]:
        """The layers, cut into pieces and these put into sweeps, each in ``max_memory`` bytes.

        The last layers come first: a sweep through them needs no backward pass through the others.

        Raises KdxError if a row of a layer and a pass over one image don't fit.
        """
        room = max_memory - self.fixed
        most = max(layers, key=self._least)
        if self._least(most) > room:
            raise self._too_much(most, self._least(most) + self.fixed, max_memory)
        sweeps: list[list[Piece]] = [[]]
        sums = 0
        for layer in reversed(layers):
            # What a pass over one image needs beside the sums must always be left for it.
            row = self.sums([Piece(layer, 0, 1)])
            share = max(row, min(int(_SHARE * room), room - self._least(layer) + row))
            for piece in self._cut(layer, share):
                if sweeps[-1] and (
                    sums + self.sums([piece]) > share
                    or any(before.layer is layer for before in sweeps[-1])
                    or self._working([*sweeps[-1], piece], 1, 1) + sums + self.sums([piece]) > room
                ):
                    sweeps.append([])
                    sums = 0
                sweeps[-1].append(piece)
                sums += self.sums([piece])
        return [self.sized(pieces, max_memory) for pieces in sweeps if pieces]

    def whole(self, layers: Sequence[Layer], max_memory: int) -> Sweep:
        """All layers in one sweep, with ``max_memory`` bytes beside their sums."""
        pieces = [Piece.whole(layer) for layer in layers]
        return self.sized(pieces, max_memory + self.sums(pieces))

    def sized(self, pieces: Sequence[Piece], max_memory: int) -> Sweep:
        """A sweep over the ``pieces``, with as many images and subtasks at a time as fit."""
        room = max_memory - self.fixed - self.sums(pieces)
        least = min(16, self.images)  # fewer make the overhead of calls felt
        subtasks = min(_SUBTASKS, self.classes)
        while subtasks > 1 and self._at_once(pieces, subtasks, room) < least:
            subtasks //= 2
        at_once = max(1, min(self._at_once(pieces, subtasks, room), self._cached(pieces)))
        at_once = math.ceil(self.images / math.ceil(self.images / at_once))  # all of one size
        memory = self.fixed + self.sums(pieces) + self._working(pieces, at_once, subtasks)
        return Sweep(tuple(pieces), at_once, subtasks, memory)

    @property
    def fixed(self) -> int:
        """Bytes that are there all the time: residuals in another order, and the Gram matrices.

        Those of one piece are there twice, in single and in double precision, and a copy of the
        model, by which it is left as it was found.
        """
        residuals = 2 * self.sets * self.images * self.classes * self.itemsize
        matrix = 8 * self.sets * self.classes**2
        grams = matrix * (sum(self.levels) + 2 * max(self.levels))
        return residuals + grams + 2 * self.footprint.model

    def sums(self, pieces: Sequence[Piece]) -> int:
        """Bytes of the pieces' sums, and of their layers' gradients by plain autograd.

        The latter are there thrice: of a pass, added up, and put into order.
        """
        total = 0
        for piece in pieces:
            total += self.sets * self.classes * piece.size + 3 * piece.layer.size
        return total * self.itemsize

    def _least(self, layer: Layer) -> int:
        """Bytes of the sums of one row of a layer, and of a pass over one image."""
        piece = Piece(layer, 0, 1)
        return self.sums([piece]) + self._working([piece], 1, 1)

    def _cut(self, layer: Layer, share: int) -> Iterator[Piece]:
        """A layer in pieces of about one size, the sums of each in ``share`` bytes."""
        U, rows, d = layer.shape
        each = self.sets * self.classes * U * d * self.itemsize
        most = max(1, (share - 3 * layer.size * self.itemsize) // each)
        number = math.ceil(rows / most)
        for i in range(number):
            yield Piece(layer, i * rows // number, (i + 1) * rows // number)

    def _working(self, pieces: Sequence[Piece], images: int, subtasks: int) -> int:
        """Bytes of a pass over ``images`` images beside the sums."""
        return images * self._per_image(pieces, subtasks)

    def _per_image(self, pieces: Sequence[Piece], subtasks: int) -> int:
        """Bytes of a pass for each of its images.

        Gradients by all outputs are there for each of the ``subtasks``, and those on the way to
        them once more, for at most as much as the graph holds. What a rule prepares is copied once
        on the way; so are gradients of single images.
        """
        deltas, prepared, gradients, functions = 0, 0, 0, 0
        for piece in pieces:
            name = piece.layer.name
            deltas += self.footprint.outputs.get(name, 0)
            prepared = max(prepared, self.footprint.prepared.get(name, 0))
            gradients = max(gradients, piece.size * self.itemsize)
            if piece.layer.rule is None:
                functions += piece.layer.size * self.itemsize
        graph = self.footprint.graph
        # torch.func has a graph of its own, and gradients of all its layers before they are laid
        # out and after.
        by_functions = 2 * graph + 2 * functions if functions else 0
        return 2 * graph + subtasks * deltas + 2 * prepared + 2 * gradients + by_functions

    def _at_once(self, pieces: Sequence[Piece], subtasks: int, room: int) -> int:
        return min(self.images, room // self._per_image(pieces, subtasks))

    def _cached(self, pieces: Sequence[Piece]) -> int:
        """Images whose prepared inputs lie in a processor's cache."""
        prepared = max(self.footprint.prepared.get(piece.layer.name, 0) for piece in pieces)
        return max(16, _CACHE // max(1, prepared))

    def _too_much(self, layer: Layer, needed: int, max_memory: int) -> KdxError:
        return KdxError(
            f"gradients of {self.classes} subtasks for {self.sets - 1} sets of residuals, of one "
            f"image and one row of {layer.name!r} at a time, take {needed:,} bytes, and "
            f"max_memory is {max_memory:,}; give max_memory={needed:,} or more, or probe with "
            "fewer null draws"
        )
