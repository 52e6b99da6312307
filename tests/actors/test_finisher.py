import inspect
from dataclasses import replace

import pytest

from actors.finisher import (
    FREE_RULE_ATTEMPTS,
    RULES,
    Drop,
    Finisher,
    Fork,
    Grow,
    Keep,
    Redo,
    Retire,
    RuleError,
    Splice,
    Stash,
    TerminalAction,
)
from actors.ledger import LedgerRow
from actors.ports import LeasedTask
from rewards.task import Task
from rewards.trajectory import Context
from rewards.verdict import Status, Verdict
from tests.builders import make_group

LEASED = LeasedTask(lease_id="0.0", task=Task(task_id="t", prompt="p"))
HERE = "tests.actors.test_finisher"


def decide(group, *rules, leased=LEASED):
    return Finisher(rules).terminal_action(group, leased)


def group_of(*verdicts, **fields):
    group = make_group(scores=[0.0] * len(verdicts), **fields)
    members = tuple(t.with_verdict(v) for t, v in zip(group.trajectories, verdicts, strict=True))
    return replace(group, trajectories=members)


def shaped(accuracy, penalty):
    """A verdict of two components, as a rubric with a length penalty gives it."""
    return Verdict.scored(accuracy + penalty, components={"correct": accuracy, "overlong": penalty})


def test_without_rules_every_group_is_kept():
    finisher = Finisher()
    assert finisher.terminal_action(make_group(scores=[None, None]), LEASED) == Keep()
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
    assert finisher.terminal_action(group, LEASED) == finisher.terminal_action(group, LEASED)


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


def splice_unannotated(group, leased, row):
    return Splice(donors=(), victims=())


def fork_unreadable(group, leased, row) -> "NoSuchName | None":  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
    return Fork(leased.task)


def hint(group, leased, row) -> Redo:
    return Redo(Context(kind="hint"))


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


@pytest.mark.parametrize(("name", "action"), [("retire", "Retire"), ("stash_or_drop", "Stash")])
def test_a_rule_that_promises_what_nobody_carries_out_is_refused_at_once(name, action):
    with pytest.raises(RuleError, match=f"{name} may return {action}, which no box of this run carries out"):
        Finisher([f"{HERE}:{name}"])


@pytest.mark.parametrize(("name", "action"), [("splice_unannotated", "Splice"), ("fork_unreadable", "Fork")])
def test_a_rule_that_did_not_say_so_is_refused_when_it_answers(name, action):
    finisher = Finisher([f"{HERE}:{name}"])
    with pytest.raises(RuleError, match=f"{name} may return {action}"):
        finisher.terminal_action(make_group(), LEASED)


def test_a_context_nobody_renders_is_refused():
    """The prompt of the record must be the prompt that was sampled."""
    with pytest.raises(RuleError, match="context 'hint'"):
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
        ("zzz", "known names: drop_constant, drop_rate, drop_unscored, grow_failed, redo_failed"),
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
