"""What a simulated engine can be told: lengths, speed, faults; and the log-probs it reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewards.trajectory import Float32Array, PolicyVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong, and when. The defaults are a healthy engine.

    Attributes:
        die_after_tokens: the engine fails once it has generated this many tokens in all.
        kill_process: dying means SIGKILL of the process instead of EngineError.
        nan_logprobs_every: every n-th completion has a NaN among its log-probs; 0 is never.
        wrong_length_every: every n-th completion has one log-prob too few; 0 is never.
        ignore_updates: weight updates are acknowledged and not applied: what the probe must find.
        fail_updates: weight updates raise half-way.
        keep_cache: resetting the prefix cache reports failure.
    """

    die_after_tokens: int | None = None
    kill_process: bool = False
    nan_logprobs_every: int = 0
    wrong_length_every: int = 0
    ignore_updates: bool = False
    fail_updates: bool = False
    keep_cache: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedOptions:
    """`EngineConfig.options` of a simulated engine.

    Attributes:
        tokens_per_s: decoding speed of one sequence; None is instantaneous.
        length: fixed answer length; None draws from the lognormal below.
        mean_length, sigma: lognormal answer lengths with this mean, cut at `max_new_tokens`.
        vocabulary: sampled ids are drawn from [low, high).
        start_s: how long `start` takes.
        load_s: how long `load_weights` takes.
    """

    tokens_per_s: float | None = None
    length: int | None = None
    mean_length: float = 32.0
    sigma: float = 1.0
    vocabulary: tuple[int, int] = (3, 259)
    start_s: float = 0.0
    load_s: float = 0.0
    seed: int = 0
    faults: Faults = Faults()

    @classmethod
    def from_config(cls, options: dict[str, Any]) -> SimulatedOptions:
        """Raises ValueError for an option that does not exist."""
        values = dict(options)
        try:
            if isinstance(values.get("faults"), dict):
                values["faults"] = Faults(**values["faults"])
            if "vocabulary" in values:
                values["vocabulary"] = tuple(values["vocabulary"])
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"rollout.engine.options of a simulated engine: {error}") from error


def simulated_logprobs(token_ids: Sequence[int], version: PolicyVersion, temperature: float = 1.0) -> Float32Array:
    """[T] float32 log-probs in (-4, 0) that depend on each token, its predecessor and the version; the first is NaN.

    Dividing by the temperature stands in for rescaled logits. Good enough to tell versions apart, and what a simulated
    learner publishes as its probe.
    """
    tokens = np.asarray(token_ids, dtype=np.uint64)
    mixed = np.full(len(tokens), (int(version) + 2) * 0x9E3779B97F4A7C15 % 2**64, dtype=np.uint64)
    mixed ^= tokens * np.uint64(0xBF58476D1CE4E5B9)
    mixed[1:] ^= (tokens[:-1] + np.uint64(1)) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    unit = (mixed >> np.uint64(40)).astype(np.float64) / 2**24
    values = (-4.0 * (unit + 1e-7) / (1 + 2e-7) / temperature).astype(np.float32)
    if len(values):
        values[0] = np.nan
    return values
