"""A rule that turns judged groups into tasks for judges, so that the policy learns to judge what it learns to do."""

from __future__ import annotations

from actors.ports import LeasedTask, LedgerRow
from actors.rules.actions import Fork
from rewards.judge_tasks import DEPTH, SAID, recycled_task, reflection_task
from rewards.judges.prompts import content_rng
from rewards.trajectory import Group


def recycle(
    group: Group,
    leased: LeasedTask,
    row: LedgerRow | None,
    *,
    share: float = 1.0,
    pair_share: float = 0.7,
    reflection_share: float = 0.0,
) -> Fork | tuple[Fork, ...] | None:
    """A judge's task about the group's answers joins the stream, and now and then one to check a wrong answer.

    The reward must keep the answers: `rewards.judge_tasks:answer_or_label`. Tasks made this way make no further ones.
    Unscored members enter nothing, because nobody knows their label.

    Args:
        share: of the groups that are recycled.
        pair_share: pairs among the judge's tasks of groups with right and wrong answers.
        reflection_share: of the groups with a wrong answer whose question is asked again with it.

    Source: SPARK, arXiv:2509.22624; InternLM/Spark, `reward_data_gen.py` (0.3 / 0.7, 32 reflections in 64 groups).
    """
    del row
    if leased.task.metadata.get(DEPTH):
        return None
    rng = content_rng("recycle", group.group_id)
    verdicts = [t.verdict for t in group.own_members if t.verdict is not None and t.verdict.score is not None]
    judged = [(str(v.extras[SAID]), v.is_right) for v in verdicts if SAID in v.extras]
    forks = []
    if judged and rng.random() < share:
        answers, rights = zip(*judged, strict=True)
        made = recycled_task(leased.task, answers, rights, rng, pair_share=pair_share)
        forks += [] if made is None else [Fork(made)]
    wrong = [answer for answer, right in judged if not right and answer.strip()]
    if wrong and rng.random() < reflection_share:
        forks.append(Fork(reflection_task(leased.task, wrong[int(rng.integers(len(wrong)))])))
    return tuple(forks) or None
