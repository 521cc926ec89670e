"""What every null says, and that one room says it."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import kdx_analysis
from kdx_analysis import null

PACKAGE = Path(kdx_analysis.__file__).parent
ELSEWHERE = {  # what is neither the range of a null nor a p-value of one
    "runs/statistics/paired.py": "tests over seeds",
    "runs/statistics/pvalues.py": "tests over seeds",
}


@pytest.mark.parametrize("draws", [39, 49, 99, 199, 999])
def test_a_fresh_draw_lies_in_the_range_with_95_per_cent(draws: int) -> None:
    """Uniform draws: exactly, whatever their number; a sample's quantiles would hold 91.3 % at 49."""
    uniform = np.random.default_rng(0).random((1 + draws, 40_000 if draws < 200 else 20_000))
    beside = null.beside(uniform[1:])
    inside = (beside["null_low"] <= uniform[0]) & (uniform[0] <= beside["null_high"])
    assert inside.mean() == pytest.approx(0.95, abs=0.006)
    p = null.p_value(uniform[0], uniform[1:], "greater")
    for level in (0.05, 0.25, 0.5):
        assert (p <= level + 1e-12).mean() <= level + 0.01
    whole = 0.05 * (1 + draws)
    if math.isclose(whole, round(whole)):
        assert (p <= 0.05 + 1e-12).mean() == pytest.approx(0.05, abs=0.006)


def test_the_range_is_of_order_statistics() -> None:
    assert null.beside_one(np.arange(199, 0, -1)) == {
        "null_mean": 100,
        "null_low": 5,
        "null_high": 195,
        "null_undefined": 0,
    }
    draws = np.random.default_rng(0).normal(size=(57, 3))
    expected = np.quantile(draws, [0.025, 0.975], axis=0, method="weibull")
    np.testing.assert_allclose(
        [null.beside(draws)[end] for end in ("null_low", "null_high")], expected
    )


def test_undefined_draws_are_left_out_column_by_column_and_too_few_make_no_range() -> None:
    draws = np.tile(np.arange(1.0, 41), (4, 1)).T
    draws[0, 1:], draws[1, 2], draws[:, 3] = np.nan, np.nan, np.nan
    beside = null.beside(draws)
    np.testing.assert_array_equal(beside["null_undefined"], [0, 1, 2, 40])
    np.testing.assert_allclose(beside["null_mean"], [20.5, 21, 21.5, np.nan])
    np.testing.assert_allclose(beside["null_low"], [1.025, 2, np.nan, np.nan])
    np.testing.assert_allclose(beside["null_high"], [39.975, 40, np.nan, np.nan])


@pytest.mark.parametrize("shape", [(0,), (0, 3)])
def test_no_draws_at_all_are_no_error(shape: tuple[int, ...]) -> None:
    beside = null.beside(np.empty(shape))
    assert all(np.isnan(beside[name]).all() for name in ("null_mean", "null_low", "null_high"))
    assert (beside["null_undefined"] == 0).all()
    assert (null.p_value(np.zeros(shape[1:]), np.empty(shape), "less") == 1).all()


def test_a_null_that_is_constant_or_infinite_keeps_its_ends() -> None:
    """A value equal to all of its draws lies among them: no rounding of an interpolation leaves it
    out.
    """
    constant = np.full(49, 0.1 + 0.2)
    beside = null.beside_one(constant)
    assert beside["null_low"] == constant[0] == beside["null_high"]
    infinite = np.append(np.full(3, -np.inf), np.arange(46.0))
    assert null.beside_one(infinite)["null_low"] == -np.inf
    assert null.beside_one(infinite)["null_high"] == pytest.approx(44.75)


def test_p_by_hand() -> None:
    draws = [[0.0, 0.6, 0.0], [0.1, 0.7, 0.0], [0.2, np.nan, 0.0]]
    p = null.p_value([0.1, 0.5, np.nan], draws, "less")
    np.testing.assert_allclose(p, [3 / 4, 2 / 4, np.nan])
    np.testing.assert_allclose(
        null.p_value([0.1, 0.65, np.nan], draws, "greater"), [3 / 4, 3 / 4, np.nan]
    )


def test_ties_up_to_rounding_count_at_any_scale() -> None:
    """Sums of the same terms in another order; draws that differ by a millionth do not."""
    rng = np.random.default_rng(0)
    terms = rng.normal(size=4950)
    value = np.cumsum(terms)[-1]
    draws = np.array([np.cumsum(rng.permutation(terms))[-1] for _ in range(99)])
    assert len(np.unique(draws)) > 1
    for scale in (1e-12, 1.0, 1e12):
        for side in ("greater", "less"):
            assert null.p_value(scale * value, scale * draws, side) == 1
        apart = 1e-6 * abs(value)
        assert null.p_value(scale * (value + apart), scale * draws, "greater") == 0.01
        assert null.p_value(scale * (value - apart), scale * draws, "less") == 0.01


def test_no_range_is_said() -> None:
    assert null.shown(0.123, 0.456) == "null 0.12 to 0.46"
    assert null.shown(math.nan, math.nan) == "no range below 39 draws"
    assert (
        null.legend([0.1, math.nan])
        == "grey: 95 % of its null, where it has a range (from 39 draws)"
    )


def sources() -> dict[str, ast.Module]:
    """Every module of the package but the one of nulls and those that compute something else, by
    its path.
    """
    paths = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
    assert set(ELSEWHERE) | {"null.py"} <= set(paths)
    return {
        name: ast.parse(path.read_text())
        for name, path in paths.items()
        if name not in {*ELSEWHERE, "null.py"}
    }


def takes_a_null_range(tree: ast.AST) -> bool:
    """Whether .025 or .975 stands anywhere, or 2.5 or 97.5 in a call that takes percentiles."""
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and "percentile" in ast.unparse(node.func)
    ]
    return bool(numbers_in(tree) & {0.025, 0.975}) or any(
        numbers_in(call) & {2.5, 97.5} for call in calls
    )


def numbers_in(tree: ast.AST) -> set[float]:
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and type(node.value) is float
    }


def adds_one_to_a_count(node: ast.AST) -> bool:
    """1 + … or … + 1 over a count of comparisons: a sum, count_nonzero or mean of what holds a
    comparison.
    """
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)):
        return False
    one, counted = (
        (node.left, node.right) if isinstance(node.left, ast.Constant) else (node.right, node.left)
    )
    if not (isinstance(one, ast.Constant) and one.value == 1):
        return False
    calls = [call for call in ast.walk(counted) if isinstance(call, ast.Call)]
    names = {ast.unparse(call.func).rpartition(".")[2] for call in calls}
    return bool(names & {"sum", "count_nonzero"}) and any(
        isinstance(part, ast.Compare) for part in ast.walk(counted)
    )


def is_p_formula(node: ast.AST) -> bool:
    """(1 + …)/(1 + …), whatever is counted."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)):
        return False
    sides = [
        re.sub(r"^(float|int)\((.*)\)$", r"\2", ast.unparse(side))
        for side in (node.left, node.right)
    ]
    return all(re.match(r"\(?1 \+ |.* \+ 1\)?$", side) for side in sides) and "len(" in sides[1]


def test_one_room_computes_ranges_and_p_values() -> None:
    for name, tree in sources().items():
        assert not takes_a_null_range(tree), (
            f"{name} holds .025 or .975; ranges of nulls are those of null.beside"
        )
        for node in ast.walk(tree):
            where = f"{name}:{getattr(node, 'lineno', 0)}"
            assert not adds_one_to_a_count(node), (
                f"{where} counts draws; p-values are those of null.p_value"
            )
            assert not is_p_formula(node), (
                f"{where} divides by 1 + R; p-values are those of null.p_value"
            )


@pytest.mark.parametrize(
    "line",
    [
        "low, high = np.quantile(null, [0.025, 0.975])",
        "low = torch.nanquantile(null, torch.tensor([0.025]))",
        "low = np.percentile(null, 2.5)",
        "p = (1 + (null >= own - 1e-12).sum()) / (1 + len(null))",
        "p = ((null >= own).sum() + 1) / (len(null) + 1)",
        "p = (1 + int(np.count_nonzero(null <= own))) / total",
        "p = (1 + above) / (1 + len(orders))",
    ],
)
def test_what_was_copied_before_would_be_seen(line: str) -> None:
    tree = ast.parse(line)
    seen = [adds_one_to_a_count(node) or is_p_formula(node) for node in ast.walk(tree)]
    assert takes_a_null_range(tree) or any(seen)


def test_one_outlier_or_a_tensor_of_any_kind_changes_no_p():
    draws = np.concatenate([np.linspace(1, 2, 999) * 1e-3, [1e9]])
    assert null.p_value(1.99e-3, draws, "greater") == pytest.approx((1 + 11) / 1001, abs=2e-3)
    value = torch.tensor([0.1], requires_grad=True)
    table = torch.tensor([[0.1], [0.2], [0.05]], dtype=torch.bfloat16)
    assert null.p_value(value, table, "greater").shape == (1,)
    assert null.beside(torch.arange(1.0, 40.0).requires_grad_())["null_low"] == 1
