"""Fidelity of manifests, arrays and runs by one call."""

from __future__ import annotations

import numpy as np
import pytest

import kdx_analysis as kdx
from kdx_analysis.errors import AbsentError, KdxError
from tests.probes.fidelity.test_manifest import Nets, written


def test_a_manifest_and_its_arrays_give_the_same(tmp_path):
    given = Nets().given()
    path = written(tmp_path, given)
    one = kdx.fidelity(path)
    siblings = {f"t{j}": logits for j, logits in enumerate(given["siblings"], start=1)}
    other = kdx.fidelity(**given | {"siblings": siblings})
    assert one.pairs.equals(other.pairs)
    assert one.notes == other.notes
    assert np.array_equal(one.teachings[0].teacher.scores, given["teacher"])
    assert kdx.fidelity(str(path)).classes == ("0", "1", "2", "3", "4")


def test_calls_that_say_too_little_or_too_much(tmp_path):
    given = Nets().given()
    with pytest.raises(KdxError, match="give a manifest or runs, or labels, teacher and students"):
        kdx.fidelity(labels=given["labels"])
    with pytest.raises(KdxError, match="either a source, or labels"):
        kdx.fidelity("mine.yaml", labels=given["labels"])
    with pytest.raises(KdxError, match="no finished run"):
        kdx.fidelity(tmp_path)


def test_runs_are_asked_for_theirs(monkeypatch):
    computed = kdx.fidelity(**Nets().given())
    with pytest.raises(AbsentError, match="has its outputs kept"):
        kdx.fidelity(kdx.RunSet(()))
    monkeypatch.setattr(kdx.RunSet, "fidelity", lambda self: computed)
    assert kdx.fidelity(kdx.RunSet(())) is computed
