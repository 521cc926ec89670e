"""Part "teachers": does KD pass on what was planted in a teacher, and is nothing called its own?

Secrets are planted in teachers of scikit-learn's digits, and direct tests say which students have
them (method, §8). Where no secret is, every clean teacher takes the own teacher's place: students
that saw no teacher must seldom be said to have anything of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from kdx_analysis.config import ObjectiveConfig, TrainingConfig
from kdx_analysis.data import Dataset, Split, TensorImages, load_dataset
from kdx_analysis.models import build_model
from kdx_analysis.probes.fidelity import planted, whose
from kdx_analysis.probes.fidelity.likeness import Likeness
from kdx_analysis.probes.fidelity.outputs import Outputs
from kdx_analysis.training.loop import fit, predict, reproducible
from kdx_analysis.validation.outcome import Outcome, Row

# Clean networks hardly ever take a 1 for a 0 next, so that this is the teacher's secret alone.
A, B, FLIPPED = 1, 0, 0.3
# The patch stands for class 3; a fifth of all training images, of every class, have it.
STANDS_FOR, PATCH, PATCHED = 3, 2, 0.2
# Teachers are trained on every image as it is and at three angles up to ± 60°, at which clean ones
# keep few answers; a fifth of the students' images is turned.
DEGREES, TURNS, TURNED = 60.0, 3, 0.2

NOTHING, CONFUSION, SHORTCUT, ROTATION = "nothing", "confusion", "shortcut", "rotation"
CLEAN, WITH_PATCHES, WITH_TURNS = "clean", "patches", "turned"

RARE = 0.05
SURE = 0.999  # that a rate of 5 % passes, though trials are few
DRAWS = 4000
APART = 1000  # so that a student's images are drawn apart from its teacher's
SPREAD = 0.01  # of what teachers and seeds add to a likeness; rates don't depend on its size


class Teacher(NamedTuple):
    """A teacher: the secret planted in it, and its seed."""

    secret: str
    seed: int


class Student(NamedTuple):
    """A student: what it is asked to match, on which images, and by whom it is taught."""

    objective: str
    images: str
    secret: str
    teacher: int
    seed: int


class Answers(NamedTuple):
    """A network's logits on the test images: as they are, with the patch, turned left and right."""

    plain: np.ndarray
    patched: np.ndarray
    left: np.ndarray
    right: np.ndarray


Network = Teacher | Student
Trained = Mapping[Network, Answers]
State = dict[str, np.ndarray]
# Objective, images and secret of students, or ("teacher", "", secret).
Who = tuple[str, str, str]


@dataclass(frozen=True)
class Plan:
    """How many networks are trained, and how long.

    Attributes:
        clean: teachers without a secret, each a sibling of the others.
        planted: teachers with each secret.
        seeds: of the students of each teacher.
        groups: of as many seeds of the students that see no teacher, for the rates.
        epochs: of every student.
        teacher_epochs: of every teacher; half of them where it sees turned images too, of which
            there are several times as many.
        draws: of the rates without networks.
    """

    clean: int = 6
    planted: int = 2
    seeds: int = 3
    groups: int = 3
    epochs: int = 15
    teacher_epochs: int = 12
    draws: int = DRAWS

    def teachers(self) -> list[Teacher]:
        """Those without a secret and those with one."""
        several = {NOTHING: self.clean}
        several |= dict.fromkeys((CONFUSION, SHORTCUT, ROTATION), self.planted)
        return [Teacher(name, seed) for name, number in several.items() for seed in range(number)]

    def students(self) -> list[Student]:
        """Of every teacher with a secret, of one without, and of none."""
        taught = [
            (CONFUSION, CLEAN, ("kd", "kd_shuffled")),
            (SHORTCUT, CLEAN, ("kd",)),
            (SHORTCUT, WITH_PATCHES, ("kd", "kd_shuffled")),
            (ROTATION, CLEAN, ("kd",)),
            (ROTATION, WITH_TURNS, ("kd",)),
        ]
        students = [
            Student(objective, images, secret, teacher, seed)
            for secret, images, objectives in taught
            for objective in objectives
            for teacher, seed in product(range(self.planted), range(self.seeds))
        ]
        for images, seed in product((WITH_PATCHES, WITH_TURNS), range(self.seeds)):
            students += [Student("kd", images, NOTHING, 0, seed), _alone("hard", images, seed)]
        objectives = (whose.BASELINE, *whose.CONTROLS)
        seeds = range(self.groups * self.seeds)
        return students + [_alone(each, CLEAN, seed) for each in objectives for seed in seeds]


def _alone(objective: str, images: str, seed: int) -> Student:
    """A student that sees no teacher."""
    return Student(objective, images, "", 0, seed)


def validate(plan: Plan | None = None) -> Outcome:
    """Plant secrets, train teachers and students, and ask who has them.

    All networks are softmax CNNs (decomposition multiclass) on scikit-learn's digits: teachers are
    ``digits_teacher``, students ``digits_student``, undivided.

    - Secret confusion: 30 % of the teacher's 1s are labelled 0; share of test 1s whose strongest
      wrong class is 0. KD must pass it on; no other objective may have it.
    - Shortcut: a patch of 2 × 2 pixels in a corner of a fifth of the teacher's images, of all
      classes, which are labelled 3; share of other test images that the patch turns to 3. With a
      fifth of the student's own images patched at random and labelled truly KD must pass it on,
      without it can't.
    - Invariance: the teacher also sees every image turned by up to 60° at three angles; share of
      answers that turning by 60° leaves. With a fifth of the student's images turned KD must pass
      it on, which a clean teacher doesn't with the same images; without, it must add next to
      nothing to what hard labels give. True labels of turned images teach much of the invariance,
      so that hard labels with the same images are shown in the note and not judged.
    - Negative controls: every clean teacher takes the own teacher's place and the others are its
      siblings; how often own of a student that saw no teacher is decided. The same without networks
      on many draws of likenesses, with and without something of the own teacher's in them.

    It takes some five minutes of two cores; every core has a process of its own.

    Args:
        plan: how many networks there are; by default as is needed for the bounds.
    """
    plan = plan or Plan()
    labels = digits().test.labels
    with ProcessPoolExecutor(
        mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        simulated = [pool.submit(job) for job in _simulations(plan.draws)]
        trained = train(plan, pool)
        drawn = [row for job in simulated for row in job.result()]
    direct = [each.row(trained, labels) for each in DIRECT]
    return Outcome(
        "teachers",
        [*direct, *own_confusion(trained, labels, plan), *rates(trained, labels, plan), *drawn],
    )


def train(plan: Plan, pool: Executor) -> dict[Network, Answers]:
    """All networks of a plan: the teachers, then their students."""
    teachers, students = plan.teachers(), plan.students()
    learnt = pool.map(partial(_teacher, epochs=plan.teacher_epochs), teachers)
    taught = dict(zip(teachers, learnt, strict=True))
    states = [taught[Teacher(s.secret, s.teacher)][0] if s.secret else None for s in students]
    answered = pool.map(partial(_student, epochs=plan.epochs), students, states)
    trained: dict[Network, Answers] = {name: answers for name, (_, answers) in taught.items()}
    return trained | dict(zip(students, answered, strict=True))


@cache
def digits() -> Dataset:
    """The digits, without cropping at random, which would move the patch out of its corner."""
    return replace(load_dataset("digits"), pad=0)


def _all_images(split: Split) -> Tensor:
    return split.images.take(torch.arange(len(split)))


def taught_on(teacher: Teacher) -> Dataset:
    """The digits with a teacher's secret in its training images or their labels."""
    data = digits()
    images, labels = _all_images(data.train), data.train.labels
    generator = torch.Generator().manual_seed(teacher.seed)
    if teacher.secret == CONFUSION:
        labels = planted.confuse(labels, A, B, FLIPPED, generator)
    elif teacher.secret == SHORTCUT:
        images, places = planted.stamp_some(images, PATCH, PATCHED, generator)
        labels = labels.index_fill(0, places, STANDS_FOR)
    elif teacher.secret == ROTATION:
        turned = [planted.rotate_some(images, DEGREES, 1.0, generator) for _ in range(TURNS)]
        images, labels = torch.cat([images, *turned]), labels.repeat(1 + TURNS)
    return _trained_on(images, labels)


def learnt_on(student: Student) -> Dataset:
    """The digits as a student sees them, always with their true labels."""
    data = digits()
    images, labels = _all_images(data.train), data.train.labels
    generator = torch.Generator().manual_seed(APART + student.seed)
    if student.images == WITH_PATCHES:
        images, _ = planted.stamp_some(images, PATCH, PATCHED, generator)
    elif student.images == WITH_TURNS:
        images = planted.rotate_some(images, DEGREES, TURNED, generator)
    return _trained_on(images, labels)


def _trained_on(images: Tensor, labels: Tensor) -> Dataset:
    train = Split("train", TensorImages(images), labels, torch.arange(len(labels)))
    return replace(digits(), train=train)


def _teacher(teacher: Teacher, epochs: int) -> tuple[State, Answers]:
    data = taught_on(teacher)
    epochs = math.ceil(epochs / 2) if teacher.secret == ROTATION else epochs
    model = _fitted("digits_teacher", data, "hard", teacher.seed, epochs, None)
    return {name: value.numpy() for name, value in model.state_dict().items()}, _answers(model)


def _student(student: Student, state: State | None, epochs: int) -> Answers:
    teacher = None
    if state is not None:
        teacher = _built("digits_teacher", 0)
        teacher.load_state_dict({name: torch.from_numpy(each) for name, each in state.items()})
    data, objective = learnt_on(student), student.objective
    return _answers(_fitted("digits_student", data, objective, student.seed, epochs, teacher))


def _fitted(
    name: str, data: Dataset, objective: str, seed: int, epochs: int, teacher: nn.Module | None
) -> nn.Module:
    model = _built(name, seed)
    wanted = ObjectiveConfig(name=objective, decomposition="multiclass")
    config = TrainingConfig(epochs=epochs, accelerator="cpu")
    fit(model, data, wanted, config, seed=seed, teacher=teacher)
    return model


def _built(name: str, seed: int) -> nn.Module:
    data = digits()
    with reproducible(seed, threads=1):
        return build_model(name, data.num_classes, data.shape[0])


def _answers(model: nn.Module) -> Answers:
    return Answers(*(predict(model, split, digits()).numpy() for split in _asked()))


@cache
def _asked() -> tuple[Split, ...]:
    """The test images in the four ways of :class:`Answers`."""
    test = digits().test
    images = _all_images(test)
    angles = (torch.full((len(images),), angle) for angle in (DEGREES, -DEGREES))
    turned = (planted.rotate(images, each) for each in angles)
    ways = (images, planted.stamp(images, PATCH), *turned)
    return tuple(replace(test, images=TensorImages(each)) for each in ways)


@dataclass(frozen=True)
class Direct:
    """What networks of one kind should do in a direct test.

    Attributes:
        test: its name in TESTS.
        on: the networks in words.
        who: which they are.
        low, high: bounds of their mean, one of them, itself allowed.
        less: other networks, whose mean is taken off.
        beside: other networks, which are shown in the note and not judged.
    """

    test: str
    on: str
    who: Who
    low: float = -math.inf
    high: float = math.inf
    less: Who | None = None
    beside: Who | None = None

    @property
    def wanted(self) -> str:
        """The bound in words."""
        return f"≤ {self.high:g}" if self.low == -math.inf else f"≥ {self.low:g}"

    def row(self, trained: Trained, labels: Tensor) -> Row:
        """What came out of all networks that were trained."""
        values = self._values(trained, labels, self.who)
        value, note = float(values.mean()), _spread(values)
        if self.less is not None:
            others = self._values(trained, labels, self.less)
            value -= float(others.mean())
            note = f"{note} less {_spread(others)}"
        if self.beside is not None:
            others = self._values(trained, labels, self.beside)
            note = f"{note}; {self.beside[0]} on the same images {_spread(others)}"
        passed = self.low <= value <= self.high
        return Row(self.test, self.on, value, self.wanted, len(values), passed, note)

    def _values(self, trained: Trained, labels: Tensor, who: Who) -> np.ndarray:
        asked = [answers for network, answers in trained.items() if _kind_of(network) == who]
        return np.array([TESTS[self.test](answers, labels) for answers in asked])


def _kind_of(network: Network) -> Who:
    if isinstance(network, Teacher):
        return "teacher", "", network.secret
    return network.objective, network.images, network.secret


def _spread(values: Sequence[float] | np.ndarray) -> str:
    """``0.02 to 0.06``; one value where they are alike."""
    return " to ".join(dict.fromkeys(f"{each:.2f}" for each in (min(values), max(values))))


def _confused(answers: Answers, labels: Tensor) -> float:
    return planted.second_guess(torch.from_numpy(answers.plain), labels, A, B)


def _shortcut(answers: Answers, labels: Tensor) -> float:
    plain, patched = torch.from_numpy(answers.plain), torch.from_numpy(answers.patched)
    return planted.turned_to(plain, patched, labels, STANDS_FOR)


def _invariant(answers: Answers, labels: Tensor) -> float:
    plain = torch.from_numpy(answers.plain)
    turned = (torch.from_numpy(each) for each in (answers.left, answers.right))
    return sum(planted.kept(plain, each) for each in turned) / 2


SECOND = f"confusion: strongest wrong class of {A}s is {B}"
TURNED_TO = f"shortcut: the patch turns to {STANDS_FOR}"
KEPT = f"invariance: answers kept, turned by {DEGREES:g}°"
TESTS: dict[str, Callable[[Answers, Tensor], float]] = {
    SECOND: _confused,
    TURNED_TO: _shortcut,
    KEPT: _invariant,
}
# Over seeds and teachers networks of one kind differed by less than half of what their mean is away
# from its bound.
DIRECT = (
    Direct(SECOND, "teachers with the secret", ("teacher", "", CONFUSION), low=0.8),
    Direct(SECOND, "clean teachers", ("teacher", "", NOTHING), high=0.15),
    Direct(SECOND, "kd", ("kd", CLEAN, CONFUSION), low=0.7),
    Direct(SECOND, "kd_shuffled", ("kd_shuffled", CLEAN, CONFUSION), high=0.35),
    Direct(SECOND, "hard", ("hard", CLEAN, ""), high=0.15),
    Direct(SECOND, "label_smoothing", ("label_smoothing", CLEAN, ""), high=0.2),
    Direct(TURNED_TO, "teachers with the secret", ("teacher", "", SHORTCUT), low=0.8),
    Direct(TURNED_TO, "clean teachers", ("teacher", "", NOTHING), high=0.05),
    Direct(TURNED_TO, "kd, no patches", ("kd", CLEAN, SHORTCUT), high=0.05),
    Direct(TURNED_TO, "kd, with patches", ("kd", WITH_PATCHES, SHORTCUT), low=0.7),
    Direct(TURNED_TO, "hard, with patches", ("hard", WITH_PATCHES, ""), high=0.05),
    Direct(TURNED_TO, "kd of a clean teacher, patches", ("kd", WITH_PATCHES, NOTHING), high=0.05),
    Direct(TURNED_TO, "kd_shuffled, patches", ("kd_shuffled", WITH_PATCHES, SHORTCUT), high=0.3),
    Direct(KEPT, "teachers with the secret", ("teacher", "", ROTATION), low=0.85),
    Direct(KEPT, "clean teachers", ("teacher", "", NOTHING), high=0.35),
    Direct(
        KEPT,
        "kd less hard, nothing turned",
        ("kd", CLEAN, ROTATION),
        high=0.15,
        less=("hard", CLEAN, ""),
    ),
    Direct(
        KEPT,
        "kd, with turned images",
        ("kd", WITH_TURNS, ROTATION),
        low=0.4,
        beside=("hard", WITH_TURNS, ""),
    ),
    Direct(KEPT, "kd of a clean teacher, turned", ("kd", WITH_TURNS, NOTHING), high=0.3),
)


class Pairs:
    """Likenesses of networks' outputs, each pair of networks set side by side once.

    Args:
        trained: the networks.
        labels: of all test images.
        images: which test images enter, as indices; by default all.
    """

    def __init__(self, trained: Trained, labels: Tensor, images: Tensor | None = None) -> None:
        chosen = torch.arange(len(labels)) if images is None else images
        self._outputs = {
            network: Outputs(torch.from_numpy(answers.plain)[chosen], labels[chosen])
            for network, answers in trained.items()
        }
        self._values: dict[tuple[Network, Network], dict[str, float]] = {}

    def parts(
        self, name: str, students: Sequence[Student], teachers: Sequence[Teacher]
    ) -> dict[str, whose.Part]:
        """task, kind and own of one likeness to teachers, of which the own one comes first.

        Beside the students stand those of hard labels alone that have their seeds.
        """
        hard = [_alone(whose.BASELINE, CLEAN, each.seed) for each in students]
        seeds = tuple(each.seed for each in students)
        tables = (self._table(name, each, teachers) for each in (students, hard, teachers[:1]))
        student, baseline, teacher = tables
        return whose.parts([whose.Likenesses(student, baseline, teacher[0], seeds)])

    def _table(
        self, name: str, students: Sequence[Network], teachers: Sequence[Network]
    ) -> np.ndarray:
        values = [
            self._of(student, teacher)[name] for student, teacher in product(students, teachers)
        ]
        return np.array(values).reshape(len(students), len(teachers))

    def _of(self, student: Network, teacher: Network) -> dict[str, float]:
        both = student, teacher
        if both not in self._values:
            values = Likeness(self._outputs[student], self._outputs[teacher]).values()
            self._values[both] = {name: each.value for name, each in values.items()}
        return self._values[both]


def own_confusion(trained: Trained, labels: Tensor, plan: Plan) -> list[Row]:
    """own of second choices within the class whose labels were flipped, beside the controls'.

    A planted teacher is no sibling of clean ones, so that a control's own need not lie around 0;
    it is what own of KD is to be read beside.
    """
    pairs = Pairs(trained, labels, (labels == A).nonzero().flatten())
    siblings = [Teacher(NOTHING, seed) for seed in range(plan.clean)]
    likeness = "second_choice_share"
    values, kinds, beside, decided = [], [], [], 0
    for place in range(plan.planted):
        teachers = [Teacher(CONFUSION, place), *siblings]
        taught = [Student("kd", CLEAN, CONFUSION, place, seed) for seed in range(plan.seeds)]
        kd = pairs.parts(likeness, taught, teachers)
        controls = [
            pairs.parts(likeness, several, teachers)["own"].value
            for several in _controls(range(plan.seeds))
        ]
        values.append(kd["own"].value)
        kinds.append(kd["kind"].value)
        beside += controls
        decided += whose.decided(kd, controls)
    note = (
        f"{_spread(values)}, kind {_spread(kinds)}, the controls' own {_spread(beside)}; decided "
        f"for {decided} of {len(values)} teachers"
    )
    # c_0 alone is near 1 where all second choices come to be this teacher's.
    least, value = 0.5, float(np.mean(values))
    passed = value >= least and min(values) > max(abs(each) for each in beside)
    wanted = f"≥ {least:g} and above the controls'"
    name = f"confusion: own of second choices of {A}s"
    return [Row(name, "kd", value, wanted, len(values), passed, note)]


def _controls(seeds: Sequence[int]) -> list[list[Student]]:
    """The students of every negative control."""
    several: dict[str, list[Student]] = {objective: [] for objective in whose.CONTROLS}
    for objective, seed in product(several, seeds):
        several[objective].append(_alone(objective, CLEAN, seed))
    return list(several.values())


class Verdict(NamedTuple):
    """Whether own of a student that saw no teacher is there, by the rule and by less of it.

    Attributes:
        decided: by the rule.
        by_intervals: both intervals leave out 0, on whichever side.
        by_seeds: that over seeds does.
    """

    decided: bool
    by_intervals: bool
    by_seeds: bool


def rates(trained: Trained, labels: Tensor, plan: Plan) -> list[Row]:
    """How often the negative controls are said to have something of each clean teacher's own."""
    teachers = [Teacher(NOTHING, seed) for seed in range(plan.clean)]
    pairs = Pairs(trained, labels)
    verdicts = []
    for first, group, name in product(range(plan.clean), range(plan.groups), whose.LIKENESSES):
        order = [teachers[first], *teachers[:first], *teachers[first + 1 :]]
        seeds = range(group * plan.seeds, (group + 1) * plan.seeds)
        verdicts += _verdicts([pairs.parts(name, each, order) for each in _controls(seeds)])
    on = f"{plan.clean} clean teachers, {plan.groups} × {plan.seeds} seeds, 4 likenesses"
    return [_rate("own of hard_T or label_smoothing is decided", on, verdicts)]


def _verdicts(controls: Sequence[Mapping[str, whose.Part]]) -> list[Verdict]:
    """Of both negative controls, each beside the other."""
    return [
        Verdict(
            whose.decided(parts, [other["own"].value]),
            parts["own"].excludes_zero,
            parts["own"].over_seeds.excludes_zero,
        )
        for parts, other in (controls, controls[::-1])
    ]


def _rate(name: str, on: str, verdicts: Sequence[Verdict]) -> Row:
    decided, intervals, seeds = np.mean(verdicts, axis=0)
    most = at_most(len(verdicts))
    note = f"both intervals alone {intervals:.1%}, seeds alone {seeds:.1%}"
    return Row(
        name, on, float(decided), f"≤ {most:.3f}", len(verdicts), bool(decided <= most), note
    )


def at_most(trials: int) -> float:
    """The share that a rate of 5 % stays below in 999 of 1,000 times: the binomial quantile.

    >>> at_most(100)
    0.13
    """
    return float(stats.binom.ppf(SURE, trials, RARE)) / trials


def _simulations(draws: int) -> list[Callable[[], list[Row]]]:
    """Rates without networks, as jobs: with nothing of the own teacher's, and with much of it."""
    return [
        *(partial(_null_rates, draws, siblings) for siblings in (3, 5, 10)),
        partial(_power, draws, 5),
    ]


def drawn_parts(
    rng: np.random.Generator, siblings: int, seeds: int = 3, gift: float = 0.0
) -> dict[str, whose.Part]:
    """Parts of a drawn likeness in which all teachers are exchangeable but for a ``gift``.

    c_j of a seed is a part of the teacher's, one of the seed's and one of both, all normal with the
    spread SPREAD; the own teacher's has the gift on top.
    """
    teachers = rng.normal(0, SPREAD, 1 + siblings)
    changes = teachers + rng.normal(0, SPREAD, (seeds, 1))
    changes += rng.normal(0, SPREAD, (seeds, 1 + siblings))
    changes[:, 0] += gift
    hard = np.zeros_like(changes)
    several = [whose.Likenesses(changes, hard, teachers, tuple(range(seeds)))]
    return whose.parts(several)


def _null_rates(draws: int, siblings: int) -> list[Row]:
    rng = np.random.default_rng(siblings)
    verdicts = []
    for _ in range(draws):
        verdicts += _verdicts([drawn_parts(rng, siblings) for _ in whose.CONTROLS])
    on = f"drawn, nothing of one's own, {siblings} siblings, 3 seeds"
    return [_rate("own is decided", on, verdicts)]


def _power(draws: int, siblings: int) -> list[Row]:
    rng, least, times = np.random.default_rng(0), 0.9, 10
    decided = []
    for _ in range(draws):
        controls = [drawn_parts(rng, siblings)["own"].value for _ in whose.CONTROLS]
        gifted = drawn_parts(rng, siblings, gift=times * SPREAD)
        decided.append(whose.decided(gifted, controls))
    share = float(np.mean(decided))
    on = f"drawn, own {times} times the spread, {siblings} siblings, 3 seeds"
    return [Row("own is decided", on, share, f"≥ {least:g}", draws, share >= least)]
