"""The replay cache without waiting: decides, writes the decision down, applies it. One thread, no clock of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from actors.config import ReplayConfig
from actors.ports import BatchLease, StaleEpochError, Ticket
from actors.replay.books import Books, series_of
from actors.replay.checks import fault_of
from actors.replay.levels import Levels, admission, held_back, levels_of, live_demand, ready_within_rules
from actors.replay.limiter import Admission, may_collect
from actors.replay.log import ReplayLog
from actors.replay.past import collects, past_group
from actors.replay.priorities import initial_priority, measured_priorities
from actors.replay.quotas import LIVE, Composition, compose, shortage
from actors.replay.records import Entry, InvariantError, LeaseRow
from actors.replay.selectors import Key
from actors.replay.stats import stats_of
from rewards.codec import decode_group, encode_group, payload_digest
from rewards.trajectory import Group, PolicyVersion, Source

SINGLE_USE = (Source.LIVE, Source.OWN_PAST)
"""Sources whose groups are trained on once unless `max_uses` says otherwise."""


class ReplayCore(Books):
    """Tickets, groups, leases and commits of one run.

    Times are seconds of any clock that never goes back; they are passed in and never stored.
    """

    def __init__(
        self,
        config: ReplayConfig,
        *,
        seed: int = 0,
        log: ReplayLog | None = None,
        shard: int | None = None,
        incarnation: int | None = None,
        now: float = 0.0,
    ) -> None:
        """Restores what the log remembers.

        Args:
            shard: which share of the groups it keeps; None is all of them.
            incarnation, now: see `Books`; without an incarnation tickets and the lease of the process that wrote the
                log are void.

        Raises:
            CorruptLogError: its history is damaged.
        """
        self._budgets = {s.value: config.max_uses.get(s.value, 1 if s in SINGLE_USE else None) for s in Source}
        self._batch_data: dict[str, bytes] = {}
        """Packed groups of the outstanding lease, which stay in memory until it ends."""
        self._prefix = "" if shard is None else f"s{shard}"
        """Of ticket ids, and so of the ids of live groups: they name the shard."""
        super().__init__(config, seed=seed, log=log, shard=shard or 0, incarnation=incarnation, now=now)
        for group_id in () if self.state.lease is None else self.state.lease.group_ids:
            data = self.state.payloads.get(group_id)
            assert data is not None  # just read back
            self._batch_data[group_id] = data

    # -- tickets --------------------------------------------------------------------------------------------------

    def take_ticket(self, worker_id: str, group_size: int, now: float, key: str = "") -> Ticket | None:
        """A ticket, or None while admission refuses (`admission` says why).

        Args:
            key: of the request; repeating it gives the same ticket while that is outstanding. Empty: none.
        """
        for ticket_id, row in self.state.tickets.items() if key else ():
            if row.key == key:
                self.calls["repeated_requests"] += 1
                return Ticket(
                    ticket_id=ticket_id, worker_id=row.worker_id, group_size=row.group_size, min_step=row.min_step
                )
        due = self.admission().due
        return None if due is None else self.issue(worker_id, group_size, due, now, key)

    def issue(self, worker_id: str, group_size: int, due: int, now: float, key: str = "") -> Ticket:
        """A ticket for a group that is due at this step, whatever admission says."""
        ticket = Ticket(
            ticket_id=f"{self._prefix}t{self.state.boot}-{self.state.counters['tickets_issued']}",
            worker_id=worker_id,
            group_size=group_size,
            min_step=max(0, due - self.config.max_age),
        )
        self._record(
            {
                "kind": "issued", "ticket": ticket.ticket_id, "worker": worker_id, "size": group_size,
                "due": due, "min_step": ticket.min_step, "key": key,
            }
        )  # fmt: skip
        self._ticket_deadlines[ticket.ticket_id] = now + self.config.ticket_timeout_s
        return ticket

    def return_ticket(self, ticket_id: str, reason: str) -> None:
        """Gives the right back; unknown ones (already returned, filled or expired) are counted and ignored."""
        if ticket_id not in self.state.tickets:
            self.calls["late_ticket_returns"] += 1
            return
        self._record({"kind": "returned", "ticket": ticket_id, "reason": reason})
        self._ticket_deadlines.pop(ticket_id, None)

    def release_worker(self, worker_id: str) -> None:
        """Takes back every ticket of a worker that is gone; a put on one of them is refused from now on."""
        held = [ticket_id for ticket_id, row in self.state.tickets.items() if row.worker_id == worker_id]
        for ticket_id in held:
            self._record({"kind": "returned", "ticket": ticket_id, "reason": "worker_lost"})
        self._withdraw(held, "worker_lost")

    def admission(self) -> Admission:
        """Whether another live group may be started now, and what is in the way."""
        return admission(self.levels(), self.config, self.plan)

    def levels(self) -> Levels:
        """The numbers admission decides by."""
        return levels_of(self.state, self._budgets)

    def live_demand(self) -> list[int]:
        """Live groups each of the next max_age + 1 batches takes, those that replace exhausted donors included."""
        return live_demand(self.levels(), self.plan, self.config)

    # -- groups ---------------------------------------------------------------------------------------------------

    def put(self, group: Group) -> str | None:
        """Stores a scored group on its ticket; the reason when it is refused instead.

        Raises:
            ValueError: another group was put under the same id, or it cannot be written.
        """
        data = encode_group(group)
        digest = payload_digest(data)
        if self._is_repeated(group.group_id, digest):
            self.calls["repeated_puts"] += 1
            return None if group.group_id in self.state.entries else self._refused[group.group_id][1]
        reason = self._refusal(group)
        if reason is None:
            oldest = group.oldest_version
            self._store(group, data, digest, oldest=None if oldest is None else int(oldest))
        else:
            self._record(
                {
                    "kind": "refused", "group": group.group_id, "source": group.source.value, "digest": digest,
                    "ticket": group.ticket_id, "reason": reason, "tokens": group.num_tokens,
                }
            )  # fmt: skip
        if group.ticket_id is not None:
            self._ticket_deadlines.pop(group.ticket_id, None)
        return reason

    def preload(self, groups: Iterable[Group]) -> None:
        """Stores groups of frozen sources; those already known are left as they are.

        Raises:
            ValueError: a group of a source no batch takes, another group under a known id, or one that cannot be
                written; then none of these groups was stored.
        """
        new: dict[str, tuple[Group, bytes, str]] = {}
        for group in groups:
            self._check_preloadable(group)
            data = encode_group(group)
            digest = payload_digest(data)
            if group.group_id in new and new[group.group_id][2] != digest:
                raise _different_payload(group.group_id)
            if self._is_repeated(group.group_id, digest):
                self.calls["repeated_preloads"] += 1
            else:
                new[group.group_id] = group, data, digest
        for group, data, digest in new.values():
            self._store(group, data, digest, oldest=None)

    def _check_preloadable(self, group: Group) -> None:
        if group.source.value not in self.plan.shares:
            raise ValueError(
                f"group {group.group_id} is of source {group.source.value!r}, which no batch takes (quotas: "
                f"{', '.join(self.plan.shares) or 'none'}). Give it a share in replay.quotas, or do not preload it."
            )

    def _is_repeated(self, group_id: str, digest: str) -> bool:
        """Raises ValueError when the id is known for another payload."""
        entry, refused = self.state.entries.get(group_id), self._refused.get(group_id)
        if entry is None and refused is None:
            return False
        known = entry.digest if entry is not None else refused[0] if refused is not None else ""
        if known and known != digest:  # groups known from a manifest alone have no digest
            raise _different_payload(group_id)
        return True

    def _refusal(self, group: Group) -> str | None:
        """Why this group cannot be accepted now."""
        ticket_id = group.ticket_id or ""
        if ticket_id not in self.state.tickets:
            return f"ticket_{self._withdrawn[ticket_id]}" if ticket_id in self._withdrawn else "unknown_ticket"
        fault = fault_of(group, self.state.versions)
        oldest = group.oldest_version
        if fault is None and oldest is not None and self._is_too_old(oldest):
            return "too_old"
        return fault

    def _collect(self, group_ids: Iterable[str]) -> None:
        """Keeps right answers of live groups that are about to be committed for the first time.

        Before the commit, so that no crash can lose them; when it comes between, the groups are known at the next try.
        """
        source, table = Source.OWN_PAST.value, self._tables[Source.OWN_PAST.value]
        if not collects(table, source in self.plan.shares):
            return
        share = Fraction(1, self.config.num_shards)
        for group_id in group_ids:
            entry = self.state.entries[group_id]
            past = past_group(decode_group(self._batch_data[group_id]), table.collect) if entry.source == LIVE else None
            if past is None or entry.uses or past.group_id in self.state.entries:
                continue
            row = self.state.reuse.get(source)
            size = self.state.num_open(source)
            if row is not None and not may_collect(table, row.inserted, row.sampled, size, share):
                self.calls["not_collected"] += 1
                continue
            data = encode_group(past)
            self._store(past, data, payload_digest(data), oldest=None, origin=entry)

    def _store(
        self, group: Group, data: bytes, digest: str, *, oldest: int | None, origin: Entry | None = None
    ) -> None:
        """Args: origin: the live group a collected one was taken from."""
        source = group.source.value
        blob = self._log.blocks.append(series_of(source), data) if self._log is not None else None
        self._record(
            {
                "kind": "put", "group": group.group_id, "source": source, "digest": digest,
                "ticket": group.ticket_id if source == LIVE else None, "oldest": oldest, "tokens": group.num_tokens,
                "budget": self._budgets[source], "blob": blob, "bytes": len(data),
                "prompt": group.prompt_id,
                "priority": initial_priority(group, self._tables[source]),
                **({} if origin is None else {"origin": origin.group_id, "sampled_at": origin.oldest}),
            },
            data,
        )  # fmt: skip
        for reason, victims in self.state.queues[source].excess(group.prompt_id).items():
            self._record({"kind": "evicted", "groups": victims, "reason": reason})

    # -- batches --------------------------------------------------------------------------------------------------

    def lease(self, step: int, now: float) -> BatchLease | None:
        """The batch of this step, or None while groups are missing (`shortage` says which); the same one when repeated.

        Raises:
            StaleEpochError: the step is already committed.
            ValueError: steps before it are not committed.
        """
        self._check_is_next(step)
        if self.state.lease is None:
            self._sweep()
            while not self._batch_data:
                composition = compose(self.plan, step, ready_within_rules(self.levels(), self.config))
                if composition.missing:
                    return None
                self._hand_out(step, composition)
        else:
            self.calls["repeated_leases"] += 1
        self._lease_deadline = now + self.config.lease_timeout_s
        assert self.state.lease is not None
        return self._batch(self.state.lease)

    def shortage(self, step: int) -> str:
        """What the batch of this step still needs."""
        levels = self.levels()
        composition = compose(self.plan, step, ready_within_rules(levels, self.config))
        return shortage(composition, levels.num_running, held_back(levels, self.config))

    def offer(self, step: int, count: int) -> dict[str, list[tuple[Key, str]]]:
        """The next groups of each source, at most `count`, with the keys by which they are merged with those of others.

        Raises:
            StaleEpochError: the step is already committed.
            ValueError: steps before it are not committed.
        """
        self._check_is_next(step)
        self._sweep()
        return {
            source: table.heads(count, self.state.counters["leases"]) for source, table in self.state.queues.items()
        }

    def give_back(self, lease_id: str | None, reason: str) -> None:
        """The groups of this lease (None: of any) are READY again; one that is not outstanding is left alone."""
        if self.state.lease is not None and lease_id in (None, self.state.lease.lease_id):
            self._record({"kind": "lease_returned", "reason": reason})
            self._end_lease()

    def commit(
        self,
        step: int,
        lease_id: str,
        dropped: Mapping[str, str] | None = None,
        measured: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """The groups of the lease were trained on, except the dropped ones, which are evicted with their reason.

        Args:
            measured: by group, what the learner saw of it (ratio, clipped); the priority of its table is taken from it.

        Raises:
            StaleEpochError: the lease is not the outstanding one, so its groups may be trained on by someone else.
            ValueError: the lease was for another step, or `dropped` names groups it does not hold.
        """
        lease, dropped = self.state.lease, dict(dropped or {})
        done = self.state.history.get(step)
        if done is not None and done.lease_id == lease_id:
            self.calls["repeated_commits"] += 1
            return
        if lease is None or lease.lease_id != lease_id:
            self.calls["late_commits"] += 1
            raise StaleEpochError(
                f"commit of step {step} on lease {lease_id}, but the outstanding one is "
                f"{lease.lease_id if lease is not None else 'none'}: it expired or the run was rolled back, and its "
                "groups were given back. Restore the learner from the newest checkpoint; if its steps take longer than "
                f"replay.lease_timeout_s={self.config.lease_timeout_s:g}, raise that."
            )
        if step != lease.step:
            raise ValueError(f"lease {lease_id} is for step {lease.step}, not {step}: commit the step it was taken for")
        if strangers := sorted(set(dropped) - set(lease.group_ids)):
            raise ValueError(f"commit of step {step} drops {strangers}, which are not in lease {lease_id}")
        trained = {g: self.state.entries[g].source for g in lease.group_ids if g not in dropped}
        self._collect(trained)
        priorities, num_ignored = measured_priorities(measured or {}, trained, self._tables)
        self.calls["ignored_priorities"] += num_ignored
        news = {"priorities": priorities} if priorities else {}
        self._record({"kind": "committed", "lease": lease_id, "dropped": dropped, **news})
        self._end_lease()
        self._sweep()

    def seal(self, step: int) -> None:
        """A durable checkpoint covers this step and all before it; spent groups may leave memory.

        Raises:
            ValueError: the step is not committed.
        """
        if step >= self.state.steps_committed:
            raise ValueError(
                f"seal of step {step}, but only {self.state.steps_committed} steps are committed: a checkpoint cannot "
                "cover what was not trained. Seal after the commit."
            )
        if step <= self.state.sealed_through:
            self.calls["repeated_seals"] += 1
            return
        self._record({"kind": "sealed", "step": step})

    def announce_version(self, version: PolicyVersion, step: int) -> None:
        """Weights `version` contain `step` committed steps.

        Raises:
            ValueError: the version is known with another step, or the step is not committed.
        """
        known = self.state.versions.get(version)
        if known == step:
            self.calls["repeated_versions"] += 1
            return
        if known is not None or step > self.state.steps_committed:
            truth = f"it was announced with {known}" if known is not None else f"{self.state.steps_committed} exist"
            raise ValueError(
                f"policy version {version} was announced with {step} committed steps, but {truth}; ages would be "
                "wrong. Issue a new version for every publication, after the commit."
            )
        self._record({"kind": "version", "version": int(version), "step": step})

    def rollback(self, step: int, batches: Mapping[int, Sequence[str]]) -> None:
        """History continues after `step` committed steps; what was trained at each of them is what `batches` says.

        Later commits are undone, and every outstanding lease and ticket is void.

        Raises:
            ValueError: the manifest does not cover every step before `step`.
        """
        trained = {int(s): list(group_ids) for s, group_ids in batches.items() if int(s) < step}
        if missing := sorted(set(range(step)) - set(trained)):
            raise ValueError(
                f"the batch manifest of a checkpoint after {step} steps lacks steps {missing}: groups trained there "
                "could be trained again. Resume from a checkpoint with a complete manifest."
            )
        state = self.state
        is_there = step == state.steps_committed and trained == {s: row.trained for s, row in state.history.items()}
        if is_there and state.lease is None and not state.tickets:
            return
        held = list(state.tickets)
        self._record(
            {
                "kind": "rolled_back", "step": step, "epoch": state.epoch + 1,
                "batches": {str(s): group_ids for s, group_ids in trained.items()},
            }
        )  # fmt: skip
        self._withdraw(held, "rollback")
        self._end_lease()
        self._sweep()

    def _end_lease(self) -> None:
        self._lease_deadline = None
        self._batch_data = {}

    def _check_is_next(self, step: int) -> None:
        committed = self.state.steps_committed
        if step < committed:
            raise StaleEpochError(
                f"lease of step {step}, but {committed} steps are committed: this learner was replaced or restored "
                "without `rollback`. Roll the cache back to the learner's checkpoint first."
            )
        if step > committed:
            raise ValueError(
                f"lease of step {step}, but only {committed} steps are committed: commits were lost or skipped. "
                " Roll the cache back to the learner's checkpoint first."
            )

    def _hand_out(self, step: int, composition: Composition) -> None:
        state = self.state
        draw = state.counters["leases"]
        heads = [state.queues[source].heads(num, draw) for source, num in composition.take.items() if num]
        chosen = [group_id for head in heads for _, group_id in head]
        self.hand_out(step, f"l{state.epoch}-{step}-{draw}", chosen, composition.shortfall)

    def hand_out(self, step: int, lease_id: str, chosen: Sequence[str], shortfall: Mapping[str, int]) -> bool:
        """Leases READY groups; when blocks of some cannot be read back, those are lost, and none is leased."""
        state = self.state
        ages = {g: age for g in chosen if (age := state.age(state.entries[g], step)) is not None}
        if too_old := {g: age for g, age in ages.items() if age > self.config.max_age}:
            raise InvariantError(f"groups above max_age {self.config.max_age} were about to be handed out: {too_old}")
        blocks = {group_id: state.payloads.get(group_id) for group_id in chosen}
        if lost := [group_id for group_id, data in blocks.items() if data is None]:
            self._record({"kind": "lost", "groups": lost})
            return False
        self._record(
            {
                "kind": "leased", "lease": lease_id, "step": step, "epoch": state.epoch, "groups": list(chosen),
                "ages": ages, "shortfall": dict(shortfall),
            }
        )  # fmt: skip
        self._batch_data = {group_id: data for group_id, data in blocks.items() if data is not None}
        return True

    def leased_groups(self, lease_id: str) -> dict[str, Group]:
        """The groups of the outstanding lease by id; none when it is another one."""
        lease = self.state.lease
        if lease is None or lease.lease_id != lease_id:
            return {}
        return {group_id: decode_group(self._batch_data[group_id]) for group_id in lease.group_ids}

    def _batch(self, lease: LeaseRow) -> BatchLease:
        return BatchLease(
            lease_id=lease.lease_id,
            step=lease.step,
            epoch=lease.epoch,
            groups=tuple(self.leased_groups(lease.lease_id).values()),
            ages=dict(lease.ages),
            shortfall=dict(lease.shortfall),
        )

    # -- time -----------------------------------------------------------------------------------------------------

    def expire(self, now: float) -> None:
        """Takes back what was held beyond its deadline."""
        expired = []
        for ticket_id, deadline in self._ticket_deadlines.items():
            if deadline > now:
                break  # all tickets live equally long, so they expire in the order of issue
            expired.append(ticket_id)
        for ticket_id in expired:
            self._record({"kind": "returned", "ticket": ticket_id, "reason": "expired"})
            self._withdraw([ticket_id], "expired")
        if self._lease_deadline is not None and self._lease_deadline <= now:
            self._record({"kind": "lease_returned", "reason": "expired"})
            self._end_lease()

    def next_deadline(self) -> float | None:
        """When `expire` has something to do at the earliest."""
        deadlines = [next(iter(self._ticket_deadlines.values()), None), self._lease_deadline]
        return min((d for d in deadlines if d is not None), default=None)

    # -- what others read -----------------------------------------------------------------------------------------

    def stats(self) -> dict[str, float]:
        """Counters of the run and current levels, by flat names."""
        return stats_of(self.state, self.plan.sources, self.calls)


def _different_payload(group_id: str) -> ValueError:
    return ValueError(
        f"group {group_id} is known with another payload; keeping either would lose data. Give each group an id of its "
        "own, derived from ticket and attempt."
    )
