import pytest
import torch

from kdx_analysis.probes import claims as outputs

MARGINS = torch.tensor([[1.0, 2.0, -1.0], [-1.0, -2.0, -1.0], [1.0, -1.0, -1.0], [0.5, 0.5, 0.5]])


def test_double_claims_and_orphans_by_hand() -> None:
    claims = outputs.claimed(MARGINS)
    assert outputs.double_claims(claims) == 0.5
    assert outputs.orphans(claims) == 0.25
    both = outputs.claimed_by_both(claims)
    assert both[0].tolist() == [0.75, 0.5, 0.25]
    assert torch.equal(both, both.T)


def test_tables_follow_classes_and_batches_merge() -> None:
    claims, order = outputs.claimed(MARGINS), torch.tensor([2, 0, 1])
    assert torch.equal(
        outputs.claimed_by_both(claims[:, order]), outputs.claimed_by_both(claims)[order][:, order]
    )
    halves = [outputs.claimed_by_both(half) for half in claims.split(2)]
    torch.testing.assert_close(sum(halves) / 2, outputs.claimed_by_both(claims))


def test_the_null_keeps_how_often_every_subtask_claims() -> None:
    claims = outputs.claimed(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) - 1)
    null = outputs.permuted_claims(claims, 200, torch.Generator().manual_seed(1))
    assert (null.sum(dim=1) == claims.sum(dim=0)).all()
    rates = claims.double().mean(dim=0)
    expected = (1 - rates).prod().item()  # orphans, were claims independent
    assert outputs.orphans(null).mean().item() == pytest.approx(expected, abs=0.02)
