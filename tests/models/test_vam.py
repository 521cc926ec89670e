import copy
import math
import pickle
from itertools import pairwise

import pandas as pd
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from kdx_analysis.errors import KdxError
from kdx_analysis.models import MODELS, vam
from kdx_analysis.models.survey import attachments
from kdx_analysis.models.vam.blocks import block_widths


class Net(nn.Module):
    """Every kind of layer that VAM meets, on images B×3×8×8: grouped, depthwise, widths that 4 does
    not divide.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.even = nn.Conv2d(12, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.uneven = nn.Conv2d(16, 18, 1, bias=False)
        self.grouped = nn.Conv2d(18, 12, 3, groups=3)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.narrow = nn.Conv2d(12, 3, 1)
        self.mlp = nn.Linear(48, 10)
        self.classifier = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.even(self.stem(x).relu())).relu()
        x = self.depthwise(self.grouped(self.uneven(x).relu()).relu())
        return self.classifier(self.mlp(self.narrow(x).flatten(1)).relu())


TAKEN = ["even", "uneven", "grouped", "narrow", "mlp"]
SKIPPED = {
    "stem": "first layer: reads the image",
    "depthwise": "depthwise: one input channel a group",
    "classifier": "last Linear: its outputs are classes",
}


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def randomise(model: nn.Module, spread: float = 1.5) -> nn.Module:
    with torch.no_grad():
        for logits in vam.gate_parameters(model):
            logits.normal_(0, spread)
    return model


def with_vam(seed: int = 0, blocks: int = 4, **options) -> nn.Module:
    """Net with random U, in eval mode."""
    model = net(seed)
    vam.attach(model, blocks, **options)
    return randomise(model).eval()


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def plain_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if ".vam." not in f".{name}"]


# --- what V̂ is


def test_two_blocks_by_hand() -> None:
    layer = nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 2, bias=False), nn.Linear(2, 1))
    nn.init.ones_(layer[1].weight)
    vam.attach(layer, 2, temperature=0.5)
    with torch.no_grad():
        layer[1].vam.logits.copy_(
            torch.tensor([[math.log(3) / 2, 0.0], [0.0, 0.0]])
        )  # α = (3/4, 1/4) and (1/2, 1/2)
    torch.testing.assert_close(vam.attention(layer)["1"], torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
    a, b = 3 / math.sqrt(5), 1 / math.sqrt(5)  # (3, 1)/√((9 + 1)/2)
    torch.testing.assert_close(layer[1].weight, torch.tensor([[a, a, b, b], [1.0, 1, 1, 1]]))


@pytest.mark.parametrize("scale", ["rms", "mean"])
@pytest.mark.parametrize("blocks", [2, 3, 4, 7])
def test_every_weight_is_that_of_a_loop_over_channels(scale: str, blocks: int) -> None:
    model = net().double()
    plain = copy.deepcopy(model)
    vam.attach(model, blocks, temperature=0.7, scale=scale)
    randomise(model)
    for path, layer in vam.attended_layers(model).items():
        V, U = plain.get_submodule(path).weight, layer.vam.logits.detach()
        (
            outs,
            ins,
        ) = (  # block of each channel, counted here by handing out one channel after another
            sorted(c % min(C, blocks) for c in range(C)) for C in V.shape[:2]
        )
        for o, row in enumerate(outs):
            alpha = [math.exp(U[row, m] / 0.7) for m in range(max(ins) + 1)]
            felt = [alpha[m] for m in ins]  # the attention of every input channel
            mean = (
                sum(felt) / len(felt)
                if scale == "mean"
                else math.sqrt(sum(a * a for a in felt) / len(felt))
            )
            for i, a in enumerate(felt):
                torch.testing.assert_close(layer.weight[o, i], V[o, i] * (a / mean))


@pytest.mark.parametrize("channels", range(2, 40))
def test_uniform_attention_scales_by_exactly_one(channels: int) -> None:
    for blocks in range(2, channels + 1):
        widths = block_widths(channels, blocks)
        assert sum(widths) == channels
        assert max(widths) - min(widths) <= 1
        attention = vam.BlockAttention(widths, widths, temperature=0.3)
        nn.init.constant_(attention.logits, 0.7)
        assert attention.scales().eq(1).all()


@pytest.mark.parametrize(
    ("dtype", "channels"), [(torch.bfloat16, 257), (torch.bfloat16, 1027), (torch.float16, 2049)]
)
def test_attaching_changes_nothing_in_half_precision(dtype: torch.dtype, channels: int) -> None:
    model = nn.Sequential(nn.Linear(8, channels), nn.Linear(channels, 16), nn.Linear(16, 3)).to(
        dtype
    )
    expected = model(torch.ones(2, 8, dtype=dtype))
    vam.attach(model)
    assert torch.equal(model(torch.ones(2, 8, dtype=dtype)), expected)
    assert torch.equal(model.to(dtype)(torch.ones(2, 8, dtype=dtype)), expected)


def test_scales_keep_the_mean_square_at_any_sparsity_and_their_gradient_is_right() -> None:
    widths = torch.tensor([3.0, 2, 2])
    for temperature in (2.0, 0.1, 1e-3):
        attention = vam.BlockAttention((1, 1), (3, 2, 2), temperature=temperature).double()
        nn.init.normal_(attention.logits, generator=torch.Generator().manual_seed(0))
        s = attention.scales()
        torch.testing.assert_close(
            (s**2 * widths).sum(dim=1) / 7, torch.ones(2, dtype=torch.float64)
        )
        s.sum().backward()
        assert attention.logits.grad.isfinite().all()
    attention = vam.BlockAttention((1, 1), (3, 2, 2), temperature=0.8).double()
    logits = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def scales(U: Tensor) -> Tensor:
        return torch.func.functional_call(_Scales(attention), {"attention.logits": U})

    assert torch.autograd.gradcheck(scales, logits)


class _Scales(nn.Module):
    def __init__(self, attention: vam.BlockAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self) -> Tensor:
        return self.attention.scales()


# --- attach


def test_attaching_changes_no_output_and_draws_nothing() -> None:
    model = net().eval()
    before, rng = model(images()), torch.get_rng_state()
    vam.attach(model, 4)
    assert torch.equal(model(images()), before)
    assert torch.equal(torch.get_rng_state(), rng)


def test_the_table_says_what_was_attached_and_what_was_skipped_and_why() -> None:
    model = net()
    count = sum(p.numel() for p in model.parameters())
    table = vam.attach(model, 4)
    frame = table.to_frame().set_index("path")
    assert table.paths == TAKEN == list(vam.attended_layers(model))
    assert frame["skipped"][list(SKIPPED)].to_dict() == SKIPPED
    assert frame.loc["grouped", ["weight", "rows", "columns", "added"]].tolist() == [
        "12×6×3×3",
        4,
        4,
        16,
    ]
    assert frame.loc["narrow", ["rows", "columns", "added"]].tolist() == [3, 4, 12]
    added = sum(p.numel() for p in model.parameters()) - count
    assert added == table.added == frame["added"].sum() == 4 * 16 + 12
    assert f"5 of 8 layers: {added} parameters added to {count:,}" in str(table)
    assert "reads the image" in table._repr_html_()


def test_layers_are_chosen_by_path_pattern_and_predicate() -> None:
    assert vam.attach(net(), 4, "even").paths == ["even"]
    assert vam.attach(net(), 4, ["*even", "mlp"]).paths == ["even", "uneven", "mlp"]
    assert vam.attach(net(), 4, lambda path, module: isinstance(module, nn.Linear)).paths == ["mlp"]
    with pytest.raises(
        KdxError, match=r"unknown convolution or Linear layer 'evne'; did you mean 'even'"
    ):
        vam.attach(net(), 4, "evne")
    with pytest.raises(KdxError, match="holds for no convolution"):
        vam.attach(net(), 4, lambda path, module: False)
    with pytest.raises(KdxError, match=r"no layer of Net can take VAM \(stem: first layer"):
        vam.attach(net(), 4, "stem")


def test_a_second_call_gives_other_layers_other_blocks() -> None:
    model = net()
    own = vam.attach(model, 4, "even").parameters
    table = vam.attach(model, channels=3)
    assert table.parameters == own
    frame = table.to_frame().set_index("path")
    assert frame.loc["even", "skipped"] == "has VAM already"
    assert frame.loc["even", "layer"] == "Conv2d"
    assert frame.loc["uneven", ["rows", "columns"]].tolist() == [
        6,
        6,
    ]  # 18 and 16 channels, at most 3 a block
    assert vam.attention(model)["even"].shape == (4, 4)


def test_one_block_and_shared_weights_are_left_alone() -> None:
    model = net()
    model.uneven.weight = model.narrow.weight = nn.Parameter(torch.ones(18, 16, 1, 1))
    frame = vam.attach(model, channels=12).to_frame().set_index("path")
    assert frame.loc["grouped", "skipped"] == "one input block: nothing to choose"
    assert frame.loc["uneven", "skipped"] == "shares its weight with another module"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 1}, "blocks = 1"),
        ({"channels": 0}, "channels = 0"),
        ({"temperature": 0.0}, "temperature = 0.0"),
        ({"scale": "meen"}, "unknown scale 'meen'; did you mean 'mean'"),
    ],
)
def test_values_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(KdxError, match=message):
        vam.attach(net(), **options)


@pytest.mark.parametrize(
    ("foreign", "name"),
    [
        (parametrizations.weight_norm, "_WeightNorm"),
        (parametrizations.spectral_norm, "_SpectralNorm"),
        (lambda module: prune.l1_unstructured(module, "weight", 0.5), "L1Unstructured"),
    ],
)
def test_a_foreign_parametrization_is_refused_by_name(foreign, name: str) -> None:
    model = net()
    foreign(model.narrow)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(KdxError, match=f"weight of 'narrow' is computed by {name}; .*where="):
        vam.attach(model, 4)
    assert not vam.attended_layers(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert vam.attach(model, 4, ["even", "mlp"]).paths == ["even", "mlp"]
    vam.detach(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_without_vam_there_is_nothing_to_fold() -> None:
    for call in (
        vam.fold,
        vam.detach,
        vam.attention,
        vam.entropy,
        lambda m: vam.set_temperature(m, 1.0),
    ):
        with pytest.raises(KdxError, match="Net has no VAM; attach it first"):
            call(net())
    assert list(vam.gate_parameters(net())) == []


# --- the way back


def structure(model: nn.Module) -> list:
    return [
        (name, type(m), [*m._parameters], [*m._buffers], [*m._forward_pre_hooks])
        for name, m in model.named_modules()
    ]


@pytest.mark.parametrize("way_back", [vam.detach, vam.fold])
def test_what_remains_is_the_plain_model(way_back) -> None:
    model = net()
    before, keys, objects = structure(model), list(model.state_dict()), list(model.parameters())
    vam.attach(model, 4)
    randomise(model)
    assert [id(p) for _, p in plain_parameters(model)] == [id(p) for p in objects]
    way_back(model)
    assert structure(model) == before
    assert list(model.state_dict()) == keys
    assert [id(p) for p in model.parameters()] == [id(p) for p in objects]


def test_detaching_restores_the_weights_bit_for_bit() -> None:
    model = with_vam()
    vam.detach(model)
    plain = net().eval()
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True)
    )
    assert torch.equal(model(images()), plain(images()))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("scale", ["rms", "mean"])
def test_folding_keeps_every_output(scale: str, memory_format: torch.memory_format) -> None:
    model = with_vam(scale=scale).to(memory_format=memory_format)
    x = images().contiguous(memory_format=memory_format)
    attended = model(x)
    assert not torch.allclose(attended, net().eval()(x), rtol=1e-2)
    vam.fold(model)
    assert torch.equal(model(x), attended)


@pytest.mark.parametrize("way_back", [vam.detach, vam.fold])
def test_a_copy_on_its_way_back_leaves_the_original_attended(way_back) -> None:
    model = with_vam()
    before = model(images())
    copied = copy.deepcopy(model)
    assert torch.equal(copied(images()), before)
    way_back(copied)
    assert list(vam.attended_layers(model)) == TAKEN
    assert torch.equal(model(images()), before)
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in model.parameters()}


def test_another_parametrization_elsewhere_stays() -> None:
    model = net()
    parametrizations.weight_norm(model.depthwise)
    before = model.eval()(images())
    vam.attach(model, 4)
    randomise(model)
    vam.detach(model)
    assert torch.nn.utils.parametrize.is_parametrized(model.depthwise)
    assert torch.equal(model(images()), before)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, penalty: float = 0.0) -> None:
    optimizer.zero_grad()
    loss = model(images(8).to(model.classifier.weight.dtype)).square().mean()
    (loss + penalty * vam.entropy(model) if penalty else loss).backward()
    optimizer.step()


def test_an_optimiser_goes_on_after_folding_with_the_state_of_the_same_weights() -> None:
    model = with_vam().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    step(model, optimizer)
    moments = {name: optimizer.state[p]["exp_avg"].clone() for name, p in plain_parameters(model)}
    vam.fold(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(optimizer.state[parameter]["exp_avg"], moments[name])
    saved = torch.optim.Adam(model.parameters(), lr=1e-2)
    plain = net()
    other = torch.optim.Adam(plain.parameters(), lr=1e-2)
    step(plain, other)
    saved.load_state_dict(
        other.state_dict()
    )  # by position: shapes would not fit if the order had changed
    step(model, saved)


# --- while attached


def test_checkpoint_and_resume() -> None:
    first = with_vam().train()
    vam.set_temperature(first, 0.6)
    optimizer = torch.optim.AdamW(first.parameters(), lr=1e-2)
    step(first, optimizer, 0.1)
    state = pickle.loads(pickle.dumps((first.state_dict(), optimizer.state_dict())))

    second = net(seed=5)
    vam.attach(second, 4)
    resumed = torch.optim.AdamW(second.parameters(), lr=1e-2)
    second.load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    for model, of in ((first, optimizer), (second, resumed)):
        step(model, of, 0.1)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert second.even.vam.temperature.item() == pytest.approx(0.6)


def test_whole_models_are_pickled() -> None:
    model = with_vam()
    loaded = pickle.loads(pickle.dumps(model))
    assert torch.equal(loaded(images()), model(images()))
    vam.fold(loaded)
    assert list(vam.attended_layers(model)) == TAKEN
    staged = MODELS["resnet20"](4)
    vam.attach(staged)
    assert type(pickle.loads(pickle.dumps(staged)).stages[0][0].conv1) is type(
        staged.stages[0][0].conv1
    )


def test_bf16_autocast() -> None:
    plain, model = net(), net()
    vam.attach(model, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(images()), plain(images()))
        randomise(model)
        assert all(
            layer.vam.scales().dtype == torch.float32
            for layer in vam.attended_layers(model).values()
        )
        (model(images()).float().square().mean() + vam.entropy(model)).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in vam.gate_parameters(model))


def test_a_compiled_model_follows_gates_and_temperature() -> None:
    torch._dynamo.reset()
    model = with_vam().train()
    reference = copy.deepcopy(model)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for temperature in (1.0, 0.5):
        for each in (model, reference):
            vam.set_temperature(each, temperature)
        torch.testing.assert_close(compiled(images()), reference(images()))
    compiled(images()).sum().backward()
    reference(images()).sum().backward()
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    randomise(model)
    reference.load_state_dict(model.state_dict())
    torch.testing.assert_close(compiled(images()), reference(images()))
    assert len(graphs) == 1


def test_a_traced_model_follows_its_gates() -> None:
    for model, x in ((with_vam(), images()), (MODELS["resnet20"](4).eval(), images())):
        if not vam.attended_layers(model):
            vam.attach(model)
        traced = torch.fx.symbolic_trace(model)
        assert torch.equal(traced(x), model(x))
        randomise(model)
        traced.load_state_dict(model.state_dict())
        assert torch.equal(traced(x), model(x))


def test_fused_attention_that_bypasses_the_layers_forward_sees_vam() -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Linear(4, 16), block, nn.Linear(16, 3))
    assert vam.attach(model, 4).paths == ["1.self_attn.out_proj", "1.linear1", "1.linear2"]
    randomise(model)
    x = torch.randn(2, 5, 4)
    slow, fast = model.train()(x), model.eval()(x)
    with torch.no_grad():
        fused = model(x)
    vam.fold(model)
    for attended in (slow, fast, fused):
        torch.testing.assert_close(attended, model(x))
    folded = [layer.weight.clone() for layer in (block.self_attn.out_proj, block.linear1)]
    assert not any(torch.equal(a, b) for a, b in pairwise(folded) if a.shape == b.shape)


def test_drawing_a_layer_anew_draws_its_weight_and_opens_its_gates() -> None:
    model, plain = with_vam(), net()
    for each in (model, plain):
        torch.manual_seed(3)
        for module in each.children():
            module.reset_parameters()
    assert torch.equal(model(images()), plain.eval()(images()))
    assert all(not p.any() for p in vam.gate_parameters(model))


def test_entropy_by_hand_and_where_attention_underflows() -> None:
    model = net()
    vam.attach(model, 4, ["even", "narrow"])
    assert vam.entropy(model).item() == pytest.approx(1.0)
    with torch.no_grad():
        model.even.vam.logits[0, 0] = 1e4  # one of 4 + 3 rows one-hot
        model.even.vam.logits[1] = torch.tensor(
            [0.0, 0, -1e4, -1e4]
        )  # another even over two of four
    share = vam.entropy(model)
    assert share.item() == pytest.approx((5 + 0 + 0.5) / 7)
    share.backward()
    assert all(p.grad.isfinite().all() for p in vam.gate_parameters(model))


def test_permuting_input_blocks_with_their_gates_permutes_the_weight() -> None:
    model = with_vam()
    order = torch.tensor([2, 0, 3, 1])
    channels = torch.arange(12).view(4, 3)[order].flatten()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.even.plain_weight.copy_(model.even.plain_weight[:, channels])
        other.even.vam.logits.copy_(model.even.vam.logits[:, order])
    torch.testing.assert_close(other.even.weight, model.even.weight[:, channels])


# --- in other processes


def _worker(rank: int, model: nn.Module, port: int, out) -> None:
    model = copy.deepcopy(model)  # what is handed over lies in memory that both processes share
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = images(8)[rank * 4 : rank * 4 + 4].double()
    for _ in range(2):
        optimizer.zero_grad()
        (wrapped(x).square().mean() + 0.1 * vam.entropy(model)).backward()
        optimizer.step()
    if rank == 0:
        torch.save(model.state_dict(), out)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path) -> None:
    import socket

    model = with_vam(
        where=["even", "mlp"]
    ).double()  # in eval mode, so that BatchNorm does not see half a batch
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_worker, (model, port, tmp_path / "state.pt"), nprocs=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        step(model, optimizer, 0.1)
    state = torch.load(tmp_path / "state.pt")
    for key, value in model.state_dict().items():
        torch.testing.assert_close(state[key], value)


# --- models by name


@pytest.mark.parametrize("name", [*MODELS, "torchvision:resnet18", "torchvision:mobilenet_v2"])
def test_models_by_name(name: str) -> None:
    check_survey(attachments([name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision:convnext_tiny", "torchvision:vit_b_16"])
def test_large_models_by_name(name: str) -> None:
    check_survey(attachments([name]))


def check_survey(frame: pd.DataFrame) -> None:
    (row,) = frame.to_dict("records")
    assert 0 < row["attached"] < row["layers"]
    assert 0 < row["added_percent"] < 1
    assert row["attach_error"] == 0
    assert row["fold_error"] <= 1e-5


def test_lazy_layers_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(KdxError, match="Sequential has lazy layers"):
        vam.attach(model)
