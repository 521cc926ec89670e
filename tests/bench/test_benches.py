"""Contestants compute the same: outputs, gradients, Gram matrices, images."""

from functools import partial

import pytest
import torch

from kdx_analysis.bench import BENCHES, Setting
from kdx_analysis.bench.benches import (
    explainer,
    gates,
    pipeline,
    probing,
    released,
    together,
    vam,
)
from kdx_analysis.bench.common import made_up, random_images
from kdx_analysis.bench.running import check_same

CPU = torch.device("cpu")


def images(batch, shape):
    return partial(random_images, batch, shape, CPU)


def digits_step():
    ours = partial(explainer.explainer, "digits_student", 3, (1, 8, 8))
    plain = partial(explainer.plain_digits, 3)
    return explainer.contest("K = 3", ours, plain, images(6, (1, 8, 8)), 3)


def resnet20_step():
    ours = partial(explainer.explainer, "resnet20", 3, (3, 32, 32))
    plain = partial(explainer.plain_resnet20, 3)
    return explainer.contest("K = 3", ours, plain, images(3, (3, 32, 32)), 3)


def pipeline_data():
    return made_up(2, 20, 2, (3, 8, 8))


CONTESTS = {
    "explainer_digits": digits_step,
    "explainer_resnet20": resnet20_step,
    "released_network": lambda: released.contest(3, images(3, (3, 32, 32))),
    "probe": lambda: probing.contest(
        "", probing.digits_explainer, images(20, (1, 8, 8)), 10, null_draws=2
    ),
    "gram": lambda: probing.contest(
        "", probing.plain_resnet20, images(10, (3, 32, 32)), 10, null_draws=0
    ),
    "pipeline": lambda: pipeline.contest(pipeline_data, CPU),
    "gates": lambda: gates.contest(partial(made_up, 10, 40, 10, (3, 32, 32)), 2, 3, CPU),
    "together": lambda: together.contest(2, 4, CPU),
    "vam": lambda: list(vam.contests("digits_student", images(4, (3, 8, 8)), "float32"))[1],
}


@pytest.mark.parametrize("name", CONTESTS)
def test_contestants_compute_the_same(name):
    contest = CONTESTS[name]()
    contestants = (contest.plain, *contest.others)
    results = [each.result() for each in contestants if each.result is not None]
    assert len(results) >= 2
    assert any(float(value.double().abs().max()) > 0 for value in results[0].values())
    check_same(name, contest)


@pytest.mark.parametrize("name", ["explainer_digits", "explainer_resnet20", "released_network"])
def test_every_gradient_is_compared(name):
    contest = CONTESTS[name]()
    plain, ours = (each.result() for each in (contest.plain, *contest.others))
    assert plain.keys() == ours.keys()
    assert {"outputs"} < plain.keys()
    for key, gradient in plain.items():
        assert gradient.abs().max() > 0, key


@pytest.mark.parametrize("name", CONTESTS)
def test_every_contestant_runs(name):
    contest = CONTESTS[name]()
    for each in (contest.plain, *contest.others):
        each.make()()


def test_the_plain_pipeline_pads_crops_and_mirrors():
    data = pipeline_data()
    loaded = pipeline.PlainImages(data)
    plain = pipeline.PlainImages(data, augmented=False)
    pixels = data.train.images.take(torch.tensor([0]))[0].float() / 255
    padded = torch.nn.functional.pad(pixels, (data.pad,) * 4)
    windows = [padded[:, i : i + 8, j : j + 8] for i in range(9) for j in range(9)]
    mean, std = loaded.mean, loaded.std
    candidates = torch.stack([(w - mean) / std for w in [*windows, *(w.flip(2) for w in windows)]])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = torch.stack([loaded[0][0] for _ in range(40)])
    nearest = (drawn[:, None] - candidates).abs().amax(dim=(2, 3, 4)).min(dim=1)
    assert nearest.values.max() < 1e-5
    assert len(set(nearest.indices.tolist())) > 20
    assert torch.allclose(plain[0][0], (pixels - mean) / std, atol=1e-5)


def test_every_bench_is_declared_with_what_it_is_held_against():
    assert set(CONTESTS) | {"explainer_cuda"} <= set(BENCHES)
    for name in CONTESTS:
        bench = BENCHES[name]
        contests = list(bench.contests(Setting(CPU)))
        labels = [contest.label for contest in contests]
        assert len(set(labels)) == len(labels)
        assert bench.home.startswith("kdx_analysis.bench.benches.")
        if isinstance(bench.target, dict):
            assert set(bench.target) <= set(labels)
