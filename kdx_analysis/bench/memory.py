"""Peak memory of one contestant, apart from all others."""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_all_start_methods, get_context

import torch
from torch import nn

from kdx_analysis.bench.contract import BENCHES, Bench, Contestant, Setting
from kdx_analysis.extensions import Extension, extension_of, load_same

_RUNS = 2  # the second finds what the first has left, as gradients and an optimiser's averages


def peak(bench: Bench, label: str, contestant: Contestant, setting: Setting) -> float:
    """Bytes that a contestant needs at most, its model and data included.

    On CUDA it is the most that PyTorch's allocator gives out at once, in this process; on a CPU the
    growth of the resident memory of a fresh process, its highest mark less what it had before the
    contestant was made. Workers that a contestant starts are not counted. NaN where the system does
    not tell it.
    """
    if setting.device.type == "cuda":
        return _peak_on_cuda(contestant, setting.device)
    if sys.platform == "win32":
        return float("nan")
    # Forked from a server that has imported everything, a process starts in no time.
    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    context = get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        names = (bench.name, label, contestant.name)
        return pool.submit(_peak_here, *names, setting, extension_of(bench)).result()


def _peak_on_cuda(contestant: Contestant, device: torch.device) -> float:
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run = contestant.make()
    for _ in range(_RUNS):
        run()
    torch.cuda.synchronize(device)
    return float(torch.cuda.max_memory_allocated(device) - before)


def _peak_here(
    bench: str, label: str, name: str, setting: Setting, extension: Extension | None
) -> float:
    """In the fresh process: find the contestant by its names, run it, see how far memory grew."""
    load_same([] if extension is None else [extension])
    torch.set_num_threads(setting.threads)
    for contest in BENCHES[bench].contests(setting):
        if contest.label == label:
            for contestant in (contest.plain, *contest.others):
                if contestant.name == name:
                    return _growth(contestant)
    raise LookupError(f"bench {bench} has no contestant {name!r} in {label!r}")


def _growth(contestant: Contestant) -> float:
    _load_libraries()
    before = _highest()
    run = contestant.make()
    for _ in range(_RUNS):
        run()
    return _highest() - before


def _load_libraries() -> None:
    """Have PyTorch load what it loads at a first step, which no contestant is to be charged for."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.zeros(2, 1, 4, 4)).sum().backward()
    optimizer.step()


def _highest() -> float:
    """The most resident memory that this process has had, in bytes."""
    import resource  # which Windows has not

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
