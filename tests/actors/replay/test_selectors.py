"""The order in which READY groups are handed out."""

import math
import subprocess
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.replay.config import TableConfig
from actors.replay.selectors import Candidate, ReadyQueue, Selector, make_selector, shuffled_passes, stalest_first
from actors.replay.sum_tree import SumTree


def order(selector: Selector, count: int, draw: int = 0) -> list[str]:
    return [group_id for _, group_id in selector.heads(count, draw)]


def test_stalest_first_orders_by_use_then_version_then_arrival():
    queue = ReadyQueue(stalest_first)
    for name, turn, seq, oldest in [
        ("used", 1, 0, 0),
        ("young", 0, 1, 5),
        ("old", 0, 3, 4),
        ("older arrival", 0, 2, 4),
    ]:
        queue.add(Candidate(name, turn, seq, oldest))
    assert order(queue, 9) == ["older arrival", "old", "young", "used"]


def test_groups_stay_until_they_are_removed_and_come_back_to_their_old_place():
    queue = ReadyQueue(stalest_first)
    candidates = [Candidate(f"g{i}", 0, i) for i in range(4)]
    for candidate in candidates:
        queue.add(candidate)
    assert order(queue, 2) == order(queue, 2) == ["g0", "g1"]
    queue.remove("g0")
    queue.remove("g2")
    assert (order(queue, 9), len(queue)) == (["g1", "g3"], 2)
    queue.add(candidates[0])
    assert order(queue, 9) == ["g0", "g1", "g3"]


def test_passes_hold_every_group_once_in_orders_of_their_own():
    rank = shuffled_passes(3, "expert")
    names = [f"e{i}" for i in range(20)]
    orders = [sorted(names, key=lambda name, t=turn: rank(Candidate(name, t, 0))) for turn in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    assert rank(Candidate("e0", 1, 0)) > max(rank(Candidate(name, 0, 0)) for name in names)
    other_seed = sorted(names, key=lambda name: shuffled_passes(4, "expert")(Candidate(name, 0, 0)))
    other_source = sorted(names, key=lambda name: shuffled_passes(3, "teacher")(Candidate(name, 0, 0)))
    assert len({tuple(orders[0]), tuple(other_seed), tuple(other_source)}) == 3


def test_passes_do_not_depend_on_arrival_or_on_the_process():
    rank = shuffled_passes(3, "expert")
    assert rank(Candidate("e0", 2, 0)) == rank(Candidate("e0", 2, 99))
    code = "from actors.replay.selectors import *; print(shuffled_passes(3, 'expert')(Candidate('e0', 2, 0)))"
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert elsewhere.stdout.strip() == str(rank(Candidate("e0", 2, 0)))


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 15)), max_size=300), st.integers(0, 5))
def test_a_queue_is_a_sorted_list(operations, count):
    queue, model = ReadyQueue(stalest_first), {}
    for adds, number in operations:
        name = f"g{number}"
        if adds and name not in model:
            model[name] = Candidate(name, number % 2, number)
            queue.add(model[name])
        elif not adds and name in model:
            del model[name]
            queue.remove(name)
        expected = sorted(model, key=lambda n: stalest_first(model[n]))
        assert (order(queue, count), len(queue)) == (expected[:count], len(model))


def test_a_queue_does_not_grow_with_groups_that_come_and_go():
    queue = ReadyQueue(stalest_first)
    for i in range(10_000):
        queue.add(Candidate(f"g{i}", 0, i))
        queue.remove(f"g{i}")
    assert len(queue._heap) < 200


def pool(shard: str, weights: dict[str, float], exponent: float = 1.0) -> Selector:
    table = TableConfig(order="prioritised", priority_exponent=exponent)
    selector = make_selector(table, f"own_past{shard}", seed=0)
    for seq, (name, weight) in enumerate(weights.items()):
        selector.add(Candidate(name, 0, seq, priority=weight))
    return selector


def test_fifo_lifo_and_uniform_tables_pick_as_their_names_say():
    picks = {}
    for name in ("fifo", "lifo", "uniform"):
        selector = make_selector(TableConfig(order=name), "own_past", seed=0)
        for seq in range(40):
            selector.add(Candidate(f"g{seq:02}", 0, seq, priority=float(seq == 7)))
        selector.remove("g00")
        selector.remove("g39")
        picks[name] = [order(selector, 3, draw) for draw in range(400)]
    assert picks["fifo"] == [["g01", "g02", "g03"]] * 400
    assert picks["lifo"] == [["g38", "g37", "g36"]] * 400
    counts = np.unique([pick[0] for pick in picks["uniform"]], return_counts=True)[1]
    assert len(counts) == 38
    assert counts.max() < 30
    assert all(len(set(pick)) == 3 for pick in picks["uniform"])


def test_prioritised_draws_follow_priority_and_exponent_and_survive_a_split_into_shards():
    weights = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    whole = pool("", weights)
    halves = [pool("#0", {"a": 1.0, "d": 4.0}), pool("#1", {"b": 2.0, "c": 3.0})]
    num = 8000
    pairs = {name: np.zeros((2, 4)) for name in ("whole", "halves", "squared")}
    squared = pool("", weights, exponent=2.0)
    for draw in range(num):
        merged = sorted(head for half in halves for head in half.heads(2, draw))[:2]
        for name, chosen in (
            ("whole", order(whole, 2, draw)),
            ("halves", [group_id for _, group_id in merged]),
            ("squared", order(squared, 2, draw)),
        ):
            for place, group_id in enumerate(chosen):
                pairs[name][place, "abcd".index(group_id)] += 1 / num
    first = np.array([1, 2, 3, 4]) / 10
    second = np.array([sum(p * q / (1 - p) for j, p in enumerate(first) if j != i) for i, q in enumerate(first)])
    for name in ("whole", "halves"):  # standard deviation of a share: 0.0055
        np.testing.assert_allclose(pairs[name], [first, second], atol=0.025)
    np.testing.assert_allclose(pairs["squared"][0], np.array([1, 4, 9, 16]) / 30, atol=0.025)


def test_a_late_weight_update_does_not_reach_the_next_tenant_of_a_slot():
    """Priorities addressed by slot alone once changed whatever group had been stored there since (ray 6534)."""
    tree = SumTree()
    old = tree.insert(1.0)
    assert tree.remove(old)
    new = tree.insert(5.0)
    assert (new.slot, new.generation) == (old.slot, old.generation + 1)
    assert not tree.update(old, 100.0)
    assert not tree.remove(old)
    assert (tree.weight(old), tree.weight(new), tree.total) == (None, 5.0, 5.0)


def test_the_sum_of_a_tree_does_not_drift_and_no_empty_slot_is_found():
    rng = np.random.default_rng(0)
    tree, handles = SumTree(capacity=2), []
    for _ in range(5000):
        if handles and rng.random() < 0.4:
            tree.remove(handles.pop(int(rng.integers(len(handles)))))
        else:
            handles.append(tree.insert(float(rng.choice([1e-12, 0.1, 1e9]))))
    weights = {handle.slot: tree.weight(handle) for handle in handles}
    assert len(tree) == len(handles)
    assert abs(tree.total - math.fsum(w or 0.0 for w in weights.values())) <= 1e-12 * tree.total
    assert all(tree.find(u * tree.total) in weights for u in [0.0, *rng.random(500), 1 - 1e-16])
    for handle in handles:
        tree.remove(handle)
    assert (tree.total, len(tree)) == (0.0, 0)
