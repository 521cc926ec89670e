"""Teachers and students as stages, in the shapes of the literature on distilling CIFAR models.

Where sources differ, shapes are those of CRD's code (Tian et al., ICLR 2020, arXiv 1910.10699),
which later work on distillation took over. All models start alike: convolutions Kaiming-normal
(fan-out), BatchNorm 1/0, biases of convolutions 0, Linear as PyTorch has it (CRD's VGG: N(0,
0.01)).
"""

from kdx_analysis.models.zoo import mobile, plain, residual  # noqa: F401
from kdx_analysis.models.zoo.staged import MODELS, Conv, ModelBuilder, StagedNet, plain_stage

__all__ = ["MODELS", "Conv", "ModelBuilder", "StagedNet", "plain_stage"]
