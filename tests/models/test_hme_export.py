"""Explainers and trees leave Python: compiled, exported, as ONNX, and as safetensors."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, build_model, vam
from tests.models.families import FAMILIES, K

KINDS = ["soft", "tree"]
SLOW = [
    "timm resnet",
    "torchvision shufflenet",
    "timm convnext",
    "torchvision densenet",
    "timm vit",
]


def explainer(family: str, kind: str) -> tuple[HME, torch.Tensor]:
    torch.manual_seed(0)
    student = build_model("digits_student", K, 1) if family == "digits" else FAMILIES[family]()
    shape = (1, 8, 8) if family == "digits" else (3, 32, 32)
    model = HME.from_student(student, K, 3, image_shape=shape).eval()
    return (model if kind == "soft" else model.harden().pruned()), torch.randn(4, *shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["digits", "timm vit"])
def test_compiles_to_one_graph(family: str, kind: str) -> None:
    model, images = explainer(family, kind)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(images), model(images), rtol=0, atol=1e-6)
    torch._dynamo.reset()


def _exported(family: str, kind: str) -> None:
    model, images = explainer(family, kind)
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        torch.testing.assert_close(
            program.module()(images[:3]), model(images[:3]), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("kind", KINDS)
def test_is_exported(kind: str) -> None:
    _exported("digits", kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", SLOW)
def test_every_family_is_exported(family: str, kind: str) -> None:
    _exported(family, kind)


def _to_onnx(family: str, kind: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, images = explainer(family, kind)
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        model, (images,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (got,) = session.run(None, {session.get_inputs()[0].name: images[:3].numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(got, model(images[:3]).numpy(), rtol=0, atol=1e-5)


def test_is_onnx() -> None:
    _to_onnx("digits", "tree")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", SLOW)
def test_every_family_is_onnx(family: str, kind: str) -> None:
    _to_onnx(family, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["digits", "timm convnext"])
def test_copies_pickles_and_safetensors(family: str, kind: str, tmp_path: Path) -> None:
    model, images = explainer(family, kind)
    save_file(
        {name: t.contiguous() for name, t in model.state_dict().items()},
        tmp_path / "model.safetensors",
    )
    loaded = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
        loaded.load_state_dict(load_file(tmp_path / "model.safetensors"))
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
            assert torch.equal(twin(images), model(images))


def test_an_explainer_with_vam_says_what_to_do_before_it_is_cut() -> None:
    model = HME.from_student(build_model("digits_student", 3, 1), 3, 3)
    vam.attach(model, 2)
    with pytest.raises(KdxError, match=r"the experts hold .*vam\.logits.*fold or detach VAM first"):
        model.harden().pruned()
    vam.fold(model)
    assert model.harden().pruned()(torch.zeros(1, 1, 8, 8)).shape == (1, 3)
