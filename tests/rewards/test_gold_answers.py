"""Every built-in verifier pays for the gold answers of a whole data set, and not for those of another item."""

import json
import random
import re
from pathlib import Path

import pytest
import reasoning_gym

from rewards.rubric import GROUP_VERIFIERS, VERIFIERS, resolve_verifier
from rewards.task import Task
from rewards.verifiers.execution import execution_task
from rewards.verifiers.instructions import CHECKS
from rewards.verifiers.length import SAMPLE_FACTS
from tests.rewards.sandboxed import ROOMY, needs_sandbox
from tests.rewards.test_instructions import example

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "test.jsonl"
SIZE = 40


def task(index, reference=None, **metadata):
    return Task(task_id=f"gold/{index}", prompt=f"problem {index}", reference=reference, metadata=metadata)


def chain_sums():
    dataset = reasoning_gym.create_dataset("chain_sum", seed=7, size=SIZE)
    return [dataset[i] for i in range(SIZE)]


def gsm8k():
    """Worked answers; of the demo's sums where the data set is not there."""
    if GSM8K.exists():
        return [json.loads(line)["answer"] for line in GSM8K.read_text().splitlines()]
    return [f"so it is\n#### {entry['answer']}" for entry in chain_sums()]


def numbers(template):
    return [(template.format(a.rpartition("####")[2].strip()), task(i, a), {}) for i, a in enumerate(gsm8k())]


def texts():
    return [(entry["question"], task(i, entry["question"]), {}) for i, entry in enumerate(chain_sums())]


def reasoning():
    pairs = []
    for name in ("chain_sum", "basic_arithmetic", "gcd", "letter_counting", "number_sorting"):
        dataset = reasoning_gym.create_dataset(name, seed=3, size=SIZE // 4)
        for i in range(SIZE // 4):
            pairs.append((dataset[i]["answer"], task(f"{name}{i}", dataset=name, options={}, entry=dataset[i]), {}))
    return pairs


def instruction_answers():
    rng = random.Random(11)
    pairs = []
    for i, name in enumerate(sorted(CHECKS) * 4):
        arguments, good, _ = example(name, rng)
        pairs.append((good, task(i, instruction_id_list=[name], kwargs=[arguments]), {}))
    return pairs


def formats():
    return [(f"<think>{i} and so</think>\n<answer>{i}</answer>", task(i), {}) for i in range(SIZE)]


def lengths(**options):
    return [("a b c", task(i, **{SAMPLE_FACTS: {"num_tokens": 100}}), options) for i in range(3)]


def schemas():
    rng = random.Random(5)
    pairs = []
    for i in range(SIZE):
        names = rng.sample(["name", "count", "tags", "ratio"], 3)
        kinds = {"name": "string", "count": "integer", "tags": "array", "ratio": "number"}
        values = {"name": "x", "count": i, "tags": ["a"], "ratio": 0.5}
        schema = {"type": "object", "required": names, "properties": {n: {"type": kinds[n]} for n in names}}
        pairs.append((json.dumps({n: values[n] for n in names}), task(i, schema=schema), {}))
    return pairs


def calls():
    rng = random.Random(6)
    pairs = []
    for i in range(SIZE):
        wanted = [
            {"name": f"tool_{rng.randrange(3)}", "arguments": {"id": i, "text": "a <b>", "flags": [True, None]}}
            for _ in range(rng.randint(1, 3))
        ]
        pairs.append(("".join(f"<tool_call>{json.dumps(c)}</tool_call>" for c in wanted), task(i, calls=wanted), {}))
    return pairs


def boxes(kind):
    rng = random.Random(8)
    pairs = []
    for i in range(SIZE):
        x, y = rng.randrange(0, 80), rng.randrange(0, 80)
        gold = [x, y, x + rng.randint(2, 20), y + rng.randint(2, 20)]
        said = gold if kind == "box" else [(gold[0] + gold[2]) / 2, (gold[1] + gold[3]) / 2]
        pairs.append((f"<answer>{json.dumps(said)}</answer>", task(i, boxes=[gold], image_size=[100, 100]), {}))
    return pairs


def orders():
    rng = random.Random(9)
    golds = [rng.sample(range(100), 5) for _ in range(SIZE)]
    return [(f"<answer>{json.dumps(gold)}</answer>", task(i, order=gold), {}) for i, gold in enumerate(golds)]


PROGRAMS = {
    "scale": ("def solve(xs, k):\n    return [x * k for x in xs]", lambda xs, k: [x * k for x in xs]),
    "above": ("def solve(xs, k):\n    return sum(x > k for x in xs)", lambda xs, k: sum(x > k for x in xs)),
    "rotate": (
        "def solve(xs, k):\n    k %= len(xs)\n    return xs[k:] + xs[:k]",
        lambda xs, k: xs[k % 5 :] + xs[: k % 5],
    ),
    "table": (
        "def solve(xs, k):\n    d = {}\n    for x in xs:\n        d.setdefault(str(x % k), []).append(x)\n    return d",
        lambda xs, k: {str(r): [x for x in xs if x % k == r] for r in dict.fromkeys(x % k for x in xs)},
    ),
}


def programs():
    """Functions and programs with tests from another implementation of the same thing."""
    rng = random.Random(10)
    pairs = []
    for i, (name, (source, solve)) in enumerate(list(PROGRAMS.items()) * 3):
        arguments = [[rng.sample(range(1, 100), 5), rng.randint(2, 9)] for _ in range(5)]
        cases = [{"args": args, "expected": solve(*args)} for args in arguments]
        tests = {"entry_point": "solve", "cases": cases}
        pairs.append((f"```python\n{source}\n```", task(f"{name}{i}", tests=tests), {"limits": ROOMY}))
    for i in range(4):
        cases = [{"stdin": f"{n} {i + 2}\n", "stdout": f"{n * (i + 2)}\n"} for n in (3, 50)]
        source = f"n, k = map(int, input().split())\nprint(n * k{' ' * i})"
        pairs.append((f"```python\n{source}\n```", task(f"stdin{i}", tests={"cases": cases}), {"limits": ROOMY}))
    return pairs


def variables():
    rng = random.Random(12)
    pairs = []
    for i in range(6):
        factor, count = rng.randint(2, 9), rng.randint(4, 9)
        loop = f"    for k in range(n):\n        total += k * {factor + 10}\n        seen.append(total)\n"
        source = f"def f(n):\n    total, seen = 0, []\n{loop}"
        made = execution_task(f"values/{i}", source, "f", [count], limits=ROOMY)
        assert made is not None
        pairs.append((f"<answer>{json.dumps(made.metadata['variables'])}</answer>", made, {}))
    return pairs


GOLD = {
    "close_number": lambda: numbers("It is {}."),
    "code": programs,
    "exact_match": texts,
    "final_number": lambda: numbers("It is {}."),
    "format_tags": formats,
    "instructions": instruction_answers,
    "json_schema": schemas,
    "math": lambda: numbers(r"so \boxed{{{}}}"),
    "next_segment": texts,
    "ordering": orders,
    "box_iou": lambda: boxes("box"),
    "point_in_box": lambda: boxes("point"),
    "reasoning_gym": reasoning,
    "regex_match": lambda: [(a, t, {"pattern": re.escape(a)}) for a, t, _ in texts()],
    "self_play": lambda: numbers("It is {}."),
    "target_length": lambda: lengths(target_tokens=100, max_tokens=400),
    "tool_calls": calls,
    "variable_values": variables,
}
PENALTIES = {"repetition", "soft_overlong"}
"""They pay nothing, at most; 0 is their gold."""
INDIFFERENT = {"format_tags", "target_length", "regex_match"}
"""The gold of one item is the gold of another, or stands in the options."""
RUNS_PROGRAMS = {"code", "variable_values"}


def test_every_verifier_has_a_data_set():
    assert GOLD.keys() | PENALTIES | GROUP_VERIFIERS == VERIFIERS.keys()


@needs_sandbox
@pytest.mark.parametrize("name", sorted(GOLD))
def test_gold_answers_are_paid_in_full(name):
    verify, pairs = resolve_verifier(name), GOLD[name]()
    assert len(pairs) >= 3
    for answer, item, options in pairs:
        verdict = verify(answer, item, **options)
        assert (verdict.score, verdict.status.value) == (1.0, "scored"), (answer, item, verdict)


@needs_sandbox
@pytest.mark.parametrize("name", sorted(GOLD.keys() - INDIFFERENT))
def test_gold_answers_of_another_item_are_not(name):
    """Most of them; two items may share their answer, and then neither can tell."""
    verify, pairs = resolve_verifier(name), GOLD[name]()[:SIZE]
    wrong = [verify(pairs[i - 1][0], item, **options).score != 1.0 for i, (_, item, options) in enumerate(pairs)]
    assert sum(wrong) >= 0.6 * len(wrong), wrong


@pytest.mark.parametrize("name", sorted(PENALTIES))
def test_penalties_spare_a_good_answer(name):
    options = {"max_tokens": 200, "buffer_tokens": 50} if name == "soft_overlong" else {"ngram": 6}
    for answer, item, _ in texts():
        facts = {SAMPLE_FACTS: {"num_tokens": len(answer)}}
        assert resolve_verifier(name)(answer, task(item.task_id, **facts), **options).score == 0.0


@pytest.mark.parametrize("name", sorted(GROUP_VERIFIERS))
def test_groups_that_agree_on_the_gold_answer_are_paid_in_full(name):
    for answer, item, _ in numbers(r"so \boxed{{{}}}")[:SIZE]:
        verdicts = resolve_verifier(name)([answer] * 4, item)
        assert [verdict.score for verdict in verdicts] == [1.0] * 4
