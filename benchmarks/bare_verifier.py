"""The opponent of B11: one process that calls a verifier in a loop, and nothing else.

Started by `benchmarks.reward_pool` as `python -m benchmarks.bare_verifier ROUNDS SHARE SHARES`.
"""

from __future__ import annotations

import sys

from benchmarks.reward_pool import GROUP_SIZE, hash_chain
from rewards.task import Task


def main(rounds: int, share: int, num_shares: int) -> None:
    print("done", flush=True)
    task = Task(task_id="t", prompt="")
    for line in sys.stdin:
        for index in range(share, int(line), num_shares):
            hash_chain(str(index % GROUP_SIZE), task, rounds=rounds)
        print("done", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
