"""Students under arms of VAM without any training: accuracies by hand, gates of real layers set by
hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from kdx_analysis.config import ObjectiveConfig, VAMConfig
from kdx_analysis.models import MODELS, vam
from kdx_analysis.probes.vam import block_gates, row_entropies
from kdx_analysis.runs import RunSet, run_id, write_run

SETTINGS = {
    "plain": None,
    "vam": VAMConfig(blocks=3),
    "vam_entropy": VAMConfig.model_validate({"blocks": 3, "gamma": 0.1}),
}
EPOCHS = (1, 2)
Planted = Mapping[str, Mapping[str, Sequence[float]]]


def write_arms(
    folder: Path,
    planted: Planted,
    settings: Mapping[str, VAMConfig | None] = SETTINGS,
    model: str = "digits_student",
    classes: Sequence[str] = ("cat", "dog", "ship"),
) -> RunSet:
    """Write and load a study; ``planted[objective][arm]`` holds the test accuracy of every seed.

    The gates of arms with an entropy term are one-hot in the last epoch, all others uniform.
    """
    info = {
        "study": "planted",
        "selection": {"rule": "last", "split": "val", "epoch": EPOCHS[-1]},
        "probe_sets": None,
        "environment": {"python": "3.11"},
        "experts": None,
        "grown_from": None,
        "data": {
            "name": "made",
            "source": "by hand",
            "sizes": {"train": 30, "val": 9, "test": 40},
            "shape": [1, 8, 8],
            "classes": list(classes),
            "fingerprint": "f00d",
        },
    }
    keys: dict[str, Any] = {
        "role": "teacher",
        "objective": "",
        "decomposition": "multiclass",
        "seed": 0,
    }
    write_run(
        folder / "teacher",
        {**info, **keys, "id": "teacher", "config": {"model": "big"}},
        {"metrics": _metrics(0.975)},
    )
    for name, arms in planted.items():
        objective = ObjectiveConfig.model_validate({"name": name, "decomposition": "multiclass"})
        for arm, accuracies in arms.items():
            for seed, accuracy in enumerate(accuracies):
                config = {
                    "model": model,
                    "training": {"threads": 1},
                    "seed": seed,
                    "objective": objective.model_dump(mode="json", by_alias=True),
                }
                setting, records = settings[arm], {"metrics": _metrics(accuracy)}
                if setting is not None:
                    config["vam"] = setting.model_dump(mode="json")
                    records |= _gates(model, len(classes), setting)
                keys = {"role": "student", "objective": objective.label, "vam": arm, "seed": seed}
                id_ = run_id("student", objective.label, seed, config, vam=arm)
                write_run(
                    folder / id_,
                    {**info, "decomposition": "multiclass", **keys, "id": id_, "config": config},
                    records,
                )
    return RunSet.load(folder)


def _metrics(accuracy: float) -> pd.DataFrame:
    rows = [(epoch, "train", "loss", 1.0 / epoch, 30) for epoch in EPOCHS]
    rows += [(epoch, "val", "accuracy", accuracy, 9) for epoch in EPOCHS]
    rows += [(EPOCHS[-1], "test", metric, accuracy, 40) for metric in ("accuracy", "agreement")]
    return pd.DataFrame(rows, columns=["epoch", "split", "metric", "value", "n"])


@cache
def _gates(name: str, classes: int, setting: VAMConfig) -> dict[str, pd.DataFrame]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, images = MODELS[name](classes, 1), torch.randn(2, 1, 8, 8)
    vam.attach(model, setting.blocks)
    gates = []
    for epoch in EPOCHS:
        if setting.gamma.start and epoch == EPOCHS[-1]:
            for logits in vam.gate_parameters(model):
                logits.data[:, 1] = 1e3
        gates.append(block_gates(model, images).assign(epoch=epoch))
    entropies = [
        row_entropies(frame).assign(epoch=epoch) for epoch, frame in zip(EPOCHS, gates, strict=True)
    ]
    return {
        "vam_gates": pd.concat(gates, ignore_index=True),
        "vam_entropy": pd.concat(entropies, ignore_index=True),
    }
