"""Proposers and solvers: whose reward waits for whom, on literal groups and through feed and worker."""

from dataclasses import replace

import pytest

from actors.finisher import Finisher
from actors.ports import LeasedTask
from actors.renderer import Renderer
from actors.rules.actions import Keep
from actors.task_feed import TaskFeed
from rewards.task import Task
from rewards.trajectory import Source
from rewards.verdict import Verdict
from rewards.verifiers.self_play import self_play
from tests.actors.fakes import save_character_tokenizer
from tests.actors.rollout_bench import Bench
from tests.builders import make_group, make_trajectory

PROPOSE = Task(
    task_id="answer/7", prompt="for 7", reference="7", metadata={"role": "proposer", "solve": "What is {expression}?"}
)
SOLVE = replace(PROPOSE, prompt="What is 3 + 4?", metadata={"role": "solver", "proposal": "p/1"})


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    return Renderer(str(save_character_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


RULES = [{"rule": "fork_proposals", "num": 2}, {"rule": "join_proposer", "source": "own_past"}]


def proposals(*questions):
    verdicts = [
        Verdict.scored(0.0, extras={"reason": "empty"}) if q is None else Verdict.scored(1.0, extras={"question": q})
        for q in questions
    ]
    group = make_group(scores=[0.0] * len(questions))
    members = tuple(t.with_verdict(v) for t, v in zip(group.trajectories, verdicts, strict=True))
    return replace(group, trajectories=members)


def test_distinct_valid_problems_become_tasks_and_their_authors_wait():
    leased = LeasedTask(lease_id="0.0", task=PROPOSE)
    decision = Finisher(RULES).decide(proposals(None, "3 + 4", "3 + 4", "9 - 2", "8 - 1"), leased)
    assert decision.action == Keep()
    assert [fork.task.prompt for fork in decision.forks] == ["What is 3 + 4?", "What is 9 - 2?"]
    assert [fork.task.metadata["proposal"] for fork in decision.forks] == ["g0/1", "g0/3"]
    assert [fork.task.metadata["donors_of"] for fork in decision.forks] == ["answer/7"] * 2
    assert [stash.members for stash in decision.stashes] == [("g0/1", "g0/3")]
    assert Finisher(RULES).decide(proposals(None, None), leased).forks == ()


@pytest.mark.parametrize(
    ("scores", "pay", "earned"),
    [
        ([1.0, 0.0, 0.0, 0.0], "failure", 0.75),
        ([1.0, 0.0, None, 0.0], "failure", 2 / 3),
        ([1.0, 1.0, 1.0, 1.0], "failure", 0.0),
        ([0.0, 0.0, 0.0, 0.0], "failure", 1.0),
        ([1.0, 0.0, 0.0, 0.0], "spread", 0.75),
        ([1.0, 1.0, 0.0, 0.0], "spread", 1.0),
        ([0.0, 0.0, 0.0, 0.0], "spread", 0.0),
    ],
)
def test_an_author_earns_what_its_solvers_leave(scores, pay, earned):
    author = make_trajectory(group_id="p", index=1, source=Source.OWN_PAST, score=1.0)
    leased = LeasedTask(lease_id="0.0", task=SOLVE, donors={"proposals": (author,)})
    rules = [RULES[0], {**RULES[1], "pay": pay}]
    decision = Finisher(rules).decide(make_group(scores=scores), leased)
    assert decision.forks == ()
    assert decision.group.scores[:4] == scores
    assert decision.group.scores[4:] == [pytest.approx(earned)]
    assert decision.group.trajectories[4].source is Source.OWN_PAST


def test_nobody_joins_without_a_judged_solver_or_a_kept_author():
    author = make_trajectory(group_id="p", index=1, source=Source.OWN_PAST)
    leased = LeasedTask(lease_id="0.0", task=SOLVE, donors={"proposals": (author,)})
    assert len(Finisher(RULES).decide(make_group(scores=[None, None]), leased).group.trajectories) == 2
    stranger = replace(leased, task=replace(SOLVE, metadata={"role": "solver", "proposal": "p/2"}))
    assert len(Finisher(RULES).decide(make_group(scores=[1.0, 0.0]), stranger).group.trajectories) == 2


async def test_the_author_is_trained_with_its_solvers_only(tmp_path, renderer):
    """Through feed and worker: the proposer's group first, then the solvers with the author as it was."""
    feed = TaskFeed([PROPOSE], seed=0, log_dir=tmp_path / "tasks", tables={"proposals"})
    answers = iter(["3 + 4", "7", "", "1"])  # what the proposer is taken to have written
    solved = iter([1.0, 0.0, 0.0, 0.0])

    def judge(task, answer):
        return self_play(next(answers), task) if task.metadata["role"] == "proposer" else next(solved)

    bench = Bench(tmp_path, renderer, num_tickets=2, feed=feed, rules=RULES, judge=judge, concurrent_groups=1)
    await bench.start()
    await bench.worker.run()
    first, second = bench.replay.groups
    assert (first.scores, second.scores) == ([1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.75])
    author = second.trajectories[4]
    assert author.token_ids.tolist() == first.trajectories[0].token_ids.tolist()
    assert author.behavior_logprobs.tobytes() == first.trajectories[0].behavior_logprobs.tobytes()
    assert "What is 3 + 4?" in renderer.decode(second.trajectories[0].token_ids)
    assert [row.attempts for row in await feed.ledger()] == [4]
