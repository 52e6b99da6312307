"""Models that judge: where they are, and what asking them may cost."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class ServiceConfig(BaseModel):
    """What all services share; strict like `rewards.config.Section`, which itself holds one of these."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    concurrency: int = Field(default=32, ge=1)
    """Requests one reward actor has in flight at a time."""
    attempt_timeout_s: float = Field(default=60.0, gt=0)
    """Wall clock of one attempt."""
    total_timeout_s: float = Field(default=180.0, gt=0)
    """Wall clock of one request with all its attempts and the pauses between them."""
    num_attempts: int = Field(default=4, ge=1)
    """Attempts at one request after faults of the service or replies nobody can read; never after a verdict."""


class JudgeConfig(ServiceConfig):
    """What services that answer in words share."""

    temperature: float = Field(default=0.0, ge=0)
    """Of single calls; votes need one above 0."""
    max_tokens: int = Field(default=1024, ge=1)
    """Of one reply; one that was cut has no verdict."""
    admission_trials: int = Field(default=200, ge=0)
    """Answers without content the judge is tried with before it is used; 0 trusts it unseen."""
    max_admission_rate: float = Field(default=0.01, ge=0, le=1)
    """Share of them it may pay as much as a right answer."""


class EndpointJudge(JudgeConfig):
    """A chat model behind an OpenAI-compatible server: vLLM, a router, Ray Serve's LLM deployments."""

    kind: Literal["endpoint"] = "endpoint"
    url: str
    """Up to and without `/chat/completions`, e.g. `http://judge:8000/v1`."""
    model: str
    """As the server calls it."""
    revision: str = ""
    """Stated beside the model's name in cached verdicts; change it when the server's weights change."""
    api_key_env: str | None = None
    """Environment variable that holds the key; the key itself never stands in a configuration."""


class EngineJudge(JudgeConfig):
    """A chat model in an engine of its own inside the reward actor."""

    kind: Literal["engine"] = "engine"
    model: str
    """A known name, a folder in Hugging Face format or a hub id."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Settings of the engine, as in `rollout.engine`."""


class ScalarModel(ServiceConfig):
    """A reward model with a scalar head inside the reward actor: one number for prompt and answer."""

    kind: Literal["reward_model"] = "reward_model"
    model: str
    """A folder in Hugging Face format with a one-label sequence-classification head."""
    max_length: int = Field(default=4096, ge=2)
    """Tokens of prompt and answer; a longer one is not scored, because its end would be invisible."""
    batch_tokens: int = Field(default=16_384, ge=1)
    """Padded tokens of one forward pass."""
    device: str | None = None
    """None takes a GPU where there is one."""
    squash: Literal["none", "sigmoid"] = "none"
    """sigmoid pays a probability instead of a logit."""
    think_tag: str | None = None
    """Only the text after the last `</tag>` is scored, and an answer that never closes it is none; None scores all."""
    with_reference: bool = False
    """The model also reads the task's reference answer (VerifyRM)."""


class ScoreEndpoint(ServiceConfig):
    """Any HTTP service that scores answers: a Ray Serve deployment of a reward model, or one of your own.

    It gets `{"items": [{"task_id", "prompt", "answer", "reference", "metadata"}]}` by POST and returns `{"scores":
    [number or null]}`; null is an answer it could not score.
    """

    kind: Literal["score_endpoint"] = "score_endpoint"
    url: str
    revision: str = ""
    """Stated in cached verdicts; change it when the service's weights change."""
    api_key_env: str | None = None
    """Environment variable that holds a bearer token."""


JudgeService = Annotated[EndpointJudge | EngineJudge | ScalarModel | ScoreEndpoint, Field(discriminator="kind")]
"""Who judges in a pool, in place of killable children that run verifiers."""
