"""Gates: where does every subtask draw its features from, and how sharply?

The formulas stand here under their names; ``record`` hands back what one model's gates say.
"""

from kdx_analysis.probes.gates.formulas import (
    averaged,
    check_features,
    class_means,
    dead_share,
    defined,
    effective,
    expert_use,
    mean_pathways,
    pair_mean,
    random_logits,
    routing_distance,
    sample_pathways,
    shuffled_subtasks,
    specialisation,
    summarise,
    summarise_samples,
    use_cv2,
)

__all__ = [
    "averaged",
    "check_features",
    "class_means",
    "dead_share",
    "defined",
    "effective",
    "expert_use",
    "mean_pathways",
    "pair_mean",
    "random_logits",
    "routing_distance",
    "sample_pathways",
    "shuffled_subtasks",
    "specialisation",
    "summarise",
    "summarise_samples",
    "use_cv2",
]
