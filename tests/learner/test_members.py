"""Per-trajectory sums on a literal batch of three sequences and two terms."""

import math

import pytest
import torch

from learner.config import ClippedSurrogate, NegativeLogLikelihood, Term
from learner.members import MemberRecord, clip_bounds, member_records, member_sums

LIVE, EXPERT = (
    Term(loss=ClippedSurrogate(clip_low=0.2, clip_high=0.28)),
    Term(loss=NegativeLogLikelihood(), source="expert"),
)
TERMS = [("live", LIVE), ("expert", EXPERT)]


def columns(part):
    logprobs = torch.log(torch.tensor([0.5, 0.6, 0.9, 0.3, 0.7])[part])
    behavior = torch.tensor([math.log(0.5), math.log(0.3), math.log(0.9), math.log(0.5), math.nan])[part]
    return {
        "logprobs": logprobs.requires_grad_(),
        "behavior_logprobs": behavior,
        "sequence_ids": torch.tensor([0.0, 0.0, 0.0, 2.0, 1.0])[part],
        "live/token_scale": torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0])[part],
        "expert/token_scale": torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])[part],
    }


def test_each_trajectory_has_its_own_ratio_and_clipped_share():
    whole = member_sums(columns(slice(None)), TERMS, 3)
    parts = member_sums(columns(slice(0, 1)), TERMS, 3) + member_sums(columns(slice(1, 5)), TERMS, 3)
    torch.testing.assert_close(parts, whole)
    first, second, third = member_records(whole, [LIVE, EXPERT])
    assert (first.num_tokens, first.ratio, first.clipped) == (2, pytest.approx((1.0 + 2.0) / 2), 0.5)
    assert second == MemberRecord(1, None, None)
    assert (third.num_tokens, third.ratio, third.clipped) == (1, pytest.approx(0.6), 1.0)


def test_without_a_ratio_or_bounds_there_is_no_number():
    bare = columns(slice(None))
    del bare["behavior_logprobs"]
    assert {record.ratio for record in member_records(member_sums(bare, TERMS, 3), [LIVE, EXPERT])} == {None}
    assert clip_bounds(EXPERT) is None
    assert clip_bounds(LIVE) == (pytest.approx(0.8), pytest.approx(1.28))
    assert clip_bounds(Term(loss=ClippedSurrogate(), ratio_to="proximal")) is None
