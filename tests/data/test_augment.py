import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError

from kdx_analysis.data.augmentation import _copied, _gathered, augment, flip, pad_and_crop


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(B=16, C=3, H=6, W=5):
    return torch.randint(1, 256, (B, C, H, W), generator=generator(99), dtype=torch.uint8)


@pytest.mark.parametrize("pad", [1, 2, 7])
def test_pad_and_crop_equals_a_loop_over_samples(pad):
    x = images()
    down, across = torch.randint(2 * pad + 1, (2, len(x)), generator=generator()).tolist()
    expected = torch.zeros_like(x)
    for b, (dy, dx) in enumerate(zip(down, across, strict=True)):
        for i in range(6):
            for j in range(5):
                y, z = i + dy - pad, j + dx - pad
                if 0 <= y < 6 and 0 <= z < 5:
                    expected[b, :, i, j] = x[b, :, y, z]
    cropped = pad_and_crop(x, pad, generator())
    assert cropped.dtype == torch.uint8
    assert cropped.equal(expected)
    assert (cropped == 0).any()


def test_flip_equals_a_loop_over_samples():
    x = images()
    mirrored = torch.rand(len(x), generator=generator()) < 0.5
    expected = torch.stack(
        [each.flip(-1) if m else each for each, m in zip(x, mirrored, strict=True)]
    )
    assert mirrored.unique().numel() == 2
    assert flip(x, generator()).equal(expected)


def plainly_augmented(x, pad, mirror, draws):
    """Pixel by pixel, as runs of earlier versions were augmented."""
    if pad:
        down, across = torch.randint(2 * pad + 1, (2, len(x)), generator=draws)
        windows = F.pad(x, (pad, pad, pad, pad)).unfold(2, x.shape[2], 1).unfold(3, x.shape[3], 1)
        x = windows[torch.arange(len(x)), :, down, across]
    if mirror:
        mirrored = torch.rand(len(x), generator=draws) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("shape", [(64, 3, 32, 32), (50, 1, 8, 8), (9, 3, 1, 1), (0, 3, 4, 4)])
def test_runs_are_augmented_bit_for_bit_as_they_were(shape, pad, mirror):
    x = images(*shape)
    draws, plain_draws = generator(3), generator(3)
    for _ in range(2):
        expected = plainly_augmented(x, pad, mirror, plain_draws)
        assert augment(x, pad, mirror, draws).equal(expected)
    assert draws.get_state().equal(plain_draws.get_state())


def test_the_memory_format_of_images_does_not_matter():
    x = images()
    last = x.contiguous(memory_format=torch.channels_last)
    assert augment(last, 2, True, generator()).equal(augment(x, 2, True, generator()))


@pytest.mark.parametrize("pad", [1, 3, 9])
def test_crops_are_the_same_on_a_gpu_and_on_the_cpu(pad):
    x = images(H=4, W=7)
    corners = torch.tensor([[0, 0, 2 * pad, 2 * pad], [0, 2 * pad, 0, 2 * pad]])
    offsets = torch.cat([corners, torch.randint(2 * pad + 1, (2, 12), generator=generator())], 1)
    assert _copied(x, pad, offsets).equal(_gathered(x, pad, offsets))


def test_copies_of_one_image_are_augmented_each_in_its_own_way():
    copies = images(B=1).expand(64, -1, -1, -1)
    # 5·5 offsets × 2 mirrorings: of 64 draws of 50, about 36 differ
    assert len(augment(copies, 2, True, generator()).unique(dim=0)) > 25


def test_all_channels_move_together():
    grey = images(C=1).expand(-1, 3, -1, -1)
    out = augment(grey, 2, True, generator())
    assert out[:, 0].equal(out[:, 2])


def test_offsets_cover_every_crop_evenly():
    spot = torch.zeros(9000, 1, 3, 3, dtype=torch.uint8)
    spot[:, :, 1, 1] = 1
    hits = pad_and_crop(spot, 1, generator()).sum(0, dtype=torch.int64)[0]
    assert hits.sum() == 9000
    assert (hits - 1000).abs().max() < 5 * (9000 / 9 * 8 / 9) ** 0.5


def test_nothing_asked_for_is_nothing_done_and_nothing_drawn():
    x, draws = images(), generator()
    before = draws.get_state()
    assert augment(x, 0, False, draws).equal(x)
    assert draws.get_state().equal(before)


def test_the_images_given_are_left_alone():
    x = images()
    augment(x, 2, True, generator())
    assert x.equal(images())


def test_only_uint8_is_taken():
    with pytest.raises(TypeCheckError, match="images"):
        pad_and_crop(images().float(), 1, generator())
    with pytest.raises(ValueError, match="must be uint8 to be augmented, got"):
        augment(images().float(), 1, True, generator())
