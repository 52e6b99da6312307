import json
import math
import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import wire
from rewards.task import ExpertResponse, Task
from rewards.verdict import FLOOR_STATUSES, UNSCORED_STATUSES, Status, Verdict

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
EXTRAS = st.dictionaries(st.text(), JSON_VALUES, max_size=3)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "tool"]), "content": st.text()}),
    min_size=1,
    max_size=3,
).map(tuple)
EXPERTS = st.lists(
    st.builds(
        ExpertResponse,
        text=st.text(),
        logprobs=st.none() | st.lists(st.floats(max_value=0, allow_infinity=False), max_size=4).map(tuple),
        author=st.text(),
    ),
    max_size=3,
).map(tuple)
TASKS = st.builds(
    Task,
    task_id=st.text(),
    prompt=st.text() | MESSAGES,
    reference=st.none() | st.text(),
    metadata=EXTRAS,
    expert=EXPERTS,
    tags=st.dictionaries(st.text(), st.text(), max_size=3),
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
PARTS = st.dictionaries(st.text(), st.none() | FINITE, max_size=3)
VERDICTS = st.one_of(
    st.builds(Verdict.scored, FINITE, components=PARTS, extras=EXTRAS, seconds=FINITE),
    st.builds(Verdict.floor, st.sampled_from(sorted(FLOOR_STATUSES)), FINITE, components=PARTS, extras=EXTRAS),
    st.builds(Verdict.unscored, st.sampled_from(sorted(UNSCORED_STATUSES)), components=PARTS, extras=EXTRAS),
)


def through_json(value):
    return json.loads(wire.encode(value))


@given(TASKS)
def test_a_task_survives_the_trip(task):
    assert wire.task_from_json(through_json(wire.task_to_json(task))) == task


@given(VERDICTS)
def test_a_verdict_survives_the_trip(verdict):
    assert wire.verdict_from_json(through_json(wire.verdict_to_json(verdict))) == verdict


def test_unknown_logprobs_stay_unknown():
    task = Task(task_id="a", prompt="p", expert=(ExpertResponse(text="x", logprobs=(-1.0, math.nan)),))
    arrived = wire.task_from_json(through_json(wire.task_to_json(task))).expert[0].logprobs
    assert arrived[0] == -1.0
    assert math.isnan(arrived[1])


def good(**fields):
    return {"score": 1.0, "status": "scored", "components": {}, "extras": {}, "seconds": 0.0} | fields


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "scored",
        {},
        good(score="one"),
        good(score=[1]),
        good(score=math.nan),
        good(score=math.inf),
        good(score=None),
        good(score=10**400),
        good(status="fine"),
        good(status=[]),
        good(status="infra_error"),
        good(components=[1]),
        good(components={"a": "x"}),
        good(components={"a": 10**400}),
        good(extras=3),
        good(seconds=None),
    ],
)
def test_what_is_not_a_verdict_is_refused(data):
    with pytest.raises(ValueError):
        wire.verdict_from_json(data)


def test_fields_beyond_the_known_ones_are_left_out():
    assert wire.verdict_from_json(good(unknown=3)) == Verdict.scored(1.0)


@pytest.fixture
def ends():
    left, right = socket.socketpair()
    right.settimeout(5)
    yield left, right
    left.close()
    right.close()


class TestFrames:
    def test_messages_arrive_whole_and_in_order(self, ends):
        near, far = ends
        messages = [{"a": 1}, [], "x" * 300_000, None]  # the third is larger than a socket's buffer
        sender = threading.Thread(target=lambda: [wire.send(near, wire.encode(m)) for m in messages])
        sender.start()
        assert [wire.receive(far) for _ in messages] == messages
        sender.join()

    def test_a_frame_may_come_in_pieces(self, ends):
        near, far = ends
        payload = wire.encode({"key": "value"})
        frame = struct.pack("!Q", len(payload)) + payload

        def trickle():
            for byte in frame:
                near.sendall(bytes([byte]))

        sender = threading.Thread(target=trickle)
        sender.start()
        assert wire.receive(far) == {"key": "value"}
        sender.join()

    @pytest.mark.parametrize("sent", [b"", b"\x00\x00", struct.pack("!Q", 10) + b"[1, 2"])
    def test_an_end_in_the_middle_is_told(self, ends, sent):
        near, far = ends
        near.sendall(sent)
        near.close()
        with pytest.raises(wire.FrameError, match="closed"):
            wire.receive(far)

    def test_a_frame_beyond_the_limit_is_refused_before_it_is_read(self, ends):
        near, far = ends
        near.sendall(struct.pack("!Q", wire.MAX_FRAME_BYTES + 1))
        with pytest.raises(wire.FrameError, match=f"{wire.MAX_FRAME_BYTES + 1} bytes; the limit is"):
            wire.receive(far)

    @pytest.mark.parametrize("payload", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000])
    def test_bytes_that_are_not_json_are_refused(self, ends, payload):
        near, far = ends
        wire.send(near, payload)
        with pytest.raises(wire.FrameError, match="not JSON"):
            wire.receive(far)

    def test_silence_is_a_timeout(self, ends):
        near, far = ends
        far.settimeout(0.05)
        near.sendall(b"\x00")
        with pytest.raises(TimeoutError):
            wire.receive(far)


@pytest.mark.parametrize("message", [{"a": {1}}, {"a": object()}, Status])
def test_what_json_has_no_type_for_cannot_be_encoded(message):
    with pytest.raises(TypeError):
        wire.encode(message)
