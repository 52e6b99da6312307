"""What recipes with a judge share: where the judge is, which the user says."""

from __future__ import annotations

from rewards.judges.config import EndpointJudge

JUDGE = EndpointJudge(url="http://127.0.0.1:8000/v1", model="judge")
"""An OpenAI-compatible server, e.g. `vllm serve MODEL --served-model-name judge`. Another place: `--set
reward.service.url=...` or `reward.pools.judge.service.url=...`, as the recipe has it; a model inside the reward actor:
`{kind: engine, model: ...}`."""
