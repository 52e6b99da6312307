"""What all parameter models of losses share."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from rewards.config import Section

Need = Literal[
    "behavior_logprobs",
    "reference_logprobs",
    "teacher_logprobs",
    "divergence",
    "proximal_logprobs",
    "entropy",
    "values",
    "scores",
]
"""What a loss reads beside the log-probs being trained; a run that cannot supply it refuses to start. Nobody declares
`proximal_logprobs` of a term: the objective makes them (see `learner/objective.py`)."""

Level = Literal["token", "geometric", "product"]
"""The ratio of a token, or the geometric mean or the product of those of its sequence."""


class LossParams(Section):
    """Base of the parameter models; `name` picks the torch function of the same name in `learner/losses/`."""

    needs: ClassVar[frozenset[Need]] = frozenset()
    couples_groups: ClassVar[bool] = False
    """A sequence's loss depends on the other members of its group, so a group must lie in one micro-batch."""
    silent_without_advantage: ClassVar[bool] = True
    """Advantages of 0 make no gradient; of a loss that reads scores."""

    statistic: ClassVar[str | None] = None
    """Function of `learner.statistics` that makes columns of this loss from all tokens of the update; a first pass
    without gradient measures them."""
    statistic_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that are parameters of the statistic, not of the loss."""
    reads_vocabulary: ClassVar[bool] = False
    """The statistic looks at whole distributions."""

    def parameters(self) -> dict[str, Any]:
        """Keyword arguments of the torch function."""
        return self.model_dump(exclude={"name", *self.statistic_fields})

    def statistic_parameters(self) -> dict[str, Any]:
        """Keyword arguments of the statistic."""
        return self.model_dump(include=set(self.statistic_fields))

    @property
    def couples_tokens(self) -> bool:
        """A token's loss depends on other tokens of its sequence."""
        return self.couples_groups or getattr(self, "level", "token") != "token"
