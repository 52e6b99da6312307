import pytest

from orchestrator.load_config import load_run_config
from orchestrator.resources import learner_gpus_per_rank, local_resources, num_cores, requested


@pytest.mark.parametrize(
    ("settings", "gpus"),
    [
        ([], 0.0),
        (["placement=split", "rollout.num_gpus_per_worker=1"], 1.0),
        (["placement=colocated", "rollout.num_gpus_per_worker=0.5"], 0.5),
        (
            ["placement=colocated", "rollout.num_gpus_per_worker=0.5", "rollout.num_workers=4", "learner.num_ranks=4"],
            0.5,
        ),
        (["placement=colocated", "rollout.num_gpus_per_worker=0.5", "rollout.num_workers=3"], 0.0),
    ],
)
def test_gpus_of_a_learner_rank_by_placement(settings, gpus):
    assert learner_gpus_per_rank(load_run_config("grpo", settings)) == gpus


def test_requests_are_those_of_the_spawned_actors():
    roles = requested(
        load_run_config("grpo", ["rollout.num_workers=3", "rollout.num_cpus_per_worker=2", "learner.num_ranks=2"])
    )
    assert [(r.role, r.count, r.cpus, r.gpus) for r in roles] == [
        ("rollout worker", 3, 2, 0),
        ("learner rank", 2, 1, 0),
    ]


def test_this_machine():
    here = local_resources(count_gpus=False)
    assert here.cpus == num_cores() >= 1
    assert here.starts_with_run
    assert here.memory_bytes is None or here.memory_bytes > 1 << 20
