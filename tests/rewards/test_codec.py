"""A block of bytes is the group, every field of it, or it is refused."""

import dataclasses
import subprocess
import sys
import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.codec import CodecError, decode_group, encode_group, payload_digest
from rewards.trajectory import (
    Context,
    FinishReason,
    Group,
    PolicyVersion,
    Reward,
    Role,
    SamplingRecord,
    Source,
    Trajectory,
    Turn,
    VersionSpan,
)
from rewards.verdict import Status, Verdict
from tests.builders import make_group

TEXT = st.text(max_size=12)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON_VALUE = st.recursive(st.none() | st.booleans() | st.integers() | FINITE | TEXT, st.lists, max_leaves=4)


@st.composite
def contexts(draw):
    return Context(draw(TEXT), draw(st.none() | FINITE), draw(st.none() | TEXT), draw(st.none() | TEXT))


@st.composite
def verdicts(draw):
    details = {
        "components": draw(st.dictionaries(TEXT, st.none() | FINITE, max_size=3)),
        "extras": draw(st.dictionaries(TEXT, JSON_VALUE, max_size=3)),
        "seconds": draw(st.floats(0, 1e6)),
    }
    if draw(st.booleans()):
        return Verdict(score=draw(FINITE), status=Status.SCORED, **details)
    return Verdict(score=None, status=draw(st.sampled_from([Status.CANCELLED, Status.INFRA_ERROR])), **details)


@st.composite
def trajectories(draw, group_id):
    length = draw(st.integers(0, 12))
    bits = draw(st.lists(st.integers(0, 2**32 - 1), min_size=length, max_size=length))
    cuts = sorted(draw(st.sets(st.integers(0, length), max_size=4)))
    spans = tuple(VersionSpan(a, b, PolicyVersion(draw(st.integers(0, 2**40)))) for a, b in pairwise(cuts))
    ids = st.integers(-(2**31), 2**31 - 1)
    landings = st.tuples(TEXT, FINITE, st.integers(0, max(0, length - 1)))
    ends = st.tuples(st.integers(0, length), st.integers(0, length), st.sampled_from(FinishReason))
    return Trajectory(
        trajectory_id=draw(TEXT),
        group_id=group_id,
        source=draw(st.sampled_from(Source)),
        token_ids=np.array(draw(st.lists(ids, min_size=length, max_size=length)), np.int32),
        roles=np.array(draw(st.lists(st.sampled_from(Role), min_size=length, max_size=length)), np.int8),
        behavior_logprobs=np.array(bits, np.uint32).view(np.float32),
        versions=draw(st.sampled_from([None, spans])),
        sample_context=draw(contexts()),
        train_prompt_ids=draw(st.none() | st.lists(ids, max_size=5).map(lambda x: np.array(x, np.int32))),
        verdict=draw(st.none() | verdicts()),
        rewards=tuple(Reward(*landing) for landing in draw(st.lists(landings, max_size=2 if length else 0))),
        turns=tuple(Turn(min(a, b), max(a, b), reason) for a, b, reason in draw(st.lists(ends, max_size=2))),
        finish_reason=draw(st.sampled_from(FinishReason)),
        terminated=draw(st.booleans()),
        truncated=draw(st.booleans()),
        sampling=SamplingRecord(draw(FINITE), draw(FINITE), draw(st.integers()), draw(st.none() | st.integers())),
        images=tuple(draw(st.lists(TEXT, max_size=2))),
    )


@st.composite
def groups(draw):
    group_id = draw(TEXT)
    return Group(
        group_id=group_id,
        prompt_id=draw(TEXT),
        source=draw(st.sampled_from(Source)),
        trajectories=tuple(draw(st.lists(trajectories(group_id), min_size=1, max_size=4))),
        ticket_id=draw(st.none() | TEXT),
        num_asked=draw(st.integers(0, 99)),
        context=draw(contexts()),
        history=draw(st.dictionaries(TEXT, st.integers(), max_size=2)),
        tags=draw(st.dictionaries(TEXT, JSON_VALUE, max_size=2)),
        created_at=draw(FINITE),
    )


def assert_identical(left, right):
    """Field by field over all fields the dataclass has, arrays by dtype and bits."""
    assert type(left) is type(right)
    for field in dataclasses.fields(left):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, field.name
            assert a.tobytes() == b.tobytes(), field.name
        elif field.name == "trajectories":
            for x, y in zip(a, b, strict=True):
                assert_identical(x, y)
        else:
            assert a == b, field.name
            assert type(a) is type(b), field.name


@settings(deadline=None)
@given(groups())
def test_every_field_of_any_group_round_trips(group):
    data = encode_group(group)
    assert_identical(decode_group(data), group)
    assert encode_group(decode_group(data)) == data


def test_arrays_are_aligned_read_only_views_of_the_block():
    member = decode_group(encode_group(make_group())).trajectories[0]
    for array in (member.token_ids, member.behavior_logprobs, member.roles):
        assert array.flags.aligned
        assert not array.flags.writeable
        assert not array.flags.owndata


def test_digest_follows_the_content():
    one, same, other = make_group(), make_group(), make_group(scores=(1.0, 0.5))
    assert payload_digest(encode_group(one)) == payload_digest(encode_group(same))
    assert payload_digest(encode_group(one)) != payload_digest(encode_group(other))


def test_every_single_flipped_byte_is_noticed():
    data = encode_group(make_group(scores=(1.0,)))
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x41
        with pytest.raises(CodecError):
            decode_group(bytes(damaged))


def test_every_cut_is_noticed():
    data = encode_group(make_group(scores=(1.0,)))
    for size in range(len(data)):
        with pytest.raises(CodecError):
            decode_group(data[:size])
    with pytest.raises(CodecError, match="its prefix says"):
        decode_group(data + b"\0")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"source":"live"', b'"source":"evil"', "do not make a group"),
        (b'"num_tokens":5', b'"num_tokens":6', "columns of"),
        (b'"num_tokens":5', b'"num_tokens":-', "unreadable header"),
        (b'"images":', b'"imagos":', "member header has"),
        (b'"prompt_id":', b'"prompt_xx":', "group header has"),
    ],
)
def test_well_checksummed_nonsense_is_refused(old, new, message):
    """A writer with a bug produces correct checksums; the fields are checked all the same."""
    body = encode_group(make_group(scores=(1.0,)))[:-4].replace(old, new)
    with pytest.raises(CodecError, match=message):
        decode_group(body + zlib.crc32(body).to_bytes(4, "little"))


def test_what_json_cannot_hold_is_named():
    with pytest.raises(CodecError, match=r"group g0 cannot be written: .*bytes"):
        encode_group(make_group(tags={"blob": b"x"}))


def test_needs_no_torch():
    code = "import sys, rewards.codec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
