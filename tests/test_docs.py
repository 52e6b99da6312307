"""What the documents say exists: files, links, commands, and every method in its table."""

import re
import shlex
from pathlib import Path

import pytest

from actors.rules.table import RULES
from learner.advantages import ADVANTAGES
from learner.losses.table import LOSSES
from orchestrator.cli import make_parser
from orchestrator.load_config import recipe_names
from rewards.rubric import VERIFIERS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]

QUOTED = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#]+)")
USERS_OWN = re.compile(r"my_|NAME|\.\./|^/|^\./|^~")
"""Names of what a reader would write, or of places outside the repository."""


def commands(text):
    """The arguments of every `braid` command at the start of a line, comments left out."""
    for line in text.replace("\\\n", " ").splitlines():
        match = re.match(r"(?:\s*|\$ )(?:\.venv/bin/)?braid ([a-z-]+ .*)", line)
        if match:
            yield match[1].partition(" #")[0]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
class TestEveryDocument:
    def test_files_it_names_exist(self, document):
        named = {name for name in QUOTED.findall(document.read_text()) if re.fullmatch(r"[\w./*-]+\.(py|md|sh)", name)}
        missing = [n for n in named if "/" in n and not USERS_OWN.search(n) and not list(ROOT.glob(n))]
        assert not missing

    def test_links_lead_somewhere(self, document):
        links = [link for link in LINK.findall(document.read_text()) if "://" not in link]
        assert not [link for link in links if not (document.parent / link).exists()]

    def test_commands_are_accepted_as_they_stand(self, document):
        for command in commands(document.read_text()):
            make_parser().parse_args(shlex.split(command))


def test_the_commands_are_found():
    assert len(list(commands((ROOT / "README.md").read_text()))) >= 8


def test_every_method_and_part_stands_in_algorithms():
    text = (ROOT / "docs" / "algorithms.md").read_text()
    names = {*recipe_names(), *LOSSES, *ADVANTAGES, *RULES, *VERIFIERS}
    assert not [name for name in names if f"`{name}`" not in text]
