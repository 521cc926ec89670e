"""What the C library does with the memory that the tensors of a step leave behind."""

from __future__ import annotations

import ctypes
from functools import cache

# Numbers of mallopt's parameters in glibc's malloc.h, with the largest values that it takes: above
# 32 MB a block is its own mapping whatever one asks for.
_PARAMETERS = {-1: 2**31 - 1, -2: 2**26, -3: 2**25}  # trim threshold, top pad, mmap threshold


@cache
def keep_freed_memory() -> None:
    """Have this process keep freed memory for the tensors of its next step.

    glibc gives it back to the system, which hands out every page anew, filled with zeros; on a
    virtual machine that made a step of a resnet20 explainer take up to 1.6 times as long. With
    another C library nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for parameter, value in _PARAMETERS.items():
        mallopt(parameter, value)
