"""Is this what an honest engine and reward pool produce? A group that is not is refused, with the reason counted."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from rewards.trajectory import LOGPROB_SLACK, Group, Source, Trajectory


def fault_of(group: Group, versions: Container[int]) -> str | None:
    """Why a live group must not be trained on, or None.

    Donors that rules put beside the policy's own answers are of other sources; what is unknown of them stays unknown.

    Reasons: not_live, duplicate_members, nothing_sampled, missing_logprobs, infinite_logprobs, positive_logprobs,
    no_versions, version_gap, unknown_version, unscored (fewer than two members with a score, or than one for a group
    of one).

    Args:
        versions: the announced policy versions.
    """
    members = group.trajectories
    mislabelled = any(t.source in (Source.EXPERT, Source.TEACHER) and t.versions for t in members)
    if group.source is not Source.LIVE or not group.own_members or mislabelled:
        return "not_live"
    if len({t.trajectory_id for t in members}) < len(members):
        return "duplicate_members"
    if group.num_sampled_tokens == 0:
        return "nothing_sampled"
    for member in group.own_members:
        fault = _logprob_fault(member) or _version_fault(member, versions)
        if fault is not None:
            return fault
    if group.num_scored < min(2, len(members)):
        return "unscored"
    return None


def _logprob_fault(member: Trajectory) -> str | None:
    values = member.behavior_logprobs[member.sampled_mask]
    if np.isnan(values).any():
        return "missing_logprobs"
    if np.isinf(values).any():
        return "infinite_logprobs"
    if (values > LOGPROB_SLACK).any():
        return "positive_logprobs"
    return None


def _version_fault(member: Trajectory, versions: Container[int]) -> str | None:
    sampled = member.sampled_mask
    if not member.versions:
        return "no_versions" if sampled.any() else None
    labels = np.zeros(len(sampled), dtype=np.int32)
    for span in member.versions:
        labels[span.start : span.end] += 1
    if (labels[sampled] != 1).any():
        return "version_gap"
    if any(span.version not in versions for span in member.versions):
        return "unknown_version"
    return None
