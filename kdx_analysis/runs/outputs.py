"""What a run's model gives on validation and test, beside the labels: one file of tensors a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdx_analysis.data import Dataset
from kdx_analysis.errors import KdxError

OUTPUTS = "outputs.safetensors"
_SPLITS = ("val", "test")
_KIND = {"binary": "margins", "multiclass": "logits"}


@dataclass(frozen=True, eq=False)
class RunOutputs:
    """A model's outputs on one split, at the selected epoch of its run.

    Attributes:
        scores: exactly what the run's metrics on that split are computed from, N×K float32.
        labels: int64 (N,), in [0, K).
        ids: int64 (N,), of the images in their source; see :class:`kdx_analysis.data.Split`.
        fingerprint: of the data set and its splits; runs of one fingerprint saw the same images.
        decomposition: ``binary``, whose scores are K margins, or ``multiclass``, whose scores are
            the logits of one softmax.
    """

    scores: Tensor
    labels: Tensor
    ids: Tensor
    fingerprint: str
    decomposition: str

    @property
    def kind(self) -> str:
        """What the scores are: ``margins`` or ``logits``."""
        return _KIND[self.decomposition]


def outputs_of(
    scores: Mapping[str, Tensor], data: Dataset, decomposition: str
) -> dict[str, RunOutputs]:
    """Scores by split (N×K, in the split's order) with what they stand beside, as runs keep them.

    Args:
        scores: split → what the model gives; the splits are ``val`` and ``test``.
        data: whose splits they are of.
        decomposition: binary or multiclass.
    """
    fingerprint = str(data.describe()["fingerprint"])
    splits = {"val": data.val, "test": data.test}
    return {
        name: RunOutputs(given, splits[name].labels, splits[name].ids, fingerprint, decomposition)
        for name, given in scores.items()
    }


def write_outputs(path: Path, outputs: Mapping[str, RunOutputs]) -> None:
    """Write outputs by split to a file whose header says what data and scores they are of."""
    tensors: dict[str, Tensor] = {}
    header: dict[str, str] = {}
    for name, each in outputs.items():
        tensors |= {name: each.scores, f"{name}_ids": each.ids, f"{name}_labels": each.labels}
        header = {
            "fingerprint": each.fingerprint,
            "decomposition": each.decomposition,
            "scores": each.kind,
        }
    # safetensors takes no tensors that share memory or are of another order
    save_file({key: each.cpu().contiguous().clone() for key, each in tensors.items()}, path, header)


def read_outputs(path: Path, split: str) -> RunOutputs | None:
    """The outputs on one split; None where the file or the split is not there.

    Raises KdxError for a file that is no such one, or for a ``split`` that no run has outputs on.
    """
    if split not in _SPLITS:
        raise KdxError(f"no run keeps outputs on {split!r}; ask for {' or '.join(_SPLITS)}")
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            header: dict[str, Any] = file.metadata() or {}
            if split not in file.keys():  # noqa: SIM118
                return None
            scores, labels, ids = (
                file.get_tensor(key) for key in (split, f"{split}_labels", f"{split}_ids")
            )
            return RunOutputs(scores, labels, ids, header["fingerprint"], header["decomposition"])
    except (SafetensorError, OSError, KeyError) as error:
        raise KdxError(
            f"cannot read {str(path)!r}: {error}; take the run's directory away and train it again"
        ) from None
