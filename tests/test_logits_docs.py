"""README's script on logits alone, and the snippets of docs/logits.md that write such files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdx_analysis.probes.fidelity.manifest import read
from tests.probes.fidelity.test_manifest import Nets

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "logits.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_script_in_readme_makes_a_manifest(tmp_path):
    section = (ROOT / "README.md").read_text().partition("\n## From logits alone\n")[2]
    (script,) = blocks(section.partition("\n## ")[0], "python")
    # Fewer draws and epochs: seconds rather than a quarter of a minute, and the same files.
    quick = script.replace("targets, 20,", "targets, 3,").replace("[train], 20,", "[train], 3,")
    assert quick.count(", 3, axis=0)") == 2
    subprocess.run([sys.executable, "-c", quick], cwd=tmp_path, check=True)
    tables = read(tmp_path / "logits" / "manifest.yaml")
    assert tables.labels.shape == (797,)
    assert list(tables.siblings) == ["t1", "t2", "t3"]
    assert {student.objective for student in tables.students} == {"hard", "label_smoothing", "kd"}
    assert tables.notes == ("all 13 tables were taken as log-probabilities",)


def test_the_manifest_that_is_shown_is_read(tmp_path):
    (text,) = blocks(DOCS, "yaml")
    nets = Nets(k=4)
    ids = np.arange(len(nets.labels))
    np.save(tmp_path / "y.npy", nets.labels)
    np.save(tmp_path / "ids.npy", ids)
    for name in ("t0", "t1", "t2", "t3", "hard_0", "hard_1"):
        np.save(tmp_path / f"{name}.npy", nets.net())
    np.savez(tmp_path / "smooth.npz", seed_0=nets.net(), seed_1=nets.net())
    torch.save(torch.from_numpy(nets.net()), tmp_path / "kd_0.pt")
    csv = pd.DataFrame(nets.net(), columns=yaml.safe_load(text)["classes"])
    csv[::-1].to_csv(tmp_path / "kd_1.csv", index=False)
    np.save(tmp_path / "kd_1_ids.npy", ids[::-1])
    (tmp_path / "manifest.yaml").write_text(text)
    tables = read(tmp_path / "manifest.yaml")
    last = tables.students[-1]
    assert last[:2] == ("kd", 1)
    assert np.allclose(last.scores.tensor(), csv.to_numpy(), atol=1e-6)


def test_the_snippet_for_pytorch_writes_what_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    images, labels = torch.randn(10, 1, 2, 2), torch.arange(10) % 3
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    exec(blocks(DOCS, "python")[0], {"model": model, "loader": loader})
    assert torch.allclose(torch.from_numpy(np.load("kd_0.npy")), model(images))
    assert np.array_equal(np.load("y.npy"), labels)


@pytest.mark.parametrize("snippet", blocks(DOCS, "python"))
def test_snippets_are_python_of_ten_lines_or_so(snippet):
    ast.parse(snippet)
    assert len(snippet.splitlines()) <= 16
