"""Names and sentences use the field's standard terms: words that this project once used in their place are rejected."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path for folder in ("rnri", "nao", "seedselect", "experiments", "tools", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py") if path != Path(__file__)
)  # fmt: skip
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "assets").rglob("*.md"))]

NAMES = {
    "said", "told", "found", "own", "made", "besides", "beside", "anew", "whatever", "given", "known", "kept", "held",
    "taken", "ways", "places", "walk", "judge", "judged", "judges", "picture", "pictures",
}  # fmt: skip
"""Identifiers, whole or as a part between underscores, that do not say what they hold."""

COUNTED = "evaluations?|NFE|bytes|seconds|latents?|images?|samples?|calls?|lines?"
PER = "step|image|sample|concept|second|minute|run|unit|line|batch"
PROSE = {
    r"\bbesides?\b": "in addition to, next to, also",
    r"\banew\b": "again",
    r"\bwhatever\b": "any, everything",
    r"\bas one types\b": "as on the command line",
    r"\bwalk(s|ed|ing)?\b": "inversion loop, trajectory",
    r"\bjudg(e|es|ed|ing)\b": "evaluation classifier, evaluate",
    r"\bpictur(e|es|ed)\b": "image (data), figure (plot)",
    rf"\b({COUNTED}) an? ({PER})\b": "per",
    r"\bwhole number\b": "integer",
    r"\ba text\b(?!-| file| encoder)": "a string",
    r"\bof at least\b": ">=, at least",
    r"\bis (said|told)\b": "is reported, is printed",
    r"\bsays so\b": "reports it",
    r"\bin one sentence\b": "in one line",
}
"""Patterns in docstrings, comments, messages and documents, with what to write instead."""

ALLOWED = {"os.walk", "ast.walk", "nodes.walk", "given_name"}


def parts(name: str) -> set[str]:
    return {name.lower(), *name.lower().split("_")}


def names(tree: ast.Module) -> set[tuple[int, str]]:
    """Names that a module defines: variables, arguments, attributes, functions, classes."""
    defined = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add((node.lineno, node.id))
        elif isinstance(node, ast.arg):
            defined.add((node.lineno, node.arg))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add((node.lineno, node.name))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            defined.add((node.lineno, node.attr))
    return defined


def sentences(source: str) -> list[tuple[int, str]]:
    """Comments and strings of a module, with their lines; a string without a space is a value, not a sentence."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [
        (token.start[0], token.string)
        for token in tokens
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and " " in token.string)
    ]


def banned(text: str) -> list[str]:
    return [
        f"{match[0]!r}: write {instead}" for rule, instead in PROSE.items() for match in re.finditer(rule, text, re.I)
    ]


def faults(path: Path) -> list[str]:
    text = path.read_text()
    if path.suffix == ".md":
        return [f"{path}:{k}: {fault}" for k, line in enumerate(text.splitlines(), 1) for fault in banned(line)]
    wrong = [f"{path}:{line}: name {name!r}" for line, name in sorted(names(ast.parse(text))) if parts(name) & NAMES]
    return wrong + [f"{path}:{line}: {fault}" for line, sentence in sentences(text) for fault in banned(sentence)]


@pytest.mark.parametrize("path", [*SOURCES, *DOCUMENTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_words(path):
    assert not faults(path)


@pytest.mark.parametrize(
    "text", ["# the judge says", '"""So many evaluations a step."""', "raise ValueError('give a text')"]
)
def test_banned_sentences_are_detected(text):
    assert [fault for _, sentence in sentences(text) for fault in banned(sentence)]


@pytest.mark.parametrize("source", ["found = 1", "def f(own): ...", "class Judge: ...", "self.kept_images = 2"])
def test_banned_names_are_detected(source):
    assert any(parts(name) & NAMES for _, name in names(ast.parse(source)))
