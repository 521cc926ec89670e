import pytest
import torch
from torch import Tensor

from kdx_analysis.errors import KdxError
from kdx_analysis.models.answers import check_logits, probabilities

LOGITS = 3 * torch.randn(40, 10, generator=torch.Generator().manual_seed(0))
MANY = 3 * torch.randn(16, 1000, generator=torch.Generator().manual_seed(1))

REFUSED = {
    "softmax": LOGITS.softmax(dim=1),
    "softmax in float16": MANY.half().softmax(dim=1),
    "softmax in bfloat16": MANY.bfloat16().softmax(dim=1),
    "softmax of an untrained model": (LOGITS / 1000).softmax(dim=1),
    "softmax at a temperature": (LOGITS / 4).softmax(dim=1),
    "softmax that is certain": (1000 * LOGITS).softmax(dim=1),
    "mean of two softmaxes": (LOGITS.softmax(dim=1) + LOGITS.flip(1).softmax(dim=1)) / 2,
    "one-hot answers": torch.eye(10)[LOGITS.argmax(dim=1)],
    "per cent": 100 * LOGITS.softmax(dim=1),
    "sigmoid": LOGITS.sigmoid(),
    "sigmoid in float16": LOGITS.half().sigmoid(),
    "two classes": LOGITS[:, :2].softmax(dim=1),
}
ACCEPTED = {
    "logits": LOGITS,
    "tiny logits": LOGITS / 1000,
    "tiny logits in [0, 1]": LOGITS / 100 + 0.5,
    "logits above 0": LOGITS - LOGITS.min(),
    "shifted row by row": LOGITS + LOGITS.mean(dim=1, keepdim=True) * 7,
    "rows that sum to 1": LOGITS - LOGITS.mean(dim=1, keepdim=True) + 0.1,
    "at a temperature": LOGITS / 4,
    "log softmax": LOGITS.log_softmax(dim=1),
    "log sigmoid": torch.nn.functional.logsigmoid(LOGITS),
    "rectified": LOGITS.relu(),
    "all 0": torch.zeros(40, 10),
    "all alike": torch.full((40, 10), 0.1),
    "one row alone sums to 1": torch.cat([LOGITS[:1].softmax(dim=1), LOGITS[1:]]),
    "not a number": torch.full((2, 3), torch.nan),
    "no images": torch.zeros(0, 10),
}


@pytest.mark.parametrize("case", REFUSED)
def test_probabilities_are_told_from_logits(case):
    assert probabilities(REFUSED[case])


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_may_be_logits_is_taken_for_logits(case):
    assert not probabilities(ACCEPTED[case])


def test_targets_of_log_probabilities_are_those_of_the_logits():
    torch.testing.assert_close(
        (ACCEPTED["log softmax"] / 4).softmax(dim=1), (LOGITS / 4).softmax(dim=1)
    )


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (
            LOGITS.softmax(dim=1),
            r"^Net gives probabilities, not logits: every row .* 1, .*softmax off.*logarithm$",
        ),
        (
            100 * LOGITS.softmax(dim=1),
            r"every row of its outputs sums to 100: .*logarithm of outputs / 100",
        ),
        (
            LOGITS.sigmoid(),
            r"all its outputs lie in \[0, 1\], .*sigmoid off its end, .* log\(p / \(1 − p\)\)",
        ),
        (LOGITS[:, :9], r"Net gives outputs of shape 40×9, wanted 40×10: wrap it"),
        (LOGITS.unsqueeze(2), r"outputs of shape 40×10×1, wanted 40×10"),
        (
            torch.where(LOGITS > 6, torch.nan, LOGITS),
            r"the outputs of Net are not finite on \d+ of 40 images",
        ),
        (torch.where(LOGITS > 6, -torch.inf, LOGITS), r"not finite on .* take log_softmax"),
    ],
)
def test_the_refusal_says_what_to_do(outputs: Tensor, message: str):
    with pytest.raises(KdxError, match=message):
        check_logits(outputs, 10, "Net")
    check_logits(LOGITS, 10, "Net")
