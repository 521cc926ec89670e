from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from kdx_analysis.objectives import OBJECTIVES, rungs
from kdx_analysis.plots.looks import Look, look

LOOKS: dict[str, Look] = {name: look(name) for name in OBJECTIVES if OBJECTIVES[name].colour}

# Machado, Oliveira & Fernandes, A physiologically-based model for simulation of colour vision
# deficiency (2009), severity 1, on linear RGB.
SIGHT = {
    "unimpaired": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour: str, sight: str = "unimpaired") -> np.ndarray:
    """CIE L*a*b* (D65) of an sRGB colour as it looks to one kind of sight; 2.3 apart is just
    noticeable.
    """
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = _XYZ @ np.clip(np.array(SIGHT[sight]) @ linear, 0, 1) / _XYZ.sum(axis=1)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_objectives_differ_in_colour_to_every_sight(sight: str) -> None:
    np.testing.assert_allclose(lab("white", sight), [100, 0, 0], atol=0.1)
    np.testing.assert_allclose(lab("red"), [53.2, 80.1, 67.2], atol=0.1)
    assert {"label_smoothing", *(rung.name for rung in rungs())} <= set(LOOKS)
    for a, b in itertools.combinations(LOOKS.values(), 2):
        assert np.linalg.norm(lab(a.colour, sight) - lab(b.colour, sight)) > 15


def test_objectives_differ_without_colour() -> None:
    for a, b in itertools.combinations(LOOKS.values(), 2):
        assert a.marker != b.marker
        assert a.line != b.line or abs(lab(a.colour)[0] - lab(b.colour)[0]) > 30
    assert all(lab(of.colour)[0] < 75 for of in LOOKS.values())  # dark enough on white


def test_an_unknown_label_always_looks_the_same_and_like_no_known_one() -> None:
    assert look("kd T=1") == look("kd T=1")
    assert look("kd T=1").colour not in {known.colour for known in LOOKS.values()}
    assert look("kd T=1") != look("kd lambda=0.5")
