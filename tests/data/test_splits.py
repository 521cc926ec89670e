import torch

from kdx_analysis.data.splits import stratified_indices, take_per_class

LABELS = torch.tensor([0] * 20 + [1] * 10 + [2] * 2 + [3])[
    torch.randperm(33, generator=torch.Generator().manual_seed(5))
]


def test_held_out_counts_per_class_by_hand():
    _, held = stratified_indices(LABELS, 0.2, seed=0)
    assert LABELS[held].bincount(minlength=4).tolist() == [4, 2, 1, 0]


def test_a_large_fraction_leaves_one_of_each_class():
    rest, _ = stratified_indices(LABELS, 0.99, seed=0)
    assert LABELS[rest].bincount(minlength=4).tolist() == [1, 1, 1, 1]


def test_rest_and_held_out_partition_the_samples_in_order():
    rest, held = stratified_indices(LABELS, 0.3, seed=1)
    assert torch.cat([rest, held]).sort().values.tolist() == list(range(33))
    assert rest.equal(rest.sort().values)
    assert held.equal(held.sort().values)


def test_the_seed_alone_decides_and_global_state_stays():
    state = torch.get_rng_state()
    first = stratified_indices(LABELS, 0.3, seed=1)[1]
    torch.rand(3)
    assert first.equal(stratified_indices(LABELS, 0.3, seed=1)[1])
    assert not first.equal(stratified_indices(LABELS, 0.3, seed=2)[1])
    torch.set_rng_state(state)
    take_per_class(LABELS, 3, seed=1)
    assert state.equal(torch.get_rng_state())


def test_take_per_class_takes_what_is_there():
    taken = take_per_class(LABELS, 5, seed=0)
    assert LABELS[taken].bincount().tolist() == [5, 5, 2, 1]
    assert len(taken.unique()) == len(taken)


def test_relabelling_in_the_same_order_changes_nothing():
    assert take_per_class(LABELS, 2, seed=0).equal(take_per_class(LABELS * 7 + 3, 2, seed=0))


def test_no_sample_gives_no_index():
    empty = torch.empty(0, dtype=torch.int64)
    assert [len(part) for part in stratified_indices(empty, 0.5, seed=0)] == [0, 0]
