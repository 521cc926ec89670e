import numpy as np
import pytest

from kdx_analysis.bench.timing import alternating, spread


class Clock:
    """Time that passes only where a run says so."""

    def __init__(self):
        self.now = 0.0
        self.order = []

    def __call__(self):
        return self.now

    def run(self, name, seconds):
        remaining = iter(seconds)

        def run():
            self.order.append(name)
            self.now += next(remaining)

        return run


def test_contestants_take_turns_and_the_warm_up_does_not_count():
    clock = Clock()
    runs = [clock.run("a", [9, 1, 2]), clock.run("b", [9, 3, 4]), clock.run("c", [9, 5, 6])]
    seconds = alternating(runs, 2, warm_up=1, clock=clock)
    assert seconds.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert "".join(clock.order) == "abc" + "bca" + "cab"


def test_waiting_for_the_device_is_part_of_the_time():
    clock = Clock()

    def wait():
        clock.now += 10

    seconds = alternating([clock.run("a", [1, 1])], 1, warm_up=1, wait=wait, clock=clock)
    assert seconds.tolist() == [[11]]


def test_ratios_are_taken_within_a_round():
    plain, other = np.array([10.0, 20.0, 30.0]), np.array([5.0, 4.0, 30.0])  # ratios 2, 5 and 1
    assert spread(plain, other, "speed") == pytest.approx((1.5, 2, 3.5))
    assert spread(plain, other, "cost") == pytest.approx((0.35, 0.5, 0.75))
