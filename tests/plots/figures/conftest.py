"""Runs of VAM with gates that are known, and records as they lie on disk."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from kdx_analysis.io import read_parquet
from kdx_analysis.models import MODELS, vam
from kdx_analysis.probes.vam import block_gates, row_entropies
from kdx_analysis.runs import RunSet, write_run


@pytest.fixture
def attended(tmp_path: Path) -> RunSet:
    """Two objectives, two seeds, two epochs; the gates of epoch 2 are one-hot under kd."""
    for objective in ("hard", "kd"):
        for seed in (0, 1):
            torch.manual_seed(seed)
            model = MODELS["digits_student"](3, 1)
            vam.attach(model, 3)
            gates = []
            for epoch in (1, 2):
                for logits in vam.gate_parameters(model):
                    torch.nn.init.zeros_(logits)
                    if objective == "kd" and epoch == 2:
                        logits.data[:, 1] = 1e3
                gates.append(block_gates(model, torch.randn(2, 1, 8, 8)).assign(epoch=epoch))
            records = {
                "vam_gates": pd.concat(gates, ignore_index=True),
                "vam_entropy": pd.concat(
                    [row_entropies(g).assign(epoch=e) for e, g in enumerate(gates, 1)]
                ),
            }
            info = {
                "id": f"{objective}{seed}",
                "study": "made",
                "role": "student",
                "objective": objective,
                "seed": seed,
                "decomposition": "multiclass",
                "config": {"model": "digits_student"},
                "data": {"classes": ["a", "b", "c"]},
                "selection": {"rule": "last", "split": "val", "epoch": 2},
            }
            write_run(tmp_path / info["id"], info, records)
    return RunSet.load(tmp_path)


def record(runs: RunSet, kind: str, objective: str, seed: int) -> pd.DataFrame:
    run = runs.filter(role="explainer", objective=objective, seed=seed).runs[0]
    return read_parquet(run.path / "records" / f"{kind}.parquet")
