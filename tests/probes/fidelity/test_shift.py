"""Corrupted images: what each corruption does, what it hangs on, and what is refused."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from kdx_analysis.config import ProbeConfig, StudyConfig
from kdx_analysis.errors import KdxError
from kdx_analysis.probes.contract import (
    asked_for,
    check_sections,
    configured,
    deciding,
    switched_on,
)
from kdx_analysis.probes.fidelity.shift import (
    CORRUPTIONS,
    SHIFT,
    ShiftOptions,
    cells,
    check_shift,
    corrupted,
    shift_images,
    worn,
)
from tests import toys

IDS = torch.arange(6)


def pictures(side: int = 16, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Smooth squares of two greys with a little texture."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.full((6, channels, side, side), 60)
    images[:, :, side // 4 : -side // 4, side // 4 : -side // 4] = 180
    noise = torch.randint(20, images.shape, generator=generator)
    return (images + noise).to(torch.uint8)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).abs().mean())


@pytest.mark.parametrize("side", [8, 32, 224])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_is_farther_from_the_image_than_the_one_before(name, side):
    images = pictures(side)
    apart = [distance(corrupted(images, name, s, IDS), images) for s in range(6)]
    assert apart[0] == 0
    assert apart[1] > 0.3  # grey levels: even the least of them shows, on the smallest images too
    assert apart[5] > 1.15 * apart[1]
    if name != "pixelation":  # whose blocks may fall on an edge or beside it
        assert all(b > a for a, b in pairwise(apart))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_alike_whatever_stands_beside_it(name):
    images = pictures()
    together, state = corrupted(images, name, 3, IDS, seed=5), torch.random.get_rng_state()
    alone = torch.cat([corrupted(images[[i]], name, 3, IDS[[i]], seed=5) for i in range(6)])
    assert torch.equal(together, alone)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", ["noise", "rotation"])
def test_what_is_drawn_hangs_on_id_and_seed(name):
    images = pictures()[[0]].expand(6, -1, -1, -1).contiguous()
    many = torch.arange(6)
    one, other = (corrupted(images, name, 2, many, seed=seed) for seed in (0, 1))
    assert not torch.equal(one, other)
    assert len({image.numpy().tobytes() for image in one}) > 1


def test_noise_has_the_stated_spread():
    grey = torch.full((6, 1, 64, 64), 128, dtype=torch.uint8)
    spread = float((corrupted(grey, "noise", 3, IDS).float() / 255).std())
    assert spread == pytest.approx(0.12, rel=0.02)


def test_pixelation_leaves_blocks_and_contrast_the_mean():
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8) * 3
    blocks = corrupted(image, "pixelation", 3, IDS[:1])[0, 0]
    assert torch.equal(blocks[::2, ::2].repeat_interleave(2, 0).repeat_interleave(2, 1), blocks)
    flat = corrupted(image, "contrast", 5, IDS[:1]).float()
    assert float(flat.mean()) == pytest.approx(float(image.float().mean()), abs=1)
    assert float(flat.std()) == pytest.approx(0.15 * float(image.float().std()), rel=0.1)


def test_a_blur_is_torchvisions_with_sigma_by_the_shorter_side():
    from torchvision.transforms.v2 import GaussianBlur

    images = pictures(40)
    sigma = (0.35**2 + (0.015 * 40) ** 2) ** 0.5
    expected = GaussianBlur([7, 7], sigma=(sigma, sigma))(images)
    assert torch.equal(corrupted(images, "blur", 1, IDS), expected)


def test_rotation_turns_either_way_by_the_angle():
    from torchvision.transforms.v2.functional import InterpolationMode, rotate

    images = pictures()
    turned = corrupted(images, "rotation", 4, IDS)
    ways = [rotate(images, angle, InterpolationMode.BILINEAR) for angle in (24, -24)]
    chosen = [[torch.equal(turned[i], way[i]) for way in ways].index(True) for i in range(6)]
    assert set(chosen) == {0, 1}


@pytest.mark.parametrize(
    ("name", "severity", "channels", "message"),
    [
        ("nois", 1, 3, "unknown corruption 'nois'; did you mean 'noise'"),
        ("blur", 6, 3, "severity 6 of blur should lie in 0"),
        ("contrast", 1, 2, "these have 2 channels; leave contrast out"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(name, severity, channels, message):
    with pytest.raises(KdxError, match=message):
        corrupted(pictures(8, channels), name, severity, IDS)


def test_the_images_are_balanced_and_fixed_by_their_ids():
    data = toys.dataset()
    assert shift_images(data, 100, 0).ids.tolist() == list(range(24))  # all 24 of them
    few = shift_images(data, 9, 0)
    assert np.bincount(few.labels).tolist() == [3, 3, 3]
    assert few.ids.tolist() == sorted(few.ids.tolist()) == shift_images(data, 9, 0).ids.tolist()
    assert torch.equal(few.images.take(torch.arange(9)), data.test.images.take(few.ids))
    moved = worn(few, "noise", 2, 0)
    one = corrupted(few.images.take(torch.tensor([4])), "noise", 2, few.ids[[4]], 0)
    assert torch.equal(moved.images.take(torch.tensor([4])), one)


def test_every_cell_is_asked_once():
    asked = list(cells(["noise", "blur"]))
    assert asked[0] == ("clean", 0)
    assert len(asked) == len(set(asked)) == 11


def probes(section: object) -> ProbeConfig:
    return ProbeConfig.model_validate({"shift": section})


def test_it_is_off_until_a_study_asks_for_it():
    assert not asked_for(ProbeConfig(), SHIFT)
    assert not asked_for(probes(False), SHIFT)
    assert asked_for(probes(True), SHIFT)
    assert configured(probes(True), SHIFT)[1] == ShiftOptions()
    shared, options = configured(probes(["blur", "noise"]), SHIFT)
    assert (options.corruptions, options.images, shared.seed) == (("blur", "noise"), 2000, 0)
    section = {"corruptions": ["blur"], "images": 30, "seed": 4}
    shared, options = configured(probes(section), SHIFT)
    assert (options.corruptions, options.images, shared.seed) == (("blur",), 30, 4)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"shift": ["nosie"]}, "unknown corruption 'nosie'; did you mean 'noise'"),
        ({"shift": {"image": 3}}, "unknown option of probes.shift 'image'; did you mean 'images'"),
        ({"shift": []}, "probes.shift: corruptions = .*at least 1"),
        ({"shfit": ["noise"]}, "unknown key or probe of probes 'shfit'; did you mean 'shift'"),
        ({"affinity": ["noise"]}, r"probes.affinity = \['noise'\] is a list; give options"),
    ],
)
def test_sections_are_refused_before_training(section, message):
    with pytest.raises(KdxError, match=message):
        check_sections(ProbeConfig.model_validate(section))


def test_it_decides_no_runs_identity_and_looks_at_no_training():
    assert deciding(probes(["blur"])) == deciding(ProbeConfig())
    both = ProbeConfig.model_validate({"shift": True, "affinity": False, "conflict": True})
    assert deciding(both) == {**ProbeConfig().model_dump(), "affinity": False}
    assert "shift" not in [probe.name for probe in switched_on(both, "student", finished=True)]


def test_it_survives_yaml(tmp_path):
    study = StudyConfig.parse(
        {
            "name": "s",
            "data": {"name": "digits"},
            "teacher": {"model": "digits_teacher"},
            "student": "digits_student",
            "objectives": ["hard"],
            "probes": {"shift": ["blur"]},
        }
    )
    study.save(tmp_path / "study.yaml")
    assert StudyConfig.load(tmp_path / "study.yaml") == study
    assert study.override(["probes.shift=on"]).probes.sections == {"shift": True}


def test_a_data_set_that_cannot_be_corrupted_is_refused():
    with pytest.raises(KdxError, match="images = 2 holds no image of some of the 3 classes"):
        check_shift(ShiftOptions(images=2), toys.dataset())
