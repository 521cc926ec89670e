"""What a classifier's outputs say of themselves."""

from __future__ import annotations

from torch import Tensor

# A softmax of 1,000 classes in bfloat16 misses 1 by a few thousandths.
_SUM = 1e-2
# Logits that happen to lie in [0, 1] are those of a network before training and differ by little.
_SPREAD = 0.5


def probabilities(outputs: Tensor) -> bool:
    """Whether outputs, B×K, can only be probabilities: a softmax or a sigmoid stands at the model's end.

    All lie in [0, 1], and every row adds up to 1 or they spread over half of that range. Log-probabilities are not
    meant: they serve as logits.

    >>> import torch
    >>> logits = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3]])
    >>> probabilities(logits.softmax(dim=1)), probabilities(logits), probabilities(logits.log_softmax(dim=1))
    (True, False, False)
    """
    if not len(outputs) or not bool(((outputs >= 0) & (outputs <= 1)).all()):
        return False
    sums = outputs.double().sum(dim=1)
    return bool(((sums - 1).abs() <= _SUM).all()) or float(outputs.max() - outputs.min()) >= _SPREAD
