"""VAM, the virtual attention module: attention between blocks of channels inside weights.

    table = kdx.vam.attach(model, blocks=8)
    loss = objective + 0.01 * kdx.vam.entropy(model)
    kdx.vam.fold(model)

KDExplainer (arXiv 2105.04181, section 3) describes it; there is no released code. The output of a
block of filters is a weighted sum over blocks of input channels, and the weights are learned like
an explainer's gates. They do not depend on the input, so that :func:`fold` leaves a plain network,
as fast as before.
"""

from kdx_analysis.models.vam.blocks import AttendedLayer, BlockAttention
from kdx_analysis.models.vam.layers import (
    Attached,
    attach,
    attended_layers,
    attention,
    detach,
    entropy,
    fold,
    gate_parameters,
    set_temperature,
)

__all__ = [
    "Attached",
    "AttendedLayer",
    "BlockAttention",
    "attach",
    "attended_layers",
    "attention",
    "detach",
    "entropy",
    "fold",
    "gate_parameters",
    "set_temperature",
]
