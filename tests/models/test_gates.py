import math

import pytest
import torch

from kdx_analysis.models import gates


def test_attention_is_a_softmax_of_rows_at_temperature() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [1.0, 1.0]])
    torch.testing.assert_close(
        gates.attention(logits, 1.0), torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    )
    torch.testing.assert_close(gates.attention(logits, 0.5)[0], torch.tensor([0.1, 0.9]))


def test_spread_is_the_root_of_the_mean_variance_over_samples() -> None:
    features = torch.zeros(2, 2, 1, 1, 2)
    features[:, 0, 0, 0] = torch.tensor(
        [[0.0, 0.0], [2.0, 4.0]]
    )  # variances 1 and 4 over two samples
    torch.testing.assert_close(gates.spread(features), torch.tensor([math.sqrt(2.5), 0.0]))


def test_effective_attention_weighs_parents_by_their_spread() -> None:
    alpha = torch.tensor([[0.5, 0.5], [0.2, 0.8]])
    torch.testing.assert_close(
        gates.effective_attention(alpha, torch.tensor([3.0, 1.0])),
        torch.tensor([[0.75, 0.25], [3 / 7, 4 / 7]]),
    )


def test_effective_attention_survives_a_rescaling_that_alpha_does_not() -> None:
    """Scaling expert j by c and shifting its logits by −τ ln c changes no output; A must not change
    either.
    """
    torch.manual_seed(0)
    tau, logits = 0.3, torch.rand(5, 4, dtype=torch.float64)
    features = torch.randn(64, 4, 3, 2, 2, dtype=torch.float64)
    c = torch.tensor([5.0, 1.0, 0.2, 2.0], dtype=torch.float64)
    alpha = gates.attention(logits, tau)
    shifted = gates.attention(logits - tau * c.log(), tau)
    scaled = features * c.view(1, -1, 1, 1, 1)
    assert not torch.allclose(alpha, shifted, atol=0.05)
    torch.testing.assert_close(
        gates.effective_attention(shifted, gates.spread(scaled)),
        gates.effective_attention(alpha, gates.spread(features)),
    )


def test_pathways_compose_gates_from_the_heads_down() -> None:
    into_2, into_3 = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    heads = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    trunk, level_2, level_3 = gates.pathways([into_2, into_3, heads])
    torch.testing.assert_close(level_3, heads)
    torch.testing.assert_close(level_2, torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.0, 1.0]]))
    torch.testing.assert_close(trunk, torch.ones(3, 1))


def test_entropy_of_known_rows() -> None:
    rows = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    torch.testing.assert_close(gates.entropy(rows), torch.tensor([math.log(4), 0.0, math.log(2)]))
    torch.testing.assert_close(gates.entropy_share(rows), torch.tensor([1.0, 0.0, 0.5]))
    assert gates.entropy_share(torch.ones(3, 1)).isnan().all()


def test_shapes_are_checked() -> None:
    with pytest.raises(Exception, match="spread"):
        gates.effective_attention(torch.ones(2, 3), torch.ones(2))
