"""Search over segments of an answer: the tree, where it goes on, which end counts, and what that says of the way there.

Pure but for the tree itself, which grows. Values belong to the rules below alone; nothing here samples or judges.

Source of all rules: DeepSearch, smiles724/DeepSearch, deepsearch/utils/mcts.py and round0.sh.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from actors.search.config import SearchConfig

End = Literal["correct", "wrong", "incomplete"]
RANK: dict[End, int] = {"correct": 2, "wrong": 1, "incomplete": 0}


@dataclass(slots=True)
class Node:
    """One segment of an answer behind its parent's.

    Attributes:
        tokens, logprobs: of the segment alone, as sampled; of the root none.
        end: how the answer stands after it; None while it goes on.
        value: what ends below say of it, in [-1, 1] times the sum of their weights; 0 before any.
        visits: ends that were backed up through it.
    """

    parent: Node | None
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    end: End | None = None
    value: float = 0.0
    visits: int = 0
    children: list[Node] = field(default_factory=list)

    @property
    def depth(self) -> int:
        return len(self.path) - 1

    @property
    def path(self) -> list[Node]:
        """From the root to this node."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    @property
    def mean_value(self) -> float:
        return self.value / self.visits if self.visits else 0.0

    @property
    def confidence(self) -> float:
        """Mean log-prob of the answer's tokens up to here, nats per token."""
        logprobs = [value for node in self.path for value in node.logprobs]
        return sum(logprobs) / len(logprobs) if logprobs else 0.0

    @property
    def entropy(self) -> float:
        """Mean surprise of the segment's own tokens, nats: what their entropy is on average."""
        return -sum(self.logprobs) / len(self.logprobs) if self.logprobs else 0.0


def add_child(parent: Node, tokens: Sequence[int], logprobs: Sequence[float], end: End | None) -> Node:
    """A further segment behind `parent`.

    Raises:
        ValueError: the answer was over there already.
    """
    if parent.end is not None:
        raise ValueError(f"a segment behind an answer that is {parent.end} would belong to no answer")
    child = Node(parent, tuple(tokens), tuple(logprobs), end)
    parent.children.append(child)
    return child


def nodes_below(root: Node) -> list[Node]:
    """All nodes, parents before their children, the root first."""
    found = [root]
    for node in found:
        found += node.children
    return found


def descend(root: Node, config: SearchConfig) -> Node | None:
    """The node a search goes on from while no answer has ended: by value and curiosity, from the root downwards.

    score(child) = Q + curiosity * sqrt(ln N_parent / N_child), Q the mean value; a child nobody visited has no bonus.
    Ties go to the older child. None when every way ends.
    """
    node = root
    while node.children and len(node.children) >= config.width:
        open_children = [child for child in node.children if child.end is None and child.depth < config.max_depth]
        if not open_children:
            return None
        node = max(open_children, key=lambda child: local_score(child, config))
    return node


def local_score(child: Node, config: SearchConfig) -> float:
    """Value and curiosity of a child beside its siblings."""
    parent = child.parent
    if parent is None or child.visits == 0 or parent.visits == 0:
        return child.mean_value
    return child.mean_value + config.curiosity * math.sqrt(math.log(parent.visits) / child.visits)


def frontier(root: Node, config: SearchConfig) -> list[Node]:
    """Nodes a search can go on from once an answer has ended: not over, not full, not too deep, not the root."""
    return [
        node
        for node in nodes_below(root)
        if node is not root and node.end is None and len(node.children) < config.width and node.depth < config.max_depth
    ]


def frontier_score(node: Node, config: SearchConfig) -> float:
    """a tanh(Q of the parent) + b sqrt(depth / max_depth) + e * entropy of the segment + q tanh(own Q)."""
    parent = node.parent.mean_value if node.parent is not None else 0.0
    score = config.parent_weight * math.tanh(parent)
    score += config.depth_weight * math.sqrt(node.depth / config.max_depth)
    return score + config.entropy_weight * node.entropy + config.own_weight * math.tanh(node.mean_value)


def next_node(root: Node, config: SearchConfig) -> Node | None:
    """Where the search goes on: down from the root before the first end, at the best of the whole frontier after it."""
    has_ended = any(node.end is not None for node in nodes_below(root))
    if not has_ended:
        return descend(root, config)
    open_nodes = frontier(root, config)
    if open_nodes:
        return max(open_nodes, key=lambda node: frontier_score(node, config))
    return root if len(root.children) < config.width else None


def chosen_end(ends: Sequence[Node]) -> Node | None:
    """The one end that is backed up: correct before wrong before incomplete; among equals the most confident."""
    known = [node for node in ends if node.end is not None]
    return max(known, key=lambda node: (RANK[node.end or "incomplete"], node.confidence)) if known else None


def back_up(end: Node, config: SearchConfig) -> None:
    """What an end says of every node on its way: +-1 times max((d + 1) / (D + 1), floor), d the depth, D the end's.

    The same sign adds; a positive replaces a negative value; a negative never lowers a positive one. Every node on the
    way was visited once more.

    Raises:
        ValueError: the answer is not over there.
    """
    if end.end is None:
        raise ValueError("only an end can be backed up")
    sign = 1.0 if end.end == "correct" else -1.0
    for depth, node in enumerate(end.path):
        said = sign * max((depth + 1) / (end.depth + 1), config.weight_floor)
        if said > 0 and node.value < 0:
            node.value = said
        elif said > 0 or node.value <= 0:
            node.value += said
        node.visits += 1


def segment_rewards(end: Node) -> list[float]:
    """Reward of each segment on the way to an end: tanh of inner values, the end's own as +-1; the root left out."""
    inner = [math.tanh(node.value) for node in end.path[1:-1]]
    return [*inner, 1.0 if end.end == "correct" else -1.0]


def cached(solutions: Sequence[Node], num_correct: int, num_ends: int, *, high: float = 0.25) -> list[Node]:
    """Correct ends worth keeping: those of a prompt some, but at most a share `high`, of whose ends are correct."""
    is_hard = 0 < num_correct <= high * num_ends
    return [node for node in solutions if node.end == "correct"] if is_hard else []
