"""Does a step for one subtask help or hurt another?

TAG affinity: Fifty et al. 2021, arXiv 2109.04617.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from beartype import beartype
from jaxtyping import Float, jaxtyped
from pydantic import Field
from torch import Tensor, nn

from kdx_analysis import null
from kdx_analysis.errors import KdxError
from kdx_analysis.metrics import evaluated, metric
from kdx_analysis.models import HME
from kdx_analysis.models.modes import fitted, in_full, undisturbed, unwrapped, usable
from kdx_analysis.probes.conflict.grams import (
    Kept,
    probing_cost,
    residuals,
    subtask_gradients,
    with_null,
)
from kdx_analysis.probes.contract import (
    Cost,
    Frames,
    Moment,
    NoOptions,
    Probe,
    Setting,
    probe_of,
)
from kdx_analysis.probes.subtasks import OVER_PAIRS, PAIR, Asked, OneVsRest, not_finite
from kdx_analysis.records import DRAWS, EPOCH, IMAGES, SPLIT, UNDEFINED, count, kind, number, text

ETA = 0.01
NULL_DRAWS = null.LEAST_DRAWS  # so that the null has a range

kind(
    "affinity",
    "What a step for one subtask does to the loss of another: of an ordered pair, or over all.",
    keys=(EPOCH, SPLIT, text("metric", "affinity, or the name of a metric over pairs"), *PAIR),
    values=(
        number("value", "of the metric; of a pair Z = 1 − L_b after a step for a/L_b before it"),
        UNDEFINED,
        DRAWS,
        number("eta", "length of the step", low=0),
        IMAGES,
    ),
    null=True,
    home=__name__,
)
kind(
    "affinity_through_training",
    "A row of affinity, averaged over the epochs at which it is defined.",
    keys=(SPLIT, text("metric", "as in affinity"), *PAIR),
    values=(
        number("value", "mean over these epochs"),
        number("null_mean", "mean over these epochs of the null's mean"),
        UNDEFINED,
        DRAWS,
        number("eta", "length of the step", low=0),
        IMAGES,
        count("epochs", "at which the value is defined"),
        count("probed", "epochs that were probed"),
    ),
    home=__name__,
)


@jaxtyped(typechecker=beartype)
def affinity(
    before: Float[Tensor, " K"], after: Float[Tensor, "*draws K K"]
) -> Float[Tensor, "*draws K K"]:
    """Z_{a→b} = 1 − L_b(after a step for a)/L_b(before), in (−∞, 1]; 0/0 is NaN.

    Above 0 the step helps, below it hurts. Row a of ``after`` holds every L_b after a step for a.

    >>> affinity(torch.tensor([2.0, 1.0]), torch.tensor([[1.0, 1.5], [2.0, 0.8]]))
    tensor([[ 0.5000, -0.5000],
            [ 0.0000,  0.2000]])
    """
    return 1 - after / before


@metric(
    "affinity",
    title="affinity of subtasks",
    reads="affinities",
    unit="Z",
    describes=f"median over ordered pairs of Z = 1 − L_b after a step of η = {ETA:g} down a's "
    "gradient / L_b before it; above 0 a step for one subtask helps the other",
    definition="median over ordered pairs of Z_ab = 1 − L_b(θ − η g_a/‖g_a‖)/L_b(θ)",
    source="TAG: Fifty et al. 2021, arXiv 2109.04617",
    over_pairs="median",
    of_pair=lambda affinity: affinity,
    recorded="median_affinity",
)
@jaxtyped(typechecker=beartype)
def median_affinity(affinities: Float[Tensor, "*draws K K"]) -> Float[Tensor, "*draws"]:
    """Median of Z_{a→b} over ordered pairs a ≠ b; NaN pairs left out, NaN if none is left.

    A median, since a loss that is nearly 0 makes a mean of its own.

    >>> median_affinity(torch.tensor([[9.0, 0.2], [0.4, 9.0]]))
    tensor(0.3000)
    """
    a, b = _ordered_pairs(affinities.shape[-1])
    return affinities[..., a, b].nanquantile(0.5, dim=-1)


@torch.inference_mode(False)
def subtask_affinity(
    model: nn.Module,
    images: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    margins: Callable[[Tensor], Tensor] | None = None,
    groups: Sequence[Sequence[str]] | None = None,
    eta: float = ETA,
    null_draws: int = 0,
    seed: int = 0,
    max_memory: int = 2**30,
    num_classes: int | None = None,
    kept: Kept | None = None,
) -> Tensor:
    """Z_{a→b} of all pairs of subtasks, (1 + R)×K×K: row a for a step θ − η g_a/‖g_a‖.

    θ are an explainer's trunk and experts, of another model its ``groups``. Every step is taken on
    copies, so the model is never touched; there is no momentum. A subtask whose gradient is zero
    gives a row of NaN. Takes K backward passes for as many sets of gradients as fit in memory
    together, and K(1 + R) forward passes.

    Args:
        model: images → outputs; BN in eval mode; one in half precision is probed as a float32 copy.
        images: normalised, B×C×H×W.
        loss: margins → loss of every sample and subtask, B×K, entry (b, k) of m_bk alone; the same
            hard loss for every objective.
        margins, groups, max_memory: as for :func:`subtask_grams`.
        eta: length of a step, above 0.
        null_draws: R; the null steps along the gradients of residuals dealt to other samples.
        seed: of the null.
        num_classes: K, where the model gives several tensors, of which it tells the outputs.
        kept: gradients of the same model on the same images, which are not computed anew if they
            are of the same residuals.

    Raises KdxError for a step length that isn't above 0 and for losses or gradients that are not
    finite.
    """
    if not eta > 0:
        raise KdxError(f"a step of length eta = {eta} shows nothing; take one above 0")
    model = in_full(unwrapped(usable(model))[0])
    if margins is None and isinstance(model, HME):
        model = model.giving_margins()
    # A tensor made under torch.inference_mode() can have no gradient.
    images = fitted(images.clone() if images.is_inference() else images, model)
    classifier = Asked(model, num_classes)

    def losses(parameters: dict[str, Tensor]) -> Tensor:
        named = {f"model.{name}": parameter for name, parameter in parameters.items()}
        outputs = torch.func.functional_call(classifier, named, (images,))
        return loss(outputs if margins is None else margins(outputs)).mean(dim=0)

    with undisturbed(model), torch.no_grad():
        outputs = classifier(images)
        before = losses({})
        if culprits := not_finite(before.unsqueeze(0)):
            raise KdxError(
                f"the losses of subtasks {culprits} are not finite; did the run diverge?"
            )
        residual = residuals(loss, outputs if margins is None else margins(outputs))
        sets = with_null(residual, null_draws, seed)
        parameters = dict(model.named_parameters())
        how = {"margins": margins, "groups": groups, "max_memory": max_memory}
        # One by one: side by side, by torch.func.vmap, ten steps take 1.9 (digits' student) to 2.7
        # times (resnet20) as long on a CPU, on which grouped convolutions are slower.
        after = [
            losses(_stepped(parameters, gradient, eta))
            for gradient in _gradients(model, images, sets, kept, how)
        ]
    return affinity(before, torch.stack(after).unflatten(0, (len(sets), -1)))


def _gradients(
    model: nn.Module, images: Tensor, sets: Tensor, kept: Kept | None, how: Mapping[str, Any]
) -> Iterator[dict[str, Tensor]]:
    """The gradient of every set and subtask, by name: kept ones, or else new ones."""
    at_hand = None if kept is None else kept.of(sets)
    at_once = _sets_at_once(model, sets.shape[2], how["max_memory"])
    for chunk in sets.split(at_once if at_hand is None else len(sets)):
        gradients = subtask_gradients(model, images, chunk, **how) if at_hand is None else at_hand
        for draw in range(len(chunk)):
            for k in range(chunk.shape[2]):
                yield {name: sums[draw, k] for name, sums in gradients.items()}


def _stepped(
    parameters: Mapping[str, Tensor], gradient: Mapping[str, Tensor], eta: float
) -> dict[str, Tensor]:
    """θ − η g/‖g‖ of the parameters that have a gradient."""
    # In float64, since the square of a large float32 overflows.
    norm = torch.stack([part.double().norm() for part in gradient.values()]).norm()
    stepped = {}
    for name, part in gradient.items():
        stepped[name] = parameters[name] - (eta * part / norm).to(parameters[name])
    return stepped


@torch.inference_mode(False)
def affinity_of(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    classes: Sequence[str] | None = None,
    margins: Callable[[Tensor], Tensor] | None = None,
    groups: Sequence[Sequence[str]] | None = None,
    eta: float = ETA,
    null_draws: int = NULL_DRAWS,
    seed: int = 0,
    max_memory: int = 2**30,
    kept: Kept | None = None,
) -> pd.DataFrame:
    """:func:`subtask_affinity` between the K one-vs-rest losses of any classifier, as a table.

    The loss is the plain hard one for every model, BCE(σ(margin), 1[y = k]).

    Args:
        model, images, labels, classes, margins, groups, seed, max_memory: as for
            :func:`kdx_analysis.probes.conflict.record.conflict_of`, whose errors it raises.
        eta, null_draws, kept: as for :func:`subtask_affinity`; at least one draw, and below 39 the
            null has no range.

    Returns:
        The columns of :func:`affinity_table`, eta and n, the number of images.

    Raises KdxError for no null draw, and as ``conflict_of`` does.
    """
    if null_draws < 1:
        raise KdxError(f"{null_draws} draws make no null; take 1 or more")
    probed = OneVsRest.of(model, images, labels, classes, margins)
    z = subtask_affinity(
        probed.model,
        probed.images,
        probed.loss,
        margins=probed.margins,
        groups=groups,
        eta=eta,
        null_draws=null_draws,
        seed=seed,
        max_memory=max_memory,
        num_classes=len(probed.classes),
        kept=kept,
    )
    return affinity_table(z, probed.classes).assign(eta=eta, n=len(images))


def affinity_cost(
    model: nn.Module,
    images: Tensor,
    num_classes: int,
    null_draws: int = NULL_DRAWS,
    *,
    margins: Callable[[Tensor], Tensor] | None = None,
    groups: Sequence[Sequence[str]] | None = None,
    max_memory: int = 2**30,
) -> Cost:
    """Passes and memory that :func:`affinity_of` will take; nothing is computed here.

    ``null_draws``, ``max_memory`` and all others are its arguments.
    """
    actual = margins or (lambda outputs: outputs)  # steps go along gradients with the gates' factor
    sets, at_once = 1 + null_draws, _sets_at_once(model, num_classes, max_memory)
    cost = Cost(3 + num_classes * sets, 0, len(images), 0, 0)
    for first in range(0, sets, at_once):
        chunk = min(at_once, sets - first)
        cost += probing_cost(
            model,
            images,
            num_classes,
            chunk,
            margins=actual,
            groups=groups,
            max_memory=max_memory,
            together=True,
        )
    return cost


def _sets_at_once(model: nn.Module, num_classes: int, max_memory: int) -> int:
    """Sets of residuals whose gradients are in memory together, at least one."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    # Sums are there twice when they get the shapes of their parameters.
    return max(1, max_memory // (2 * num_classes * weights))


def _ordered_pairs(K: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of all pairs (a, b) of K subtasks, a ≠ b."""
    a, b = np.nonzero(~np.eye(K, dtype=bool))
    return a, b


def affinity_table(affinities: Tensor, classes: Sequence[str]) -> pd.DataFrame:
    """Z_{a→b} of every ordered pair, and over all of them.

    Over all pairs: ``median_affinity``, since a loss that is nearly 0 makes a mean of its own, and
    ``hurt_share``, that with Z < 0.

    Args:
        affinities: (1 + R)×K×K; values are of the first, the others are its null.
        classes: the K subtasks' names.

    Returns:
        metric, a, b ('' where all are meant), a_index, b_index, value, undefined (pairs of which it
        is NaN: the gradient of a is zero), null_…, null_draws.
    """
    a, b = _ordered_pairs(len(classes))
    names = np.array(classes, dtype=object)
    affinities = affinities.double().cpu()  # nulls are read in float64
    chosen = affinities[:, a, b]
    # A null over pairs that the value lacks would be that of another figure.
    shared = chosen.where(~chosen[:1].isnan(), torch.nan)
    undefined = shared.isnan()
    # A comparison with NaN is False, which would count the pair as one that is not hurt.
    hurt = torch.where(undefined, torch.nan, (shared < 0).double()).nanmean(dim=1)
    metrics = evaluated("affinities", affinities.where(~affinities[:1].isnan(), torch.nan))
    rows = [{"metric": name, **null.with_value(each.value)} for name, each in metrics.items()]
    rows.append({"metric": "hurt_share", **null.with_value(hurt)})
    counted = int(undefined[0].sum())
    whole = pd.DataFrame([{**row, **OVER_PAIRS, "undefined": counted} for row in rows])
    pairs = pd.DataFrame(
        {
            "metric": "affinity",
            "a": names[a],
            "b": names[b],
            "a_index": a,
            "b_index": b,
            "value": chosen[0].numpy(),
            "undefined": undefined[0].int().numpy(),
            **null.beside(chosen[1:]),
        }
    )
    return pd.concat([pairs, whole], ignore_index=True).assign(null_draws=len(chosen) - 1)


def mean_over_epochs(affinity: pd.DataFrame) -> pd.DataFrame:
    """Recorded affinities averaged over epochs.

    A value and its null are means over the same ``epochs`` of the ``probed`` ones: those at which
    the value is defined.

    Args:
        affinity: records of the kind ``affinity``.

    Returns:
        A frame of the kind ``affinity_through_training``.
    """
    keys = ["split", "metric", "a", "b", "a_index", "b_index", "null_draws", "eta", "n"]
    table = affinity.assign(null_mean=affinity["null_mean"].where(affinity["value"].notna()))
    grouped = table.groupby(keys, sort=False)
    means = grouped[["value", "null_mean"]].mean()
    means["undefined"] = grouped["undefined"].sum()
    means["epochs"], means["probed"] = grouped["value"].count(), grouped["epoch"].nunique()
    return means.reset_index()


class AffinityOptions(NoOptions):
    """Of the probe of affinity.

    Attributes:
        null_draws: each is K forward passes at every probed epoch. Two give the null's mean and no
            range: 39, from which on there is one, would add more time than the training takes.
    """

    null_draws: Annotated[int, Field(ge=1)] = 2


@probe_of(
    "affinity",
    title="affinity of subtasks",
    roles=("explainer", "tree"),
    afterwards=("teacher", "student"),
    kinds=("affinity",),
    options=AffinityOptions,
)
class AffinityProbe(Probe):
    """Does a step for one subtask help or hurt another?"""

    @property
    def gradient_sets(self) -> int:
        """The hard loss's own and those of its null."""
        draws: int = self.setting.options.null_draws
        return 1 + draws

    @classmethod
    def cost(cls, setting: Setting, images: Tensor) -> Cost:
        """The steps of all subtasks and draws in the ``setting``, each over the images.

        It is less where the probe of conflict has the gradients at hand.
        """
        return affinity_cost(
            setting.model,
            images,
            setting.data.num_classes,
            setting.options.null_draws,
            margins=setting.margins,
            max_memory=setting.config.max_memory,
        )

    def __call__(self, moment: Moment) -> Frames:
        """Of all pairs and over them, beside the null."""
        table = affinity_of(
            moment.model,
            moment.images,
            moment.labels,
            classes=self.setting.data.classes,
            margins=self.setting.margins,
            null_draws=self.setting.options.null_draws,
            seed=self.setting.config.seed,
            max_memory=self.setting.config.max_memory,
            kept=moment.kept,
        )
        return {"affinity": table}
