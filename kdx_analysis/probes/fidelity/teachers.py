"""Whether two teachers are siblings: alike in all that they were made with but the seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from kdx_analysis.config import flatten

# A seed is what siblings differ in; of given weights the rest of the training is not known.
_LEFT_OUT = ("role", "seed", "weights", "probes")


class Difference(NamedTuple):
    """The first field in which two teachers differ, and what either has there; None: nothing."""

    field: str
    a: Any
    b: Any


def recipe_known(info: Mapping[str, Any]) -> bool:
    """Whether ``info``, what ``run.json`` holds, says how the model was trained.

    It does not for a run that was imported, nor for a teacher that was given to its study.
    """
    return "source" not in info and "weights" not in info["config"]


def first_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> Difference | None:
    """The first field but the seed in which the making of two teachers differs, if there is one.

    Fields are objective, decomposition, the fingerprint of data and split, and the dotted keys of
    the configuration (data, model, training, extensions). Where it is not known of one of the two
    how it was trained (:func:`recipe_known`), only fields are compared that both have.

    Args:
        a, b: what ``run.json`` of each holds: objective, decomposition, data and config.

    >>> a = {"objective": "", "decomposition": "multiclass", "data": {"fingerprint": "f"}}
    >>> a |= {"config": {"model": "resnet20", "training": {"lr": 0.1}}}
    >>> b = a | {"config": {"model": "resnet20", "training": {"lr": 0.2}, "seed": 1}}
    >>> first_difference(a, b)
    Difference(field='training.lr', a=0.1, b=0.2)
    >>> first_difference(a, a | {"config": a["config"] | {"seed": 1}}) is None
    True
    """
    left, right = _recipe(a), _recipe(b)
    fields = [field for field in left if field in right]
    if recipe_known(a) and recipe_known(b):
        fields = list(dict.fromkeys((*left, *right)))
    for field in fields:
        if left.get(field) != right.get(field):
            return Difference(field, left.get(field), right.get(field))
    return None


def _recipe(info: Mapping[str, Any]) -> dict[str, Any]:
    config = {key: value for key, value in info["config"].items() if key not in _LEFT_OUT}
    if not recipe_known(info):
        # Its own words of the data are those of a study that it was not trained in.
        config.pop("data", None)
    return {
        "objective": info["objective"],
        "decomposition": info["decomposition"],
        **flatten(config),
        "split": info["data"]["fingerprint"],
    }
