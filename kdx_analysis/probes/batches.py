"""Conflict on a probe set that comes in batches, or lies with several processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdx_analysis.errors import KdxError
from kdx_analysis.models.modes import fitted, in_full, unwrapped, usable
from kdx_analysis.probes.conflict.record import ConflictRecord, conflict_of
from kdx_analysis.probes.subtasks import asked, finite, integers, labelled, pictures
from kdx_analysis.training.checkpoints import fingerprint


class ConflictProbe:
    """Takes a probe set batch by batch and measures conflict on the whole.

    A cosine is no mean of the batches' cosines, and its null deals every residual to any image of
    the set, so no table of a batch can be merged without loss. What can be are the images: they are
    the state, one after the other in the order of updates and merges, and :meth:`compute` adds up
    their gradients before any angle is taken, in the memory that it is given. Any split into
    batches gives what :func:`conflict_of` gives on the whole.

    >>> import torch, kdx_analysis as kdx
    >>> from kdx_analysis.models import build_model
    >>> probe = kdx.probes.ConflictProbe(build_model("digits_student", 3, 1))
    >>> for batch in torch.randn(12, 1, 8, 8).split(5):
    ...     probe.update(batch, torch.arange(len(batch)) % 3)
    >>> record = probe.compute(null_draws=19)
    >>> int(record.pairs["n"].iloc[0])
    12

    Args:
        model: images → B×K, the same weights from the first update to ``compute``.
        num_classes: K, which tells logits from other tensors that the model gives beside them; by
            default what the labels seen so far say.
        device: where the batches are kept.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_classes: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model, self.num_classes, self.device = model, num_classes, device
        self.fingerprint = fingerprint(model)
        self.images: list[Tensor] = []
        self.labels: list[Tensor] = []

    @torch.inference_mode(False)
    def update(self, images: Tensor, labels: Tensor) -> None:
        """Add normalised images, B×C×H×W, and their classes, B; a batch need not hold every class.

        Raises KdxError for images and labels that don't belong together and outputs that are not
        finite; then nothing is added.
        """
        images, model = pictures(images), in_full(unwrapped(usable(self.model))[0])
        outputs = finite(
            asked(model, fitted(images, model), self.num_classes or _classes(*self.labels, labels))
        )
        labels = labelled(images, labels, outputs.shape[1])
        self.images.append(
            images.detach().to(self.device, copy=True)
        )  # a loader may use its buffers again
        self.labels.append(labels.to(self.device, copy=True))

    def merge(self, *others: ConflictProbe) -> ConflictProbe:
        """This probe's images and those of ``others``, of the same weights; KdxError if they are of
        other ones.
        """
        if len({probe.fingerprint for probe in (self, *others)}) > 1:
            raise KdxError(
                "images seen by models of other weights can't be merged; merge the records that "
                "each gives"
            )
        merged = ConflictProbe(self.model, num_classes=self.num_classes, device=self.device)
        for probe in (self, *others):
            merged.images += [images.to(self.device) for images in probe.images]
            merged.labels += [labels.to(self.device) for labels in probe.labels]
        return merged

    def compute(self, *, classes: Sequence[str] | None = None, **options: Any) -> ConflictRecord:
        """Conflict on all images; ``options`` and errors as for :func:`conflict_of`.

        Raises KdxError if there are none yet, or if the model's weights are others than when the
        probe was made.
        """
        if not self.images:
            raise KdxError(
                "the probe has seen no images; call update with some of every class first"
            )
        if fingerprint(self.model) != self.fingerprint:
            raise KdxError(
                "the model was changed after the probe was made; make a new probe and update it"
            )
        return conflict_of(
            self.model, torch.cat(self.images), torch.cat(self.labels), classes=classes, **options
        )


def _classes(*labels: Any) -> int | None:
    """One more than the largest label; None if there is none."""
    largest = [
        int(tensor.max())
        for tensor in map(integers, labels)
        if tensor.numel() and not tensor.is_complex()
    ]
    return max(largest, default=-1) + 1 or None
