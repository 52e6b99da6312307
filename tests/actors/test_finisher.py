import inspect
from dataclasses import replace

import pytest

from actors.finisher import FREE_RULE_ATTEMPTS, Finisher
from actors.ledger import LedgerRow
from actors.ports import LeasedTask
from actors.rules.actions import Drop, Fork, Grow, Keep, Redo, Retire, RuleError, Splice, Stash, TerminalAction
from actors.rules.table import RULES, extra_members
from learner.config import Term
from learner.objective import Objective
from rewards.task import Task
from rewards.trajectory import Context, Source
from rewards.verdict import Status, Verdict
from tests.builders import make_group, make_trajectory

LEASED = LeasedTask(lease_id="0.0", task=Task(task_id="t", prompt="p"))
HERE = "tests.actors.test_finisher"


def decide(group, *rules, leased=LEASED):
    return Finisher(rules).decide(group, leased).action


def group_of(*verdicts, **fields):
    group = make_group(scores=[0.0] * len(verdicts), **fields)
    members = tuple(t.with_verdict(v) for t, v in zip(group.trajectories, verdicts, strict=True))
    return replace(group, trajectories=members)


def shaped(accuracy, penalty):
    """A verdict of two components, as a rubric with a length penalty gives it."""
    return Verdict.scored(accuracy + penalty, components={"correct": accuracy, "overlong": penalty})


def test_without_rules_every_group_is_kept():
    finisher = Finisher()
    assert finisher.decide(make_group(scores=[None, None]), LEASED).action == Keep()
    assert finisher.max_attempts == 1


# -- drop_constant ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "action"),
    [
        ([1.0, 1.0, 1.0], Drop("constant")),
        ([0.0, 0.0], Drop("constant")),
        ([1.0, None, 1.0], Drop("constant")),
        ([0.1 + 0.2, 0.3], Drop("constant")),
        ([1.0, 0.0], Keep()),
        ([None, 1.0, 0.0], Keep()),
        ([1.0], Keep()),  # nothing to compare with
        ([1.0, None], Keep()),
        ([None, None], Keep()),
    ],
)
def test_drop_constant(scores, action):
    assert decide(make_group(scores=scores), "drop_constant") == action


def test_drop_constant_by_score_keeps_what_accuracy_drops():
    """Filtering on the shaped reward keeps an all-right group, whose only signal is the length of its answers."""
    all_right = group_of(shaped(1.0, 0.0), shaped(1.0, -0.3), shaped(1.0, -0.1))
    by_accuracy = {"rule": "drop_constant", "component": "correct"}
    assert decide(all_right, "drop_constant") == Keep()
    assert decide(all_right, by_accuracy) == Drop("constant")
    mixed = group_of(shaped(1.0, -0.5), shaped(0.0, 0.5))
    assert decide(mixed, "drop_constant") == Drop("constant")
    assert decide(mixed, by_accuracy) == Keep()


def test_a_fault_of_the_model_before_any_component_counts_with_its_floor():
    timeout = Verdict.floor(Status.TIMEOUT, 0.0)
    by_accuracy = {"rule": "drop_constant", "component": "correct"}
    assert decide(group_of(shaped(0.0, -0.3), timeout), by_accuracy) == Drop("constant")
    assert decide(group_of(shaped(1.0, -0.3), timeout), by_accuracy) == Keep()


def test_a_component_that_could_not_be_judged_is_left_out():
    unknown = Verdict.scored(0.2, components={"correct": None, "overlong": 0.2})
    by_accuracy = {"rule": "drop_constant", "component": "correct"}
    assert decide(group_of(unknown, shaped(1.0, 0.0), shaped(1.0, -0.1)), by_accuracy) == Drop("constant")
    assert decide(group_of(unknown, shaped(1.0, 0.0)), by_accuracy) == Keep()


def test_a_component_nobody_reports_is_an_error_that_names_the_others():
    with pytest.raises(RuleError, match=r"'accuracy'.*\['correct', 'overlong'\]"):
        decide(group_of(shaped(1.0, 0.0), shaped(1.0, 0.0)), {"rule": "drop_constant", "component": "accuracy"})


def test_tolerance_is_in_reward_units():
    group = make_group(scores=[0.5, 0.54])
    assert decide(group, {"rule": "drop_constant", "tolerance": 0.05}) == Drop("constant")
    assert decide(group, {"rule": "drop_constant", "tolerance": 0.03}) == Keep()


# -- the other rules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "options", "action"),
    [
        ([1.0, None, None], {}, Drop("unscored")),
        ([1.0, None, 0.0], {}, Keep()),
        ([1.0], {}, Keep()),
        ([None], {}, Drop("unscored")),
        ([1.0, 0.0, None, None], {"min_scored": 3}, Drop("unscored")),
        ([1.0, 0.0, 1.0, None], {"min_scored": 3}, Keep()),
    ],
)
def test_drop_unscored(scores, options, action):
    assert decide(make_group(scores=scores), {"rule": "drop_unscored", **options}) == action


@pytest.mark.parametrize(
    ("scores", "action"),
    [
        ([0.0, 0.0, 0.0, 0.0], Drop("too_hard")),
        ([1.0, 0.0, 0.0, 0.0], Keep()),
        ([1.0, 1.0, 1.0, 0.0], Keep()),
        ([1.0, 1.0, 1.0, 1.0], Drop("too_easy")),
        ([1.0, None, None, None], Drop("too_easy")),
        ([-1.0, 0.0, None, 0.5], Keep()),
        ([None, None], Keep()),
    ],
)
def test_drop_rate_bounds_belong_to_what_is_kept(scores, action):
    assert decide(make_group(scores=scores), {"rule": "drop_rate", "low": 0.25, "high": 0.75}) == action


def test_redo_failed_until_its_limit():
    rule = {"rule": "redo_failed", "max": 2}
    wrong = make_group(scores=[0.0, -1.0, None])
    assert decide(wrong, rule) == Redo()
    assert decide(replace(wrong, history={"redo": 1, "grow": 7}), rule) == Redo()
    assert decide(replace(wrong, history={"redo": 2}), rule) == Keep()
    assert decide(make_group(scores=[0.0, 0.1]), rule) == Keep()
    assert decide(make_group(scores=[None, None]), rule) == Keep()  # nobody failed: nobody was judged


def test_grow_failed_until_its_limit():
    rule = {"rule": "grow_failed", "num": 4, "max": 1}
    wrong = make_group(scores=[0.0, 0.0])
    assert decide(wrong, rule) == Grow(4)
    assert decide(replace(wrong, history={"grow": 1}), rule) == Keep()
    assert decide(make_group(scores=[1.0, 0.0]), rule) == Keep()


def test_failed_by_a_component():
    rule = {"rule": "redo_failed", "max": 1, "component": "correct"}
    assert decide(group_of(shaped(0.0, 0.4), shaped(0.0, 0.2)), rule) == Redo()
    assert decide(group_of(shaped(1.0, -2.0), shaped(0.0, 0.2)), rule) == Keep()


def test_resampling_stays_in_the_context_the_task_was_leased_in():
    hinted = replace(LEASED, context=Context(kind="hint", amount=0.25, unit="share"))
    wrong = make_group(scores=[0.0, 0.0])
    assert decide(wrong, {"rule": "redo_failed", "max": 1}, leased=hinted) == Redo(hinted.context)
    assert decide(wrong, {"rule": "grow_failed", "num": 2, "max": 1}, leased=hinted) == Grow(2, hinted.context)


# -- putting rules together -------------------------------------------------------------------------------------------


def test_the_first_decision_wins():
    grow, drop = {"rule": "grow_failed", "num": 2, "max": 1}, "drop_constant"
    wrong, right = make_group(scores=[0.0, 0.0]), make_group(scores=[1.0, 1.0])
    assert decide(wrong, grow, drop) == Grow(2)
    assert decide(wrong, drop, grow) == Drop("constant")
    assert decide(right, grow, drop) == Drop("constant")
    assert decide(replace(wrong, history={"grow": 1}), grow, drop) == Drop("constant")


def test_the_same_group_gets_the_same_action_again():
    finisher = Finisher([{"rule": "grow_failed", "num": 2, "max": 1}, "drop_constant"])
    group = make_group(scores=[0.0, 0.0])
    assert finisher.decide(group, LEASED) == finisher.decide(group, LEASED)


def test_attempts_are_bounded_by_the_rules():
    rules = [{"rule": "grow_failed", "num": 2, "max": 3}, "drop_constant", {"rule": "redo_failed", "max": 2}]
    assert Finisher(rules).max_attempts == 6
    assert Finisher([f"{HERE}:keep_tried"]).max_attempts == 1 + FREE_RULE_ATTEMPTS


# -- a user's own rules -----------------------------------------------------------------------------------------------


def keep_tried(group, leased, row, *, groups=1) -> TerminalAction | None:
    return Drop("untried") if row is None or row.groups < groups else None


def retire(group, leased, row) -> Retire | None:
    return Retire(group.prompt_id)


def stash_or_drop(group, leased, row) -> "Drop | Stash":
    return Stash("own_success")


def fork_later(group, leased, row) -> Fork:
    return Fork(leased.task)


def hint(group, leased, row) -> Redo:
    return Redo(Context(kind="telepathy"))


def grow_by_nothing(group, leased, row) -> Grow:
    return Grow(0)


def truth(group, leased, row):
    return True


def too_few_arguments(group):
    return None


def test_a_rule_by_import_path_gets_the_ledger_row_and_its_options():
    tried = replace(LEASED, row=LedgerRow(prompt_id="t", groups=2))
    group, rule = make_group(), f"{HERE}:keep_tried"
    assert decide(group, rule) == Drop("untried")
    assert decide(group, rule, leased=tried) == Keep()
    assert decide(group, {"rule": rule, "groups": 3}, leased=tried) == Drop("untried")


def test_actions_that_accompany_a_decision_are_collected_from_all_rules():
    rules = [f"{HERE}:retire", "drop_constant", f"{HERE}:stash_or_drop", f"{HERE}:fork_later"]
    decision = Finisher(rules).decide(make_group(scores=[1.0, 1.0]), LEASED)
    assert decision.action == Drop("constant")
    assert (decision.is_retired, decision.stashes, decision.forks) == (
        True,
        (Stash("own_success"),),
        (Fork(LEASED.task),),
    )


def test_nothing_accompanies_a_group_that_is_sampled_further():
    rules = [f"{HERE}:retire", {"rule": "redo_failed", "max": 1}, f"{HERE}:stash_or_drop"]
    decision = Finisher(rules).decide(make_group(scores=[0.0, 0.0]), LEASED)
    assert (decision.action, decision.is_retired, decision.stashes) == (Redo(), False, ())


def test_a_context_nobody_renders_is_refused():
    """The prompt of the record must be the prompt that was sampled."""
    with pytest.raises(RuleError, match="context 'telepathy'"):
        decide(make_group(), f"{HERE}:hint")


@pytest.mark.parametrize(("name", "message"), [("truth", "returned True"), ("grow_by_nothing", "grow by 0")])
def test_what_is_no_action_is_refused(name, message):
    with pytest.raises(RuleError, match=message):
        decide(make_group(), f"{HERE}:{name}")


# -- refused when built -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("drop_constnat", r"unknown rule 'drop_constnat': did you mean 'drop_constant' or"),
        ("zzz", "known names: drop_constant, drop_perplexity, drop_rate, drop_unscored, fork_failed, fork_proposals"),
        ("no_such_package:rule", "no module 'no_such_package'"),
        ({"low": 0.1}, "names no rule"),
        ({"rule": "drop_rate", "hihg": 0.9}, r"unknown key 'hihg' in RateOptions: did you mean 'high'\?"),
        ({"rule": "drop_rate", "low": 0.9, "high": 0.1}, "low=0.9 is above high=0.1"),
        ({"rule": "drop_rate", "low": 1.5}, r"drop_rate\.low: .*less than or equal to 1"),
        ({"rule": "redo_failed"}, r"redo_failed\.max: Field required"),
        ({"rule": "grow_failed", "max": 1}, r"grow_failed\.num: Field required"),
        ({"rule": "grow_failed", "max": 1, "num": 0}, r"grow_failed\.num"),
        ({"rule": f"{HERE}:keep_tried", "grops": 1}, r"keep_tried cannot be called .* 'grops'"),
        (f"{HERE}:too_few_arguments", "cannot be called as"),
    ],
)
def test_bad_rules_are_refused_with_what_is_wrong(rule, message):
    with pytest.raises(RuleError, match=message):
        Finisher([rule])


def test_the_options_of_every_rule_are_the_parameters_of_its_function():
    for name, (function, options) in RULES.items():
        assert function.__name__ == name
        parameters = inspect.signature(function).parameters.values()
        assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} == set(options.model_fields)


# -- allocation, donors, retirement -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num", "right", "schedule", "cap", "extra"),
    [
        (8, 0, "equal", 32, 24),  # u = 1/16: 4 / 0.117 - 8 = 26.1, capped
        (8, 1, "equal", 32, 11),  # 4 / 0.21875 - 8 = 10.3
        (8, 1, "hardness", 64, 24),  # 7 / 0.21875 - 8 = 24 exactly
        (8, 2, "equal", 32, 3),
        (8, 4, "equal", 32, 0),
        (12, 1, "hardness", 128, 60),  # 72 - 12; naive floats give 61
    ],
)
def test_dars_allocates_by_the_closed_form(num, right, schedule, cap, extra):
    found = extra_members(num, right / num, schedule=schedule, max_members=cap, normalised=False)
    assert found == extra
    rule = {"rule": "grow_hard", "schedule": schedule, "max_members": cap}
    action = decide(make_group(scores=[1.0] * right + [0.0] * (num - right)), rule)
    assert action == (Grow(extra) if extra and right / num < 0.5 else Keep())


def donors_of(*scores, source=Source.EXPERT):
    return tuple(
        make_trajectory(group_id="donors", index=i, source=source, score=score, answer=(7, 8 + i))
        for i, score in enumerate(scores)
    )


def test_one_expert_always_takes_a_wrong_members_place_and_the_group_compares_it():
    """LUFFY's worked numbers: all others wrong, 1 expert of 8: +7/8 and -1/8."""
    leased = replace(LEASED, donors={"expert": donors_of(1.0)})
    rules = [{"rule": "splice_donors", "source": "expert", "component": None}]
    decision = Finisher(rules).decide(make_group(scores=[0.0] * 8), leased)
    sources = [t.source for t in decision.group.trajectories]
    assert (len(sources), sources.count(Source.EXPERT)) == (8, 1)
    assert len({t.trajectory_id for t in decision.group.trajectories}) == 8
    objective = Objective(
        [
            Term(loss="shaped_likelihood", source="expert", advantage="centered", compared_with="group"),
            Term(loss="ratio_surrogate", source="live", advantage="centered", compared_with="group"),
        ]
    )
    plan = objective.plan([decision.group])
    found = [sorted({float(a) for column in term.advantages or () for a in column if a}) for term in plan.terms]
    assert found == [[0.875], [-0.125]]


def test_ampo_leaves_a_group_with_a_right_member_alone_and_else_replaces_exactly_two():
    leased = replace(LEASED, donors={"teacher": donors_of(1.0, 1.0, 1.0, source=Source.TEACHER)})
    rule = {"rule": "splice_donors", "source": "teacher", "when": "failed", "count": 2}
    solved = make_group(scores=[0.0, 1.0, 0.0, 0.0])
    assert Finisher([rule]).decide(solved, leased).group is solved
    mixed = Finisher([rule]).decide(make_group(scores=[0.0] * 4), leased).group
    assert [t.source for t in mixed.trajectories].count(Source.TEACHER) == 2
    assert len(mixed.trajectories) == 4


def test_rlep_adds_two_and_rules_after_it_see_them():
    leased = replace(LEASED, donors={"own_past": donors_of(1.0, 1.0, 1.0, source=Source.OWN_PAST)})
    rules = [{"rule": "splice_donors", "source": "own_past", "count": 2, "places": "nobody"}, "drop_constant"]
    decision = Finisher(rules).decide(make_group(scores=[0.0] * 4), leased)
    assert (decision.action, len(decision.group.trajectories)) == (Keep(), 6)
    assert Finisher(rules).decide(make_group(scores=[0.0] * 4), LEASED).action == Drop("constant")


def test_a_group_that_grows_comes_back_without_the_donors_that_had_joined():
    leased = replace(LEASED, donors={"expert": donors_of(1.0)})
    rules = [{"rule": "splice_donors", "source": "expert"}, {"rule": "grow_failed", "num": 2, "max": 1}]
    wrong = make_group(scores=[0.0, 0.0])
    decision = Finisher(rules).decide(wrong, leased)
    assert (decision.action, decision.group) == (Grow(2), wrong)


def test_exgrpo_stashes_partly_solved_groups_and_retires_solved_ones():
    rules = [{"rule": "stash_right", "high": 0.9}, {"rule": "retire_solved", "rate": 1.0}]
    partly = Finisher(rules).decide(make_group(scores=[1.0, 0.0]), LEASED)
    assert partly.stashes == (Stash("own_past", ("g0/0",)),)
    assert not partly.is_retired
    solved = Finisher(rules).decide(make_group(scores=[1.0, 1.0]), LEASED)
    assert (solved.is_retired, solved.stashes) == (True, ())


def test_a_group_that_was_helped_retires_nothing():
    helped = make_group(scores=[1.0, 1.0])
    members = tuple(replace(t, sample_context=Context(kind="hint", amount=0.5)) for t in helped.trajectories)
    assert not Finisher(["retire_solved"]).decide(replace(helped, trajectories=members), LEASED).is_retired


def test_voters_beyond_the_first_leave_and_a_perplexity_band_keeps_the_middle():
    kept = Finisher([{"rule": "keep_first", "num": 2}]).decide(make_group(scores=[0.0, 1.0, 1.0]), LEASED).group
    assert [t.trajectory_id for t in kept.trajectories] == ["g0/0", "g0/1"]
    group = make_group(scores=[1.0, 1.0, 1.0])
    nats = (0.0, -1.0, -3.0)
    members = tuple(make_trajectory(index=i, logprobs=(value, value)) for i, value in enumerate(nats))
    band = {"rule": "drop_perplexity", "low": 1.5, "high": 10.0}
    kept = Finisher([band]).decide(replace(group, trajectories=members), LEASED).group
    assert [t.trajectory_id for t in kept.trajectories] == ["g0/1"]


def test_ghpo_hints_grow_and_a_right_group_is_never_hinted():
    ladder = [{"kind": "hint", "amount": amount} for amount in (0.25, 0.5, 0.75)]
    rule = {"rule": "redo_failed", "max": 3, "contexts": ladder}
    wrong = make_group(scores=[0.0, 0.0])
    amounts = [decide(replace(wrong, history={"redo": n}), rule).context.amount for n in range(3)]
    assert amounts == [0.25, 0.5, 0.75]
    assert decide(replace(wrong, history={"redo": 3}), rule) == Keep()
    assert decide(make_group(scores=[0.0, 1.0]), rule) == Keep()


def test_a_failed_member_forks_once_with_feedback_about_itself():
    decision = Finisher(["fork_failed"]).decide(make_group(scores=[1.0, 0.0]), LEASED)
    (fork,) = decision.forks
    assert (fork.attempt, fork.context.kind, fork.context.reference) == ("g0/1", "feedback", "g0/1")
    again = Finisher(["fork_failed"]).decide(make_group(scores=[1.0, 0.0]), replace(LEASED, task=fork.task))
    assert again.forks == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [("stash_stranger", "no members"), ("retire_another", "retires 'other'"), ("remove_all", "removes every member")],
)
def test_actions_on_what_is_not_there_are_refused(name, message):
    with pytest.raises(RuleError, match=message):
        Finisher([f"{HERE}:{name}"]).decide(make_group(), LEASED)


def stash_stranger(group, leased, row):
    return Stash("t", ("nobody",))


def retire_another(group, leased, row):
    return Retire("other")


def remove_all(group, leased, row):
    return Splice((), tuple(t.trajectory_id for t in group.trajectories))
