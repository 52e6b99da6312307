"""Contexts: what is shown, what is forced, what is learned from, and who gets it."""

from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from pydantic import ValidationError

from actors.contexts.config import ContextSpec, GuidanceConfig
from actors.contexts.policy import GuidancePolicy, as_context
from actors.contexts.render import PLAIN, Attempt, render_prompt
from actors.ledger import LedgerRow
from actors.renderer import Renderer
from actors.task_feed import TaskFeed
from learner.config import Term
from learner.objective import Objective
from rewards.task import ExpertResponse, Task
from rewards.trajectory import Context, Role
from rewards.verdict import Status, Verdict
from tests.actors.fakes import save_character_tokenizer
from tests.actors.rollout_bench import Bench

ORACLE = "first step\nsecond step\nanswer 7"
TASK = Task(task_id="t", prompt="what is 3+4?", reference="7", expert=(ExpertResponse(text=ORACLE),))


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    return Renderer(str(save_character_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


@pytest.mark.parametrize(
    ("context", "forced"),
    [
        (Context(kind="prefix", amount=5, unit="tokens"), "first"),
        (Context(kind="prefix", amount=0.5, unit="share"), ORACLE[: len(ORACLE) // 2]),
        (Context(kind="prefix", amount=1, unit="steps"), "first step\n"),
        (Context(kind="prefix", amount=2, unit="steps"), "first step\nsecond step\n"),
        (Context(kind="prefix"), ORACLE),
    ],
)
def test_a_prefix_is_the_beginning_of_the_oracle_answer_in_tokens(renderer, context, forced):
    prompt = render_prompt(TASK, context, renderer)
    assert renderer.decode(prompt.forced_ids) == forced
    assert prompt.forced_ids == renderer.answer_ids(ORACLE)[: len(prompt.forced_ids)]
    assert prompt.prompt_ids == renderer.prompt_ids(TASK.messages)
    assert (prompt.context.amount, prompt.context.unit) == (len(forced), "tokens")


def test_help_stands_below_the_problem_so_that_the_common_part_comes_first(renderer):
    plain = renderer.decode(renderer.prompt_ids(TASK.messages)[:10])
    for context in (
        Context(kind="hint", amount=0.4, unit="share"),
        Context(kind="demo"),
        Context(kind="role", reference="Think in trees."),
    ):
        assert renderer.decode(render_prompt(TASK, context, renderer).prompt_ids).startswith(plain)
    hint = renderer.decode(render_prompt(TASK, Context(kind="hint", amount=1, unit="steps"), renderer).prompt_ids)
    assert "first step" in hint
    assert "second" not in hint


def test_a_cut_hint_ends_between_words(renderer):
    text = renderer.decode(render_prompt(TASK, Context(kind="hint", amount=0.4, unit="share"), renderer).prompt_ids)
    assert "first step\nGo on" in text  # 0.4 of 30 characters end within "second"


def test_feedback_shows_the_attempt_and_never_the_answer(renderer):
    attempt = Attempt("it is 8", Verdict.floor(Status.NO_ANSWER))
    prompt = render_prompt(TASK, Context(kind="feedback", reference="x/0"), renderer, attempt=attempt)
    text = renderer.decode(prompt.prompt_ids)
    assert "it is 8" in text
    assert "No answer could be found" in text
    assert "7" not in text.replace("3+4", "")


def test_a_task_without_the_text_is_asked_plainly_and_the_record_says_so(renderer):
    bare = replace(TASK, expert=())
    prompt = render_prompt(bare, Context(kind="hint", amount=0.5, unit="share"), renderer)
    assert (prompt.context, prompt.prompt_ids) == (PLAIN, renderer.prompt_ids(TASK.messages))


def guided(*contexts, share="1", **when):
    return GuidanceConfig.model_validate({"contexts": [{"contexts": contexts, "share": share, "when": when}]})


def test_shares_are_exact_over_every_block_and_the_same_for_the_same_seed():
    config = guided({"kind": "prefix", "amount": [0.4, 0.8]}, share="3/4")
    policy = GuidancePolicy(config, seed=5)
    row = LedgerRow(prompt_id="t")
    found = [policy.context(i, TASK, row, 0) for i in range(400)]
    assert Counter(c.kind for c in found) == {"prefix": 300, "none": 100}
    assert all(sum(c.kind == "prefix" for c in found[i : i + 4]) == 3 for i in range(0, 400, 4))
    amounts = np.array([c.amount for c in found if c.amount is not None])
    assert 0.4 <= amounts.min() < 0.45
    assert 0.75 < amounts.max() <= 0.8
    assert found == [GuidancePolicy(config, seed=5).context(i, TASK, row, 0) for i in range(400)]


def test_help_follows_ledger_and_stage():
    hint, small = {"kind": "hint", "amount": 0.5}, {"kind": "hint", "amount": 0.25}
    policy = GuidancePolicy(guided(hint, small, None, min_attempts=8, max_rate=0.0), seed=0)
    hopeless = LedgerRow(prompt_id="t", attempts=8)
    assert policy.context(0, TASK, hopeless, 0).amount == 0.5
    assert policy.context(0, TASK, replace(hopeless, stage=1), 0).amount == 0.25
    assert policy.context(0, TASK, replace(hopeless, stage=7), 0) == PLAIN
    assert policy.context(0, TASK, replace(hopeless, successes=1), 0) == PLAIN
    assert policy.context(0, TASK, LedgerRow(prompt_id="t"), 0) == PLAIN


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "prefix", "removed": True}, "cannot be removed|stays"),
        ({"kind": "hint", "amount": 1.5}, "more than the whole"),
        ({"kind": "prefix", "amount": [0.8, 0.4]}, "smaller number first"),
        ({"kind": "role"}, "needs the words"),
        ({"kind": "hint", "unit": "tokens", "amount": 3}, "is for prefixes"),
    ],
)
def test_contexts_that_cannot_be_are_refused(entry, message):
    with pytest.raises(ValidationError, match=message):
        ContextSpec.model_validate(entry)


def test_shares_beyond_the_whole_are_refused():
    entry = {"contexts": [{"kind": "demo"}], "share": "2/3"}
    with pytest.raises(ValidationError, match="more than all tasks"):
        GuidanceConfig.model_validate({"contexts": [entry, entry]})


def guided_feed(tmp_path, *contexts, share=Fraction(1)):
    tasks = [replace(TASK, task_id=f"task-{i}") for i in range(8)]
    policy = GuidancePolicy(guided(*contexts, share=str(share)), seed=0)
    return TaskFeed(tasks, seed=0, log_dir=tmp_path / "tasks", guidance=policy)


async def test_forced_tokens_are_marked_judged_and_never_trained(tmp_path, renderer):
    feed = guided_feed(tmp_path, {"kind": "prefix", "amount": 5, "unit": "tokens"})
    bench = await Bench(tmp_path, renderer, num_tickets=1, feed=feed).start()
    await bench.worker.run()
    (group,) = bench.replay.groups
    start = len(renderer.prompt_ids(TASK.messages))
    plan = Objective([Term(loss="clipped_surrogate")]).plan([group])
    for member, mask in zip(group.trajectories, plan.terms[0].mask, strict=True):
        assert (member.roles[start : start + 5] == Role.FORCED).all()
        assert (member.roles[start + 5 :] == Role.SAMPLED).all()
        assert np.isnan(member.behavior_logprobs[: start + 5]).all()
        assert not mask[: start + 5].any()
        assert mask[start + 5 :].all()
    assert all(answer.startswith("first") for answer in bench.scoring.calls[0][1])
    (row,) = await feed.ledger()
    assert (row.attempts, row.helped_attempts, row.last_rate) == (0, 4, None)


async def test_a_removed_hint_is_sampled_with_and_learned_without(tmp_path, renderer):
    feed = guided_feed(tmp_path, {"kind": "hint", "amount": 0.5, "removed": True})
    bench = await Bench(tmp_path, renderer, num_tickets=1, feed=feed).start()
    await bench.worker.run()
    (group,) = bench.replay.groups
    for member in group.trajectories:
        assert member.train_prompt_ids is not None
        assert member.train_prompt_ids.tolist() == renderer.prompt_ids(TASK.messages)
        assert "first step" in renderer.decode(member.token_ids[: member.num_context_tokens])
        assert np.isfinite(member.behavior_logprobs[member.sampled_mask]).all()  # under the hinted prompt


async def test_guide_grows_a_wrong_group_with_hinted_members_in_the_same_group(tmp_path, renderer):
    rule = {"rule": "grow_failed", "num": 4, "max": 1, "context": {"kind": "hint", "removed": True}}
    feed = TaskFeed([TASK], seed=0, log_dir=tmp_path / "tasks")
    bench = await Bench(tmp_path, renderer, num_tickets=1, feed=feed, rules=[rule], judge=lambda t, a: 0.0).start()
    await bench.worker.run()
    (group,) = bench.replay.groups
    assert [t.sample_context.kind for t in group.trajectories] == ["none"] * 4 + ["hint"] * 4
    assert [t.train_prompt_ids is None for t in group.trajectories] == [True] * 4 + [False] * 4


async def test_help_behind_which_no_answer_fits_is_left_out_and_counted(tmp_path, renderer):
    long = replace(TASK, expert=(ExpertResponse(text="x" * 300),))
    feed = TaskFeed([long], seed=0, log_dir=tmp_path / "tasks", guidance=GuidancePolicy(guided({"kind": "demo"}), 0))
    bench = await Bench(tmp_path, renderer, num_tickets=1, feed=feed).start()
    await bench.worker.run()
    assert bench.replay.groups[0].context == PLAIN
    assert (await bench.worker.stats())["contexts_too_long"] == 1


async def test_an_own_success_comes_back_as_a_donor_after_a_restart(tmp_path, renderer):
    tasks = [replace(TASK, task_id="only")]
    rules = [{"rule": "splice_donors", "source": "own_past", "when": "failed"}, "stash_right"]
    judge = iter([1.0] * 4 + [0.0] * 4)
    feed = TaskFeed(tasks, seed=0, log_dir=tmp_path / "tasks", tables={"own_past"})
    bench = Bench(
        tmp_path, renderer, num_tickets=1, feed=feed, rules=rules, judge=lambda t, a: next(judge), concurrent_groups=1
    )
    await bench.start()
    await bench.worker.run()
    (first,) = bench.replay.groups
    feed.close()
    feed = TaskFeed(tasks, seed=0, log_dir=tmp_path / "tasks", tables={"own_past"})
    leased = await feed.lease_task("w")
    stored = {tuple(t.token_ids.tolist()) for t in first.trajectories}
    assert {tuple(t.token_ids.tolist()) for t in leased.donors["own_past"]} == stored
    assert all(np.isfinite(t.behavior_logprobs[t.sampled_mask]).all() for t in leased.donors["own_past"])


async def test_a_fork_joins_the_stream_next_with_attempt_and_feedback_in_its_prompt(tmp_path, renderer):
    feed = TaskFeed([TASK, replace(TASK, task_id="u")], seed=0, log_dir=tmp_path / "tasks")
    bench = Bench(
        tmp_path, renderer, num_tickets=2, feed=feed, rules=["fork_failed"], judge=lambda t, a: 0.0, concurrent_groups=1
    )
    await bench.start()
    await bench.worker.run()
    first, second = bench.replay.groups
    assert second.prompt_id == f"{first.prompt_id}~0"
    text = renderer.decode(second.trajectories[0].token_ids)
    assert renderer.decode(first.trajectories[0].token_ids[first.trajectories[0].num_context_tokens :]) in text
    assert "not right" in text
    assert [row.prompt_id for row in await feed.ledger()] == [first.prompt_id]


def test_a_drawn_amount_depends_on_its_key_alone():
    spec = ContextSpec(kind="prefix", amount=(0.0, 1.0))
    assert as_context(spec, 1, 2) == as_context(spec, 1, 2) != as_context(spec, 1, 3)
