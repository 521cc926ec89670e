"""A teacher's logits on augmented training images, kept by the first run of a seed for the others.

Runs of one seed share the order of the images and their augmentation, so in every step the teacher
says the same to each of them, whatever the objective and the role. What is kept are float32
numbers, one file an epoch: a run that reads them is bit for bit the run that asks the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kdx_analysis.config import digest
from kdx_analysis.data import Dataset
from kdx_analysis.io import staged_file
from kdx_analysis.training.checkpoints import fingerprint

_LOGITS = "logits"
_HEADER = 1024  # bytes, more than a file has beside its numbers


@dataclass(frozen=True)
class Shelf:
    """Where the logits of one teacher and seed are kept.

    Attributes:
        path: a folder of their own, in one with those of other teachers and seeds.
        limit: bytes that all files in the outer folder take together. An epoch that would go beyond
            it is not kept. Of processes that write at the same moment each may add one epoch.
    """

    path: Path
    limit: int

    def epoch(
        self, decides: Mapping[str, Any], epoch: int, samples: int, classes: int
    ) -> EpochLogits:
        """The logits of an epoch, as they lie there or as they are going to be gathered.

        Args:
            decides: everything that decides what they are, beside the epoch.
            epoch: from 1.
            samples: training images in the epoch's steps, all together.
            classes: K.
        """
        file = self.path / f"{digest(decides, 16)}-{epoch}.safetensors"
        header = {"decides": digest(decides, 64), "epoch": str(epoch)}
        there = _read(file, header, (samples, classes))
        # An epoch that will not be kept is not gathered either: it may be larger than the memory.
        size = _size(self.path.parent) + file_size(samples, classes)
        room = there is None and size <= self.limit
        return EpochLogits(file, header, there, samples if room else 0)


def file_size(samples: int, classes: int) -> int:
    """Bytes, at most, that the logits of an epoch of so many images take.

    >>> file_size(45000, 10) / 2**20 < 1.8
    True
    """
    return samples * classes * torch.float32.itemsize + _HEADER


class EpochLogits:
    """A teacher's logits in the steps of one epoch, in their order."""

    def __init__(
        self, file: Path, header: Mapping[str, str], there: Tensor | None, samples: int
    ) -> None:
        self._file, self._header, self._there, self._samples = file, header, there, samples
        self._taken = 0
        self._gathered: list[Tensor] = []

    def take(self, count: int) -> Tensor | None:
        """Those of the next ``count`` images, count×K; None where they are not kept."""
        if self._there is None:
            return None
        first = self._taken
        self._taken += count
        # A copy lies in memory as the teacher's own answer does, apart from the file.
        return self._there[first : self._taken].clone()

    def add(self, logits: Tensor) -> None:
        """Those that the teacher has just given, B×K float32; the last ones write the file."""
        if not self._samples:
            return
        self._gathered.append(logits.detach())
        if sum(map(len, self._gathered)) == self._samples:
            whole = torch.cat(self._gathered).cpu().contiguous()
            self._gathered.clear()
            # Where nothing can be written the next run asks the teacher, as this one did.
            with suppress(OSError, SafetensorError), staged_file(self._file) as partial:
                save_file({_LOGITS: whole}, partial, dict(self._header))


def computed_by(teacher: nn.Module, data: Dataset, device: torch.device) -> dict[str, Any]:
    """What decides a model's answers to given images here, to the last bit, as JSON-able values.

    Weights and architecture, the data, and what sums are ordered and rounded by: device, threads
    and version of torch.
    """
    cuda = device.type == "cuda"
    return {
        "weights": fingerprint(teacher),
        "architecture": digest({"repr": repr(teacher)}, 64),
        "data": data.describe(),
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "products": torch.get_float32_matmul_precision(),
        "torch": torch.__version__,
    }


def _read(file: Path, header: Mapping[str, str], shape: tuple[int, int]) -> Tensor | None:
    """The logits in a file; None where it is not there, damaged, or of something else."""
    try:
        with safe_open(file, "pt") as opened:
            logits: Tensor = opened.get_tensor(_LOGITS)
            same = opened.metadata() == header
    except (OSError, SafetensorError):
        return None
    return logits if same and logits.shape == shape and logits.dtype == torch.float32 else None


def _size(folder: Path) -> int:
    """Bytes of all files below a folder, some of which another process may just take away."""
    size = 0
    for file in folder.rglob("*.safetensors*"):
        with suppress(OSError):
            size += file.stat().st_size
    return size
