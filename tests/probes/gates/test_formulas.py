import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import mutual_info_score

from kdx_analysis.models.gates import pathways
from kdx_analysis.probes.gates import formulas as gates

HARD = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [0, 1.0, 0]], dtype=torch.float64)


def random_paths(K: int = 6, N: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.rand(
        K, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).softmax(dim=1)


def test_use_of_known_paths() -> None:
    torch.testing.assert_close(
        gates.expert_use(HARD), torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    )
    assert gates.use_cv2(HARD).item() == pytest.approx(0.5)
    assert gates.dead_share(HARD).item() == pytest.approx(1 / 3)


def test_use_identity_with_cv2() -> None:
    paths = random_paths()
    use = gates.expert_use(paths)
    assert (1 / (use**2).sum()).item() == pytest.approx(4 / (1 + gates.use_cv2(paths).item()))


def test_specialisation_is_mutual_information() -> None:
    assert gates.specialisation(HARD).item() == pytest.approx(math.log(2) / math.log(3))
    subtask, expert = [0, 1, 2, 3], [0, 0, 1, 1]
    assert gates.specialisation(HARD).item() * math.log(3) == pytest.approx(
        mutual_info_score(subtask, expert)
    )
    assert gates.specialisation(
        torch.full((5, 3), 1 / 3, dtype=torch.float64)
    ).item() == pytest.approx(0)
    assert gates.specialisation(torch.ones(5, 1)).isnan()


def test_routing_distance_against_scipy_and_its_ends() -> None:
    paths = random_paths()
    distance = gates.routing_distance(paths)
    for a in range(6):
        for b in range(6):
            expected = jensenshannon(paths[a], paths[b], base=2) ** 2 if a != b else 0.0
            assert distance[a, b].item() == pytest.approx(expected, abs=1e-9)
    ends = gates.routing_distance(HARD)
    assert ends[0, 1] == 0
    assert ends[0, 2].item() == pytest.approx(1)


def test_nothing_depends_on_the_order_of_experts_and_tables_follow_that_of_subtasks() -> None:
    paths, experts, subtasks = (
        random_paths(),
        torch.tensor([2, 0, 3, 1]),
        torch.tensor([5, 3, 1, 0, 2, 4]),
    )
    shuffled = paths[subtasks][:, experts]
    for metric in (gates.use_cv2, gates.dead_share, gates.specialisation):
        torch.testing.assert_close(metric(shuffled), metric(paths))
    torch.testing.assert_close(
        gates.routing_distance(shuffled), gates.routing_distance(paths)[subtasks][:, subtasks]
    )


def test_functions_take_draws_in_front() -> None:
    draws = torch.stack([random_paths(seed=s) for s in range(3)])
    for metric in (gates.use_cv2, gates.dead_share, gates.specialisation, gates.routing_distance):
        torch.testing.assert_close(metric(draws)[1], metric(draws[1]))


def test_summary_leaves_out_gates_without_a_choice() -> None:
    attention = [torch.ones(2, 1, dtype=torch.float64), random_paths(3, 2), random_paths(5, 3)]
    table = gates.summarise(attention)
    assert {(of, level) for of, level, _ in table} == {
        ("gates", 3),
        ("gates", 4),
        ("pathways", 2),
        ("pathways", 3),
    }
    value, n = table["gates", 4, "entropy"]
    assert n == 5
    assert value.item() == pytest.approx(-(attention[2] * attention[2].log()).sum().item() / 5)
    below, n = table["pathways", 2, "specialisation"]
    torch.testing.assert_close(below, gates.specialisation(pathways(attention)[1]))
    assert n == 5


def test_random_gates_are_those_of_an_untrained_explainer() -> None:
    like = [torch.zeros(4, 4), torch.zeros(10, 4)]
    drawn = gates.random_logits(like, 400, torch.Generator().manual_seed(0))
    assert [d.shape for d in drawn] == [(400, 4, 4), (400, 10, 4)]
    assert drawn[1].min() >= 0
    assert drawn[1].max() < 1
    assert drawn[1].mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("n", [5, 20, 100])
def test_specialisation_of_sampled_routings_is_zero_where_nothing_is_routed(n) -> None:
    """Hard routings drawn alike for all subtasks: plug-in mutual information is above 0, the
    shuffled null takes it.
    """
    generator = torch.Generator().manual_seed(n)
    hard = torch.nn.functional.one_hot(torch.randint(4, (n, 10), generator=generator), 4).double()
    found = gates.summarise_samples(
        [torch.ones(4, 1).double(), hard], torch.arange(n) % 5, generator
    )
    value, _ = found["pathways", 2, "specialisation"]
    biased, count = found["pathways", 2, "specialisation_shuffled"]
    assert count == 10 * n
    assert abs(value) < 0.5 * biased + 0.01
    assert (value + biased).item() == pytest.approx(gates.specialisation(hard.mean(dim=0)).item())


def test_classes_that_route_apart_are_found_where_subtasks_route_alike() -> None:
    labels = torch.arange(40) % 4
    hard = torch.nn.functional.one_hot(labels, 4).double().unsqueeze(1).expand(-1, 6, -1)
    found = gates.summarise_samples(
        [torch.ones(4, 1).double(), hard], labels, torch.Generator().manual_seed(0)
    )
    assert found["pathways", 2, "specialisation"][0].item() == pytest.approx(0, abs=1e-12)
    by_class = [
        found["pathways", 2, m][0].item()
        for m in ("class_specialisation", "class_specialisation_shuffled")
    ]
    assert sum(by_class) == pytest.approx(1)
    assert by_class[1] < 0.2
    assert found["gates", 3, "entropy"][0] == 0
