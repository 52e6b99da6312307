"""Every metric's name, unit, reduction and meaning in one table, and the sink protocol. Standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal, Protocol

Reduction = Literal["last", "mean", "max", "sum", "total"]
"""How values of several reporters or moments become one.

last, mean, max: of a state that is true at the moment of the report.
sum: amounts since the previous report, which add up.
total: a reporter's running count since it started; the newest value of each reporter, added."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number the system reports.

    Attributes:
        unit: of the value; `1` for pure numbers.
        reduction: see `Reduction`.
        meaning: one sentence a person reading a dashboard understands.
    """

    unit: str
    reduction: Reduction
    meaning: str

    @property
    def is_count(self) -> bool:
        """Only ever grows, apart from restarts."""
        return self.reduction in ("sum", "total")


class UnknownMetricError(KeyError):
    """A metric is reported that the table does not know."""

    def __str__(self) -> str:
        return str(self.args[0])


METRICS: dict[str, Metric] = {
    # -- run: what the recorder adds
    "wall_s": Metric("s", "last", "Training wall clock, first ticket to last commit, over all starts of the run."),
    "resumed_step": Metric("steps", "last", "A resumed run went back to this step; later rows before it are void."),
    "dropped_reports": Metric("reports", "sum", "Reports a tracking sink was too slow to take."),
    # -- learner
    "step": Metric("steps", "last", "Committed optimizer steps."),
    "loss": Metric("1", "last", "Sum of the weighted terms of the last step."),
    "grad_norm": Metric("1", "last", "Global gradient norm before clipping."),
    "learning_rate": Metric("1", "last", "Learning rate of the last step."),
    "skipped_steps": Metric("steps", "sum", "Steps without an update because loss or gradient was not finite."),
    "reward_mean": Metric("reward", "mean", "Mean score of the scored live samples of a batch."),
    "answer_tokens_mean": Metric("tokens", "mean", "Mean length of the live answers of a batch."),
    "policy_age_mean": Metric("steps", "mean", "Mean age of live groups when they were handed out."),
    "policy_age_max": Metric("steps", "max", "Oldest live group handed out in a batch."),
    "policy_age/*": Metric("groups", "sum", "Live groups handed out at this age in committed steps."),
    "age_violations": Metric("groups", "sum", "Groups handed out above max_age; must stay 0."),
    "shortfall_groups": Metric("groups", "sum", "Groups another source filled in for one that ran short."),
    "lease_wait_s": Metric("s", "sum", "Time the learner waited for a batch."),
    "train_s": Metric("s", "sum", "Time of optimizer steps on all ranks, commit included."),
    "publish_s": Metric("s", "sum", "Time the learner stood still to copy its weights for a new version."),
    "publish_write_s": Metric("s", "sum", "Time to write and announce a version, beside the steps."),
    "checkpoint_s": Metric("s", "sum", "Time the learner stood still to copy its state for a checkpoint."),
    "checkpoint_write_s": Metric("s", "sum", "Time to make a checkpoint durable, beside the steps."),
    "trained_tokens": Metric("tokens", "sum", "Tokens that entered a loss term."),
    "computed_tokens": Metric("tokens", "sum", "Tokens the model computed; shared prompts count once."),
    "model_flop": Metric("FLOP", "sum", "Arithmetic of the weights on those tokens; without attention."),
    "train_phase/*_s": Metric("s", "sum", "Time of one phase of the optimizer step on rank 0."),
    "resets": Metric("1", "sum", "Steps that began with a reset of reference or optimizer."),
    "term/*/loss": Metric("1", "last", "Value of this term before its weight."),
    "term/*/weight": Metric("1", "last", "Weight of this term at this step."),
    "term/*/num_tokens": Metric("tokens", "sum", "Tokens this term is normalised by."),
    "term/*/num_sequences": Metric("sequences", "sum", "Sequences with at least one token in this term."),
    "term/*/clip_fraction": Metric("share", "last", "Tokens without gradient because their ratio left its bounds."),
    "term/*/target_kl_mean": Metric(
        "nats", "last", "KL from the target to the policy, of sequences, weighted by tokens (GDC, f-DPG)."
    ),
    "term/*/protected_fraction": Metric("share", "last", "Unlikely tokens kept from being pushed down (Lp-Reg)."),
    "term/*/ratio_mean": Metric("1", "last", "Mean importance ratio, learner over sampling policy; near 1."),
    "term/*/effective_sample_fraction": Metric("share", "last", "Share of tokens the weighted ones are worth."),
    "term/*/chi2": Metric("1", "last", "Mean squared importance ratio minus 1."),
    "term/*/mismatch_mean": Metric("nats", "last", "Mean distance of learner and sampling log-probs."),
    "term/*/mismatch_max": Metric("nats", "max", "Largest distance of learner and sampling log-probs."),
    "term/*/kl_mean": Metric("nats", "last", "Mean KL estimate to the frozen reference."),
    "term/*/entropy_mean": Metric("nats", "last", "Mean entropy of the policy at this term's tokens."),
    "term/*/nll_mean": Metric("nats", "last", "Mean negative log-likelihood of this term's tokens, unweighted."),
    "term/*/token_weight_mean": Metric("1", "last", "Mean weight imitation gave its tokens."),
    "term/critic/value_loss": Metric(
        "1", "last", "Distance of the critic's values from their targets, as it learns it."
    ),
    "term/critic/feature_penalty": Metric("1", "last", "BEER's bound on successive features, before its weight."),
    "term/critic/grad_norm": Metric("1", "last", "Norm of the critic's gradient before clipping."),
    "term/critic/explained_variance": Metric("share", "last", "Variance of the targets that the critic foresaw."),
    "term/critic/target_mean": Metric("1", "mean", "Mean target of the critic."),
    "term/critic/value_mean": Metric("1", "mean", "Mean value the critic gave, before it learnt."),
    # -- rollout workers
    "policy_version": Metric("1", "last", "Policy version this engine runs; -1 before its first."),
    "running": Metric("requests", "last", "Requests being decoded."),
    "waiting": Metric("requests", "last", "Requests waiting for a place in the engine."),
    "prompt_tokens": Metric("tokens", "total", "Prompt tokens given to the engine."),
    "generated_tokens": Metric("tokens", "total", "Tokens sampled by the engine."),
    "busy_s": Metric("s", "total", "Time the engine had requests, pauses for new weights included."),
    "generate_s": Metric("s", "total", "Time groups spent in the engine, added over concurrent groups."),
    "score_s": Metric("s", "total", "Time groups waited for their verdicts, added over concurrent groups."),
    "ticket_wait_s": Metric("s", "total", "Time without permission to sample, added over concurrent groups."),
    "weights_wait_s": Metric("s", "total", "Time tickets waited for weights young enough for them."),
    "activate_s": Metric("s", "total", "Time spent activating new versions."),
    "groups_stored": Metric("groups", "total", "Groups put into the replay cache."),
    "contexts_too_long": Metric("groups", "total", "Groups asked plainly because no answer fits behind their help."),
    "groups_searched": Metric("groups", "total", "Groups whose answers were found by a search over segments."),
    "groups_refused_*": Metric("groups", "total", "Groups the replay cache refused from this worker, by reason."),
    "groups_dropped_*": Metric("groups", "total", "Groups a rule of the recipe dropped, by reason."),
    # -- replay cache: its counts survive restarts, so the newest value is the run's
    "steps_committed": Metric("steps", "last", "Steps of the surviving history."),
    "steps_sealed": Metric("steps", "last", "Steps a durable checkpoint covers."),
    "lease_epoch": Metric("1", "last", "Incarnation of the leases; commits of older ones are refused."),
    "groups_accepted": Metric("groups", "last", "Groups taken into the cache."),
    "groups_refused": Metric("groups", "last", "Groups the cache refused."),
    "groups_adopted": Metric("groups", "last", "Groups known from a checkpoint's manifest only."),
    "tickets_issued": Metric("tickets", "last", "Rights to sample given out."),
    "tickets_outstanding": Metric("tickets", "last", "Rights to sample that have not come back."),
    "replay_shards": Metric("processes", "last", "Shards of the replay cache; absent where it is one process."),
    "waiting_for_ticket": Metric("callers", "last", "Fill loops of rollout workers that wait for a ticket."),
    "leases": Metric("leases", "last", "Leases handed out: batches by the cache, tasks by the feed."),
    "rollbacks": Metric("1", "last", "Returns to the history of a checkpoint."),
    "held_bytes": Metric("bytes", "last", "Packed groups the cache keeps, in memory or on disk."),
    "memory_bytes": Metric("bytes", "last", "Packed groups in the cache's memory."),
    "groups_on_disk_only": Metric("groups", "last", "Groups whose packed block left memory."),
    "blocks_spilled": Metric("groups", "last", "Packed blocks that left memory since this cache began."),
    "blocks_fetched": Metric("groups", "last", "Packed blocks read back from disk since this cache began."),
    "groups/*": Metric("groups", "last", "Accepted groups by state and source."),
    "dropped/*": Metric("groups", "last", "Refused and evicted groups by source, reason and length."),
    "tickets/*": Metric("tickets", "last", "Returned tickets by what became of them."),
    "leased_age/*": Metric("groups", "last", "Live groups handed out at this age, over all leases."),
    "passes/*": Metric("1", "last", "How often this frozen source was gone through."),
    "calls/*": Metric("calls", "last", "Repeated, late and refused calls since this cache began."),
    # -- task feed
    "epoch": Metric("1", "last", "Passes over the tasks."),
    "stream_position": Metric("tasks", "last", "Place in the stream of tasks."),
    "tasks_leased": Metric("tasks", "last", "Tasks being worked on."),
    "tasks_waiting": Metric("tasks", "last", "Tasks that came back and are handed out again."),
    "leases_lapsed": Metric("leases", "last", "Task leases whose holder fell silent."),
    "outcomes": Metric("groups", "last", "Finished tasks counted in the prompt ledger."),
    "outcomes_late": Metric("groups", "last", "Outcomes of leases that had lapsed."),
    "outcomes_repeated": Metric("groups", "last", "Outcomes that were told twice."),
    "prompts_tried": Metric("prompts", "last", "Prompts with at least one outcome."),
    "prompts_solved": Metric("prompts", "last", "Prompts answered right at least once."),
    "prompts_retired": Metric("prompts", "last", "Prompts that are drawn no more, apart from re-entry probes."),
    "forks": Metric("tasks", "last", "Tasks that rules made from others."),
    "forks_forgotten": Metric("tasks", "last", "Forked tasks that waited behind too many newer ones."),
    "answers_stashed": Metric("samples", "last", "Answers kept as donors of later groups of their prompt."),
    # -- reward workers
    "samples": Metric("samples", "total", "Answers judged, held-out ones included."),
    "cached": Metric("samples", "total", "Verdicts that were known already."),
    "child_deaths": Metric("processes", "total", "Children that died or were killed at their limit."),
    "verifier_s": Metric("s", "total", "Time inside verifiers, added over children."),
    "unscored_fraction": Metric("share", "max", "Share of the recent samples without a score."),
    "status/*": Metric("samples", "total", "Answers by the status of their verdict."),
    "watch/*_mean": Metric("1", "mean", "Mean of this value over the recent scored live samples."),
    "watch/*_drift": Metric("1", "mean", "Rise of that mean since the first samples, in their standard deviations."),
    "watch/paid_short_share": Metric("share", "mean", "Share of the recent paid answers that are very short."),
    "watch/same_answer_share": Metric("share", "max", "Share of the recent tasks that get one and the same answer."),
    "watch/agreement": Metric("share", "mean", "Samples that reward and held-out component agree on."),
    "watch/alarms": Metric("alarms", "max", "Signs that ring now that the reward is being worked around."),
    "pool/*/queued": Metric("answers", "last", "Answers that wait for a free child of this pool."),
    "pool/*/running": Metric("answers", "last", "Answers being judged by this pool."),
    "pool/*/processes": Metric("processes", "last", "Children this pool may use."),
    "pool/*/judged": Metric("answers", "total", "Answers this pool judged."),
    "pool/*/retried": Metric("answers", "total", "Tries repeated after a fault of the infrastructure."),
    "pool/*/hedged": Metric("answers", "total", "Answers given to a second child because the first was slow."),
    "pool/*/killed": Metric("processes", "total", "Children killed at the time limit of an answer."),
    "pool/*/cached": Metric("answers", "total", "Verdicts this pool knew already."),
    "pool/*/cache_entries": Metric("answers", "last", "Verdicts this pool remembers."),
    "pool/*/wait_s": Metric("s", "total", "Time answers waited for a free child, added over answers."),
    "pool/*/service_s": Metric("s", "total", "Time children took for answers, added over children."),
    "pool/*/wait_p95_s": Metric("s", "max", "Wait for a free child that 95 of 100 recent answers stayed below."),
    "pool/*/service_p95_s": Metric("s", "max", "Time in a child that 95 of 100 recent answers stayed below."),
    "pool/*/requests": Metric("requests", "total", "Requests to the model or service that judges in this pool."),
    "pool/*/unreadable": Metric("requests", "total", "Replies that were none of those asked for."),
    "pool/*/service_faults": Metric("requests", "total", "Requests that the service refused or broke off."),
    "pool/*/timeouts": Metric("requests", "total", "Questions nobody answered within their total time limit."),
    "pool/*/tokens": Metric("tokens", "total", "Tokens read and written by the judges of this pool."),
    "pool/*/batches": Metric("batches", "total", "Batches in which the reward model scored answers."),
    # -- evaluation
    "accuracy": Metric("share", "last", "Held-out accuracy."),
    "accuracy/*": Metric("share", "last", "Held-out accuracy of one part of the tasks."),
    "evaluation_s": Metric("s", "sum", "Time of an evaluation at a pinned version."),
}
"""Names with `*` stand for a family: a term's label, a reason, a status, an age. A literal name goes first."""


@lru_cache(maxsize=4096)
def describe(name: str) -> Metric:
    """The row of a metric.

    Raises:
        UnknownMetricError: no row matches; a dashboard could not say what the number means.
    """
    return METRICS[row_of(name)]


@lru_cache(maxsize=4096)
def row_of(name: str) -> str:
    """The name a metric has in the table: itself, or the family it belongs to.

    Raises:
        UnknownMetricError: as `describe`.
    """
    if name in METRICS:
        return name
    for pattern in METRICS:
        if "*" in pattern and fnmatchcase(name, pattern):
            return pattern
    close = difflib.get_close_matches(name, METRICS, n=1)
    hint = f"; the nearest is {close[0]!r}" if close else ""
    raise UnknownMetricError(
        f"metric {name!r} has no row in rewards.telemetry.METRICS{hint}, so nobody could say what it means. Add a row "
        "with its unit, reduction and meaning."
    )


def unknown_metrics(names: Iterable[str]) -> list[str]:
    """The names without a row, in order."""
    return [name for name in names if not _is_known(name)]


@lru_cache(maxsize=4096)
def _is_known(name: str) -> bool:
    try:
        describe(name)
    except UnknownMetricError:
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Numbers by metric name that one reporter gave at one moment.

    Attributes:
        time: seconds since the epoch.
        step: committed optimizer steps the numbers belong to.
        role: who reported: learner, rollout-0, reward-0, replay, evaluation, run.
    """

    time: float
    step: int
    role: str
    values: Mapping[str, float]


class Sink(Protocol):
    """Where numbers go."""

    def write(self, report: Report) -> None: ...

    def close(self) -> None: ...
