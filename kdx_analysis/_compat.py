"""torchvision on any build of torch.

Import this before anything that imports torchvision (timm does). torchvision registers shape
functions for its compiled operators when it is imported. Beside a torch that they were not compiled
for, the operators are missing and that import fails, although transforms, data sets and models need
none of them. Declaring the two schemas is enough. Where the operators load, nothing happens here.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path

import torch
from torch import library

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # nothing to mend: importing torchvision says that it is missing
    finder = importlib.machinery.FileFinder(
        str(Path(spec.origin).parent),
        (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES),
    )
    extension = finder.find_spec("_C")
    if extension is None or extension.origin is None:
        return False
    try:
        torch.ops.load_library(extension.origin)
    except OSError:
        return False
    return True


def _declare_missing() -> library.Library | None:
    if _operators_load():
        return None
    fragment = library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            fragment.define(schema)
    return fragment


_LIBRARY = _declare_missing()  # the declarations live as long as this object
