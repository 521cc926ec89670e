"""What VAM costs, timed side by side in one run."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx_analysis.models import MODELS, vam
from kdx_analysis.registry import unknown

PRECISIONS = ("float32", "bf16")
_GAMMA = 0.01  # any weight of the penalty takes the same time


def bench_vam(
    *,
    rounds: int = 15,
    batch: int = 128,
    precisions: Sequence[str] = PRECISIONS,
    model: str = "wrn_16_2",
) -> pd.DataFrame:
    """Time a training step with VAM, and inference after folding, against the plain model.

    The step includes the entropy penalty. Contestants take turns, so that a machine that slows down
    slows all of them. A second copy of the plain model is among them: its ratio, 1 but for noise,
    is the null of the others.

    Args:
        rounds: timings of each contestant, after two that do not count.
        batch: images of 3×32×32 in a batch.
        precisions: float32, bf16 (autocast).
        model: one of the zoo, for 100 classes.

    Returns:
        One row per precision, phase (training step, inference) and contestant (plain again, VAM or
        folded): device, batch, plain_ms and ms (medians over rounds), and ratio, ratio_low and
        ratio_high: median and quartiles of the ratios within a round.
    """
    check_precisions(precisions)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plain = MODELS[model](100).to(device)
    attended = copy.deepcopy(plain)
    vam.attach(attended)
    folded = copy.deepcopy(attended)
    with torch.no_grad():
        for logits in vam.gate_parameters(folded):
            logits.normal_()
    vam.fold(folded)
    images = torch.randn(batch, 3, 32, 32, device=device)
    labels = torch.randint(100, (batch,), device=device)
    rows = []
    for precision in precisions:
        for phase, name, other in (
            ("training step", "VAM", attended),
            ("inference", "folded", folded),
        ):
            make = _step if phase == "training step" else _inference
            contestants = {"plain": plain, "plain again": copy.deepcopy(plain), name: other}
            times = _alternating(
                [make(each, images, labels, precision) for each in contestants.values()],
                rounds,
                device,
            )
            for contestant, elapsed in list(zip(contestants, times, strict=True))[1:]:
                low, ratio, high = np.quantile(elapsed / times[0], (0.25, 0.5, 0.75))
                rows.append(
                    {
                        "device": device.type,
                        "batch": batch,
                        "precision": precision,
                        "phase": phase,
                        "contestant": contestant,
                        "plain_ms": np.median(times[0]),
                        "ms": np.median(elapsed),
                        "ratio": ratio,
                        "ratio_low": low,
                        "ratio_high": high,
                    }
                )
    return pd.DataFrame(rows)


def check_precisions(precisions: Sequence[str]) -> Sequence[str]:
    """These, if each is one of PRECISIONS; raises KdxError if not."""
    for precision in precisions:
        if precision not in PRECISIONS:
            raise unknown("precision", precision, PRECISIONS)
    return precisions


def _step(model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> Callable[[], None]:
    gates = list(vam.gate_parameters(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()

    def run() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)  # as autocast would do by itself
        if gates:
            loss = loss + _GAMMA * vam.entropy(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


def _inference(
    model: nn.Module, images: Tensor, labels: Tensor, precision: str
) -> Callable[[], None]:
    model.eval()

    @torch.no_grad()
    def run() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            model(images)

    return run


def _alternating(
    runs: Sequence[Callable[[], None]], rounds: int, device: torch.device
) -> np.ndarray:
    """Milliseconds of every run in every round, runs×rounds; each round starts with another run."""
    warm_up = 2  # rounds in which memory is reserved and algorithms are chosen
    times = np.zeros((len(runs), rounds + warm_up))
    for i in range(rounds + warm_up):
        for j in np.roll(np.arange(len(runs)), i).tolist():
            start = time.perf_counter()
            runs[j]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[j, i] = 1000 * (time.perf_counter() - start)
    return times[:, warm_up:]
