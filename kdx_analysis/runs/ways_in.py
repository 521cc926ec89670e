"""Fidelity by whatever way outputs come in: a manifest, runs, or arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdx_analysis.errors import KdxError
from kdx_analysis.probes.fidelity.manifest import fidelity_of, read, tables_of
from kdx_analysis.probes.fidelity.result import Fidelity

if TYPE_CHECKING:
    from kdx_analysis.runs.runset import RunSet


def fidelity(
    source: str | Path | RunSet | None = None,
    *,
    labels: Any = None,
    teacher: Any = None,
    siblings: Any = (),
    students: Any = (),
    ids: Any = None,
    classes: Sequence[str] | None = None,
) -> Fidelity:
    """What the student got, and from whom, from outputs alone.

    Either of a ``source``, or of arrays, tensors or frames of logits or probabilities, N×K each.

    Args:
        source: the path of a manifest (:func:`kdx_analysis.probes.fidelity.manifest.read`), the
            runs of one study, or a directory that holds them. Of runs it takes the undivided
            students, where there are some; :meth:`RunSet.fidelity` takes others.
        labels: true classes, N.
        teacher: the own teacher's table.
        siblings: tables of teachers of the same recipe with other seeds, or ``{name: table}``.
        students: ``{(objective, seed): table}``; ``hard`` among the objectives is what task, kind
            and own are told from, ``hard_T`` and ``label_smoothing`` are the negative controls.
        ids: of the images, N; a table given as ``{"logits": …, "ids": …}`` is matched by them.

    Returns:
        The result, with ``pairs``, ``whose``, ``to_frame()`` and ``plot()``; its ``notes`` say what
        tables were taken as, and what can't be told.

    Raises:
        KdxError: for files that can't be read, tables that do not fit together, and where rows or
            columns seem to stand in another order.
    """
    if source is not None:
        if labels is not None or teacher is not None:
            raise KdxError("give either a source, or labels, teacher and students")
        return _of_source(source)
    if labels is None or teacher is None:
        raise KdxError("give a manifest or runs, or labels, teacher and students as arrays")
    return fidelity_of(tables_of(labels, teacher, students, siblings, ids, classes))


def _of_source(source: str | Path | RunSet) -> Fidelity:
    if isinstance(source, str | Path) and not Path(source).is_dir():
        return fidelity_of(read(source))
    # A manifest is read without what runs are read by, whose imports take seconds.
    from kdx_analysis.runs.runset import RunSet

    runs = RunSet.load(source) if isinstance(source, str | Path) else source
    return runs.fidelity()
