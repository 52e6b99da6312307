"""Samplers as orders of the task feed: a weight per prompt, and a seeded draw without repetition per round."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from actors.ledger import LedgerRow, PromptLedger
from actors.samplers.config import (
    AnySampler,
    Band,
    Buckets,
    Custom,
    Fixed,
    Mixture,
    Nearest,
    Pools,
    Priority,
    Stages,
    TransferGap,
    Uniform,
)
from actors.samplers.models import next_source, predicted_rates
from actors.task_feed import Order
from rewards.import_path import load_callable
from rewards.task import Task

Weights = npt.NDArray[np.float64]


def make_order(sampler: AnySampler, tasks: Sequence[Task], seed: int) -> Order:
    """The order a sampler gives each round: a pure function of seed, round, tasks and ledger.

    A prompt of weight 0 is never drawn; where all weigh 0 all weigh the same. Retired prompts are drawn as probes
    only, or when nothing else is left.
    """
    weigh = _weigher(sampler, tasks, seed)

    def order(ledger: PromptLedger, epoch: int) -> list[int]:
        rows = [ledger.row(task.task_id) for task in tasks]
        retired = [i for i, row in enumerate(rows) if row.retired]
        weights = weigh(rows, epoch)
        weights[retired] = 0.0
        if not weights.any():
            weights[:] = 1.0
            if len(retired) < len(rows):
                weights[retired] = 0.0
        size = sampler.round_size or int(np.count_nonzero(weights))
        rng = np.random.default_rng([seed, epoch])
        num_probes = min(len(retired), _rounded(size * sampler.reentry, rng)) if len(retired) < len(rows) else 0
        chosen = draw(weights, max(1, size - num_probes), rng)
        probes = rng.choice(retired, num_probes, replace=False).tolist() if num_probes else []
        mixed = np.array([*chosen, *probes])
        return mixed[rng.permutation(len(mixed))].tolist()

    return order


def draw(weights: Weights, num: int, rng: np.random.Generator) -> list[int]:
    """Up to `num` positions without repetition, one after another in proportion to their weights."""
    positive = np.flatnonzero(weights)
    keys = rng.exponential(size=len(positive)) / weights[positive]
    return positive[np.argsort(keys, kind="stable")[:num]].tolist()


def _rounded(value: float, rng: np.random.Generator) -> int:
    """A whole number whose mean is the value, so that a small share of a small round is not lost."""
    return math.floor(value + rng.random())


def _weigher(sampler: AnySampler, tasks: Sequence[Task], seed: int) -> Callable[[Sequence[LedgerRow], int], Weights]:
    """`(rows, epoch) -> [tasks]` non-negative weights."""
    match sampler:
        case Uniform():
            return lambda rows, epoch: np.ones(len(rows))
        case Band():
            return lambda rows, epoch: np.array([_in_band(sampler, row) for row in rows])
        case Pools():
            return lambda rows, epoch: np.array([_of_pool(sampler, row) for row in rows])
        case Priority():
            return lambda rows, epoch: np.array([_priority(sampler, row) for row in rows])
        case Buckets():
            return lambda rows, epoch: bucket_weights(sampler, rows)
        case Nearest():
            return lambda rows, epoch: _nearest(sampler, tasks, rows, np.random.default_rng([seed, epoch, 1]))
        case Mixture():
            return lambda rows, epoch: _mixture(sampler, tasks, rows)
        case Stages():
            return lambda rows, epoch: _stage_weights(sampler, tasks, rows)
        case TransferGap():
            return lambda rows, epoch: _family_weights(sampler, tasks, rows)
        case Fixed():
            return lambda rows, epoch: _fixed(sampler, tasks, rows, epoch)
        case Custom():
            function = load_callable(sampler.function, purpose="sampler")
            return lambda rows, epoch: np.asarray(function(tasks, rows, epoch, **sampler.options), np.float64)


def _in_band(sampler: Band, row: LedgerRow) -> float:
    if row.last_rate is None:
        return sampler.unseen
    return 1.0 if sampler.low <= row.last_rate <= sampler.high else sampler.outside


def _of_pool(sampler: Pools, row: LedgerRow) -> float:
    rate = row.last_rate
    if rate is None:
        return sampler.unseen
    return sampler.weights[sum(rate > threshold for threshold in sampler.thresholds)]


def _priority(sampler: Priority, row: LedgerRow) -> float:
    if row.rate is None:
        return sampler.unseen
    if sampler.by == "failure":
        return max(sampler.floor, 1.0 - row.rate)
    if sampler.by == "signal":
        return max(sampler.floor, row.rate * (1.0 - row.rate))
    return max(sampler.floor, float(np.std(row.history)) if row.history else 0.0)


def bucket_weights(sampler: Buckets, rows: Sequence[LedgerRow]) -> Weights:
    """Each occupied bucket has the density's share, spread evenly over its prompts.

    Source: ExGRPO, ElliottYan/LUFFY; retired prompts (all right) are left out by the caller.
    """
    n = sampler.group_size
    buckets = [None if row.last_rate is None else round(row.last_rate * n) for row in rows]
    sizes = Counter(buckets)
    density = {k: math.exp(-0.5 * ((k - sampler.mean * n) / sampler.spread) ** 2) for k in sizes if k is not None}
    total = sum(density.values()) or 1.0
    share = {k: value / total for k, value in density.items()}
    return np.array([(sampler.unseen if k is None else share[k]) / sizes[k] for k in buckets])


def _nearest(sampler: Nearest, tasks: Sequence[Task], rows: Sequence[LedgerRow], rng: np.random.Generator) -> Weights:
    """Of `candidates` x round prompts those whose predicted rate is nearest to the target; some others blindly.

    Source: PCL, arXiv:2510.01135.
    """
    size = min(sampler.round_size or len(tasks), len(tasks))
    open_tasks = np.array([i for i, row in enumerate(rows) if not row.retired] or range(len(rows)))
    candidates = rng.permutation(open_tasks)[: sampler.candidates * size]
    rates = predicted_rates(tasks, rows, sampler.features, sampler.ridge)
    num_blind = _rounded(sampler.random * size, rng)
    ranked = candidates[np.argsort(np.abs(rates[candidates] - sampler.target), kind="stable")]
    weights = np.zeros(len(tasks))
    weights[ranked[: max(0, size - num_blind)]] = 1.0
    weights[rng.permutation(open_tasks)[:num_blind]] = 1.0
    return weights


def _mixture(sampler: Mixture, tasks: Sequence[Task], rows: Sequence[LedgerRow]) -> Weights:
    domains = [task.tags.get(sampler.tag, "") for task in tasks]
    sizes = Counter(domains)
    weight = {domain: sampler.weights.get(domain, sampler.other) for domain in sizes}
    if sampler.by_failure:
        failures = _failures(domains, rows, sizes)
        weight = {domain: weight[domain] * failures[domain] for domain in sizes}
    return np.array([weight[domain] / sizes[domain] for domain in domains])


def _failures(domains: Sequence[str], rows: Sequence[LedgerRow], sizes: Counter[str]) -> dict[str, float]:
    """Share of wrong answers by domain; an untried one counts as failed."""
    attempts, successes = Counter[str](), Counter[str]()
    for domain, row in zip(domains, rows, strict=True):
        attempts[domain] += row.attempts
        successes[domain] += row.successes
    return {d: max(1e-3, 1.0 - successes[d] / attempts[d]) if attempts[d] else 1.0 for d in sizes}


def current_stage(sampler: Stages, tasks: Sequence[Task], rows: Sequence[LedgerRow]) -> int:
    """Position of the first stage whose gate is not passed; the last one has no gate."""
    tried: defaultdict[str, list[LedgerRow]] = defaultdict(list)
    for task, row in zip(tasks, rows, strict=True):
        if row.last_rate is not None:
            tried[task.tags.get(sampler.tag, "")].append(row)
    for position, stage in enumerate(sampler.order[:-1]):
        enough = sum(row.groups for row in tried[stage]) >= sampler.gate_groups
        if not enough or _mean_rate(tried[stage]) < sampler.gate_rate:
            return position
    return len(sampler.order) - 1


def _stage_weights(sampler: Stages, tasks: Sequence[Task], rows: Sequence[LedgerRow]) -> Weights:
    now = current_stage(sampler, tasks, rows)
    place = {stage: i for i, stage in enumerate(sampler.order)}
    stages = np.array([place.get(task.tags.get(sampler.tag, ""), -1) for task in tasks])
    current, earlier = stages == now, (stages >= 0) & (stages < now)
    weights = current / max(1, np.count_nonzero(current))
    if earlier.any():
        weights = weights * (1 - sampler.keep_earlier) + earlier * sampler.keep_earlier / np.count_nonzero(earlier)
    return weights.astype(np.float64)


def _family_weights(sampler: TransferGap, tasks: Sequence[Task], rows: Sequence[LedgerRow]) -> Weights:
    """All weight on one family: the one being trained, or the next when it has had its groups.

    A family counts as trained when it had its groups; its rate is what its prompts reached.
    """
    families = np.array([float(task.tags[sampler.tag]) for task in tasks])
    points = np.unique(families)
    groups = np.array([sum(rows[i].groups for i in np.flatnonzero(families == x).tolist()) for x in points])
    begun = np.flatnonzero((groups > 0) & (groups < sampler.groups_per_source))
    if len(begun):
        return (families == points[begun[0]]).astype(np.float64)
    trained = np.flatnonzero(groups >= sampler.groups_per_source)
    rates = [_mean_rate([rows[i] for i in np.flatnonzero(families == points[j]).tolist()]) for j in trained]
    chosen = next_source(
        points,
        trained.tolist(),
        rates,
        slope=sampler.slope,
        exploration=sampler.exploration,
        noise=sampler.noise,
        length_scale=sampler.length_scale,
    )
    return np.ones(len(tasks)) if chosen is None else (families == points[chosen]).astype(np.float64)


def _mean_rate(rows: Sequence[LedgerRow]) -> float:
    rates = [row.last_rate for row in rows if row.last_rate is not None]
    return sum(rates) / len(rates) if rates else 0.0


def _fixed(sampler: Fixed, tasks: Sequence[Task], rows: Sequence[LedgerRow], epoch: int) -> Weights:
    """Named prompts, or after the exploration those whose rates moved most (1-shot RLVR)."""
    if epoch < sampler.explore_rounds:
        return np.ones(len(tasks))
    weights = np.zeros(len(tasks))
    if sampler.prompts:
        wanted = set(sampler.prompts)
        weights[[i for i, task in enumerate(tasks) if task.task_id in wanted]] = 1.0
        return weights
    moved = [-float(np.std(row.history)) if row.history else 0.0 for row in rows]
    weights[np.argsort(moved, kind="stable")[: sampler.count]] = 1.0
    return weights
