import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kdx_analysis as kdx
from kdx_analysis.errors import KdxError
from kdx_analysis.io import read_parquet, write_parquet
from kdx_analysis.models import HME, build_model
from kdx_analysis.probes import Recording
from tests.probes.subjects import explainer, snapshot


@pytest.fixture
def images() -> Tensor:
    return torch.randn(7, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(72, 3)
    ).double()


def test_parameter_gates_are_recorded_once_a_pass(images: Tensor) -> None:
    model = explainer().eval()
    with kdx.probe(model) as seen:
        model(images)
        model.temperature = 3.0
        model(images[:2])
    model.temperature = 0.5
    assert [tuple(a.shape) for a in seen.attention] == [(2, 3, 1), (2, 3, 3), (2, 3, 3), (2, 5, 3)]
    for recorded, alpha in zip(seen.attention, model.attention(), strict=True):
        torch.testing.assert_close(recorded[0], alpha)
    model.temperature = 3.0
    torch.testing.assert_close(seen.attention[-1][1], model.attention()[-1])
    assert not seen.attention[-1].requires_grad
    assert len(seen.to_frame()) == 2 * (3 + 9 + 9 + 15)


def test_input_gates_are_recorded_for_each_sample_in_order(images: Tensor) -> None:
    model = explainer(gates="input").eval()
    with kdx.probe(model) as whole:
        model(images)
    with kdx.probe(model) as seen:
        for batch in images.split(3):
            model(batch)
    expected = model.trace(images).attention
    for recorded, together, alpha in zip(seen.attention, whole.attention, expected, strict=True):
        torch.testing.assert_close(recorded, alpha.expand(7, *alpha.shape[-2:]))
        torch.testing.assert_close(recorded, together)
    composed = torch.stack([expected[3][b] @ expected[2][b] for b in range(7)]).mean(dim=0)
    torch.testing.assert_close(seen.pathways()[2], composed)


def test_noise_on_the_gates_is_recorded_as_it_was(images: Tensor) -> None:
    torch.manual_seed(0)
    model = (
        HME.from_student(build_model("digits_student", 4, 1), 4, 3, gumbel=True).double().train()
    )
    with kdx.probe(model) as seen:
        trace = model.trace(images)
    torch.testing.assert_close(seen.attention[-1][0], trace.attention[-1])
    assert not torch.allclose(seen.attention[-1][0], model.attention()[-1])


def test_merging_batches_gives_the_whole(images: Tensor) -> None:
    model = explainer(gates="input").eval()

    def seen(batch: Tensor) -> kdx.probes.Recording:
        with kdx.probe(model, activations=["trunk", "levels.?"]) as recording:
            model(batch)
        return recording

    whole, parts = seen(images), seen(images[:3]).merge(seen(images[3:]))
    assert list(parts.activations) == ["trunk", "levels.0", "levels.1", "levels.2"]
    for path, tensor in whole.activations.items():
        torch.testing.assert_close(parts.activations[path], tensor)
    torch.testing.assert_close(
        parts.to_frame()["alpha"].to_numpy(), whole.to_frame()["alpha"].to_numpy()
    )
    assert parts.to_frame().drop(columns="alpha").equals(whole.to_frame().drop(columns="alpha"))
    with kdx.probe(model) as other:
        model(images)
    with pytest.raises(KdxError, match=r"trunk, gates can't be merged with one of HME with gates"):
        whole.merge(other)


def test_activations_of_any_model_by_path_pattern_or_predicate(
    plain: nn.Module, images: Tensor
) -> None:
    with kdx.probe(plain, activations="0") as path, kdx.probe(plain, activations="[23]") as pattern:
        for batch in images.split(4):
            plain(batch)
    assert path.activations["0"].shape == (7, 2, 6, 6)
    assert path.activations["0"].min() < 0  # as it was before the ReLU that works in place
    torch.testing.assert_close(path.activations["0"], plain[0](images).detach())
    assert list(pattern.activations) == ["2", "3"]
    with kdx.probe(plain, activations=lambda path, module: isinstance(module, nn.Linear)) as linear:
        plain(images)
    torch.testing.assert_close(linear.activations["3"], plain(images).detach())
    with pytest.raises(KdxError, match="no gates of Sequential"):
        linear.to_frame()
    assert linear.summary()["shape"].tolist() == ["7×3"]
    assert "7×3" in linear._repr_html_()


def test_training_inside_is_training_outside(images: Tensor) -> None:
    def trained(watched: bool) -> dict[str, Tensor]:
        torch.manual_seed(3)
        model = (
            HME.from_student(build_model("digits_student", 4, 1), 4, 3, gumbel=True)
            .double()
            .train()
        )
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)

        def step() -> None:
            optimiser.zero_grad()
            F.binary_cross_entropy_with_logits(model(images), torch.ones(7, 4).double()).backward()
            optimiser.step()

        for _ in range(2):
            if watched:
                with kdx.probe(model, activations="levels.*"):
                    step()
            else:
                step()
        return model.state_dict()

    a, b = trained(False), trained(True)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("fails", ["not", "in the body", "in the forward pass"])
def test_the_model_is_left_as_it_was_found(
    images: Tensor, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = explainer().eval()
    model.levels[0].train()
    model.levels[0].body.apply(lambda m: m.eval())
    attributes, before, rng = set(vars(model)), list(snapshot(model)), torch.get_rng_state()
    if fails == "not":
        with kdx.probe(model, activations="*"):
            model(images)
    elif fails == "in the body":

        def body() -> None:
            with kdx.probe(model, activations="*"):
                model(images)
                raise RuntimeError("mine")

        with pytest.raises(RuntimeError, match="mine"):
            body()
    else:
        monkeypatch.setattr(model.heads, "forward", lambda inputs: 1 / 0)
        with pytest.raises(ZeroDivisionError), kdx.probe(model, activations="trunk"):
            model(images)
    assert list(snapshot(model)) == before
    assert set(vars(model)) == attributes
    assert torch.equal(torch.get_rng_state(), rng)


def test_probes_nest_and_copies_made_inside_are_not_recorded(images: Tensor) -> None:
    model = explainer().eval()
    with kdx.probe(model, activations="trunk") as outer:
        with kdx.probe(model) as inner:
            model(images)
            copied = copy.deepcopy(model)
        copied(images)
        model.harden()(images)
        kdx.probes.integrated_gradients(model, images, 0, steps=2)
        model(images)
    assert (outer.passes, inner.passes) == (2, 1)
    assert outer.activations["trunk"].shape[0] == 14
    assert inner.attention[-1].shape[0] == 1
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(2)
        assert not torch.equal(copied(images), model(images))  # a copy runs with its own weights
    assert "trace" not in vars(model)


def test_an_explainer_inside_another_module_is_found(images: Tensor) -> None:
    whole = nn.Sequential(nn.BatchNorm2d(1), explainer()).double().eval()
    with kdx.probe(whole, gates=True) as seen:
        whole(images)
    assert seen.attention[-1].shape == (1, 5, 3)
    with (
        pytest.raises(KdxError, match="holds 2 explainers, at '0', '1'"),
        kdx.probe(nn.ModuleList([*whole[1:], explainer()])),
    ):
        pass


def test_what_cannot_be_recorded_is_refused_before_anything_runs(
    plain: nn.Module, images: Tensor
) -> None:
    def refuse(match: str, model: nn.Module, **options: object) -> None:
        with pytest.raises(KdxError, match=match), kdx.probe(model, **options):  # type: ignore[arg-type]
            pytest.fail("the body ran")

    refuse("has no gates; make it an explainer", plain, gates=True, activations="0")
    refuse("nothing to record", plain)
    refuse("unknown module 'trnk'; did you mean 'trunk'", explainer(), activations="trnk")
    refuse("holds for no module", plain, activations=lambda path, module: False)
    refuse("device = 'abacus'", explainer(), device="abacus")
    with kdx.probe(plain, activations="0") as idle:
        pass
    with pytest.raises(KdxError, match="none of 0 ran"):
        _ = idle.activations
    with kdx.probe(plain[0], activations="") as sizes:
        plain[0](images)
        plain[0](images[..., :5])
    with pytest.raises(KdxError, match="have shapes"):
        _ = sizes.activations
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    with pytest.raises(KdxError, match="gives 2 tensors"), kdx.probe(attention, activations=""):
        attention(*[torch.randn(1, 3, 4)] * 3)


def test_half_precision_and_parquet(images: Tensor, tmp_path: Path) -> None:
    model = explainer().bfloat16().eval()
    with kdx.probe(model, activations="trunk") as seen:
        model(images.bfloat16())
    assert seen.activations["trunk"].dtype == torch.bfloat16
    frame = seen.to_frame()
    write_parquet(tmp_path / "gates.parquet", frame)
    assert read_parquet(tmp_path / "gates.parquet").equals(frame)
    assert not seen.summary().isna().any().any()
    assert (seen.summary()["not_finite"] == 0).all()
    broken = Recording("HME", [], {"trunk": [torch.tensor([[1.0, torch.nan, 3.0]])]})
    assert broken.summary()[["mean", "not_finite"]].to_numpy().tolist() == [[2.0, 1]]
