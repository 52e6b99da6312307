"""The order in which READY groups are handed out."""

import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.replay.selectors import Candidate, ReadyQueue, shuffled_passes, stalest_first


def test_stalest_first_orders_by_use_then_version_then_arrival():
    queue = ReadyQueue(stalest_first)
    for name, turn, seq, oldest in [
        ("used", 1, 0, 0),
        ("young", 0, 1, 5),
        ("old", 0, 3, 4),
        ("older arrival", 0, 2, 4),
    ]:
        queue.add(Candidate(name, turn, seq, oldest))
    assert queue.first(9) == ["older arrival", "old", "young", "used"]


def test_groups_stay_until_they_are_removed_and_come_back_to_their_old_place():
    queue = ReadyQueue(stalest_first)
    candidates = [Candidate(f"g{i}", 0, i) for i in range(4)]
    for candidate in candidates:
        queue.add(candidate)
    assert queue.first(2) == queue.first(2) == ["g0", "g1"]
    queue.remove("g0")
    queue.remove("g2")
    assert (queue.first(9), len(queue)) == (["g1", "g3"], 2)
    queue.add(candidates[0])
    assert queue.first(9) == ["g0", "g1", "g3"]


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
        assert (queue.first(count), len(queue)) == (expected[:count], len(model))


def test_a_queue_does_not_grow_with_groups_that_come_and_go():
    queue = ReadyQueue(stalest_first)
    for i in range(10_000):
        queue.add(Candidate(f"g{i}", 0, i))
        queue.remove(f"g{i}")
    assert len(queue._heap) < 200
