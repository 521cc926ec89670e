"""What one network says of images, made ready to be set beside another's (method, §8).

Axes: N images, K classes. Everything is in float64, in which the mean over 50,000 images of what
is shared agrees to 1e-12 whatever the order of the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

from kdx_analysis.errors import KdxError

# 3 MB of float64 a chunk, which stays in a processor's cache from one step to the next.
_VALUES_AT_ONCE = 400_000
# Up to so many scores a network's directions, and its probabilities at two temperatures, are kept
# for the next network beside it: five times 8 MB of float64. Larger ones are made anew each time.
_VALUES_KEPT = 1_000_000
# Scores that differ by less than this share of their size differ by rounding.
_ROUNDING = 1e-12


class Directions(NamedTuple):
    """Where a network's scores of the wrong classes point, image by image.

    Attributes:
        vectors: centred over the K − 1 wrong classes and of length 1, 0 at the true class, B×K;
            a row of zeros where there is no direction.
        known: whether there is one, B.
    """

    vectors: Tensor
    known: Tensor


class Choices(NamedTuple):
    """The classes with the highest score, as (image, class) pairs; classes that tie share credit.

    Attributes:
        keys: image·K + class, ascending, int64.
        credit: 1 over the number of classes that tie.
        ties: images with more than one.
        sums: credit by true class and chosen class, K×K.
    """

    keys: Tensor
    credit: Tensor
    ties: int
    sums: Tensor


class Probabilities(NamedTuple):
    """Probabilities and their logarithms, B×K each.

    Attributes:
        log_p, p: of every class.
        entropy: −Σ p log p over all of them, a scalar.
    """

    log_p: Tensor
    p: Tensor
    entropy: Tensor


class _Tops(NamedTuple):
    """Of every image the true class's score and the highest of the wrong ones, N each.

    Beside them (image, class) pairs of the wrong classes that have the highest score, in order.
    """

    true: Tensor
    wrong: Tensor
    image: Tensor
    choice: Tensor


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a network says of N images.

    Attributes:
        scores: logits, log-probabilities or, where ``binary``, margins of K binary subtasks; N×K,
            of any floating-point type. −inf is the logarithm of a probability of 0.
        labels: true classes, int64, N, in [0, K).
        binary: whether each class is a subtask of its own, its probability σ(margin).

    Raises KdxError for shapes that don't fit, labels that are no class, NaN or +inf.
    """

    scores: Tensor
    labels: Tensor
    binary: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", self.scores.detach())
        scores, labels = self.scores, self.labels
        if scores.ndim != 2 or not scores.is_floating_point() or labels.shape != scores.shape[:1]:
            raise KdxError(
                f"scores are {scores.dtype} {tuple(scores.shape)} for {tuple(labels.shape)} "
                "labels; give floating-point numbers, one row an image and one column a class"
            )
        if labels.dtype != torch.int64:
            raise KdxError(f"labels are {labels.dtype}; give whole numbers of the type int64")
        if not len(labels) or scores.shape[1] < 2:
            raise KdxError(
                f"scores are {tuple(scores.shape)}; give at least one image and two classes"
            )
        if int(labels.min()) < 0 or int(labels.max()) >= scores.shape[1]:
            raise KdxError(
                f"labels run from {int(labels.min())} to {int(labels.max())}, but the classes are "
                f"0 to {scores.shape[1] - 1}, one for each column of the scores"
            )
        for rows in self.chunks():
            self._check_finite(rows)

    def _check_finite(self, rows: slice) -> None:
        scores = self.scores[rows]
        if scores.isfinite().all():
            return
        wrong = scores.isnan() | (scores == torch.inf)
        if wrong.any():
            row, column = (int(i) for i in wrong.nonzero()[0])
            cause = " (of a teacher's one-vs-rest margins: a probability of exactly 1)"
            raise KdxError(
                f"the score of image {rows.start + row} for class {column} is "
                f"{float(scores[row, column])}{cause if self.binary else ''}; leave out images "
                "whose scores are not finite"
            )
        nothing = (scores == -torch.inf).all(dim=1)
        if nothing.any():
            raise KdxError(
                f"image {rows.start + int(nothing.nonzero()[0])} has a probability of 0 for every "
                "class; leave it out"
            )

    @property
    def num_images(self) -> int:
        """N."""
        return self.scores.shape[0]

    @property
    def num_classes(self) -> int:
        """K."""
        return self.scores.shape[1]

    def forget(self) -> None:
        """Free the memory of what was kept for further networks beside this one."""
        self._cache.clear()

    def chunks(self) -> Iterator[slice]:
        """The images, some at a time."""
        step = max(1, _VALUES_AT_ONCE // self.num_classes)
        for start in range(0, self.num_images, step):
            yield slice(start, min(start + step, self.num_images))

    def directions(self, rows: slice) -> Directions:
        """Those of the images at ``rows``.

        There is none where all wrong classes have one score, or a class has a probability of 0.
        """
        return self._kept(("directions", rows.start), lambda: self._directions(rows))

    def probabilities(self, rows: slice, T: float) -> Probabilities:
        """At temperature T, of the images at ``rows``: softmax, or of binary subtasks σ(m/T).

        Those of binary subtasks stand twice side by side, p and 1 − p, B×2K.
        """
        return self._kept((f"p {T}", rows.start), lambda: self._probabilities(rows, T))

    @cached_property
    def direction_sums(self) -> tuple[Tensor, Tensor]:
        """Σ_n a_n over the images of every class, K×K, and how many have a direction, K."""
        K, device = self.num_classes, self.scores.device
        sums = torch.zeros(K, K, dtype=torch.float64, device=device)
        count = torch.zeros(K, dtype=torch.float64, device=device)
        for rows in self.chunks():
            vectors, known = self.directions(rows)
            sums.index_add_(0, self.labels[rows], vectors)
            count.index_add_(0, self.labels[rows], known.double())
        return sums, count

    @cached_property
    def first(self) -> Choices:
        """The class that is chosen."""
        tops = self._tops
        chosen = (tops.true >= tops.wrong).nonzero().squeeze(1)
        beside = (tops.true <= tops.wrong)[tops.image]
        image = torch.cat([chosen, tops.image[beside]])
        choice = torch.cat([self.labels[chosen], tops.choice[beside]])
        order = (image * self.num_classes + choice).argsort()
        return self._choices(image[order], choice[order])

    @cached_property
    def second(self) -> Choices:
        """The strongest of the wrong classes."""
        return self._choices(self._tops.image, self._tops.choice)

    @cached_property
    def answers(self) -> Tensor:
        """The class that is chosen, int64, N; of those that tie the first."""
        image, choice = self.first.keys // self.num_classes, self.first.keys % self.num_classes
        begins = torch.ones_like(image, dtype=torch.bool)
        begins[1:] = image[1:] != image[:-1]
        return choice[begins]

    @cached_property
    def right(self) -> Tensor:
        """Which images are given their class, N."""
        return self.answers == self.labels

    @cached_property
    def lead(self) -> np.ndarray:
        """v_y − max over the wrong classes of v, N: how far the true class leads."""
        tops = self._tops
        return np.asarray((tops.true.double() - tops.wrong.double()).cpu().numpy())

    @cached_property
    def _tops(self) -> _Tops:
        parts = []
        for rows in self.chunks():
            scores, true = self.scores[rows], self.labels[rows].unsqueeze(1)
            others = scores.scatter(1, true, -torch.inf)
            wrong, choice = others.max(dim=1)
            highest = others == wrong.unsqueeze(1)
            # The true class is no wrong one, even where all of these have a probability of 0.
            highest.scatter_(1, true, False)
            image = torch.arange(rows.start, rows.stop, device=scores.device)
            # Where nothing ties, which is the rule, nothing has to be looked for.
            if int(highest.sum()) > len(image):
                image, choice = highest.nonzero(as_tuple=True)
                image = image + rows.start
            parts.append(_Tops(scores.gather(1, true).squeeze(1), wrong, image, choice))
        return _Tops(*(torch.cat(each) for each in zip(*parts, strict=True)))

    @cached_property
    def lead_ranks(self) -> np.ndarray:
        """Ranks of :attr:`lead`, N; those that tie share their mean rank."""
        return np.asarray(rankdata(self.lead))

    @cached_property
    def lead_ranks_of_classes(self) -> np.ndarray:
        """Ranks of :attr:`lead` among the images of the same class, N; those that tie share one."""
        labels = self.labels.cpu().numpy()
        order = np.lexsort((self.lead, labels))
        begins = np.ones(self.num_images, dtype=bool)
        ordered, leads = labels[order], self.lead[order]
        begins[1:] = (ordered[1:] != ordered[:-1]) | (leads[1:] != leads[:-1])
        tied = np.cumsum(begins) - 1
        # Those that tie stand side by side, so that the mean of their places is in the middle.
        first, count = np.flatnonzero(begins), np.bincount(tied)
        place = (first + (count + 1) / 2)[tied]
        before = np.searchsorted(ordered, ordered)
        ranks = np.empty(self.num_images)
        ranks[order] = place - before
        return ranks

    @cached_property
    def confidence(self) -> Tensor:
        """The probability of the chosen class, N."""
        parts = []
        for rows in self.chunks():
            p = self.probabilities(rows, 1.0).p
            parts.append(p.gather(1, self.answers[rows].unsqueeze(1)).squeeze(1))
        return torch.cat(parts)

    @cached_property
    def _cache(self) -> dict[tuple[str, int], tuple[Tensor, ...]]:
        return {}

    def _kept(self, key: tuple[str, int], make: Callable[[], tuple[Tensor, ...]]) -> Any:
        if key in self._cache:
            return self._cache[key]
        made = make()
        if self.scores.numel() <= _VALUES_KEPT:
            self._cache[key] = made
        return made

    def _rows(self, rows: slice) -> tuple[Tensor, Tensor]:
        # A copy even of float64, so that what is made of it in place is not the user's.
        return self.scores[rows].to(torch.float64, copy=True), self.labels[rows]

    def _directions(self, rows: slice) -> Directions:
        scores, labels = self._rows(rows)
        true = labels.unsqueeze(1)
        finite = scores.isfinite().all(dim=1)
        wrong = scores.masked_fill(~finite.unsqueeze(1), 0).scatter_(1, true, 0)
        # To a largest score of 1, so that squares neither overflow nor vanish at any scale.
        size = wrong.abs().amax(dim=1, keepdim=True)
        wrong.div_(torch.where(size > 0, size, 1))
        centred = wrong.sub_(wrong.sum(dim=1, keepdim=True) / (self.num_classes - 1))
        centred.scatter_(1, true, 0)
        length = centred.norm(dim=1)
        known = finite & (length > _ROUNDING) & (self.num_classes > 2)
        vectors = centred.div_(length.unsqueeze(1)).masked_fill_(~known.unsqueeze(1), 0)
        return Directions(vectors, known)

    def _probabilities(self, rows: slice, T: float) -> Probabilities:
        scores = self._rows(rows)[0].div_(T)
        if self.binary:
            log_p = torch.cat([F.logsigmoid(scores), F.logsigmoid(-scores)], dim=1)
        else:
            log_p = torch.log_softmax(scores, dim=1)
        p = log_p.exp()
        return Probabilities(log_p, p, entropy_of(p, log_p))

    def _choices(self, image: Tensor, choice: Tensor) -> Choices:
        """Of classes with the highest score, by image in ascending order."""
        K = self.num_classes
        count = image.bincount(minlength=self.num_images)
        credit = count[image].double().reciprocal()
        sums = torch.zeros(K * K, dtype=torch.float64, device=image.device)
        sums.index_add_(0, self.labels[image] * K + choice, credit)
        return Choices(image * K + choice, credit, int((count > 1).sum()), sums.view(K, K))


def entropy_of(p: Tensor, log_p: Tensor) -> Tensor:
    """−Σ p log p over all rows and classes; 0 where p is 0.

    >>> half = torch.tensor([[0.5, 0.5, 0.0]])
    >>> round(float(entropy_of(half, half.log())), 6)  # ln 2
    0.693147
    """
    total = -p.flatten().dot(log_p.flatten())
    # 0 · log 0 is no number here; the sum that knows it takes four times as long.
    return torch.special.entr(p).sum() if total.isnan() else total
