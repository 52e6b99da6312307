"""RLMT: think first, and a scalar reward model scores the answer alone."""

from __future__ import annotations

from learner.config import ClippedSurrogate, Term
from orchestrator.config import RunConfig
from recipes._live import live_run
from rewards.config import RewardComponent, RewardConfig
from rewards.judges.config import ScalarModel


def rlmt() -> RunConfig:
    """RLMT, princeton-pli/RLMT: the reward model reads the text after the thinking. Name the model with `--set
    reward.service.model=FOLDER`; the reference configuration takes Skywork-Reward-Llama-3.1-8B-v0.2. An answer that
    never ends its thinking has none, where the reference code scores all of the text."""
    return live_run(
        "rlmt",
        [Term(loss=ClippedSurrogate(), aggregation="token")],
        reward=RewardConfig(
            components={"preference": RewardComponent(verifier="reward_model")},
            service=ScalarModel(model="Skywork/Skywork-Reward-Llama-3.1-8B-v0.2", think_tag="think"),
            floor=-10.0,
        ),
    )
