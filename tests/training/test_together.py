"""Trainings together against the same trainings alone."""

import copy
import functools
import math

import pytest
import torch
from torch import nn

from kdx_analysis.config import ObjectiveConfig, TemperatureConfig, TrainingConfig, VAMConfig
from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, vam
from kdx_analysis.models.gates import entropy_share
from kdx_analysis.models.zoo import MODELS
from kdx_analysis.training import fabric_for, fit, reproducible
from kdx_analysis.training.kept_logits import Shelf
from kdx_analysis.training.loop import fitting
from kdx_analysis.training.together import fit_together
from tests import toys

K = len(toys.CLASSES)
# 48 images in steps of 12 are 4 steps an epoch: 52 steps.
CONFIG = {"epochs": 13, "batch_size": 12, "warmup_epochs": 1, "lr": 0.01}
ANNEALED = TemperatureConfig(schedule="exponential", start=5.0, end=0.5)


def student() -> nn.Module:
    return MODELS["digits_student"](K, 1)


def attended() -> nn.Module:
    model = student()
    vam.attach(model, blocks=5)
    return model


def explainer() -> nn.Module:
    return HME.from_student(student(), K, (2, 2, 2), image_shape=(1, 8, 8))


def dropped() -> nn.Module:
    return nn.Sequential(
        nn.Dropout(0.1),
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(6 * 36, K),
    )


def resnet() -> nn.Module:
    return MODELS["resnet20"](K, 1)


KINDS = {
    "student": (student, {}),
    "attended": (
        attended,
        {"vam": VAMConfig.model_validate({"gamma": 0.1, "temperature": ANNEALED})},
    ),
    "explainer": (explainer, {"temperature": ANNEALED, "gate_warmup": 2}),
    "dropout": (dropped, {}),
    "resnet": (resnet, {}),  # the deepest, so the one in which rounding grows fastest
}
# Objectives of a seed, and seeds of an objective.
RUNS = (("hard", 3), ("kd_shuffled", 3), ("kd", 3), ("kd", 4), ("kd_shuffled", 4))


def runs_of(kind):
    """Those of a kind; two are enough of the slowest."""
    return (RUNS[0], RUNS[3]) if kind == "resnet" else RUNS


class Watched:
    """A run as it is seen from outside: its model before and after, and every epoch of it."""

    def __init__(self, kind, objective, seed, *, wide=False, shelf=None, **changes):
        make, options = KINDS[kind]
        self.seed, self.epochs = seed, []
        # At the others' rate it is chaotic: any rounding grows to a hundredth of the weights.
        rate = {"lr": 1e-4} if kind == "resnet" else {}
        self.config = TrainingConfig.model_validate({**CONFIG, **rate, **changes})
        with reproducible(seed, 1):
            self.model = make()
            self.state = torch.get_rng_state()
        self.start = copy.deepcopy(self.model)
        data = toys.dataset()
        self.begin = functools.partial(
            fitting,
            self.model,
            data,
            ObjectiveConfig(name=objective),
            self.config,
            seed=seed,
            teacher=toys.RowTeacher(),
            callbacks=[lambda epoch, model: self.epochs.append((epoch, copy.deepcopy(model)))],
            shelf=shelf,
            **options,
        )

    def alone(self):
        with reproducible(self.seed, 1):
            self.fit = fit(*self.begin.args, **self.begin.keywords)
        return self


def together(runs):
    fabric = fabric_for(runs[0].config)
    with reproducible(0, 1):
        results = fit_together([run.begin for run in runs], [r.seed for r in runs], fabric.device)
    for run, result in zip(runs, results, strict=True):
        run.fit = result
    return runs


def vector(model):
    return torch.cat([tensor.detach().double().flatten() for tensor in model.state_dict().values()])


def apart(a, b):
    return float((vector(a) - vector(b)).norm() / vector(b).norm())


@functools.cache
def pairs(kind):
    """SGD does not blow up rounding as Adam does, whose steps are of one size for any gradient."""
    changes = {"optimizer": "sgd"}
    side = together(
        [Watched(kind, objective, seed, **changes) for objective, seed in runs_of(kind)]
    )
    alone = [Watched(kind, objective, seed, **changes).alone() for objective, seed in runs_of(kind)]
    return list(zip(side, alone, strict=True))


def nudged(kind, objective, seed, **changes):
    """A run alone from weights that are off by one rounding of float32: the yardstick.

    What becomes of it is as far from the run as any other order of its sums may take it.
    """
    run = Watched(kind, objective, seed, **changes)
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.mul_(1 + torch.finfo(torch.float32).eps)
    return run.alone()


@pytest.mark.parametrize("kind", KINDS)
def test_52_steps_together_are_52_steps_alone(kind):
    both = pairs(kind)
    yardsticks = [nudged(kind, *run, optimizer="sgd") for run in runs_of(kind)]
    rounding = max(
        apart(yardstick.model, alone.model)
        for yardstick, (_, alone) in zip(yardsticks, both, strict=True)
    )
    for side, alone in both:
        moved = apart(alone.model, alone.start)
        assert apart(side.model, alone.model) < min(30 * max(rounding, 1e-6), 0.01 * moved)
        losses = [fit.history.query("metric == 'loss'") for fit in (side.fit, alone.fit)]
        assert losses[0]["value"].tolist() == pytest.approx(losses[1]["value"].tolist(), rel=0.05)
        assert side.fit.history[["epoch", "split", "metric"]].equals(
            alone.fit.history[["epoch", "split", "metric"]]
        )


@pytest.mark.parametrize("kind", KINDS)
def test_models_are_apart_again_afterwards(kind):
    models = [side.model for side, _ in pairs(kind)]
    places = [t.untyped_storage().data_ptr() for m in models for t in m.state_dict().values()]
    assert len(set(places)) == len(places)
    for model in models:
        assert all(p.untyped_storage().nbytes() == 4 * p.numel() for p in model.parameters())


def test_runs_of_other_objectives_and_seeds_are_others():
    models = [side.model for side, _ in pairs("student")]
    for i, first in enumerate(models):
        assert all(apart(first, other) > 0.01 for other in models[:i])


def test_gates_stay_bit_for_bit_in_warm_up_and_move_after():
    for side, _ in pairs("explainer"):
        gates = [model.gates[0].logits for _, model in side.epochs]
        assert torch.equal(gates[1], side.start.gates[0].logits)
        assert not torch.equal(gates[2], gates[1])


def entropy_of(model):
    """Of the model's own gates, H/ln N, or of its VAM."""
    if not isinstance(model, HME):
        return float(vam.entropy(model))
    shares = [entropy_share(gate).flatten() for gate in model.attention() if gate.shape[1] > 1]
    return float(torch.cat(shares).mean())


def gate_entropies(run):
    return torch.tensor([epoch.gate_entropy for epoch, _ in run.epochs], dtype=torch.float64)


@pytest.mark.parametrize("kind", ["explainer", "attended"])
def test_temperature_and_gate_entropy_are_told_of_each_runs_own_model(kind):
    for (side, alone), run in zip(pairs(kind), runs_of(kind), strict=True):
        for (a, model), (b, _) in zip(side.epochs, alone.epochs, strict=True):
            assert a.temperature == b.temperature
            assert a.gate_entropy == entropy_of(model)
        as_alone = (gate_entropies(side) - gate_entropies(alone)).abs().max()
        yardstick = gate_entropies(nudged(kind, *run, optimizer="sgd")) - gate_entropies(alone)
        assert as_alone < 30 * max(float(yardstick.abs().max()), 1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_adam_is_as_near_as_rounding_lets_two_runs_be(optimizer):
    runs = [("hard", 1), ("kd", 1), ("kd", 2)]
    changes = {"optimizer": optimizer, "epochs": 3}
    side = together([Watched("student", *run, **changes) for run in runs])
    for a, run in zip(side, runs, strict=True):
        alone = Watched("student", *run, **changes).alone()
        rounding = apart(nudged("student", *run, **changes).model, alone.model)
        assert apart(a.model, alone.model) < 10 * max(rounding, 1e-5)


def test_the_state_of_the_optimiser_is_that_of_each_run(monkeypatch):
    from kdx_analysis.training import together as room

    made = []

    class Kept(room.Group):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(room, "Group", Kept)
    changes = {"optimizer": "adamw", "epochs": 1}
    runs = [Watched("explainer", "kd", seed, **changes) for seed in (1, 2)]
    together(runs)
    (group,) = made
    for i, seed in enumerate((1, 2)):
        training = alone_training("explainer", "kd", seed, **changes)
        mine = dict(group.net.models[i].named_parameters())
        for name, parameter in training.model.named_parameters():
            stack = group.net.parameters[name]
            kept, expected = group.optimizer.state[stack], training.optimizer.state[parameter]
            assert name in mine
            assert kept.keys() == expected.keys()
            for key in ("exp_avg", "exp_avg_sq"):
                if key in expected:
                    assert torch.allclose(kept[key][i], expected[key], rtol=1e-3, atol=1e-6)
        assert group.scheduler.get_last_lr() == training.scheduler.get_last_lr()


def alone_training(*args, **changes):
    """The training of a run, after it has been driven to its end."""
    run = Watched(*args, **changes)
    with reproducible(run.seed, 1):
        steps = run.begin()
        waits = next(steps)
        try:
            while True:
                waits = steps.send(waits.make())
        except StopIteration:
            return waits.training


def test_a_run_that_diverges_touches_none_of_the_others():
    clean = together([Watched("student", "kd", seed) for seed in (1, 2)])
    broken = [Watched("student", "kd", seed) for seed in (1, 2)]
    with torch.no_grad():
        broken[1].model.classifier.weight.fill_(math.nan)
    together(broken)
    assert isinstance(broken[1].fit, KdxError)
    assert "is nan in epoch 1" in str(broken[1].fit)
    assert torch.equal(vector(broken[0].model), vector(clean[0].model))
    assert broken[0].fit.history.equals(clean[0].fit.history)


def test_the_teacher_is_asked_once_for_all_runs_of_a_seed(monkeypatch):
    asked = []
    forward = toys.RowTeacher.forward

    def counted(self, images):
        asked.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(toys.RowTeacher, "forward", counted)
    runs = [Watched("student", name, 1, epochs=1) for name in ("hard", "kd", "kd_flat")]
    teacher = toys.RowTeacher().eval().requires_grad_(False)
    for run in runs:
        run.begin.keywords["teacher"] = teacher
    together(runs)
    assert asked.count(12) == 4


def test_logits_that_are_kept_are_read_and_left(tmp_path):
    def runs(shelf):
        return [Watched("student", name, 1, epochs=2, shelf=shelf) for name in ("kd", "kd_flat")]

    shelf = Shelf(tmp_path / "logits" / "seed", 2**20)
    first = together(runs(shelf))
    assert len(list(shelf.path.glob("*.safetensors"))) == 2
    again = together(runs(shelf))
    assert torch.equal(vector(first[1].model), vector(again[1].model))


def test_seeds_of_an_objective_have_one_loss_unless_it_draws(monkeypatch):
    from kdx_analysis.training import together as room

    places, alike = [], room._alike
    monkeypatch.setattr(room, "_alike", lambda runs: places.extend(alike(runs)) or alike(runs))
    names = ("kd", "kd_shuffled", "hard", "kd", "kd_shuffled", "hard", "label_smoothing")
    together([Watched("student", name, i, epochs=1) for i, name in enumerate(names)])
    assert places == [[0, 3], [1], [2, 5], [4], [6]]


def test_the_best_epoch_is_each_runs_own():
    runs = [("hard", 1), ("kd", 2), ("kd", 5)]
    changes = {"optimizer": "sgd", "selection": "best"}
    side = together([Watched("student", *run, **changes) for run in runs])
    for a, run in zip(side, runs, strict=True):
        assert a.fit.epoch == Watched("student", *run, **changes).alone().fit.epoch
        assert torch.equal(vector(a.model), vector(a.epochs[a.fit.epoch - 1][1]))


def test_half_precision_is_that_of_each_run():
    changes = {"precision": "bf16-mixed", "epochs": 2, "optimizer": "sgd"}
    side = together([Watched("student", "kd", seed, **changes) for seed in (1, 2)])
    for a, seed in zip(side, (1, 2), strict=True):
        alone = Watched("student", "kd", seed, **changes).alone()
        assert apart(a.model, alone.model) < 0.02 * apart(alone.model, alone.start)


def test_seconds_are_shared_out():
    from kdx_analysis.training.seconds import Seconds

    runs = [Watched("student", "kd", seed, epochs=1) for seed in (1, 2)]
    watches = [Seconds(), Seconds()]
    for run, watch in zip(runs, watches, strict=True):
        run.begin.keywords["seconds"] = watch
    together(runs)
    first, second = (watch.told() for watch in watches)
    assert first["training"] > 0
    assert first["training"] == pytest.approx(second["training"], rel=0.5)
