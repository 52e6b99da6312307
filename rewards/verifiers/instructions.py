"""Checks what a prompt asked of the form of its answer: one small program per kind of instruction."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rewards.task import Task
from rewards.verdict import Status, Verdict
from rewards.verifiers.math_text import segment
from rewards.verifiers.structured import MalformedError, strict_json

MAX_LENGTH = 1 << 17
"""Characters of an answer that are read."""
MAX_INSTRUCTIONS = 64

WORD = re.compile(r"\w+(?:['\N{RIGHT SINGLE QUOTATION MARK}-]\w+)*")
SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*(?=\s|$)")
PARAGRAPH_RULE = re.compile(r"^[ \t]*\*\*\*[ \t]*$", re.MULTILINE)
BULLET = re.compile(r"^[ \t]*(?:[*-](?![*-])|\N{BULLET})[ \t]*\S", re.MULTILINE)
HIGHLIGHT = re.compile(r"\*\*[^*\n]+\*\*|\*[^*\n]+\*")
PLACEHOLDER = re.compile(r"\[[^\[\]]+\]")
TITLE = re.compile(r"<<([^<>\n]+)>>")
CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

SCRIPTS = {
    "bn": "BENGALI", "el": "GREEK", "gu": "GUJARATI", "he": "HEBREW", "ja": "HIRAGANA KATAKANA CJK", "kn": "KANNADA",
    "ko": "HANGUL", "ml": "MALAYALAM", "pa": "GURMUKHI", "ta": "TAMIL", "te": "TELUGU", "th": "THAI",
}  # fmt: skip
"""Languages their script alone tells apart from all others, by the names Unicode gives their letters."""


class InstructionError(ValueError):
    """An instruction nobody can check: an unknown id or unusable arguments."""


def instructions(
    answer: str, task: Task, *, score: Literal["all", "fraction"] = "fraction", think_tag: str | None = "think"
) -> Verdict:
    """Share of the instructions the answer follows, or 1.0 for all of them and else 0.0.

    The instructions are `metadata["instruction_id_list"]` with `metadata["kwargs"]`, one object each, as the IFEval
    data set writes them; arguments that are null count as absent. Text up to the end of the thinking is not read.

    Returns:
        no_answer for a blank answer, which would follow everything that is forbidden; rejected for one that is too
        long; invalid_gold for an unknown id, unusable arguments, or a language that only a dictionary tells.

    Raises:
        ValueError: an option is unknown.

    Source: IFEval, arXiv:2311.07911, appendix; score as in Tulu 3, arXiv:2411.15124.
    """
    if score not in ("all", "fraction"):
        raise ValueError(f"instructions: score={score!r} must be 'all' or 'fraction'")
    try:
        checks = _checks(task.metadata)
    except InstructionError as error:
        return Verdict.unscored(Status.INVALID_GOLD, extras={"error": str(error)})
    text = segment(answer, think_tag)
    if text is None or not WORD.search(text):
        return Verdict.floor(Status.NO_ANSWER)
    if len(text) > MAX_LENGTH:
        return Verdict.floor(Status.REJECTED, extras={"error": f"{len(text)} characters; the limit is {MAX_LENGTH}"})
    text = text.strip()
    failed = [name for name, check in checks if not check(text)]
    kept = len(checks) - len(failed)
    value = kept / len(checks) if score == "fraction" else float(not failed)
    return Verdict.scored(value, extras={"failed": failed} if failed else {})


@dataclass(frozen=True, slots=True)
class Arguments:
    """What an instruction is about; every access says what is missing."""

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def text(self, key: str) -> str:
        return self._typed(key, str, "a text", bool)

    def number(self, key: str) -> int:
        return self._typed(key, int, "a whole number of at least 0", lambda n: n >= 0 and not isinstance(n, bool))

    def words(self, key: str) -> Sequence[str]:
        def are_texts(values: Sequence[Any]) -> bool:
            return bool(values) and all(isinstance(value, str) and value for value in values)

        return self._typed(key, (list, tuple), "a list of texts", are_texts)

    def compares(self, key: str, count: int, wanted: int) -> bool:
        """Whether a count fits `at least`, `at most`, `exactly` or `less than` a number."""
        relation = self.values.get(key) or "at least"
        if relation not in RELATIONS:
            raise InstructionError(f"{self.name}: {key}={relation!r} is none of {sorted(RELATIONS)}")
        return RELATIONS[relation](count, wanted)

    def _typed(self, key: str, kind: Any, meaning: str, is_good: Callable[[Any], bool]) -> Any:
        value = self.values.get(key)
        if isinstance(value, float) and kind is int and value.is_integer():
            value = int(value)
        if not isinstance(value, kind) or not is_good(value):
            raise InstructionError(f"{self.name}: {key}={value!r} must be {meaning}")
        return value


RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "at least": lambda count, wanted: count >= wanted,
    "at most": lambda count, wanted: count <= wanted,
    "exactly": lambda count, wanted: count == wanted,
    "less than": lambda count, wanted: count < wanted,
}

Check = Callable[[str, Arguments], bool]


def _checks(metadata: Mapping[str, Any]) -> list[tuple[str, Callable[[str], bool]]]:
    """The instructions as functions of the answer, tried once so that their faults are the task's."""
    names, arguments = metadata.get("instruction_id_list"), metadata.get("kwargs")
    if not isinstance(names, Sequence) or isinstance(names, str) or not 1 <= len(names) <= MAX_INSTRUCTIONS:
        raise InstructionError(f"metadata needs 'instruction_id_list' with 1 to {MAX_INSTRUCTIONS} ids")
    arguments = [{}] * len(names) if arguments is None else arguments
    if not isinstance(arguments, Sequence) or len(arguments) != len(names):
        raise InstructionError(f"metadata needs 'kwargs' with one object for each of the {len(names)} ids")
    checks = []
    for name, values in zip(names, arguments, strict=True):
        if name not in CHECKS:
            raise InstructionError(f"unknown instruction {name!r}")
        if not isinstance(values, Mapping | None):
            raise InstructionError(f"{name}: arguments {values!r} are no object")
        check, known = CHECKS[name], Arguments(name, {k: v for k, v in (values or {}).items() if v is not None})
        check("A word.", known)
        checks.append((name, lambda text, check=check, known=known: check(text, known)))
    return checks


# -- words ------------------------------------------------------------------------------------------------------


def _has_word(text: str, word: str) -> int:
    """How often a word or phrase stands in a text, whatever its case."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def _existence(text: str, a: Arguments) -> bool:
    return all(_has_word(text, word) for word in a.words("keywords"))


def _frequency(text: str, a: Arguments) -> bool:
    return a.compares("relation", _has_word(text, a.text("keyword")), a.number("frequency"))


def _forbidden(text: str, a: Arguments) -> bool:
    return not any(_has_word(text, word) for word in a.words("forbidden_words"))


def _letters(text: str, a: Arguments) -> bool:
    return a.compares("let_relation", text.lower().count(a.text("letter").lower()), a.number("let_frequency"))


def _language(text: str, a: Arguments) -> bool:
    """At least nine tenths of the letters are of the language's script."""
    import unicodedata

    language = a.text("language")
    if language not in SCRIPTS:
        raise InstructionError(f"{a.name}: language={language!r} cannot be told by its script; only {sorted(SCRIPTS)}")
    letters = [character for character in text if character.isalpha()]
    own = sum(unicodedata.name(letter, "").startswith(tuple(SCRIPTS[language].split())) for letter in letters)
    return own >= 0.9 * len(letters) > 0


def _capital_words(text: str, a: Arguments) -> bool:
    count = sum(word.isupper() for word in WORD.findall(text))
    return a.compares("capital_relation", count, a.number("capital_frequency"))


# -- lengths ----------------------------------------------------------------------------------------------------


def _num_words(text: str, a: Arguments) -> bool:
    return a.compares("relation", len(WORD.findall(text)), a.number("num_words"))


def _num_sentences(text: str, a: Arguments) -> bool:
    ends = len(SENTENCE_END.findall(text))
    last = SENTENCE_END.split(text)[-1]
    return a.compares("relation", ends + bool(WORD.search(last)), a.number("num_sentences"))


def _num_paragraphs(text: str, a: Arguments) -> bool:
    """Paragraphs divided by a line of three stars, none of them blank."""
    paragraphs = PARAGRAPH_RULE.split(text)
    return all(p.strip() for p in paragraphs) and len(paragraphs) == a.number("num_paragraphs")


def _nth_first_word(text: str, a: Arguments) -> bool:
    """Paragraphs divided by a blank line; the n-th one begins with the word."""
    paragraphs = [p for p in re.split(r"\n\s*\n", text) if p.strip()]
    place, wanted = a.number("nth_paragraph"), a.text("first_word").lower()
    if not 1 <= place <= a.number("num_paragraphs"):
        raise InstructionError(
            f"{a.name}: nth_paragraph={place} is not among num_paragraphs={a.number('num_paragraphs')}"
        )
    if len(paragraphs) != a.number("num_paragraphs"):
        return False
    first = WORD.search(paragraphs[place - 1])
    return first is not None and first[0].lower() == wanted


# -- format -----------------------------------------------------------------------------------------------------


def _placeholders(text: str, a: Arguments) -> bool:
    return len(PLACEHOLDER.findall(text)) >= a.number("num_placeholders")


def _postscript(text: str, a: Arguments) -> bool:
    """A line at the end that begins with the marker and goes on after it."""
    marker = re.escape(a.text("postscript_marker"))
    return re.search(rf"^\s*{marker}\s*\S.*\Z", text, re.MULTILINE | re.DOTALL | re.IGNORECASE) is not None


def _bullets(text: str, a: Arguments) -> bool:
    return len(BULLET.findall(text)) == a.number("num_bullets")


def _choice(text: str, a: Arguments) -> bool:
    return sum(choice in text for choice in CHOICES) == 1


def _highlights(text: str, a: Arguments) -> bool:
    return sum(bool(h.strip("* ")) for h in HIGHLIGHT.findall(text)) >= a.number("num_highlights")


def _sections(text: str, a: Arguments) -> bool:
    header = re.compile(rf"^\s*{re.escape(a.text('section_spliter'))}\s+\d+", re.MULTILINE | re.IGNORECASE)
    return len(header.findall(text)) >= a.number("num_sections")


def _json(text: str, a: Arguments) -> bool:
    try:
        strict_json(text)
    except MalformedError:
        return False
    return True


def _title(text: str, a: Arguments) -> bool:
    return any(WORD.search(title) for title in TITLE.findall(text))


def _two_responses(text: str, a: Arguments) -> bool:
    parts = [part.strip() for part in text.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _repeat_prompt(text: str, a: Arguments) -> bool:
    """The request word for word, and then an answer to it."""
    prompt = a.text("prompt_to_repeat").strip()
    return text.lower().startswith(prompt.lower()) and WORD.search(text[len(prompt) :]) is not None


def _end(text: str, a: Arguments) -> bool:
    return text.strip().strip('"').rstrip().lower().endswith(a.text("end_phrase").strip().lower())


def _quotation(text: str, a: Arguments) -> bool:
    return len(text) > 2 and text[0] == text[-1] == '"'


def _upper(text: str, a: Arguments) -> bool:
    return text.isupper()


def _lower(text: str, a: Arguments) -> bool:
    return text.islower()


def _no_comma(text: str, a: Arguments) -> bool:
    return "," not in text


CHECKS: dict[str, Check] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letters,
    "language:response_language": _language,
    "length_constraints:number_sentences": _num_sentences,
    "length_constraints:number_paragraphs": _num_paragraphs,
    "length_constraints:number_words": _num_words,
    "length_constraints:nth_paragraph_first_word": _nth_first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _choice,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat_prompt,
    "startend:end_checker": _end,
    "startend:quotation": _quotation,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _upper,
    "change_case:english_lowercase": _lower,
    "punctuation:no_comma": _no_comma,
}
"""The 25 kinds of instruction of IFEval, by their ids in the data set."""
