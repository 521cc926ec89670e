"""Conflict between subtasks: do the gradients of two of them oppose each other?

The formulas stand here under their names. ``grams`` makes the Gram matrices that they read, from
gradients of single samples (``per_sample``, ``parts``, ``layer_rules``) that ``proof`` holds
against plain autograd; ``tables`` sets every value beside its null, ``record`` hands it back.
"""

from kdx_analysis.probes.conflict.formulas import (
    bounded_difference,
    conflict_rate,
    contention,
    contention_by_expert,
    contention_inside,
    cosine,
    magnitude_similarity,
    mean_cosine,
    modulation,
    separation,
    severity,
    upper,
)

__all__ = [
    "bounded_difference",
    "conflict_rate",
    "contention",
    "contention_by_expert",
    "contention_inside",
    "cosine",
    "magnitude_similarity",
    "mean_cosine",
    "modulation",
    "separation",
    "severity",
    "upper",
]
