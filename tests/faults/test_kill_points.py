"""Kills at points that chance picks, in the graph of one process: nothing is lost, nothing is trained on twice."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from actors.renderer import Renderer
from tests.faults.graph import Graph, Kill, checked

VICTIMS = ("replay", "tasks", "weights", "rollout-0", "rollout-1", "learner", "all")


async def num_points(folder: Path, renderer: Renderer) -> int:
    graph = Graph(folder / "calm", renderer)
    await checked(graph)
    return graph.points


async def test_each_victim_dies_and_the_books_balance(folder, renderer):
    points = await num_points(folder, renderer)
    for number, victim in enumerate(VICTIMS):
        graph = Graph(folder / victim, renderer, [Kill(points // 2 + number, victim)])
        await checked(graph)
        assert len(graph.fired) == 1, f"the run ended before {victim} was to die"


def drawn(seed: int, points: int) -> list[Kill]:
    """One to four deaths at moments of a run that has about this many."""
    draw = random.Random(seed)
    when = sorted(draw.randrange(1, points) for _ in range(draw.choice((1, 1, 2, 3, 4))))
    return [Kill(point, draw.choice(VICTIMS)) for point in when]


@pytest.mark.parametrize("seed", range(8))
async def test_deaths_at_random_moments(folder, renderer, seed):
    await checked(Graph(folder, renderer, drawn(seed, 230)))


@pytest.mark.soak
@pytest.mark.timeout(7200)
async def test_a_thousand_moments(folder, renderer):
    """A run has fewer moments when it is killed early, so some deaths of a plan may not come; they are not counted."""
    first = int(os.environ.get("BRAID_SEED", "0"))
    fired: Counter[str] = Counter()
    for seed in itertools.count(first):
        graph = Graph(folder / str(seed), renderer, drawn(seed, 230))
        await checked(graph)
        fired.update(kill.victim for kill, _ in graph.fired)
        shutil.rmtree(graph.folder)
        if fired.total() >= 1000:
            break
    print(f"seeds {first} to {seed}: {fired.total()} deaths, {dict(fired)}; every audit clean")
    assert set(fired) == set(VICTIMS)
