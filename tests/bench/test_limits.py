import math

import pytest
import torch
import torch.nn.functional as F

from kdx_analysis.bench.contract import Contestant
from kdx_analysis.bench.limits import Limits, counted, limits, operations


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_operations_of_a_convolution_and_its_backward_pass(groups):
    images = torch.randn(2, 4, 5, 5, requires_grad=True)
    weight = torch.randn(8, 4 // groups, 3, 3, requires_grad=True)

    def step():
        F.conv2d(images, weight, padding=1, groups=groups).sum().backward()

    forward = 2 * (2 * 8 * 5 * 5) * (4 // groups * 9)
    assert counted(step) == 3 * forward  # forward, and the gradients of images and weight


def test_operations_of_a_matrix_product():
    a, b = torch.ones(2, 3), torch.ones(3, 5)
    assert counted(lambda: a @ b) == 2 * 2 * 3 * 5


def test_a_contestant_may_know_its_operations_better():
    contestant = Contestant("a", lambda: lambda: None, operations=lambda: 7.0)
    assert operations(contestant, lambda: None) == 7


def test_the_limit_is_that_of_what_takes_longer():
    machine = Limits(matrix=100, copy=10)
    assert machine.seconds(200) == 2
    assert machine.seconds(200, moved=50) == 5
    assert math.isnan(machine.seconds(0))


def test_rates_are_measured():
    machine = limits(torch.device("cpu"), torch.get_num_threads(), "float32")
    assert machine.matrix > 1e8
    assert machine.copy > 1e8
