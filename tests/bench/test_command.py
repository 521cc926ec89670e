import json

import pytest
import torch

from kdx_analysis.bench import BENCHES, Contest, Contestant, bench
from kdx_analysis.bench.command import bench_all, chosen, setting_of
from kdx_analysis.errors import KdxError

CPU = setting_of("cpu", 1, None, None)


def test_names_are_checked_before_anything_is_timed():
    with pytest.raises(KdxError, match="unknown bench 'pipelin'; did you mean 'pipeline'"):
        chosen(["pipelin"], CPU)
    with pytest.raises(KdxError, match="unknown device 'gpu'; did you mean 'cpu'"):
        setting_of("gpu", 1, None, None)
    with pytest.raises(KdxError, match="unknown precision 'bf61'; did you mean 'bf16'"):
        setting_of("cpu", 1, None, ["bf61"])
    with pytest.raises(KdxError, match="'explainer_cuda' needs a GPU"):
        chosen(["explainer_cuda"], CPU)


def test_all_means_all_that_this_device_can_run():
    names = [each.name for each in chosen([], CPU)]
    assert "pipeline" in names
    assert "explainer_cuda" not in names
    assert len(names) == len(BENCHES) - 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_not_asked_for():
    with pytest.raises(KdxError, match="PyTorch finds no GPU here"):
        setting_of("cuda", 1, None, None)


def test_everything_is_printed_and_written(tmp_path, monkeypatch):
    @bench("sums", title="sums", against="themselves")
    def sums(setting):
        make = Contestant("plain", lambda: lambda: torch.ones(8) @ torch.ones(8))
        yield Contest("", make, (Contestant("ours", make.make),), rounds=1)

    monkeypatch.setattr("kdx_analysis.bench.running.peak", lambda *_: 2e6)
    lines: list[str] = []
    try:
        bench_all([BENCHES["sums"]], CPU, 2, tmp_path / "all.json", lines.append)
    finally:
        BENCHES.forget("sums")
    text = "\n".join(lines)
    assert "sums: sums\n  against themselves; ratio: times as fast as the first" in text
    assert "float32 products" in lines[-1]
    report = json.loads((tmp_path / "all.json").read_text())
    assert [row["contestant"] for row in report["rows"]] == ["plain", "the same again", "ours"]
    assert {row["peak_mb"] for row in report["rows"]} == {2}
    assert report["limits"]["float32"]["matrix"] > 0
