"""A run folder as a real run leaves it, made by driving the real recorder with plausible numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.config import ReplayConfig
from learner.config import ClippedSurrogate, NegativeLogLikelihood, Schedule, Term
from orchestrator import recorder as recorder_module
from orchestrator import tracking as tracking_module
from orchestrator.config import RunConfig, TrackingConfig
from orchestrator.evaluation import Accuracy, Evaluation
from orchestrator.recorder import RunRecorder
from orchestrator.tracking import Tracker
from rewards.config import TaskConfig
from rewards.statistics import wilson_interval

NUM_STEPS = 24
STEP_S = 2.5
MU = Schedule(kind="cosine", start=0.9, end=0.3, steps=NUM_STEPS)


def make_config(name: str = "chord", seed: int = 0) -> RunConfig:
    return RunConfig(
        name=name,
        tasks=TaskConfig(source="arithmetic"),
        terms=(
            Term(loss=ClippedSurrogate(), source="live", weight=MU.complement()),
            Term(loss=NegativeLogLikelihood(), source="expert", weight=MU),
        ),
        replay=ReplayConfig(groups_per_update=20, max_age=1, quotas={"expert": "1/2"}),
        tracking=TrackingConfig(sinks=()),
        num_steps=NUM_STEPS,
        seed=seed,
    )


class Clock:
    """Stands in for the `time` module, so that a run of a minute takes none."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1.7e9 + self.now


def learner_values(step: int, rng: random.Random) -> dict[str, float]:
    """What LearnerWorker reports after a step."""
    progress = step / NUM_STEPS
    live, expert = "term/live/clipped_surrogate", "term/expert/negative_log_likelihood"
    values = {
        "step": float(step),
        "loss": 1.2 * math.exp(-2 * progress) + rng.gauss(0, 0.03),
        "grad_norm": 0.8 + rng.random(),
        "learning_rate": 1e-4 * (1 - 0.9 * progress),
        "skipped_steps": float(step == 7),
        "lease_wait_s": 0.4 + 0.2 * rng.random(),
        "train_s": 1.7 + 0.2 * rng.random(),
        "trained_tokens": 900.0 + rng.randrange(100),
        "computed_tokens": 2100.0 + rng.randrange(100),
        "age_violations": 0.0,
        "shortfall_groups": 0.0,
        "reward_mean": 0.15 + 0.6 * progress + rng.gauss(0, 0.05),
        "answer_tokens_mean": 9 - 4 * progress,
        "policy_age_mean": 0.4,
        "policy_age_max": 1.0,
        "policy_age/0": 6.0,
        "policy_age/1": 4.0,
        f"{live}/loss": rng.gauss(0, 0.01),
        f"{live}/weight": 1 - MU.at(step),
        f"{live}/num_tokens": 500.0,
        f"{live}/num_sequences": 80.0,
        f"{live}/clip_fraction": 0.02 * rng.random(),
        f"{live}/mismatch_mean": 0.03 + 0.01 * rng.random(),
        f"{live}/mismatch_max": 0.8 + rng.random(),
        f"{live}/ratio_mean": 1 + rng.gauss(0, 0.004),
        f"{live}/chi2": 0.01 * rng.random(),
        f"{live}/effective_sample_fraction": 0.99 - 0.02 * rng.random(),
        f"{expert}/loss": 1.4 * math.exp(-2 * progress),
        f"{expert}/weight": MU.at(step),
        f"{expert}/num_tokens": 400.0,
        f"{expert}/num_sequences": 80.0,
        f"{expert}/nll_mean": 1.4 * math.exp(-2 * progress),
        f"{expert}/token_weight_mean": 1.0,
        "train_phase/forward_s": 0.6,
        "train_phase/backward_s": 1.0,
        "train_phase/optimizer_s": 0.1,
    }
    if step == 7:
        values["grad_norm"] = float("nan")
    return values


def worker_values(step: int, version: int) -> dict[str, float]:
    """What RolloutWorker.stats says after some steps."""
    return {
        "policy_version": float(version),
        "running": 40.0,
        "waiting": 0.0,
        "prompt_tokens": 3000.0 * step,
        "generated_tokens": 700.0 * step,
        "busy_s": 2.1 * step,
        "generate_s": 20.0 * step,
        "score_s": 0.5 * step,
        "ticket_wait_s": 3.0 * step,
        "weights_wait_s": 0.1 * step,
        "activate_s": 0.3 * step,
        "groups_stored": 10.0 * step,
        "groups_dropped_constant_score": float(step),
    }


def replay_values(step: int) -> dict[str, float]:
    return {
        "steps_committed": float(step),
        "tickets_issued": 12.0 * step,
        "groups/ready/live": 5.0,
        "dropped/live/too_old/<=64 tokens": float(step // 4),
        "dropped/live/wrong_length/<=64 tokens": 1.0,
    }


def reward_values(step: int) -> dict[str, float]:
    return {
        "status/scored": 70.0 * step,
        "status/no_answer": 9.0 * step,
        "status/infra_error": 1.0,
        "samples": 79.0 * step + 1,
        "cached": 20.0 * step,
        "child_deaths": 0.0,
        "verifier_s": 0.01 * step,
        "unscored_fraction": 0.0,
    }


def evaluation(step: int, share: float, rng: random.Random) -> Evaluation:
    splits = {}
    for name, size, offset in (("covered", 150, 0.1), ("uncovered", 150, -0.1)):
        correct = min(size, max(0, round(size * (share + offset) + rng.gauss(0, 2))))
        splits[name] = Accuracy(size, correct, correct / size, *wilson_interval(correct, size))
    correct = splits["covered"].correct + splits["uncovered"].correct
    splits["all"] = Accuracy(300, correct, correct / 300, *wilson_interval(correct, 300), unscored=1)
    return Evaluation(step, step, 4.0, splits)


class RunDriver:
    """Plays the conductor of one run, or of one start of it, for a recorder."""

    def __init__(
        self, run_dir: Path, monkeypatch: Any, *, name: str = "chord", seed: int = 0, gain: float = 0.6
    ) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        config = make_config(name, seed)
        (run_dir / "config.json").write_text(config.model_dump_json(indent=2))
        self.run_dir, self.rng, self.gain = run_dir, random.Random(seed), gain
        self.clock = Clock()
        for module in (recorder_module, tracking_module):
            monkeypatch.setattr(module, "time", self.clock)
        self.recorder = RunRecorder(run_dir, Tracker(config.tracking, run_dir), num_steps=NUM_STEPS, strict=True)

    async def begin(self, *, resumed_step: int | None = None) -> None:
        recorder = self.recorder
        for name in ("rollout-0", "rollout-1"):
            recorder.worker_state(name, "ready")
        await recorder.report("learner", {"publish_s": 0.7}, step=resumed_step or 0)
        await self._activated(resumed_step or 0)
        if resumed_step is None:
            recorder.phase("evaluating")
            recorder.evaluated(evaluation(0, 0.12, self.rng))
        await recorder.report("rollout-0", {**worker_values(0, 0), "generated_tokens": 1000.0, "busy_s": 5.0})
        recorder.training_began()

    async def train(self, first: int, last: int, *, evaluate_every: int = 8) -> None:
        """Steps first .. last, each followed by a poll of the workers."""
        for step in range(first, last + 1):
            self.clock.now += STEP_S
            await self.recorder.report("learner", {"publish_s": 0.1}, step=step)
            await self._activated(step)
            await self.recorder.report("learner", learner_values(step, self.rng), step=step)
            await self.poll(step - first + 1, step)
            if evaluate_every and step % evaluate_every == 0 and step < NUM_STEPS:
                self.recorder.evaluated(evaluation(step, 0.12 + self.gain * step / NUM_STEPS, self.rng))

    async def poll(self, num_since_start: int, step: int) -> None:
        recorder = self.recorder
        recorder.waits({"rollout-1": "9 live groups accepted + 3 running reach the bound of 12"})
        await recorder.report("replay", replay_values(step))
        base = worker_values(num_since_start, step)
        extra = {"generated_tokens": base["generated_tokens"] + 1000.0, "busy_s": base["busy_s"] + 5.0}
        await recorder.report("rollout-0", {**base, **extra})
        await recorder.report("rollout-1", base)
        await recorder.report("reward-0", reward_values(num_since_start))

    async def end(self, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
        recorder = self.recorder
        recorder.training_ended()
        await recorder.report("learner", {"checkpoint_s": 0.9}, step=recorder.step)
        recorder.phase("finishing")
        recorder.evaluated(evaluation(recorder.step, 0.12 + self.gain, self.rng))
        for folder in ("model", "best"):
            (self.run_dir / folder).mkdir(exist_ok=True)
        recorder.phase("done")
        summary = recorder.write_summary(extra)
        recorder.close()
        return summary

    async def _activated(self, step: int) -> None:
        details = {
            "worker": "rollout-0",
            "version": step,
            "step": step,
            "pause_s": 0.25 + 0.05 * self.rng.random(),
            "verify_s": 0.02,
            "freeze_s": 0.01,
            "load_s": 0.15,
            "reset_s": 0.005,
            "probe_s": 0.06,
            "probe_mean_error": 1e-6,
            "probe_max_error": 4e-6,
        }
        await self.recorder.event("activated", details)


async def drive_run(run_dir: Path, monkeypatch: Any, **options: Any) -> dict[str, Any]:
    """A whole run without interruption; returns its summary."""
    driver = RunDriver(run_dir, monkeypatch, **options)
    await driver.begin()
    await driver.train(1, NUM_STEPS)
    return await driver.end()
