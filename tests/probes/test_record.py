"""One contract for all that a probe hands back: frozen, a table, a figure, a piece of a page, kept
in Parquet.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from torch import Tensor

import kdx_analysis as kdx
from kdx_analysis import probes
from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME
from kdx_analysis.probes.record import Record, TableRecord
from tests.probes.subjects import small

IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 3
NAMES = ("a", "<b>", "a class with a long name, 'quoted'")


def record_of(kind: str, model: HME) -> Record:
    """A small one of every kind."""
    if kind == "Validation":
        rows = [
            (s, y.name, y.planted, 0.5, 3)
            for y in probes.planted.validation.YARDSTICKS
            for s in (0, 1)
        ]
        return probes.Validation(
            pd.DataFrame(rows, columns=["seed", "yardstick", "planted", "value", "n"])
        )
    if kind == "Recording":
        with kdx.probe(model, activations="trunk") as seen:
            model(IMAGES)
        return seen
    gates = probes.gates_of(model, IMAGES, LABELS, NAMES)
    return {
        "GateRecord": lambda: gates,
        "ConflictRecord": lambda: probes.conflict_of(
            model, IMAGES, LABELS, classes=NAMES, null_draws=19
        ),
        "Faithfulness": lambda: probes.ablate(model, IMAGES, LABELS, NAMES, permutations=9),
        "Explanation": lambda: probes.explain(model, IMAGES, LABELS, 1, NAMES, shown=2),
        "Attribution": lambda: probes.integrated_gradients(
            model, IMAGES, 0, through=(2, 1), steps=2
        ),
        "Conductance": lambda: probes.conductance(model, IMAGES, LABELS, 2, steps=2),
        "Randomisation": lambda: probes.randomisation(
            lambda m: probes.integrated_gradients(m, IMAGES, 0, steps=2).maps,
            model,
            draws=1,
            shifts=5,
        ),
        "MetricRecord": lambda: probes.MetricRecord.of({"one": gates, "<other>": gates}),
    }[kind]()


KINDS = [kind for kind in sorted(Record._kinds) if kind != "TableRecord"]


def check_same(a: Any, b: Any) -> None:
    """Equal to the last bit, in the same precision."""
    assert type(a) is type(b) or {type(a), type(b)} == {list, tuple}
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b, rtol=0, atol=0)
    elif isinstance(a, tuple | list):
        for x, y in zip(a, b, strict=True):
            check_same(x, y)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        check_same(list(a.values()), list(b.values()))
    elif isinstance(a, Record):
        check_same(*({f.name: getattr(r, f.name) for f in dataclasses.fields(r)} for r in (a, b)))  # type: ignore[arg-type]
    else:
        assert a == b


@pytest.mark.parametrize("kind", KINDS)
def test_every_record_keeps_the_contract(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "Explanation":
        quick = partial(probes.conductance, steps=2)
        monkeypatch.setattr("kdx_analysis.probes.faithfulness.explanation.conductance", quick)
    record = record_of(kind, small("input", 2).float())
    assert type(record).__dataclass_params__.frozen  # type: ignore[attr-defined]
    frame = record.to_frame()
    assert len(frame)
    record.save(tmp_path / "kept")
    loaded = type(record).load(tmp_path / "kept")
    check_same(loaded, record)
    pd.testing.assert_frame_equal(loaded.to_frame(), frame, rtol=0, atol=0)
    suffixes = {path.suffix for path in (tmp_path / "kept").iterdir()}
    assert suffixes == ({".parquet"} if isinstance(record, TableRecord) else {".safetensors"})
    figure, axes = loaded.plot()
    assert axes.flat[0].get_figure() is figure
    mine, ax = plt.subplots()
    assert record.plot(ax)[0] is mine
    plt.close(mine)
    html = record._repr_html_()
    assert html.startswith("<")
    assert "<b>" not in html
    with pytest.raises(KdxError, match="holds no"):
        type(record).load(tmp_path)


def test_every_result_that_the_probes_name_is_a_record() -> None:
    results = {name for name in probes.__all__ if dataclasses.is_dataclass(getattr(probes, name))}
    assert results - {"Cost", "Grams", "Mantel", "ProbeSet", "Setting"} == set(
        KINDS
    )  # a cost, tensors, and one row of a table


def test_every_precision_and_shape_is_kept(tmp_path: Path) -> None:
    maps = torch.tensor([[[1 / 3, torch.nan, -torch.inf]]])
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        record = probes.Attribution(
            "x", torch.tensor([2**53 - 1]), None, maps[:0].to(dtype), maps.to(dtype), None
        )
        record.save(tmp_path)
        check_same(probes.Attribution.load(tmp_path), record)


def test_another_file_is_refused(tmp_path: Path) -> None:
    for suffix in ("parquet", "safetensors"):
        (tmp_path / f"gate_record.{suffix}").write_text("something else")
        with pytest.raises(KdxError, match="holds no gate record"):
            probes.GateRecord.load(tmp_path)
