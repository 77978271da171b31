"""Pages that MkDocs builds from the code: a hook, see `hooks` in mkdocs.yml.

The reference comes from the docstrings, the page of examples from docs/examples/, and two pages are
the files CONTRIBUTING.md and CHANGELOG.md. None of these pages is stored, so none can be out of
date. `pages` returns all of them; it needs no MkDocs.

Docstrings have Google's form. The docstring of a Cython method begins with its signature, without
types; the .pyi file beside the native module has them, so the signature is taken from there.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

DOCS: Final = Path(__file__).parent
ROOT: Final = DOCS.parent

HEADINGS: Final = {
    "Args": "Parameters",
    "Attributes": "Attributes",
    "Returns": "Returns",
    "Raises": "Errors",
}
SECTION: Final = re.compile(rf"({'|'.join(HEADINGS)}):(?: (.*))?")
ENTRY: Final = re.compile(r"(?P<names>[\w.*]+(?:, [\w.*]+)*)(?: \((?P<type>.+?)\))?: (?P<text>.*)")
EMBEDDED: Final = re.compile(r"\w+(\(.*\).*|: [\w.\[\]| ]+)")
"""The first line that Cython writes into a docstring: a signature, or a property and its type."""
HELP_COLUMNS: Final = 96


class Page(NamedTuple):
    """A page of the reference.

    Attributes:
        title, text: what stands above the names.
        names: what the page explains, as "module:name".
    """

    title: str
    text: str
    names: tuple[str, ...]


REFERENCE: Final = {
    "reference/ringcast.md": Page(
        "Managers and workers",
        "All names of this page are in `ringcast`. [Configuration](config.md) has the parameters"
        " of `Config`, [Errors](errors.md) the errors.",
        (
            "ringcast:attach",
            "ringcast:Feed",
            "ringcast:GroupFeed",
            "ringcast:SocketFeed",
            "ringcast:QueueFeed",
            "ringcast.broker.worker.queue_feed:QueueMessage",
            "ringcast:Answer",
            "ringcast:Following",
            "ringcast:ConnectionState",
            "ringcast:Phase",
            "ringcast:TopicState",
            "ringcast:Manager",
        ),
    ),
    "reference/rings.md": Page(
        "Rings",
        "`ringcast.shm.broadcast` has the ring: one writer, many readers. `ringcast.shm` has what"
        " rings and uplinks share.",
        (
            "ringcast.shm.broadcast:Writer",
            "ringcast.shm.broadcast:Reservation",
            "ringcast.shm.broadcast:Reader",
            "ringcast.shm.broadcast:Message",
            "ringcast.shm.broadcast:Batch",
            "ringcast.shm:Kind",
            "ringcast.shm:BusySpin",
            "ringcast.shm:Yielding",
            "ringcast.shm:Blocking",
            "ringcast.shm:WaitStrategy",
            "ringcast.shm:status",
            "ringcast.shm:RingStatus",
            "ringcast.shm:ReaderStatus",
            "ringcast.shm:list_rings",
            "ringcast.shm:RingEntry",
            "ringcast.shm:list_topics",
            "ringcast.shm:TopicStatus",
            "ringcast.shm:hash_key",
            "ringcast.shm:unlink",
            "ringcast.shm:check_name",
        ),
    ),
    "reference/groups.md": Page(
        "Work groups",
        "`ringcast.shm.group` has the members of a ring's work groups. [Share the work in a group]"
        "(../groups.md) says how to use them.",
        (
            "ringcast.shm.group:Member",
            "ringcast.shm.group:GroupMessage",
            "ringcast.shm.group:GroupBatch",
            "ringcast.shm.group:list_groups",
            "ringcast.shm.group:GroupStatus",
            "ringcast.shm.group:SetAside",
            "ringcast.shm.group:remove",
            "ringcast.shm.group:partition_of_key",
        ),
    ),
    "reference/uplinks.md": Page(
        "Uplinks",
        "`ringcast.shm.mpsc` has the uplink: many senders, one receiver, one order.",
        (
            "ringcast.shm.mpsc:Receiver",
            "ringcast.shm.mpsc:Envelope",
            "ringcast.shm.mpsc:Sender",
            "ringcast.shm.mpsc:status",
            "ringcast.shm.mpsc:UplinkStatus",
            "ringcast.shm.mpsc:SenderStatus",
        ),
    ),
}


# ---- docstrings ----------------------------------------------------------------------------


class Entry(NamedTuple):
    """An entry of a section: "names (type): text". Names and type may be missing."""

    names: str
    type: str
    text: str

    def as_item(self) -> str:
        """The entry as an item of a list."""
        names = ", ".join(f"`{name}`" for name in self.names.split(", "))
        kind = f" (`{self.type}`)" if self.type else ""
        return f"- {names}{kind}: {self.text}" if self.names else f"- {self.text}"


class Docstring(NamedTuple):
    """A docstring in parts.

    Attributes:
        text: all outside the sections, as Markdown.
        sections: the entries of each section, by its name.
    """

    text: str
    sections: dict[str, list[Entry]]

    def attributes(self) -> dict[str, Entry]:
        """The entry of each attribute."""
        found = self.sections.get("Attributes", ())
        return {name: entry for entry in found for name in entry.names.split(", ")}


def read_docstring(thing: object) -> Docstring:
    """Take the docstring of `thing` apart."""
    lines = inspect.cleandoc(getattr(thing, "__doc__", None) or "").splitlines()
    if lines and EMBEDDED.fullmatch(lines[0]):
        del lines[0]
    text: list[str] = []
    sections: dict[str, list[str]] = {}
    current = text
    for line in lines:
        found = SECTION.fullmatch(line)
        if found is not None:
            current = sections.setdefault(found[1], [])
            if found[2]:
                current.append(found[2])
        elif line and not line.startswith(" ") and current is not text:
            current = text  # what follows a section at the margin is text again
            current.append(line)
        else:
            current.append(line)
    return Docstring(
        markdown("\n".join(text)),
        {name: entries(textwrap.dedent("\n".join(found))) for name, found in sections.items()},
    )


def markdown(text: str) -> str:
    """A docstring's text as Markdown: single backticks, an empty line before an indented block."""
    text = inspect.cleandoc(text).replace("``", "`")
    return re.sub(r"(?<=\S)\n(?=    )", "\n\n", text)


def entries(text: str) -> list[Entry]:
    """A section's entries: each begins at the margin, and deeper lines continue it."""
    found: list[Entry] = []
    for line in text.replace("``", "`").splitlines():
        entry = ENTRY.fullmatch(line)
        if entry is not None:
            found.append(Entry(entry["names"], entry["type"] or "", entry["text"]))
        elif found and line.strip():
            found[-1] = found[-1]._replace(text=f"{found[-1].text} {line.strip()}")
        elif line.strip():
            found.append(Entry("", "", line.strip()))
    return found


def section_lines(doc: Docstring) -> Iterator[str]:
    """The sections as lists."""
    for section, found in doc.sections.items():
        yield f"*{HEADINGS[section]}*\n"
        yield from (entry.as_item() for entry in found)
        yield ""


# ---- signatures ----------------------------------------------------------------------------


@functools.cache
def stub(module: str) -> dict[str, str]:
    """What a native module's .pyi file declares: "class.method", or "function", to source text."""
    path = Path(sys.modules[module].__file__ or "")
    file = path.with_name(f"{path.name.partition('.')[0]}.pyi")
    if not file.exists():
        return {}
    source = file.read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for thing in ast.parse(source).body:
        if isinstance(thing, ast.FunctionDef):
            found[thing.name] = ast.get_source_segment(source, thing) or ""
        elif isinstance(thing, ast.ClassDef):
            for method in thing.body:
                if isinstance(method, ast.FunctionDef):
                    text = ast.get_source_segment(source, method) or ""
                    found[f"{thing.name}.{method.name}"] = text
    return found


def source_of(owner: type | None, name: str, function: Any) -> str:
    """The source text of a function, or of its declaration in a .pyi file; empty if neither is."""
    if inspect.isfunction(inspect.unwrap(getattr(function, "__func__", function))):
        return textwrap.dedent(inspect.getsource(function))
    if owner is None:
        return stub(function.__module__).get(name, "")
    for base in owner.__mro__:
        if name in vars(base):
            return stub(base.__module__).get(f"{base.__name__}.{name}", "")
    return ""


def signature(owner: type | None, name: str, function: Any) -> str:
    """Parameters and result, as they are written in the code."""
    source = source_of(owner, name, function)
    if not source:
        return "()"
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)

    def text(part: ast.AST) -> str:
        return (ast.get_source_segment(source, part) or "").replace("_ring.Wait", "WaitStrategy")

    def with_default(argument: ast.arg, default: ast.expr | None) -> str:
        equals = " = " if argument.annotation else "="
        return text(argument) + (f"{equals}{text(default)}" if default is not None else "")

    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + [*arguments.defaults]
    found = list(map(with_default, plain, defaults))
    if owner is not None and found:
        del found[0]  # self or cls
    if arguments.vararg is not None:
        found.append(f"*{text(arguments.vararg)}")
    elif arguments.kwonlyargs:
        found.append("*")
    found += map(with_default, arguments.kwonlyargs, arguments.kw_defaults)
    if arguments.kwarg is not None:
        found.append(f"**{text(arguments.kwarg)}")
    result = f" -> {text(node.returns)}" if node.returns is not None else ""
    line = f"({', '.join(found)}){result}"
    if len(name) + len(line) <= 80:
        return line
    return "(\n" + "".join(f"    {argument},\n" for argument in found) + f"){result}"


# ---- the reference -------------------------------------------------------------------------


def load(name: str) -> Any:
    """What "module:name" stands for."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


@functools.cache
def documented() -> frozenset[type]:
    """The classes that the reference explains."""
    things = (load(name) for page in REFERENCE.values() for name in page.names)
    return frozenset(thing for thing in things if isinstance(thing, type))


def members(cls: type) -> tuple[list[str], type | None]:
    """Names of the public members of a class, and a base class that is explained elsewhere and has
    the rest of them."""
    names: dict[str, None] = {}
    for base in cls.__mro__:
        if base is not cls and base in documented():
            return list(names), base
        if base.__module__.partition(".")[0] == "ringcast":
            names.update(dict.fromkeys(name for name in vars(base) if not name.startswith("_")))
    return list(names), None


def explain(name: str) -> Iterator[str]:
    """One name of a page."""
    thing = load(name)
    short = name.partition(":")[2]
    yield f"## {short}\n"
    doc = read_docstring(thing)
    if not isinstance(thing, type):
        yield f"```python\n{short}{signature(None, short, thing)}\n```\n"
        yield f"{doc.text}\n"
        yield from section_lines(doc)
        return
    yield f"{doc.text}\n"
    yield from section_lines(doc)
    if issubclass(thing, enum.Enum):
        yield from (f"- `{member.name}` = `{member.value!r}`" for member in thing)
        yield ""
        return
    explained = {*doc.attributes(), *field_names(thing)}
    names, base = members(thing)
    if base is not None:
        yield f"It has all that `{base.__name__}` has, too.\n"
    for member in sorted(names):
        if member not in explained:
            yield from explain_member(thing, short, member)


def field_names(thing: type) -> list[str]:
    """The fields of a dataclass; none of another class."""
    return [f.name for f in dataclasses.fields(thing)] if dataclasses.is_dataclass(thing) else []


def explain_member(cls: type, short: str, name: str) -> Iterator[str]:
    """A method or an attribute of a class."""
    static = inspect.getattr_static(cls, name)
    value = getattr(cls, name, static)
    yield f"### {short}.{name}\n"
    if callable(value):
        yield f"```python\n{name}{signature(cls, name, value)}\n```\n"
    doc = read_docstring(value)
    yield f"{doc.text}\n"
    yield from section_lines(doc)


def reference_page(page: Page) -> str:
    """A page of names."""
    lines = [f"# {page.title}\n", f"{page.text}\n"]
    for name in page.names:
        lines += explain(name)
    return "\n".join(lines)


def errors_page() -> str:
    """Every error, with its bases."""
    ringcast = importlib.import_module("ringcast")
    errors = [getattr(ringcast, name) for name in ringcast.__all__]
    lines = [
        "# Errors\n",
        "All names of this page are in `ringcast`; those of rings are in `ringcast.shm`, too."
        " An error's text says what happened and what to do. All errors survive pickling.\n",
    ]
    for error in errors:
        if not (isinstance(error, type) and issubclass(error, Exception)):
            continue
        doc = read_docstring(error)
        bases = ", ".join(f"`{base.__name__}`" for base in error.__bases__)
        lines += [f"## {error.__name__}\n", f"*Also:* {bases}\n", f"{doc.text}\n"]
        lines += section_lines(doc)
    return "\n".join(lines)


def config_page() -> str:
    """Every key of the configuration."""
    config = load("ringcast:Config")
    doc = read_docstring(config)
    explained = doc.attributes()
    lines = [
        "# Configuration\n",
        "A TOML file for `ringcast serve --config` has these keys. `ringcast.Config` takes them as"
        " keyword arguments. [Run a manager](../manager.md) shows a file.\n",
        f"{doc.text}\n",
    ]
    for field in dataclasses.fields(config):
        if field.name.startswith("_"):
            continue
        entry = explained[field.name]
        lines += [f"## {field.name}\n", f"`{entry.type or field.type}`. {entry.text}\n"]
        if not re.search(r"Default: |Required\.", entry.text):
            lines += [f"{default_of(field)}\n"]
    lines += ["## In Python\n", *section_lines(doc._replace(sections=raised(doc)))]
    for method in ("load", "redact", "shown_url"):
        lines += explain_member(config, "Config", method)
    return "\n".join(lines)


def raised(doc: Docstring) -> dict[str, list[Entry]]:
    """The errors alone."""
    return {"Raises": doc.sections.get("Raises", [])}


def default_of(field: dataclasses.Field[Any]) -> str:
    """What holds if the key is not given."""
    if field.default is not dataclasses.MISSING:
        value = oct(field.default) if field.name == "mode" else repr(field.default)
        return f"Default: `{value}`."
    if field.default_factory is not dataclasses.MISSING:
        return f"Default: `{field.default_factory()!r}`."
    return "Required."


# ---- commands ------------------------------------------------------------------------------


def commands_page() -> str:
    """The help of every command, as the terminal shows it."""
    import typer.main
    import typer.testing

    app = load("ringcast.broker.cli:app")
    terminal = {"COLUMNS": str(HELP_COLUMNS), "NO_COLOR": "1", "TERM": "dumb"}
    runner = typer.testing.CliRunner(env=terminal)
    group: Any = typer.main.get_command(app)
    lines = [
        "# Commands\n",
        "Exit code 0: fine. 1: failed. 2: bad usage. Listings have `--json`. Two programs are no"
        " commands of `ringcast`: `python -m ringcast.shm` checks the ring on this machine, and"
        " `python -m ringcast.benchmarks` [measures](../benchmarks.md).\n",
    ]
    for name in group.commands:
        shown = runner.invoke(app, [name, "--help"], prog_name="ringcast").output
        text = "\n".join(line.rstrip() for line in shown.strip().splitlines())
        lines += [f"## {name}\n", f"```text\n{text}\n```\n"]
    return "\n".join(lines)


# ---- venue files ---------------------------------------------------------------------------


def venue_file_page() -> str:
    """The template of a venue file, which explains every key."""
    template = ROOT / "broker/topics/venues/template.toml"
    return "\n".join(
        [
            "# Venue files\n",
            "A venue file says how one exchange is talked to; [Subscribe at an exchange]"
            "(../venues.md#write-a-venue) has a short one. This is a whole file with every key. It"
            " is installed as `ringcast/broker/topics/venues/template.toml`.\n",
            f"```toml\n{template.read_text(encoding='utf-8').strip()}\n```\n",
        ]
    )


# ---- all pages -----------------------------------------------------------------------------


def examples_page() -> str:
    """The programs of docs/examples/, each with what its docstring or first comment says."""
    lines = [
        "# Examples\n",
        "These programs are in `docs/examples/`; the tests run them. Each takes the name of a ring,"
        " ends by itself, and prints what it did.\n",
    ]
    for path in sorted((DOCS / "examples").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        docstring = ast.get_docstring(ast.parse(source)) or ""
        title, _, text = docstring.partition("\n")
        body = source.split('"""', 2)[2].strip()
        lines += [f"## {title.rstrip('.')}\n", f"`docs/examples/{path.name}`\n"]
        lines += [f"{markdown(text)}\n", f"```python\n{body}\n```\n"]
    lines += [
        "## In C and C++\n",
        "These programs are in `docs/examples/c/`; [Write workers in C and C++](c.md) says how to"
        " build them.\n",
    ]
    for path in native_examples():
        text, body = split_comment(path.read_text(encoding="utf-8"))
        language = "c" if path.suffix == ".c" else "cpp"
        lines += [f"### {path.name}\n", f"{markdown(text)}\n", f"```{language}\n{body}\n```\n"]
    return "\n".join(lines)


def native_examples() -> list[Path]:
    """The programs in C and C++."""
    return sorted(path for path in (DOCS / "examples/c").iterdir() if path.suffix in {".c", ".cpp"})


def split_comment(source: str) -> tuple[str, str]:
    """What the first comment of a program in C or C++ says, and the rest."""
    found = re.match(r"/\*(?P<block>.*?)\*/|(?P<lines>(?://.*\n)+)", source, re.DOTALL)
    assert found is not None, "the program does not begin with a comment"
    marks = r"^ \* ?" if found["block"] else r"^// ?"
    text = re.sub(marks, "", found["block"] or found["lines"], flags=re.MULTILINE)
    return text.strip(), source[found.end() :].strip()


def pages() -> dict[str, str]:
    """Every page that is built from the code, by its path."""
    return {
        **{path: reference_page(page) for path, page in REFERENCE.items()},
        "reference/errors.md": errors_page(),
        "reference/config.md": config_page(),
        "reference/venue-file.md": venue_file_page(),
        "reference/commands.md": commands_page(),
        "examples.md": examples_page(),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """MkDocs asks which files there are: add the pages."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files
