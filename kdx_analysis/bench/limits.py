"""The machine's limits, measured, and what a contestant asks of it."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from kdx_analysis.bench.contract import Contestant, Precision, Run
from kdx_analysis.bench.timing import waiting

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
_REPEATS = 5  # of which the quickest counts, since a limit is what the machine can do at best
# Side of the square matrices: large enough for a device's full rate, and a fraction of a second.
_SIDE = {"cpu": 1024, "cuda": 8192}
# Bytes that are copied, many times what caches hold.
_COPIED = {"cpu": 2**27, "cuda": 2**30}


@dataclass(frozen=True)
class Limits:
    """What a device can do at best, as measured by one large operation of each kind.

    Attributes:
        matrix: floating-point operations a second, in a product of large matrices.
        copy: bytes a second, read and written, in the copy of a large tensor.
    """

    matrix: float
    copy: float

    def seconds(self, operations: float, moved: int | None = None) -> float:
        """The least time in which a contestant can be done; NaN where nothing is known of it.

        >>> Limits(matrix=1e9, copy=1e9).seconds(2e9, moved=3_000_000_000)
        3.0
        """
        least = max(operations / self.matrix, (moved or 0) / self.copy)
        return least if least > 0 else float("nan")


@cache
def limits(device: torch.device, threads: int, precision: Precision) -> Limits:
    """Measure both rates, once, with so many ``threads``, which the caller has set."""
    side = _SIDE[device.type]
    dtype = DTYPES[precision]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.ones(_COPIED[device.type] // 4, device=device)
    target = torch.empty_like(source)
    wait = waiting(device)
    return Limits(
        matrix=2 * side**3 / _quickest(lambda: a @ b, wait),
        copy=2 * _COPIED[device.type] / _quickest(lambda: target.copy_(source), wait),
    )


def _quickest(run: Run, wait: Callable[[], None]) -> float:
    run()
    wait()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - start)
    return min(times)


def operations(contestant: Contestant, run: Run) -> float:
    """Floating-point operations of one round, 2 per multiply-add.

    Those of matrix products and convolutions, forward and backward, are counted, unless the
    contestant knows better.
    """
    if contestant.operations is not None:
        return contestant.operations()
    return counted(run)


def counted(run: Run) -> float:
    """Operations of matrix products and convolutions in one call of ``run``."""
    # PyTorch's own count of a grouped convolution's backward pass takes its weight for a full one.
    backward: dict[Any, Any] = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=backward) as counter:
        run()
    return float(counter.get_total_flops())


def _convolution_backward(
    gradient: Sequence[int],
    images: Sequence[int],
    weight: Sequence[int],
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    wanted: Sequence[bool],
    **unused: Any,
) -> int:
    """As many operations for the inputs' gradient and for the weight's as in the forward pass.

    Arguments are shapes in place of tensors, in the order of aten.convolution_backward.
    """
    outputs = images if transposed else gradient
    return 2 * prod(outputs) * prod(weight[1:]) * sum(map(bool, wanted[:2]))


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # platform says x86_64 alone there
            names = [line.partition(":")[2] for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return (names[0] if names else platform.processor() or platform.machine()).strip()
