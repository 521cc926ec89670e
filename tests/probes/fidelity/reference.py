"""Fidelity's formulas once more, in plain loops, written from the method (§8) alone.

Nothing here is fast and nothing is shared with the package: chances are counted over every pair of
images, ranks are counted one by one, and infinities follow the rules of IEEE 754. Where the method
leaves something open, a function says how it is read here.

A network's outputs are a list of rows of scores: logits, log-probabilities, or margins of binary
subtasks. Every figure is a ``Figure``: value, chance, the number of images it is a mean over and
the number of images that it leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

NAN = float("nan")
Rows = Sequence[Sequence[float]] | np.ndarray


@dataclass(frozen=True)
class Figure:
    value: float
    chance: float = NAN
    n: int = 0
    undefined: int = 0


def mean(values: Sequence[float]) -> float:
    """Exactly rounded; NaN of nothing."""
    return math.fsum(values) / len(values) if values else NAN


# --- directions: dark, class part, instance ---------------------------------------------------


def wrong(row: Sequence[float], y: int) -> list[float]:
    return [float(score) for k, score in enumerate(row) if k != y]


def direction(row: Sequence[float], y: int) -> np.ndarray | None:
    """Wrong-class scores, centred and of length 1; None for a zero probability or a constant row.

    Constant is what is equal bit by bit. The row is shifted and scaled to [0, 1] first, which
    changes no direction and keeps squares from running out of range.
    """
    if any(math.isinf(score) for score in row):
        return None
    scores = np.array(wrong(row, y), dtype=float)
    # Halved before they are subtracted: the range of two huge scores may lie beyond float64.
    span = scores.max() / 2 - scores.min() / 2
    if span == 0:
        return None
    scores = (scores / 2 - scores.min() / 2) / span
    centred = scores - mean(list(scores))
    return centred / math.sqrt(math.fsum(centred**2))


def paired_directions(
    student: Rows, teacher: Rows, y: Sequence[int]
) -> tuple[list[int], dict[int, np.ndarray], dict[int, np.ndarray]]:
    """The images that all three figures are over, with their directions in both nets.

    An image leaves where either net has no direction; then classes with fewer than 2 images leave.
    """
    a, b = {}, {}
    for n in range(len(y)):
        of_student, of_teacher = direction(student[n], y[n]), direction(teacher[n], y[n])
        if of_student is not None and of_teacher is not None:
            a[n], b[n] = of_student, of_teacher
    images = [n for n in a if sum(1 for m in a if y[m] == y[n]) >= 2]
    return images, a, b


def dot(a: np.ndarray, b: np.ndarray) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def dark_of(images: list[int], a: dict[int, np.ndarray], b: dict[int, np.ndarray]) -> float:
    return mean([dot(a[n], b[n]) for n in images])


def class_part_of(
    images: list[int], a: dict[int, np.ndarray], b: dict[int, np.ndarray], y: Sequence[int]
) -> float:
    return mean(
        [mean([dot(a[n], b[m]) for m in images if m != n and y[m] == y[n]]) for n in images]
    )


def directions_likeness(student: Rows, teacher: Rows, y: Sequence[int]) -> dict[str, Figure]:
    """dark, class_part and instance; all three are NaN below 4 classes (a reading)."""
    names = ("dark", "class_part", "instance")
    images, a, b = paired_directions(student, teacher, y)
    n, undefined = len(images), len(y) - len(images)
    if len(student[0]) < 4 or not images:
        return {name: Figure(NAN, NAN, 0, len(y)) for name in names}

    def covariance(left: dict[int, np.ndarray], right: dict[int, np.ndarray]) -> float:
        return dark_of(images, left, right) - class_part_of(images, left, right, y)

    dark, class_part = dark_of(images, a, b), class_part_of(images, a, b, y)
    own_student, own_teacher = covariance(a, a), covariance(b, b)
    if own_student <= 1e-12 or own_teacher <= 1e-12:
        instance = NAN
    else:
        instance = covariance(a, b) / math.sqrt(own_student * own_teacher)
    return {
        "dark": Figure(dark, class_part, n, undefined),
        "class_part": Figure(class_part, NAN, n, undefined),
        "instance": Figure(instance, 0.0, n, undefined),
    }


# --- shares with a chance: second choice, agreement, copied errors ----------------------------


def strongest(scores: Sequence[float], left_out: int | None = None) -> set[int]:
    """The classes that share the highest score, without the class ``left_out``."""
    kept = {k: float(score) for k, score in enumerate(scores) if k != left_out}
    highest = max(kept.values())
    return {k for k, score in kept.items() if score == highest}


def credit(a: set[int], b: set[int]) -> float:
    """The chance that one class drawn from each set is the same: ties share credit equally."""
    return len(a & b) / (len(a) * len(b))


def shares(
    a: dict[int, set[int]], b: dict[int, set[int]], y: Sequence[int], total: int
) -> tuple[Figure, Figure]:
    """(excess, share) of images with one choice.

    Images that are alone in their class have no chance and leave the share too, so that both are
    over the same images (a reading).
    """
    images = [n for n in a if sum(1 for m in a if y[m] == y[n]) >= 2]
    share = mean([credit(a[n], b[n]) for n in images])
    chance = mean(
        [mean([credit(a[n], b[m]) for m in images if m != n and y[m] == y[n]]) for n in images]
    )
    # 1/(n − 1), summed n − 1 times, may miss 1 by rounding.
    excess = (share - chance) / (1 - chance) if images and 1 - chance > 1e-12 else NAN
    n, undefined = len(images), total - len(images)
    return Figure(excess, 0.0, n, undefined), Figure(share, chance, n, undefined)


def second_choice(student: Rows, teacher: Rows, y: Sequence[int]) -> dict[str, Figure]:
    """Rows with a zero and constant rows stay: their choice is a tie or is not touched."""
    if len(student[0]) < 3:
        nothing = Figure(NAN, NAN, 0, len(y))
        return {"second_choice": nothing, "second_choice_share": nothing}
    a = {n: strongest(student[n], y[n]) for n in range(len(y))}
    b = {n: strongest(teacher[n], y[n]) for n in range(len(y))}
    excess, share = shares(a, b, y, len(y))
    return {"second_choice": excess, "second_choice_share": share}


def agreement(student: Rows, teacher: Rows, y: Sequence[int]) -> dict[str, Figure]:
    a = {n: strongest(student[n]) for n in range(len(y))}
    b = {n: strongest(teacher[n]) for n in range(len(y))}
    excess, share = shares(a, b, y, len(y))
    return {"agreement": excess, "agreement_share": share}


def answers(rows: Rows) -> list[int]:
    """The first of the highest scores, as argmax gives it (a reading)."""
    return [min(strongest(row)) for row in rows]


def copied_errors(student: Rows, teacher: Rows, y: Sequence[int]) -> Figure:
    """Chance over ordered pairs of two images of one true class, each pair with one weight."""
    s, t = answers(student), answers(teacher)
    both = [n for n in range(len(y)) if s[n] != y[n] and t[n] != y[n]]
    value = mean([float(s[n] == t[n]) for n in both])
    pairs = [float(s[n] == t[m]) for n in both for m in both if n != m and y[n] == y[m]]
    return Figure(value, mean(pairs), len(both), len(y) - len(both))


def copied_errors_chance_by_image(student: Rows, teacher: Rows, y: Sequence[int]) -> float:
    """The other reading: mean over images of each one's own chance; images alone have none."""
    s, t = answers(student), answers(teacher)
    both = [n for n in range(len(y)) if s[n] != y[n] and t[n] != y[n]]
    means = [mean([float(s[n] == t[m]) for m in both if n != m and y[n] == y[m]]) for n in both]
    return mean([each for each in means if not math.isnan(each)])


# --- being right: hardness, error consistency, accuracy ---------------------------------------


def margin(row: Sequence[float], y: int) -> float:
    return float(row[y]) - max(wrong(row, y))


def average_ranks(values: Sequence[float]) -> list[float]:
    """1 + how many are smaller + half of how many others are equal."""
    return [
        1 + sum(other < value for other in values) + (sum(v == value for v in values) - 1) / 2
        for value in values
    ]


def hardness(student: Rows, teacher: Rows, y: Sequence[int]) -> Figure:
    ranks = [
        average_ranks([margin(rows[n], y[n]) for n in range(len(y))]) for rows in (student, teacher)
    ]
    centre = (len(y) + 1) / 2
    s, t = (np.array(each) - centre for each in ranks)
    spread = math.sqrt(dot(s, s) * dot(t, t))
    if spread == 0:
        return Figure(NAN, 0.0, 0, len(y))
    return Figure(dot(s, t) / spread, 0.0, len(y), 0)


def accuracy(rows: Rows, y: Sequence[int]) -> float:
    return mean([float(answer == label) for answer, label in zip(answers(rows), y, strict=True)])


@dataclass(frozen=True)
class Consistency:
    kappa: float
    expected: float
    highest: float
    accuracies: tuple[float, float]
    errors: tuple[int, int]


def error_consistency(student: Rows, teacher: Rows, y: Sequence[int]) -> Consistency:
    s, t = answers(student), answers(teacher)
    observed = mean([float((s[n] == y[n]) == (t[n] == y[n])) for n in range(len(y))])
    p_s, p_t = accuracy(student, y), accuracy(teacher, y)
    expected = p_s * p_t + (1 - p_s) * (1 - p_t)
    errors = tuple(sum(a[n] != y[n] for n in range(len(y))) for a in (s, t))
    if any(count in (0, len(y)) for count in errors):
        return Consistency(NAN, expected, NAN, (p_s, p_t), (errors[0], errors[1]))
    kappa = (observed - expected) / (1 - expected)
    highest = (1 - abs(p_s - p_t) - expected) / (1 - expected)
    return Consistency(kappa, expected, highest, (p_s, p_t), (errors[0], errors[1]))


def chance_of_agreeing_by_accuracy(student: Rows, teacher: Rows, y: Sequence[int]) -> float:
    """p_s p_t + (1 − p_s)(1 − p_t)/(K − 1), what stands beside agreement."""
    p_s, p_t, K = accuracy(student, y), accuracy(teacher, y), len(student[0])
    return p_s * p_t + (1 - p_s) * (1 - p_t) / (K - 1)


def differing(student: Rows, teacher: Rows) -> int:
    s, t = answers(student), answers(teacher)
    return sum(a != b for a, b in zip(s, t, strict=True))


# --- probabilities: KL, JS, calibration -------------------------------------------------------


def log_sum_exp(values: Sequence[float]) -> float:
    highest = max(values)
    if math.isinf(highest):
        return highest
    return highest + math.log(math.fsum(math.exp(v - highest) for v in values))


def log_softmax(row: Sequence[float], T: float = 1) -> list[float]:
    highest = max(row)
    scaled = [(float(v) - highest) / T for v in row]
    total = log_sum_exp(scaled)
    return [v - total for v in scaled]


def log_sigmoid(m: float) -> float:
    return -math.log1p(math.exp(-m)) if m >= 0 else m - math.log1p(math.exp(m))


def one_vs_rest(rows: Rows) -> list[list[float]]:
    """The teacher's margins u_k = v_k − log Σ_{j≠k} exp v_j."""
    return [[float(row[k]) - log_sum_exp(wrong(row, k)) for k in range(len(row))] for row in rows]


def distributions(row: Sequence[float], T: float, binary: bool) -> list[list[float]]:
    """Log-probabilities of an image: one distribution of K classes, or K of two."""
    if not binary:
        return [log_softmax(row, T)]
    return [[log_sigmoid(float(m) / T), log_sigmoid(-float(m) / T)] for m in row]


def divergence(p: list[float], q: list[float]) -> float:
    """KL of log-probabilities; 0 log 0 = 0, and infinite where q is 0 and p is not."""
    return math.fsum(
        0.0 if math.exp(a) == 0 else math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)
    )


def jensen_shannon(p: list[float], q: list[float]) -> float:
    middle = [log_sum_exp([a, b]) - math.log(2) for a, b in zip(p, q, strict=True)]
    return (divergence(p, middle) + divergence(q, middle)) / 2 / math.log(2)


def kl(student: Rows, teacher: Rows, T: float, binary: bool = False) -> float:
    """KL(t‖s), mean over images; summed over binary subtasks."""
    per_image = []
    for s, t in zip(student, teacher, strict=True):
        pairs = zip(distributions(t, T, binary), distributions(s, T, binary), strict=True)
        per_image.append(math.fsum(divergence(p, q) for p, q in pairs))
    return mean(per_image)


def js(student: Rows, teacher: Rows, binary: bool = False) -> float:
    """Mean over images, and over binary subtasks."""
    per_image = []
    for s, t in zip(student, teacher, strict=True):
        pairs = zip(distributions(t, 1, binary), distributions(s, 1, binary), strict=True)
        per_image.append(mean([jensen_shannon(p, q) for p, q in pairs]))
    return mean(per_image)


def confidences(rows: Rows, binary: bool = False) -> list[float]:
    if binary:
        return [math.exp(log_sigmoid(float(max(row)))) for row in rows]
    return [math.exp(max(log_softmax(row))) for row in rows]


def ece(rows: Rows, y: Sequence[int], binary: bool = False) -> float:
    """Σ over 15 bins ((b − 1)/15, b/15] of their share of images times |accuracy − confidence|.

    A confidence that underflows to 0, as of margins far below 0, belongs to the first bin.
    """
    confidence, s = confidences(rows, binary), answers(rows)
    total = 0.0
    for b in range(1, 16):
        inside = [n for n in range(len(y)) if max(1, math.ceil(confidence[n] * 15)) == b]
        if inside:
            right = mean([float(s[n] == y[n]) for n in inside])
            sure = mean([confidence[n] for n in inside])
            total += len(inside) / len(y) * abs(right - sure)
    return total


def nll(rows: Rows, y: Sequence[int], binary: bool = False) -> float:
    """−log p_y, or the binary NLL summed over subtasks; mean over images."""
    if not binary:
        return mean([-log_softmax(row)[label] for row, label in zip(rows, y, strict=True)])
    per_image = []
    for row, label in zip(rows, y, strict=True):
        signs = [1 if k == label else -1 for k in range(len(row))]
        terms = [-log_sigmoid(sign * float(m)) for sign, m in zip(signs, row, strict=True)]
        per_image.append(math.fsum(terms))
    return mean(per_image)


def likeness(
    student: Rows, teacher: Rows, y: Sequence[int], binary: bool = False
) -> dict[str, Figure]:
    """Every figure of a pair by name; ``binary`` where both hold margins."""
    N = len(y)
    consistency = error_consistency(student, teacher, y)
    missing = math.isnan(consistency.kappa)
    return {
        **directions_likeness(student, teacher, y),
        **second_choice(student, teacher, y),
        **agreement(student, teacher, y),
        "hardness": hardness(student, teacher, y),
        "error_consistency": Figure(
            consistency.kappa, 0.0, 0 if missing else N, N if missing else 0
        ),
        "copied_errors": copied_errors(student, teacher, y),
        "kl_T1": Figure(kl(student, teacher, 1, binary), 0.0, N),
        "kl_T4": Figure(kl(student, teacher, 4, binary), 0.0, N),
        "js": Figure(js(student, teacher, binary), 0.0, N),
    }


# --- whose is it? -----------------------------------------------------------------------------

# L[i][j]: likeness of the student of seed i to teacher j; teacher 0 is its own.
Table = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Span:
    mean: float
    low: float = NAN
    high: float = NAN

    @property
    def without_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def quantile(degrees: int) -> float:
    return float(stats.t.ppf(0.975, degrees))


def deviation(values: Sequence[float]) -> float:
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))


def over_units(values: Sequence[float]) -> Span:
    """t-interval of a mean over seeds, or over teachers."""
    if len(values) < 2:
        return Span(mean(values))
    half = quantile(len(values) - 1) * deviation(values) / math.sqrt(len(values))
    return Span(mean(values), mean(values) - half, mean(values) + half)


def gains(objective: Table, hard: Table) -> list[list[float]]:
    """c_j of every seed."""
    return [
        [o - h for o, h in zip(row, base, strict=True)]
        for row, base in zip(objective, hard, strict=True)
    ]


def own_of(c: Sequence[float]) -> float:
    return c[0] - mean(c[1:])


def over_seeds(c: Sequence[Sequence[float]]) -> list[float]:
    return [mean([row[j] for row in c]) for j in range(len(c[0]))]


def own_over_teachers(c: Sequence[float]) -> Span:
    """own ± t_{J−1} sd(c_1 … c_J) √(1 + 1/J), of c_j that are averaged over seeds."""
    J = len(c) - 1
    if J < 3:
        return Span(own_of(c))
    half = quantile(J - 1) * deviation(c[1:]) * math.sqrt(1 + 1 / J)
    return Span(own_of(c), own_of(c) - half, own_of(c) + half)


@dataclass(frozen=True)
class Whose:
    task: Span
    kind: Span
    kind_over_teachers: Span
    own: Span
    own_over_teachers: Span
    ceiling: Span
    share: Span
    decided: bool | None


def fieller(c: Sequence[float], e: Sequence[float]) -> Span:
    """own/ceiling: every ρ for which own of c_j − ρ e_j has an interval with 0 in it.

    Solved as the quadratic (own − ρ ceiling)² = t² (1 + 1/J) var(c − ρ e) over the siblings.
    """
    J = len(c) - 1
    numerator, denominator = own_of(c), own_of(e)
    if J < 3 or not own_over_teachers(e).without_zero:
        return Span(numerator / denominator if denominator else NAN)
    k = quantile(J - 1) ** 2 * (1 + 1 / J)
    c_mean, e_mean = mean(c[1:]), mean(e[1:])
    both = math.fsum((a - c_mean) * (b - e_mean) for a, b in zip(c[1:], e[1:], strict=True))
    a = denominator**2 - k * deviation(e[1:]) ** 2
    b = numerator * denominator - k * both / (J - 1)
    d = numerator**2 - k * deviation(c[1:]) ** 2
    root = math.sqrt(max(0.0, b * b - a * d))
    return Span(numerator / denominator, (b - root) / a, (b + root) / a)


def whose(
    objective: Table, hard: Table, teacher: Sequence[float], controls: Sequence[Table] = ()
) -> Whose:
    """``teacher[j]``: likeness of t₀, entered as a student, to teacher j."""
    c = gains(objective, hard)
    averaged, J = over_seeds(c), len(c[0]) - 1
    entered = [t - h for t, h in zip(teacher, over_seeds(hard), strict=True)]
    own = over_units([own_of(row) for row in c])
    by_teachers = own_over_teachers(averaged)
    floor = max((abs(own_of(over_seeds(gains(each, hard)))) for each in controls), default=0.0)
    decided = own.without_zero and by_teachers.without_zero and abs(own.mean) > floor
    return Whose(
        task=over_units([row[0] for row in hard]),
        kind=over_units([mean(row[1:]) for row in c]),
        kind_over_teachers=over_units(averaged[1:]),
        own=own,
        own_over_teachers=by_teachers,
        ceiling=own_over_teachers(entered),
        share=fieller(averaged, entered),
        decided=None if J < 3 else decided,
    )


def difference(one: Table, other: Table, hard: Table) -> tuple[Span, Span]:
    """own(one) − own(other), over seeds and over teachers."""
    pairs = zip(gains(one, hard), gains(other, hard), strict=True)
    c = [[a - b for a, b in zip(left, right, strict=True)] for left, right in pairs]
    return over_units([own_of(row) for row in c]), own_over_teachers(over_seeds(c))


def own_over_replicated_teachers(
    table: Callable[[int], tuple[Table, Table]], R: int
) -> tuple[list[float], Span]:
    """R teachers that each have students of their own.

    ``table(r)`` gives (objective, hard) of teacher r's students with teacher r in column 0. The
    value of a teacher is the mean over its students; the interval is a t-interval over teachers.
    """
    values = []
    for r in range(R):
        objective, hard = table(r)
        values.append(mean([own_of(row) for row in gains(objective, hard)]))
    return values, over_units(values)
