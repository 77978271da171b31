"""README.md and docs/: every code block is a whole program, every link leads somewhere, the
reference has every public name, and the prose keeps to plain words."""

from __future__ import annotations

import ast
import builtins
import gzip
import importlib
import importlib.util
import inspect
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

import pytest

import ringcast
from ringcast import shm
from ringcast.broker.topics.dialogue import Ask, Dialogue, Ping
from ringcast.broker.topics.venue import Outcome
from ringcast.broker.topics.venue_file import list_venues, load_venue
from ringcast.shm import broadcast, mpsc

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
PAGES: Final = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
PROSE: Final = (*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md")
EXAMPLES: Final = sorted((DOCS / "examples").glob("*.py"))
NATIVE_EXAMPLES: Final = sorted((DOCS / "examples/c").glob("*.c*"))

BLOCK: Final = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FENCED: Final = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK: Final = re.compile(r"\]\(([^)\s]+)\)")
HEADING: Final = re.compile(r"^#+ (.*)$", re.MULTILINE)

BANNED: Final = (
    "by message",
    "by worker",
    "by reader",
    "put out",
    "puts out",
    "is told",
    "are told",
    "who sends",
    "cut off",
    "cuts off",
)
"""Phrases for which the glossary, or plain English, has another."""


class Block(NamedTuple):
    """A program in the docs."""

    where: str
    code: str


def blocks() -> list[Block]:
    """Every Python block of the pages, and every example."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(f"{page.name}:{line}", match[1]))
    found += [Block(path.name, path.read_text(encoding="utf-8")) for path in EXAMPLES]
    return found


BLOCKS: Final = blocks()
every_block = pytest.mark.parametrize("block", BLOCKS, ids=[block.where for block in BLOCKS])


def test_there_are_blocks_and_examples() -> None:
    assert len(BLOCKS) > len(EXAMPLES) >= 5


# ---- names ---------------------------------------------------------------------------------


def imported(tree: ast.AST) -> dict[str, Any]:
    """What the imports of a program bind. Fails if one of them is not there."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                module = importlib.import_module(alias.name)
                top = importlib.import_module(alias.name.partition(".")[0])
                found[alias.asname or top.__name__] = module if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):  # a submodule that nobody has imported
                    importlib.import_module(f"{node.module}.{alias.name}")
                found[alias.asname or alias.name] = getattr(module, alias.name)
    return found


NAMED: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler)


def bound(tree: ast.AST) -> Iterator[str]:
    """Every name that a program binds, in whatever scope."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, NAMED):
            yield node.name or ""
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.partition(".")[0]


@every_block
def test_every_name_that_a_block_uses_is_imported_or_made_in_it(block: Block) -> None:
    tree = ast.parse(block.code)
    known = {*bound(tree), *dir(builtins), "__name__"}
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    assert sorted(used - known) == []


def resolve(node: ast.expr, names: dict[str, Any]) -> Any:
    """What `name.attribute.attribute` stands for, as far as it is made of modules and classes."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = resolve(node.value, names)
        if isinstance(owner, ModuleType | type):
            assert hasattr(owner, node.attr), f"{ast.unparse(node)} is not there"
            return getattr(owner, node.attr)
    return None


ENDPOINTS: Final = {
    "attach": ringcast.Feed,
    "Manager": ringcast.Manager,
    "Writer.create": broadcast.Writer,
    "Writer.resume": broadcast.Writer,
    "Reader.attach": broadcast.Reader,
    "Receiver.create": mpsc.Receiver,
    "Sender.attach": mpsc.Sender,
}


def made(tree: ast.AST, names: dict[str, Any]) -> dict[str, Any]:
    """The names of objects whose class can be seen: those that an endpoint's call is bound to."""
    found: dict[str, Any] = {}
    pairs: list[tuple[ast.expr | None, ast.expr]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.With | ast.AsyncWith):
            pairs += [(item.optional_vars, item.context_expr) for item in node.items]
        elif isinstance(node, ast.Assign):
            pairs += [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.arg) and isinstance(node.annotation, ast.Name):
            annotated = names.get(node.annotation.id)
            if isinstance(annotated, type):
                found[node.arg] = annotated
    for target, value in pairs:
        if isinstance(target, ast.Name) and isinstance(value, ast.Call):
            for ending, cls in ENDPOINTS.items():
                if ast.unparse(value.func).endswith(ending):
                    found[target.id] = cls
    return found


@every_block
def test_what_a_block_imports_and_calls_is_there(block: Block) -> None:
    tree = ast.parse(block.code)
    names = imported(tree)
    names |= made(tree, names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            resolve(node, names)
        if not isinstance(node, ast.Call):
            continue
        function = resolve(node.func, names)
        if not getattr(function, "__module__", "").startswith("ringcast"):
            continue
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            continue
        for keyword in node.keywords:
            assert keyword.arg in parameters, f"{ast.unparse(node)}: no {keyword.arg}"


TOML: Final = re.compile(r"^```toml\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TOML_FILES: Final = [text for page in PAGES for text in TOML.findall(page.read_text("utf-8"))]
CONFIGURATIONS: Final = [text for text in TOML_FILES if re.search("^name = ", text, re.MULTILINE)]
VENUE, CLIENTS = [text for text in TOML_FILES if text not in CONFIGURATIONS]


@pytest.fixture
def topic_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module mytopics of docs/topics.md."""
    (code,) = [block.code for block in BLOCKS if block.code.startswith("# mytopics.py\n")]
    (tmp_path / "mytopics.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("mytopics")


@pytest.mark.parametrize("text", CONFIGURATIONS)
def test_the_configuration_files_of_the_docs_can_be_used(
    text: str, topic_function: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del topic_function
    for variable in re.findall(r"\$\{(\w+)\}", text):
        monkeypatch.setenv(variable, "secret")
    path = tmp_path / "md.toml"
    path.write_text(text, encoding="utf-8")
    assert ringcast.Config.load(path).name == "md"


def test_the_topic_function_of_the_docs_works(topic_function: Any) -> None:
    payload = gzip.compress(b'{"ch":"market.btcusdt.trade"}')
    assert topic_function.topic_of(memoryview(payload)) == "market.btcusdt.trade"
    assert topic_function.topic_of(memoryview(gzip.compress(b"{}"))) is None


def test_the_table_of_venues_has_each_with_topics_that_it_can_have() -> None:
    text = (DOCS / "venues.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*?) \| (.*?) \| (.*?) \|", text, re.MULTILINE)
    assert sorted(row[0] for row in rows) == list_venues()
    for name, topics, rate, most in rows:
        venue = load_venue(name)
        for topic in re.findall("`(.*?)`", topics):
            venue.check_name(topic)
        limits = (venue.messages_per_second, venue.topics_per_connection)
        shown = ["\N{EN DASH}" if limit is None else f"{limit:,g}" for limit in limits]
        assert [rate.partition(" ")[0].rstrip(","), most] == shown


def test_the_venue_of_the_docs_says_what_its_text_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(VENUE, encoding="utf-8")
    venue = load_venue(str(path))
    text, _, _ = (DOCS / "venues.md").read_text(encoding="utf-8").partition("### Answer clients")
    said = re.findall(r"`(\{.*?\})`", text)
    asks, accepts, refuses = (text for text in said if "1" in text and "price" not in text)
    ids = itertools.count(1)
    (request,) = venue.requests(["trades:BTC"], subscribing=True, ids=ids)
    assert request.text == asks
    assert [a.outcome for a in venue.answers(accepts.encode())] == [Outcome.SUBSCRIBED]
    venue.requests(["trades:BTC"], subscribing=True, ids=itertools.count(1))
    (answer,) = venue.answers(refuses.encode())
    assert (answer.outcome, answer.reason) == (Outcome.REFUSED, "no such pair")


def test_the_clients_of_the_docs_venue_are_answered(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"{VENUE}\n{CLIENTS}", encoding="utf-8")
    dialogue = Dialogue(load_venue(str(path)))
    ask = dialogue.read(b'{"op":"subscribe","topics":["trades:BTC","book:BTC"],"id":"a"}')
    assert ask == Ask(("trades:BTC", "book:BTC"), subscribing=True, id='"a"')
    assert dialogue.answers(ask) == ['{"id":"a","ok":true}']
    assert dialogue.answers(ask, {"book:BTC": "no"}) == ['{"id":"a","error":"no"}']
    assert dialogue.read(b'{"op": "ping"}') == Ping('{"op":"pong"}')


# ---- links ---------------------------------------------------------------------------------


def generator() -> ModuleType:
    """docs/generate.py, which makes the pages that are not stored."""
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    """The pages that are not stored, by path."""
    pages: dict[str, str] = generator().pages()
    return pages


def anchors(text: str) -> set[str]:
    """What a page's headings are called in links."""
    headings = HEADING.findall(FENCED.sub("", text))
    return {
        re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", h.replace("`", "")).strip().lower())
        for h in headings
    }


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path, generated: dict[str, str]) -> None:
    for target in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        relative = file.relative_to(DOCS).as_posix() if file.is_relative_to(DOCS) else ""
        text = generated.get(relative)
        if text is None:
            assert file.exists(), f"{page.name}: {target}"
            text = file.read_text(encoding="utf-8") if file.suffix == ".md" else ""
        assert not anchor or anchor in anchors(text), f"{page.name}: {target}"


def test_every_page_is_in_the_navigation(generated: dict[str, str]) -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    named = re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)
    assert sorted(named) == sorted([*(path.name for path in DOCS.glob("*.md")), *generated])


# ---- the reference -------------------------------------------------------------------------


def test_the_reference_has_every_public_name(generated: dict[str, str]) -> None:
    text = "\n".join(generated.values())
    headings = set(HEADING.findall(text))
    public = {*ringcast.__all__, *shm.__all__, *broadcast.__all__, *mpsc.__all__}
    elsewhere = {"Config", "DESCRIPTOR"}  # a page of its own; the page on the layout
    assert sorted(public - headings - elsewhere) == []


def test_the_reference_has_every_key_of_the_configuration(generated: dict[str, str]) -> None:
    page = generated["reference/config.md"]
    fields = inspect.signature(ringcast.Config).parameters
    for field in fields:
        if field.startswith("_"):
            continue
        section = page.partition(f"\n## {field}\n")[2].partition("\n## ")[0]
        assert len(section.split()) > 5, f"{field} is not explained"


def test_the_reference_has_types_and_parameters_of_native_methods(
    generated: dict[str, str],
) -> None:
    page = generated["reference/rings.md"]
    assert "read(timeout: float | None = None) -> Message | None" in page
    assert "- `timeout`: seconds" in page
    assert "self" not in page.partition("### Reader.read\n")[2].partition("\n### ")[0].split()


def test_the_page_of_examples_has_every_program(generated: dict[str, str]) -> None:
    page = generated["examples.md"]
    for path in [*EXAMPLES, *NATIVE_EXAMPLES]:
        assert path.name in page
        assert path.read_text(encoding="utf-8").strip().splitlines()[-1] in page


def test_the_reference_has_a_text_for_each_attribute_of_an_owner(generated: dict[str, str]) -> None:
    for page, name in (("rings", "Writer"), ("uplinks", "Receiver")):
        text = generated[f"reference/{page}.md"]
        for attribute in ("abandoned", "closed"):
            section = text.partition(f"\n### {name}.{attribute}\n")[2].partition("\n##")[0]
            assert len(section.split()) > 2, f"{name}.{attribute} is not explained"


def test_the_reference_has_every_command(generated: dict[str, str]) -> None:
    page = generated["reference/commands.md"]
    observing = ("ls", "inspect", "topics", "tail")
    for command in ("demo", "serve", "venues", *observing, "send", "replay", "clean", "bench"):
        assert f"\n## {command}\n" in page
        assert f"Usage: ringcast {command}" in page


# ---- the prose -----------------------------------------------------------------------------


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_the_prose_is_plain(page: Path) -> None:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    words = " ".join(text.split()).lower()
    assert [phrase for phrase in BANNED if phrase in words] == []


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_no_page_names_a_place_on_one_machine(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"/home/\S+|/tmp/\S+|/work/\S+|/root/\S+", text) == []


@pytest.mark.parametrize("path", sorted((DOCS / "pictures").glob("*.svg")), ids=lambda p: p.name)
def test_pictures_need_nothing_else_and_suit_dark_pages(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    assert "<title" in text
    assert re.findall(r"(?:href|src)=|url\(http|@import", text) == []
