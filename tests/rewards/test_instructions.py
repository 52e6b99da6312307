import json
import random

import pytest

from rewards.task import Task
from rewards.verdict import Status
from rewards.verifiers.instructions import CHECKS, SCRIPTS, instructions

WORDS = ["river", "stone", "lantern", "quiet", "morning", "bread", "window", "garden", "silver", "paper"]


def judge(answer, *pairs, **options):
    names, arguments = [name for name, _ in pairs], [values for _, values in pairs]
    task = Task(task_id="t", prompt="p", metadata={"instruction_id_list": names, "kwargs": arguments})
    return instructions(answer, task, **options)


def sentence(rng, num_words=6):
    return " ".join(rng.choice(WORDS) for _ in range(num_words)).capitalize() + "."


def example(name, rng):
    """(arguments, an answer that follows the instruction, one that does not) of a kind of instruction."""
    n, word, text = rng.randint(2, 5), rng.choice(WORDS), sentence(rng)
    plain = "Nothing of that sort here."
    match name.split(":")[1]:
        case "existence":
            return {"keywords": [word, "zebra"]}, f"{text} A zebra, {word.upper()}!", f"{text} {word}"
        case "frequency":
            return {"keyword": "zebra", "frequency": n, "relation": "at least"}, "Zebra " * n, "zebra zebras " * (n - 1)
        case "forbidden_words":
            return {"forbidden_words": ["zebra", "yak"]}, f"{text} zebras", f"{text} A Yak."
        case "letter_frequency":
            return {"letter": "z", "let_frequency": n, "let_relation": "less than"}, "z " * (n - 1) + plain, "Z " * n
        case "response_language":
            alphabets = {"el": "Καλημέρα σε όλους", "ko": "안녕하세요 여러분", "th": "สวัสดีครับ", "he": "שלום לכולם"}
            language = rng.choice(sorted(alphabets))
            return {"language": language}, alphabets[language], text
        case "number_sentences":
            return {"num_sentences": n, "relation": "at least"}, f"{text} " * n, f"{text} " * (n - 1)
        case "number_paragraphs":
            return {"num_paragraphs": n}, "\n***\n".join([text] * n), "\n***\n".join([text] * (n + 1))
        case "number_words":
            return {"num_words": n, "relation": "at least"}, "well-known " * n, "well-known " * (n - 1)
        case "nth_paragraph_first_word":
            values = {"num_paragraphs": n, "nth_paragraph": 2, "first_word": "Zebra"}
            return values, "\n\n".join([text, "zebra one", *[text] * (n - 2)]), "\n\n".join([text] * n)
        case "number_placeholders":
            return {"num_placeholders": n}, "[name] " * n, "[name] " * (n - 1)
        case "postscript":
            return {"postscript_marker": "P.S."}, f"{text}\nP.S. {word}", f"{text} P.S."
        case "number_bullet_lists":
            return {"num_bullets": n}, f"{text}\n" + f"* {word}\n" * n, f"- {word}\n" * (n + 1)
        case "constrained_response":
            return {}, "My answer is maybe.", "My answer is yes. My answer is no."
        case "number_highlighted_sections":
            return {"num_highlights": n}, f"*{word}* " * n, f"*{word}* " * (n - 1)
        case "multiple_sections":
            values = {"section_spliter": "Section", "num_sections": n}
            return values, "".join(f"Section {i}\n{text}\n" for i in range(n)), "Section 1\n" + text
        case "json_format":
            return {}, f"```json\n{json.dumps({word: n})}\n```", f"{{'{word}': {n}}}"
        case "title":
            return {}, f"<<{word}>>\n{text}", f"<< >> <{word}>"
        case "two_responses":
            return {}, f"{text}******{plain}", f"{text}******{text}"
        case "repeat_prompt":
            return {"prompt_to_repeat": f"Write of {word}."}, f"Write of {word}. {text}", f"Write of {word}."
        case "end_checker":
            return {"end_phrase": "Any questions?"}, f"{text} Any questions?", f"Any questions? {text}"
        case "quotation":
            return {}, f'"{text}"', f'"{text}" he said'
        case "capital_word_frequency":
            values = {"capital_frequency": n, "capital_relation": "at most"}
            return values, "WORD " * n + text, "WORD " * (n + 1)
        case "english_capital":
            return {}, text.upper(), text
        case "english_lowercase":
            return {}, text.lower(), text
        case "no_comma":
            return {}, text, f"{word}, {text}"
    raise AssertionError(f"no example of {name}")


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_generated_answers_of_every_kind(name):
    rng = random.Random(name)
    for _ in range(20):
        arguments, good, bad = example(name, rng)
        assert judge(good, (name, arguments)).score == 1.0, (arguments, good)
        verdict = judge(bad, (name, arguments))
        assert (verdict.score, verdict.extras) == (0.0, {"failed": [name]}), (arguments, bad)


def test_fraction_and_all():
    pairs = [("punctuation:no_comma", {}), ("startend:quotation", {}), ("keywords:existence", {"keywords": ["a"]})]
    assert judge("a b", *pairs).score == pytest.approx(2 / 3)
    assert judge("a b", *pairs, score="all").score == 0.0
    assert judge('"a b"', *pairs, score="all").score == 1.0


def test_what_stands_in_the_thinking_does_not_count():
    pair = ("keywords:existence", {"keywords": ["zebra"]})
    assert judge("<think>zebra</think>Nothing.", pair).score == 0.0
    assert judge("<think>zebra", pair).status is Status.NO_ANSWER


@pytest.mark.parametrize("answer", ["", "  \n", "...", "\u200b"])
def test_saying_nothing_does_not_avoid_what_is_forbidden(answer):
    assert judge(answer, ("keywords:forbidden_words", {"forbidden_words": ["a"]})).status is Status.NO_ANSWER


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("keywords:exists", {}), "unknown instruction 'keywords:exists'"),
        (("keywords:existence", {"keywords": []}), r"keywords=\[\] must be a list of texts"),
        (("length_constraints:number_words", {"num_words": -1}), "num_words=-1 must be a whole number"),
        (("length_constraints:number_words", {"num_words": 3, "relation": "around"}), "relation='around' is none of"),
        (("language:response_language", {"language": "de"}), "'de' cannot be told by its script"),
        (("keywords:existence", ["a"]), "are no object"),
    ],
)
def test_unusable_instructions_are_not_the_models_fault(pair, message):
    verdict = judge("Some words.", pair)
    assert (verdict.status, verdict.score) == (Status.INVALID_GOLD, None)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(verdict.extras["error"])


def test_arguments_that_are_null_and_numbers_that_are_whole():
    values = {"num_words": 2.0, "relation": "exactly", "keywords": None}
    assert judge("two words", ("length_constraints:number_words", values)).score == 1.0
    task = Task(task_id="t", prompt="p", metadata={"instruction_id_list": ["punctuation:no_comma"]})
    assert instructions("a, b", task).score == 0.0
    assert instructions("a", Task(task_id="t", prompt="p")).status is Status.INVALID_GOLD


def test_an_endless_answer_is_not_read():
    assert judge("a " * 100_000, ("punctuation:no_comma", {})).status is Status.REJECTED


def test_scripts_are_names_unicode_knows():
    import unicodedata

    for names in SCRIPTS.values():
        for script in names.split():
            assert any(unicodedata.name(chr(code), "").startswith(script) for code in range(0x370, 0xD7A4)), script
