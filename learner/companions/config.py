"""Models beside the policy: the frozen reference and teacher, and fresh starts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rewards.config import Section


class ReferenceConfig(Section):
    """The frozen policy that KL terms and preference losses compare with; loaded only where a term reads it."""

    model: str | None = None
    """A known name, a folder or a hub id, with the tokenizer of the policy; None is the policy as the run began."""


class TeacherConfig(Section):
    """A frozen model whose opinion of the tokens is learnt from."""

    model: str
    """A known name, a folder or a hub id, with the tokenizer of the policy."""


class ResetConfig(Section):
    """Fresh starts within a run: the reference becomes the current policy, the optimizer forgets its moments (ProRL).

    They come before the named 0-based learner steps.
    """

    every: int = Field(default=0, ge=0)
    """Learner steps between two resets; 0 is never."""
    at: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Single learner steps with a reset."""
    reference: bool = True
    """Whether the reference moves."""
    optimizer: bool = True
    """Whether the optimizer forgets."""

    @property
    def moves_reference(self) -> bool:
        """Whether the reference ever moves."""
        return self.reference and bool(self.every or self.at)

    def due(self, step: int) -> bool:
        """Whether a reset comes before this step."""
        return step in self.at or bool(self.every and step and step % self.every == 0)
