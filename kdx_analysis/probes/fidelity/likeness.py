"""How alike two networks' outputs are, each figure beside what chance would give (method, §8).

Pure functions of outputs alone, of any network in any framework. :class:`Likeness` has all of them
of one pair, made from the same sums. Axes: N images, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from beartype import beartype
from jaxtyping import Float, Int, jaxtyped
from torch import Tensor

from kdx_analysis.errors import KdxError
from kdx_analysis.metrics import METRICS, metric
from kdx_analysis.probes.fidelity.outputs import Choices, Outputs, entropy_of
from kdx_analysis.registry import is_foreign

Scores = Float[Tensor, "N K"]
Labels = Int[Tensor, " N"]

TEMPERATURES = (1, 4)
BINS, ANSWERS = 15, 200
FEW_ERRORS = 10  # a share of fewer says too little for an interval

# Below it two networks' shared variance is rounding, and its correlation would be 0/0.
_LEAST_VARIANCE = 1e-12
_FEW_WRONG = "K ≥ 4 is needed: a correlation over fewer than three wrong classes says nothing"
_ONE_WRONG = "K ≥ 3 is needed: there is one wrong class alone"
_BESIDE = "outputs beside the teacher's"


@dataclass(frozen=True)
class Measured:
    """One figure of a pair of networks.

    Attributes:
        value: NaN where it is undefined.
        chance: what images of one class give that are set beside each other at random, or what is
            said of the metric; NaN where it has none.
        n: images that it rests on; of copied errors those that both have wrong.
        undefined: images that could not go into it.
        reason: why it is NaN; '' where it is not.
    """

    value: float
    chance: float = math.nan
    n: int = 0
    undefined: int = 0
    reason: str = ""


@dataclass(frozen=True, eq=False)
class ByClass:
    """Sums of products of two networks' vectors over the images of every class, K each.

    Classes with a single image are counted as having none: nothing stands beside it.

    Attributes:
        count: n_k, images.
        within: Σ_n ⟨a_n, b_n⟩.
        across: ⟨Σ_n a_n, Σ_n b_n⟩.
    """

    count: Tensor
    within: Tensor
    across: Tensor

    def __post_init__(self) -> None:
        several = self.count >= 2
        for name in ("count", "within", "across"):
            object.__setattr__(self, name, getattr(self, name) * several)

    @property
    def n(self) -> int:
        """Images that went in."""
        return int(self.count.sum())

    @property
    def of_class(self) -> Tensor:
        """Mean of ⟨a_n, b_n⟩ over the images of every class, K; NaN without images."""
        return self.within / self.count

    @property
    def chance_of_class(self) -> Tensor:
        """Mean of ⟨a_n, b_n'⟩ over n' ≠ n of every class, K: (across − within)/(n_k (n_k − 1))."""
        return (self.across - self.within) / (self.count * (self.count - 1))

    @property
    def mean(self) -> float:
        """Mean of ⟨a_n, b_n⟩ over all images."""
        return float(self.within.sum() / self.count.sum())

    @property
    def chance(self) -> float:
        """Mean over images of the mean over n' ≠ n of their class of ⟨a_n, b_n'⟩.

        It is what permuting images within classes gives on average, in closed form.
        """
        return float((self.chance_of_class * self.count).nansum() / self.count.sum())


@dataclass(frozen=True, eq=False)
class Likeness:
    """All that two networks' outputs share, on the same images.

    Attributes:
        student, teacher: their outputs; both logits, or both margins of binary subtasks.
    """

    student: Outputs
    teacher: Outputs

    def __post_init__(self) -> None:
        s, t = self.student, self.teacher
        if s.scores.shape != t.scores.shape or s.binary != t.binary:
            raise KdxError(
                f"{_kind(s)} and {_kind(t)} can't be set beside each other; give those of the same "
                "images, classes and kind"
            )
        if s.labels is not t.labels and not torch.equal(s.labels, t.labels):
            raise KdxError(
                "student and teacher have different labels, so that their rows are not of the same "
                "images; bring them into one order"
            )

    @property
    def num_images(self) -> int:
        """N."""
        return self.student.num_images

    @property
    def num_classes(self) -> int:
        """K."""
        return self.student.num_classes

    def values(self) -> dict[str, Measured]:
        """Every figure by its name, those of metrics that the user has declared among them."""
        return {
            "dark": self.dark,
            "class_part": self.class_part,
            "instance": self.instance,
            "second_choice": _excess(self.second_choice_share),
            "second_choice_share": self.second_choice_share,
            "agreement": _excess(self.agreement_share),
            "agreement_share": self.agreement_share,
            "hardness": self.hardness,
            "error_consistency": self.error_consistency,
            "copied_errors": self.copied_errors,
            **{f"kl_T{T}": Measured(self.divergence(T), n=self.num_images) for T in TEMPERATURES},
            "js": Measured(self.jensen_shannon, n=self.num_images),
            **declared(_BESIDE, self.student, self.teacher.scores),
        }

    @property
    def _directions(self) -> tuple[ByClass, ByClass, ByClass]:
        """Of student and teacher, of the student and itself, of the teacher and itself."""
        return self._summed[0]

    @property
    def _sums(self) -> Tensor:
        """Σ_n a_n and Σ_n b_n over the images of every class, 2×K×K."""
        return self._summed[1]

    @cached_property
    def _summed(self) -> tuple[tuple[ByClass, ByClass, ByClass], Tensor]:
        labels, K = self.student.labels, self.num_classes
        within = torch.zeros(K, dtype=torch.float64, device=labels.device)
        (of_student, count), (of_teacher, count_t) = (
            each.direction_sums for each in (self.student, self.teacher)
        )
        # Where an image lacks one of its two directions, it leaves the sums of the other.
        complete = bool((count + count_t == 2 * labels.bincount(minlength=K)).all())
        if not complete:
            of_student, of_teacher = torch.zeros_like(of_student), torch.zeros_like(of_teacher)
            count = torch.zeros_like(count)
        for rows in self.student.chunks():
            a, b = self.student.directions(rows), self.teacher.directions(rows)
            within.index_add_(0, labels[rows], torch.einsum("nk,nk->n", a.vectors, b.vectors))
            if not complete:
                both = (a.known & b.known).double()
                count.index_add_(0, labels[rows], both)
                of_student.index_add_(0, labels[rows], a.vectors * both.unsqueeze(1))
                of_teacher.index_add_(0, labels[rows], b.vectors * both.unsqueeze(1))
        pairs = ((of_student, of_teacher), (of_student, of_student), (of_teacher, of_teacher))
        across = [torch.einsum("kj,kj->k", x, y) for x, y in pairs]
        # ⟨a_n, a_n⟩ is 1, so that its sum counts images.
        sums = zip((within, count, count), across, strict=True)
        ab, aa, bb = (ByClass(count, inner, outer) for inner, outer in sums)
        return (ab, aa, bb), torch.stack([of_student, of_teacher])

    def _of_directions(self, value: float, chance: float = math.nan) -> Measured:
        if self.num_classes < 4:
            return Measured(math.nan, math.nan, 0, self.num_images, _FEW_WRONG)
        n = self._directions[0].n
        reason = "" if n else "no class has two images that both networks have a direction for"
        if n and math.isnan(value):
            reason = "one of the two has no variance beyond its classes"
        return Measured(value, chance, n, self.num_images - n, reason)

    @property
    def dark(self) -> Measured:
        """:func:`dark`, beside the class part."""
        both = self._directions[0]
        return self._of_directions(both.mean, both.chance)

    @property
    def class_part(self) -> Measured:
        """:func:`class_part`."""
        return self._of_directions(self._directions[0].chance)

    @property
    def instance(self) -> Measured:
        """:func:`instance`, whose value by chance is 0."""
        shared, student, teacher = (each.mean - each.chance for each in self._directions)
        return self._of_directions(_correlation(shared, student, teacher), 0.0)

    @cached_property
    def _second(self) -> ByClass:
        return _credited(self.student.second, self.teacher.second, self.student.labels)

    @cached_property
    def _first(self) -> ByClass:
        return _credited(self.student.first, self.teacher.first, self.student.labels)

    @property
    def second_choice_share(self) -> Measured:
        """Share of images with one strongest wrong class, beside that of chance."""
        if self.num_classes < 3:
            return Measured(math.nan, math.nan, 0, self.num_images, _ONE_WRONG)
        return self._share(self._second)

    @property
    def agreement_share(self) -> Measured:
        """Share of images that are given one class, beside that of chance."""
        return self._share(self._first)

    def _share(self, both: ByClass) -> Measured:
        reason = "" if both.n else "no class has two images"
        return Measured(both.mean, both.chance, both.n, self.num_images - both.n, reason)

    @property
    def hardness(self) -> Measured:
        """:func:`hardness`."""
        value = _pearson(self.student.lead_ranks, self.teacher.lead_ranks)
        if math.isnan(value):
            reason = "one of the two finds all images equally hard"
            return Measured(value, undefined=self.num_images, reason=reason)
        return Measured(value, n=self.num_images)

    @property
    def differing(self) -> int:
        """Images that the two give different classes."""
        return int((self.student.answers != self.teacher.answers).sum())

    @property
    def expected_differing(self) -> float:
        """How many would differ were the two right and wrong apart from each other.

        N (1 − p_s p_t − (1 − p_s)(1 − p_t)/(K − 1)): wrong answers then spread over wrong classes.
        """
        s, t = (float(each.right.double().mean()) for each in (self.student, self.teacher))
        alike = s * t + (1 - s) * (1 - t) / (self.num_classes - 1)
        return self.num_images * (1 - alike)

    @property
    def error_consistency(self) -> Measured:
        """:func:`error_consistency`; ``chance`` is c_e."""
        s, t = self.student.right, self.teacher.right
        consistent = float((s == t).double().mean())
        expected, _ = self._expected_consistency
        if expected is None:
            reason = "one of the two is right or wrong throughout"
            return Measured(math.nan, undefined=self.num_images, reason=reason)
        return Measured((consistent - expected) / (1 - expected), expected, self.num_images)

    @property
    def highest_consistency(self) -> float:
        """(1 − |p_s − p_t| − c_e)/(1 − c_e), what κ could be at most, given both accuracies."""
        expected, difference = self._expected_consistency
        return math.nan if expected is None else (1 - difference - expected) / (1 - expected)

    @cached_property
    def _expected_consistency(self) -> tuple[float | None, float]:
        s, t = (float(each.right.double().mean()) for each in (self.student, self.teacher))
        if s in (0, 1) or t in (0, 1):
            return None, abs(s - t)
        return s * t + (1 - s) * (1 - t), abs(s - t)

    @property
    def copied_errors(self) -> Measured:
        """:func:`copied_errors`, beside pairs of images of one class that both have wrong."""
        if self.num_classes < 3:
            return Measured(math.nan, math.nan, 0, self.num_images, _ONE_WRONG)
        wrong = ~(self.student.right | self.teacher.right)
        n, left_out = int(wrong.sum()), int((~wrong).sum())
        if not n:
            return Measured(
                math.nan, math.nan, 0, left_out, "there is no image that both have wrong"
            )
        student, teacher = self.student.answers[wrong], self.teacher.answers[wrong]
        K, labels = self.num_classes, self.student.labels[wrong]
        counts = [(labels * K + given).bincount(minlength=K * K) for given in (student, teacher)]
        a, b = (each.double().view(K, K) for each in counts)
        same = (student == teacher).double()
        within = torch.zeros(K, dtype=torch.float64, device=same.device).index_add_(0, labels, same)
        beside = ByClass(a.sum(dim=1), within, (a * b).sum(dim=1))
        return Measured(float(same.mean()), beside.chance, n, left_out)

    def divergence(self, T: float) -> float:
        """:func:`divergence` at a temperature."""
        total = 0.0
        for rows in self.student.chunks():
            teacher = self.teacher.probabilities(rows, T)
            log_q = self.student.probabilities(rows, T).log_p
            cross = teacher.p.flatten().dot(log_q.flatten())
            if cross.isnan():  # 0 · log 0, which is 0
                cross = torch.where(teacher.p > 0, teacher.p * log_q, 0).sum()
            total -= float(teacher.entropy + cross)
        # Of one distribution with itself rounding may leave less than 0.
        return max(0.0, total / self.num_images)

    @property
    def jensen_shannon(self) -> float:
        """:func:`jensen_shannon`."""
        total = 0.0
        for rows in self.student.chunks():
            student, teacher = (
                each.probabilities(rows, 1.0) for each in (self.student, self.teacher)
            )
            midway = (student.p + teacher.p).div_(2)
            of_midway = entropy_of(midway, midway.log())
            total += float(of_midway - (student.entropy + teacher.entropy) / 2)
        count = self.num_images * (self.num_classes if self.student.binary else 1)
        return min(1.0, max(0.0, total / count / math.log(2)))

    def of_classes(self) -> dict[str, np.ndarray]:
        """dark, instance, second choice and hardness within every class, K each.

        They are NaN where a class has too few images. Hardness ranks the images of the class alone.
        """
        ab, aa, bb = self._directions
        shared, student, teacher = (each.of_class - each.chance_of_class for each in (ab, aa, bb))
        varied = (student > _LEAST_VARIANCE) & (teacher > _LEAST_VARIANCE)
        instance = torch.where(varied, shared / (student * teacher).sqrt(), torch.nan)
        chance = self._second.chance_of_class
        # Where chance alone gives one class throughout there is no excess.
        rest = torch.where(chance < 1, 1 - chance, torch.nan)
        second = (self._second.of_class - chance) / rest
        enough, some = self.num_classes >= 4, self.num_classes >= 3
        nothing = np.full(self.num_classes, np.nan)
        return {
            "dark": ab.of_class.cpu().numpy() if enough else nothing,
            "instance": instance.cpu().numpy() if enough else nothing,
            "second_choice": second.cpu().numpy() if some else nothing,
            "hardness": self._hardness_of_classes(),
        }

    def _hardness_of_classes(self) -> np.ndarray:
        labels, K = self.student.labels.cpu().numpy(), self.num_classes

        def sums(values: np.ndarray) -> np.ndarray:
            return np.bincount(labels, values, minlength=K)

        with np.errstate(invalid="ignore", divide="ignore"):  # of a class without images
            # Ranks of n images have the mean (n + 1)/2, ties or not.
            middle = ((np.bincount(labels, minlength=K) + 1) / 2)[labels]
            s, t = (each.lead_ranks_of_classes - middle for each in (self.student, self.teacher))
            return np.asarray(sums(s * t) / np.sqrt(sums(s * s) * sums(t * t)))

    def of_images(self) -> np.ndarray:
        """What every image adds to :attr:`instance`, N, whose mean it is over those that count.

        (⟨a_n, b_n⟩ − mean over n' ≠ n of the class of (⟨a_n, b_n'⟩ + ⟨a_n', b_n⟩)/2)/√(c_ss c_tt);
        NaN of an image that does not count.
        """
        ab, aa, bb = self._directions
        _, student, teacher = (each.mean - each.chance for each in (ab, aa, bb))
        values = np.full(self.num_images, np.nan)
        if math.isnan(_correlation(0.0, student, teacher)) or self.num_classes < 4:
            return values
        for rows in self.student.chunks():
            labels = self.student.labels[rows]
            a, b = self.student.directions(rows), self.teacher.directions(rows)
            product = torch.einsum("nk,nk->n", a.vectors, b.vectors)
            both = torch.einsum("nk,nk->n", a.vectors, self._sums[1][labels])
            both += torch.einsum("nk,nk->n", b.vectors, self._sums[0][labels])
            chance = (both / 2 - product) / (ab.count[labels] - 1)
            counts = a.known & b.known & (ab.count[labels] > 0)
            added = torch.where(counts, product - chance, torch.nan) / math.sqrt(student * teacher)
            values[rows] = added.cpu().numpy()
        return values


def declared(reads: str, outputs: Outputs, *beside: Tensor) -> dict[str, Measured]:
    """Metrics of the user's own that read outputs, by name.

    Args:
        reads: which of them, one of :data:`kdx_analysis.metrics.INPUTS`.
        outputs: of the network that they are of.
        beside: what else such a metric reads.
    """
    values = {}
    for each in METRICS.values():
        if each.reads == reads and is_foreign(each):
            value = each(outputs.scores, outputs.labels, *beside, binary=outputs.binary)
            values[each.name] = Measured(float(value), n=outputs.num_images)
    return values


def _kind(outputs: Outputs) -> str:
    scores = "margins" if outputs.binary else "logits"
    return f"{scores} of {outputs.num_images} images × {outputs.num_classes} classes"


def _correlation(shared: float, student: float, teacher: float) -> float:
    if not (student > _LEAST_VARIANCE and teacher > _LEAST_VARIANCE):
        return math.nan
    return shared / math.sqrt(student * teacher)


def _excess(share: Measured) -> Measured:
    """(share − chance)/(1 − chance)."""
    if share.chance == 1:
        return Measured(
            math.nan, 1.0, share.n, share.undefined, "chance alone gives one class throughout"
        )
    value = (share.value - share.chance) / (1 - share.chance)
    return Measured(value, share.chance, share.n, share.undefined, share.reason)


def _credited(student: Choices, teacher: Choices, labels: Tensor) -> ByClass:
    """Sums of the credit that two networks' choices share."""
    K = len(student.sums)
    if student.ties or teacher.ties:
        place = torch.searchsorted(teacher.keys, student.keys).clamp_(max=len(teacher.keys) - 1)
        shared = (teacher.keys[place] == student.keys) * student.credit * teacher.credit[place]
    else:
        shared = (student.keys == teacher.keys).double()
    within = torch.zeros(K, dtype=torch.float64, device=labels.device)
    within.index_add_(0, labels[student.keys // K], shared)
    count = labels.bincount(minlength=K).double()
    return ByClass(count, within, (student.sums * teacher.sums).sum(dim=1))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / size if size > 0 else math.nan


def _pair(scores: Tensor, labels: Tensor, teacher: Tensor, binary: bool = False) -> Likeness:
    return Likeness(Outputs(scores, labels, binary), Outputs(teacher, labels, binary))


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@metric(
    "dark",
    title="dark knowledge shared",
    reads=_BESIDE,
    unit="correlation",
    range=(-1, 1),
    describes="correlation with the teacher over the wrong classes of an image, mean over images",
    definition="mean over images of ⟨a_n, b_n⟩, scores of wrong classes centred, of length 1",
    better="higher",
)
@jaxtyped(typechecker=beartype)
def dark(scores: Scores, labels: Labels, teacher_scores: Scores) -> Float[Tensor, ""]:
    """Mean over images of Pearson's r of two networks' scores over the wrong classes, in [−1, 1].

    Blind to a shift and a positive scale of every image's scores. By chance it is the class part.
    NaN below K = 4. The wrong classes of the one image here are scored 1, 2, 3 and 1, 3, 2; a class
    needs two images.

    >>> student = torch.tensor([[9.0, 1.0, 2.0, 3.0]] * 2)
    >>> teacher = torch.tensor([[9.0, 1.0, 3.0, 2.0]] * 2)
    >>> round(dark(student, torch.tensor([0, 0]), teacher).item(), 6)
    0.5
    """
    return _number(_pair(scores, labels, teacher_scores).dark.value)


@metric(
    "class_part",
    title="dark knowledge shared by class alone",
    reads=_BESIDE,
    unit="correlation",
    range=(-1, 1),
    describes="correlation over the wrong classes with what the teacher says of other images of "
    "the class",
    definition="mean over images of the mean over n' ≠ n of the same class of ⟨a_n, b_n'⟩",
)
@jaxtyped(typechecker=beartype)
def class_part(scores: Scores, labels: Labels, teacher_scores: Scores) -> Float[Tensor, ""]:
    """What dark would be were the teacher's images permuted within their classes, in [−1, 1].

    Σ_k (⟨Σa, Σb⟩ − Σ⟨a, b⟩)/(n_k − 1)/N, in closed form. NaN below K = 4.

    >>> both = torch.tensor([[9.0, 1.0, 2.0, 3.0], [9.0, 3.0, 2.0, 1.0]])
    >>> round(class_part(both, torch.tensor([0, 0]), both).item(), 6)
    -1.0
    """
    return _number(_pair(scores, labels, teacher_scores).class_part.value)


@metric(
    "instance",
    title="instance knowledge shared",
    reads=_BESIDE,
    unit="correlation",
    range=(-1, 1),
    describes="what student and teacher share of an image's wrong classes beyond its true class",
    definition="c(s, t)/√(c(s, s) c(t, t)), c = dark − class part",
    better="higher",
)
@jaxtyped(typechecker=beartype)
def instance(scores: Scores, labels: Labels, teacher_scores: Scores) -> Float[Tensor, ""]:
    """c(s, t)/√(c(s, s) c(t, t)) with c = dark − class part: what is thought of *this* image.

    In [−1, 1]; 0 where images of a class can be exchanged. NaN below K = 4, and where a variance is
    0.

    >>> both = torch.tensor([[9.0, 1.0, 2.0, 3.0], [9.0, 3.0, 2.0, 1.0]])
    >>> round(instance(both, torch.tensor([0, 0]), both).item(), 6)
    1.0
    """
    return _number(_pair(scores, labels, teacher_scores).instance.value)


@metric(
    "second_choice",
    title="second choices shared",
    reads=_BESIDE,
    unit="share beyond chance",
    range=(-torch.inf, 1),
    describes="share of images with the teacher's strongest wrong class, beyond chance within "
    "their true class",
    definition="(share − chance)/(1 − chance), chance over n' ≠ n of the same class",
    better="higher",
)
@jaxtyped(typechecker=beartype)
def second_choice(scores: Scores, labels: Labels, teacher_scores: Scores) -> Float[Tensor, ""]:
    """(share − chance)/(1 − chance) of images with one strongest wrong class; at most 1, null 0.

    Classes that tie share credit equally. Chance sets other images of the class beside it. NaN
    below K = 3.

    >>> both = torch.tensor([[9.0, 1.0, 2.0], [9.0, 2.0, 1.0]])
    >>> second_choice(both, torch.tensor([0, 0]), both).item()
    1.0
    """
    return _number(_pair(scores, labels, teacher_scores).values()["second_choice"].value)


@metric(
    "hardness",
    title="hardness shared",
    reads=_BESIDE,
    unit="rank correlation",
    range=(-1, 1),
    describes="rank correlation with the teacher of how far the true class leads",
    definition="Spearman's ρ over images of v_y − max_{k≠y} v_k",
    better="higher",
)
@jaxtyped(typechecker=beartype)
def hardness(scores: Scores, labels: Labels, teacher_scores: Scores) -> Float[Tensor, ""]:
    """Spearman's ρ over images of v_y − max_{k≠y} v_k, in [−1, 1]; much of it is the task's.

    >>> student = torch.tensor([[3.0, 1.0], [2.0, 1.0], [0.0, 1.0]])
    >>> teacher = torch.tensor([[9.0, 1.0], [0.0, 1.0], [2.0, 1.0]])
    >>> hardness(student, torch.tensor([0, 0, 0]), teacher).item()
    0.5
    """
    return _number(_pair(scores, labels, teacher_scores).hardness.value)


@metric(
    "agreement_excess",
    title="agreement beyond chance",
    reads=_BESIDE,
    unit="share beyond chance",
    range=(-torch.inf, 1),
    describes="share of images given the teacher's class, beyond chance within their true class",
    definition="(share − chance)/(1 − chance), chance over n' ≠ n of the same class",
    better="higher",
)
@jaxtyped(typechecker=beartype)
def agreement_excess(scores: Scores, labels: Labels, teacher_scores: Scores) -> Float[Tensor, ""]:
    """(share − chance)/(1 − chance) of images that are given one class; at most 1, null 0.

    >>> both = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> agreement_excess(both, torch.tensor([0, 0]), both).item()
    1.0
    """
    return _number(_pair(scores, labels, teacher_scores).values()["agreement"].value)


@metric(
    "error_consistency",
    title="error consistency",
    reads=_BESIDE,
    unit="κ",
    range=(-1, 1),
    describes="how far student and teacher are right and wrong together beyond their accuracies",
    definition="(c − c_e)/(1 − c_e), c_e = p_s p_t + (1 − p_s)(1 − p_t)",
    source="Geirhos et al. 2020, arXiv 2006.16736",
)
@jaxtyped(typechecker=beartype)
def error_consistency(scores: Scores, labels: Labels, teacher_scores: Scores) -> Float[Tensor, ""]:
    """κ = (c − c_e)/(1 − c_e) of being right together, c_e = p_s p_t + (1 − p_s)(1 − p_t).

    In [−1, 1], null 0; NaN where a network is right or wrong throughout.

    >>> both = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> error_consistency(both, torch.tensor([0, 0]), both).item()
    1.0
    """
    return _number(_pair(scores, labels, teacher_scores).error_consistency.value)


@metric(
    "copied_errors",
    title="copied errors",
    reads=_BESIDE,
    unit="share of images that both have wrong",
    range=(0, 1),
    describes="share of images that both have wrong which are given one wrong class",
    definition="mean over images that both have wrong of 1[argmax_k z_k = argmax_k v_k]",
)
@jaxtyped(typechecker=beartype)
def copied_errors(scores: Scores, labels: Labels, teacher_scores: Scores) -> Float[Tensor, ""]:
    """Of the images that both have wrong the share with one wrong class, in [0, 1].

    NaN where there is none, and at K = 2.

    >>> student = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    >>> teacher = torch.tensor([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0]])
    >>> copied_errors(student, torch.tensor([0, 0]), teacher).item()
    0.5
    """
    return _number(_pair(scores, labels, teacher_scores).copied_errors.value)


@jaxtyped(typechecker=beartype)
def divergence(
    scores: Scores, labels: Labels, teacher_scores: Scores, T: float = 1.0, binary: bool = False
) -> Float[Tensor, ""]:
    """KL(teacher ‖ student) at temperature T, without T²; mean over images, in nats, ≥ 0.

    Of ``binary`` subtasks KL of (p, 1 − p), summed over subtasks. Infinite where the student has a
    probability of 0 that the teacher has not.

    >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
    >>> round(divergence(student, torch.tensor([0]), teacher).item(), 6)  # ln 2 − H(¾, ¼)
    0.130812
    """
    return _number(_pair(scores, labels, teacher_scores, binary).divergence(T))


@metric(
    "kl_T1",
    title="KL from the teacher",
    reads=_BESIDE,
    unit="nats",
    range=(0, torch.inf),
    describes="KL(teacher ‖ student) of an image, mean over images",
    definition="mean over images of KL(softmax(v) ‖ softmax(z)); of margins summed over subtasks",
    better="lower",
)
@jaxtyped(typechecker=beartype)
def kl_T1(
    scores: Scores, labels: Labels, teacher_scores: Scores, binary: bool = False
) -> Float[Tensor, ""]:
    """:func:`divergence` at T = 1.

    >>> kl_T1(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1, 2)).item()
    0.0
    """
    return divergence(scores, labels, teacher_scores, 1.0, binary)


@metric(
    "kl_T4",
    title="KL from the teacher at T = 4",
    reads=_BESIDE,
    unit="nats",
    range=(0, torch.inf),
    describes="KL(teacher ‖ student) of an image at T = 4, mean over images",
    definition="mean over images of KL(softmax(v/4) ‖ softmax(z/4)); of margins summed",
    better="lower",
)
@jaxtyped(typechecker=beartype)
def kl_T4(
    scores: Scores, labels: Labels, teacher_scores: Scores, binary: bool = False
) -> Float[Tensor, ""]:
    """:func:`divergence` at T = 4.

    >>> kl_T4(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1, 2)).item()
    0.0
    """
    return divergence(scores, labels, teacher_scores, 4.0, binary)


@metric(
    "js",
    title="Jensen–Shannon divergence from the teacher",
    reads=_BESIDE,
    unit="of ln 2",
    range=(0, 1),
    describes="Jensen–Shannon divergence of an image, mean over images",
    definition="mean over images of (KL(p ‖ m) + KL(q ‖ m))/(2 ln 2), m = (p + q)/2",
    better="lower",
)
@jaxtyped(typechecker=beartype)
def jensen_shannon(
    scores: Scores, labels: Labels, teacher_scores: Scores, binary: bool = False
) -> Float[Tensor, ""]:
    """(KL(p ‖ m) + KL(q ‖ m))/(2 ln 2) with m = (p + q)/2, mean over images, in [0, 1].

    Of ``binary`` subtasks also the mean over subtasks.

    >>> sure = torch.tensor([[90.0, 0.0]])
    >>> jensen_shannon(sure, torch.tensor([0]), -sure).item()
    1.0
    """
    return _number(_pair(scores, labels, teacher_scores, binary).jensen_shannon)
