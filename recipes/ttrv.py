"""TTRV: an answer earns the share of its group that says the same, less an entropy term."""

from __future__ import annotations

from orchestrator.config import RunConfig
from recipes._guided import guided_run
from rewards.config import RewardComponent, RewardConfig

FREQUENCY = RewardComponent(verifier="answer_frequency", scope="group", options={"read": "last_number"})


def ttrv() -> RunConfig:
    """TTRV, Akshit21112002/TTRV: 32 answers vote in the paper and 16 are trained; 16 and 8 here.

    The entropy term is the same for a whole group, so the mean-centred advantages do not see it. Evaluation reads the
    reference, by a component that is only measured in training.
    """
    return guided_run(
        "ttrv",
        reward=RewardConfig(
            components={"frequency": FREQUENCY, "correct": RewardComponent(verifier="final_number", weight=0.0)}
        ),
        rules=[{"rule": "keep_first", "num": 8}],
        group_size=16,
    )
