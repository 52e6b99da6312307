"""Parameters of the losses that read a teacher."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from learner.losses.base.config import LossParams, Need


class OnPolicyDistillation(LossParams):
    """REINFORCE on the policy's own tokens, with the teacher's log-prob minus its own as advantage."""

    name: Literal["on_policy_distillation"] = "on_policy_distillation"
    max_fall: float = Field(default=0.2, gt=0, le=1)
    """Probability a token may have lost since it was sampled; beyond it is left out."""
    needs: ClassVar[frozenset[Need]] = frozenset({"behavior_logprobs", "teacher_logprobs"})


class TeacherDivergence(LossParams):
    """Generalised Jensen-Shannon divergence of the whole distributions of teacher and policy (GKD)."""

    name: Literal["teacher_divergence"] = "teacher_divergence"
    mixture: float = Field(default=0.5, ge=0, le=1)
    """Share of the teacher in the mixture both are compared with. 0: KL(teacher || policy). 1: KL(policy || teacher).
    These two are no limits: near them the divergence goes to 0."""
    needs: ClassVar[frozenset[Need]] = frozenset({"divergence"})

    def parameters(self) -> dict[str, Any]:
        """None: the forward pass reads `mixture`."""
        return {}
