import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from kdx_analysis.errors import KdxError
from kdx_analysis.training.checkpoints import (
    fingerprint,
    load_learn_to_branch,
    load_weights,
    save_weights,
)


def model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_safetensors_come_back(tmp_path):
    save_weights(tmp_path / "a.safetensors", model(0))
    other = model(1)
    load_weights(tmp_path / "a.safetensors", other)
    assert fingerprint(other) == fingerprint(model(0)) != fingerprint(model(1))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_channels_last_and_tied_weights_can_be_saved(tmp_path):
    tied = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)).to(
        memory_format=torch.channels_last
    )
    tied[1].weight = tied[0].weight
    save_weights(tmp_path / "a.safetensors", tied)
    other = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    load_weights(tmp_path / "a.safetensors", other)
    assert fingerprint(other) == fingerprint(tied)


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}]
)
def test_pickled_states_come_back_bare_or_wrapped(tmp_path, wrap):
    torch.save(wrap(model(0).state_dict()), tmp_path / "a.pt")
    other = model(1)
    load_weights(tmp_path / "a.pt", other)
    assert fingerprint(other) == fingerprint(model(0))


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path):
    trace = tmp_path / "trace"
    torch.save({"model": Evil(trace)}, tmp_path / "evil.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Evil(trace), protocol=2))
    for name in ("evil.pt", "bare.pt"):
        with pytest.raises(KdxError, match=f"cannot load weights from .*{name}") as caught:
            load_weights(tmp_path / name, model())
        assert "\n" not in str(caught.value)
    assert not trace.exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert trace.exists()  # so it would have been executed


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_files_that_hold_no_weights(tmp_path, name):
    with pytest.raises(KdxError, match=r"cannot load weights .*No such file"):
        load_weights(tmp_path / name, model())
    for content in (b"", b"no weights at all", bytes(100)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(KdxError, match="cannot load weights"):
            load_weights(tmp_path / name, model())


@pytest.mark.parametrize(
    "state", [{"0.weight": torch.zeros(2, 1, 3, 3)}, {"model": {"0.weight": "x"}}]
)
def test_weights_of_another_model_are_refused_and_change_nothing(tmp_path, state):
    torch.save(state, tmp_path / "a.pt")
    here = model()
    with pytest.raises(KdxError, match="don't fit Sequential") as caught:
        load_weights(tmp_path / "a.pt", here)
    assert "\n" not in str(caught.value)


def test_a_file_that_names_no_tensors_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "a.pt")
    with pytest.raises(
        KdxError, match=r"cannot load weights from .*a\.pt': it holds a list, no named tensors"
    ):
        load_weights(tmp_path / "a.pt", model())


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_only_converted_files_are_read_as_converted(tmp_path, name):
    torch.save(model().state_dict(), tmp_path / "a.pt")
    save_weights(tmp_path / "a.safetensors", model())
    with pytest.raises(KdxError, match=f"{name}' was not written by kdx convert"):
        load_learn_to_branch(tmp_path / name)


def test_a_fingerprint_sees_names_shapes_values_and_buffers():
    def changed(edit) -> str:
        here = model()
        edit(here)
        return fingerprint(here)

    prints = {
        fingerprint(model()),
        changed(lambda m: m[1].running_mean.add_(1)),
        changed(lambda m: m[0].bias.data.add_(1e-7)),
        changed(lambda m: m[0].weight.data.neg_()),
        changed(lambda m: m.add_module("2", m[1])),
    }
    assert len(prints) == 5
