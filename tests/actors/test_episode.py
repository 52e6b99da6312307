"""A two-turn tool episode, from the engine to the gradient: every stage leaves its tokens as they were sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.config import EngineConfig
from actors.engines.protocol import Completion, SamplingRequest
from actors.engines.simulated import SimulatedEngine
from actors.engines.simulation import simulated_logprobs
from actors.renderer import Renderer
from actors.replay.checks import fault_of
from actors.replay.log import BlockStore
from learner.batch import training_sequences
from learner.config import ClippedSurrogate, LearnerConfig, NegativeLogLikelihood, OptimizerConfig, Term
from learner.objective import Objective
from learner.trainer import Trainer
from rewards.codec import decode_group, encode_group, payload_digest
from rewards.trajectory import (
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
from rewards.verdict import Verdict
from tests.actors.fakes import save_character_tokenizer
from tests.learner.tiny_policy import micro_batch, reference_logprobs, save_tiny_model, tiny_model

TOOL_RESULT = ({"role": "tool", "content": "12"},)
POLICY_GRADIENT = (Term(loss=ClippedSurrogate(clip_low=0.9, clip_high=9.0)),)
IMITATION = (Term(loss=NegativeLogLikelihood()),)
CONFIG = LearnerConfig(optimizer=OptimizerConfig(learning_rate=1e-2, eps=1e-4))


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return Renderer(str(save_character_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture
async def group(renderer: Renderer) -> Group:
    """Two episodes of one task: a tool call, its result, an answer, and (not answered any more) another result."""
    engine = SimulatedEngine(
        EngineConfig(kind="simulated", max_model_len=256, options={"vocabulary": (6, 106), "length": 5})
    )
    await engine.start("no model", PolicyVersion(3))
    members = [await sample_episode(engine, renderer, index) for index in range(2)]
    return Group(
        group_id="g",
        prompt_id="task",
        source=Source.LIVE,
        trajectories=tuple(members),
        ticket_id="ticket",
        num_asked=2,
        tags={"coverage": "covered"},
    )


async def sample_episode(engine: SimulatedEngine, renderer: Renderer, index: int) -> Trajectory:
    prompt = renderer.prompt_ids(({"role": "user", "content": "what is 3*4?"},))
    request = SamplingRequest(max_new_tokens=20, stop_token_ids=renderer.stop_token_ids, seed=index)
    ids, roles = list(prompt), [Role.CONTEXT] * len(prompt)
    turns: list[tuple[int, Completion]] = []
    for _ in range(2):
        (completion,) = await engine.generate(ids, request)
        turns.append((len(ids), completion))
        ids += completion.token_ids.tolist()
        roles += [Role.SAMPLED] * len(completion.token_ids)
        result = renderer.extend(ids, TOOL_RESULT)
        ids += result
        roles += [Role.ENVIRONMENT] * len(result)
    return episode_of(ids, roles, turns, index)


def episode_of(
    ids: Sequence[int], roles: Sequence[Role], turns: Sequence[tuple[int, Completion]], index: int
) -> Trajectory:
    logprobs = np.full(len(ids), np.nan, dtype=np.float32)
    for start, completion in turns:
        logprobs[start : start + len(completion.token_ids)] = completion.logprobs
    ends = [start + len(completion.token_ids) for start, completion in turns]
    return Trajectory(
        trajectory_id=f"g/{index}",
        group_id="g",
        source=Source.LIVE,
        token_ids=np.array(ids, np.int32),
        roles=np.array(roles, np.int8),
        behavior_logprobs=logprobs,
        versions=tuple(
            VersionSpan(start + span.start, start + span.end, span.version)
            for start, completion in turns
            for span in completion.versions
        ),
        verdict=Verdict.scored(float(index), components={"correct": float(index)}),
        rewards=tuple(Reward("tool", 0.1, end - 1) for end in ends),
        turns=tuple(
            Turn(start, end, completion.finish_reason) for (start, completion), end in zip(turns, ends, strict=True)
        ),
        finish_reason=FinishReason.STOP,
        terminated=False,
        truncated=True,
        sampling=SamplingRecord(seed=index),
    )


def changed(group: Group, **arrays: np.ndarray) -> Group:
    """The group with other columns in its second member."""
    first, second = group.trajectories
    return replace(group, trajectories=(first, replace(second, **arrays)))


def is_environment(member: Trajectory) -> np.ndarray:
    return member.roles == Role.ENVIRONMENT


def last_environment(member: Trajectory) -> np.ndarray:
    """[T] the tool result nobody answered."""
    last_sampled = np.flatnonzero(member.sampled_mask)[-1]
    return is_environment(member) & (np.arange(len(member.roles)) > last_sampled)


def trained(model_folder: Path, group: Group, terms: Sequence[Term]) -> dict[str, torch.Tensor]:
    """Weights after one step on the group."""
    trainer = Trainer(CONFIG, terms, model_folder, temperature=1.0)
    report = trainer.step([group], 0)
    assert not report.skipped
    assert report.num_trained_tokens == group.num_sampled_tokens
    return {name: tensor.clone() for name, tensor in trainer.named_weights()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


# -- the record -------------------------------------------------------------------------------------------------------


def test_the_record_says_who_put_each_token_there(group, renderer):
    for member in group.trajectories:
        assert len(member.turns) == len(member.versions) == 2
        environment = np.flatnonzero(is_environment(member))
        first, second = member.turns
        assert environment[0] == first.end
        assert second.start in environment + 1
        assert set(np.flatnonzero(member.sampled_mask)) == {
            *range(first.start, first.end),
            *range(second.start, second.end),
        }
        for turn in member.turns:
            expected = simulated_logprobs(member.token_ids[: turn.end], PolicyVersion(3))[turn.start :]
            assert np.array_equal(member.behavior_logprobs[turn.start : turn.end], expected)
        shown = renderer.decode(member.token_ids[first.end : second.start])
        assert shown == "12"


def test_storing_brings_back_every_byte(group, tmp_path):
    block = encode_group(group)
    store = BlockStore(tmp_path)
    stored = store.read(store.append("live", block))
    assert stored is not None
    restored = decode_group(stored)
    assert payload_digest(encode_group(restored)) == payload_digest(block)
    for member, other in zip(restored.trajectories, group.trajectories, strict=True):
        for column in ("token_ids", "roles", "behavior_logprobs"):
            assert getattr(member, column).tobytes() == getattr(other, column).tobytes()
        assert (member.turns, member.versions, member.rewards) == (other.turns, other.versions, other.rewards)
        assert (member.terminated, member.truncated, member.sampling) == (False, True, other.sampling)


def test_the_cache_accepts_an_episode_with_unknown_environment_log_probs(group):
    assert fault_of(group, versions={3}) is None
    second = group.trajectories[1]
    behavior = second.behavior_logprobs.copy()
    behavior[second.turns[1].start] = np.nan
    assert fault_of(changed(group, behavior_logprobs=behavior), versions={3}) == "missing_logprobs"


# -- masks and packing ------------------------------------------------------------------------------------------------


def test_only_sampled_tokens_are_trained_and_packing_keeps_the_whole_context(group):
    plan = Objective(POLICY_GRADIENT).plan([group])
    for mask, member in zip(plan.trained, group.trajectories, strict=True):
        assert np.array_equal(mask, member.roles == Role.SAMPLED)
    for sequence, member in zip(training_sequences([group], plan.trained), group.trajectories, strict=True):
        end = member.turns[1].end
        assert sequence.token_ids.tolist() == member.token_ids[:end].tolist()  # the tool result is context
        assert np.array_equal(sequence.positions, np.flatnonzero(member.sampled_mask))
    batch = micro_batch([group])
    assert batch.targets[batch.readers].tolist() == [
        token for member in group.trajectories for token in member.token_ids[member.sampled_mask].tolist()
    ]


@pytest.mark.parametrize("terms", [POLICY_GRADIENT, IMITATION])
def test_the_gradient_at_environment_tokens_is_exactly_zero(group, terms):
    """Even where somebody computes their log-probs, the objective does not look at them."""
    objective = Objective(terms)
    plan = objective.plan([group])
    behavior = np.concatenate([t.behavior_logprobs for t in group.trajectories])
    logprobs = torch.tensor(np.where(np.isnan(behavior), -1.0, behavior + 0.1), dtype=torch.float32, requires_grad=True)
    columns = {name: torch.from_numpy(np.concatenate(arrays)) for name, arrays in plan.columns.items()}
    columns |= {"logprobs": logprobs, "behavior_logprobs": torch.from_numpy(behavior)}
    objective.loss(columns, 0)[0].backward()
    sampled = torch.from_numpy(np.concatenate([t.sampled_mask for t in group.trajectories]))
    assert logprobs.grad is not None
    assert (logprobs.grad[~sampled] == 0).all()
    assert (logprobs.grad[sampled] != 0).all()


# -- one step ---------------------------------------------------------------------------------------------------------


def test_a_step_is_the_gradient_of_the_sampled_tokens_alone(group, model_folder):
    after = trained(model_folder, group, IMITATION)
    model = tiny_model()
    loss = -reference_logprobs(model, [group]).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CONFIG.optimizer.max_grad_norm)
    settings = CONFIG.optimizer
    torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, eps=settings.eps, weight_decay=0.0).step()
    expected = dict(model.named_parameters())
    assert max(float((after[name] - expected[name]).detach().abs().max()) for name in after) < 1e-5


@pytest.mark.parametrize("value", [-3.0, 0.0, np.inf])
def test_log_probs_of_environment_tokens_change_no_bit(group, model_folder, value):
    behavior = group.trajectories[1].behavior_logprobs.copy()
    behavior[is_environment(group.trajectories[1])] = value
    other = changed(group, behavior_logprobs=behavior)
    assert same(trained(model_folder, group, POLICY_GRADIENT), trained(model_folder, other, POLICY_GRADIENT))


@pytest.mark.parametrize("terms", [POLICY_GRADIENT, IMITATION])
def test_environment_tokens_nothing_follows_change_no_bit(group, model_folder, terms):
    second = group.trajectories[1]
    ids = second.token_ids.copy()
    ids[last_environment(second)] += 1
    assert (ids != second.token_ids).any()
    other = changed(group, token_ids=ids)
    assert same(trained(model_folder, group, terms), trained(model_folder, other, terms))


def test_what_would_change_the_step_if_it_changed(group, model_folder):
    """The comparisons above can fail: what is trained, and what it is conditioned on, both count."""
    before = trained(model_folder, group, POLICY_GRADIENT)
    second = group.trajectories[1]
    behavior = second.behavior_logprobs.copy()
    behavior[second.turns[1].start] -= 0.5
    assert not same(before, trained(model_folder, changed(group, behavior_logprobs=behavior), POLICY_GRADIENT))
    ids = second.token_ids.copy()
    ids[second.turns[0].end] += 1  # the first token of the result that the second turn answers
    assert not same(before, trained(model_folder, changed(group, token_ids=ids), POLICY_GRADIENT))


def test_environment_tokens_taken_for_sampled_ones_would_move_the_weights(group, model_folder):
    second = group.trajectories[1]
    roles = second.roles.copy()
    roles[last_environment(second)] = Role.SAMPLED
    mistaken = changed(group, roles=roles)
    assert mistaken.num_sampled_tokens > group.num_sampled_tokens
    assert not same(trained(model_folder, group, IMITATION), trained(model_folder, mistaken, IMITATION))
    with pytest.raises(ValueError, match="needs behaviour log-probs"):
        Objective(POLICY_GRADIENT).plan([mistaken])
