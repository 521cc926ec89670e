"""Single test images as pictures in a page, where the data set is one that can be read here."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

import torch
from PIL import Image

from kdx_analysis.config import DataConfig
from kdx_analysis.data import Dataset, load_dataset
from kdx_analysis.errors import KdxError
from kdx_analysis.runs import Run


def thumbnails(run: Run, ids: Iterable[int]) -> dict[int, str]:
    """Test images of a run's data set by id, each a data address of a PNG; {} if it isn't here.

    Only images of the very data set that the run was tested on are shown, which its fingerprint
    tells.
    """
    data = _data(run)
    if data is None:
        return {}
    places = {int(number): place for place, number in enumerate(data.test.ids.tolist())}
    known = [number for number in ids if number in places]
    images = data.test.images.take(
        torch.tensor([places[number] for number in known], dtype=torch.int64)
    )
    return dict(zip(known, map(_address, images), strict=True))


def _data(run: Run) -> Dataset | None:
    try:
        section = DataConfig.model_validate(run.info["config"]["data"])
        data = load_dataset(**section.model_dump(exclude={"augment"}))
    except (KdxError, KeyError, ValueError):
        return None
    return data if data.describe()["fingerprint"] == run.info["data"]["fingerprint"] else None


def _address(image: torch.Tensor) -> str:
    """A uint8 image, C×H×W, as ``data:image/png;base64,…``."""
    pixels = image.permute(1, 2, 0).squeeze(-1).cpu().numpy()
    with io.BytesIO() as buffer:
        Image.fromarray(pixels).save(buffer, format="png")
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
