import pytest

from kdx_analysis.bench import bench_vam
from kdx_analysis.errors import KdxError


def test_every_contestant_has_a_ratio_to_the_plain_model() -> None:
    frame = bench_vam(rounds=1, batch=2, precisions=["float32"], model="digits_student")
    assert frame[["phase", "contestant"]].to_numpy().tolist() == [
        ["training step", "plain again"],
        ["training step", "VAM"],
        ["inference", "plain again"],
        ["inference", "folded"],
    ]
    assert frame["ratio"].to_numpy() == pytest.approx((frame["ms"] / frame["plain_ms"]).to_numpy())
    assert (frame["ratio_low"] == frame["ratio"]).all()  # one round


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(KdxError, match="unknown precision 'bf61'; did you mean 'bf16'"):
        bench_vam(precisions=["bf61"])
