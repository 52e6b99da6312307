"""Named layouts: how the engines and the learner divide the cores of one machine."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.config import RunConfig


@dataclass(frozen=True, slots=True)
class Layout:
    """Cores and threads of the two heavy roles; None leaves placement to the operating system."""

    engine_cores: str | None
    engine_threads: int
    learner_cores: str | None
    learner_threads: int
    meaning: str


LAYOUTS: dict[str, Layout] = {
    "free": Layout(None, 1, None, 1, "one thread each, placed by the operating system"),
    "halves": Layout("0", 1, "1", 1, "two cores: the engine owns core 0, the learner core 1; both work all the time"),
    "shared": Layout(None, 1, None, 2, "two cores: the learner uses both, the engine takes its share of one"),
    "turns": Layout(None, 2, None, 2, "two cores: whoever works uses both; for synchronous runs"),
}


def apply_layout(config: RunConfig, num_cores: int) -> RunConfig:
    """The configuration with threads and cores of its layout filled in; explicit settings win.

    Raises:
        ValueError: unknown layout, or one that needs more cores than there are.
    """
    if config.layout is None:
        return config
    if config.layout not in LAYOUTS:
        raise ValueError(f"unknown layout {config.layout!r}; known: {', '.join(LAYOUTS)}")
    layout = LAYOUTS[config.layout]
    if layout.engine_cores is not None and num_cores < 2:
        layout = LAYOUTS["free"]
    engine = config.rollout.engine
    if engine.cores is None:
        engine = engine.model_copy(update={"cores": layout.engine_cores, "threads": layout.engine_threads})
    learner = config.learner
    if learner.cores is None:
        learner = learner.model_copy(update={"cores": layout.learner_cores, "threads_per_rank": layout.learner_threads})
    rollout = config.rollout.model_copy(update={"engine": engine})
    return config.model_copy(update={"rollout": rollout, "learner": learner})
