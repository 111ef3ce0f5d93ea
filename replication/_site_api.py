"""The public interface, read from the modules' ``__all__``, signatures and docstrings."""

import functools
import importlib
import inspect
import pkgutil
import re
from dataclasses import dataclass
from html import escape
from types import ModuleType
from typing import Any

import replication

# What a reader looks for first; any other public module follows in alphabetical order.
FIRST = ("activations", "similarity", "sensitivity", "directions", "spectra", "memorisation")
LEFT_OUT = ("cli", "rules", "site")  # a command line, the notebooks' own, and this
LONGEST = 300  # characters of a constant's value
HEADS = ("Parameters", "Returns", "Yields", "Raises", "Attributes")
_LIST = re.compile(r" {0,3}([-+*]|\d+[.)]) ")


@dataclass(frozen=True)
class Entry:
    """A module, function, class, method, property or constant.

    `name` is the anchor, e.g. "similarity.cca"; `signature` and `html` are HTML.
    """

    name: str
    kind: str
    signature: str
    html: str
    members: tuple["Entry", ...] = ()


def modules() -> list[Entry]:
    """Return the public modules of the package with what is public in them."""
    names = {
        info.name
        for info in pkgutil.iter_modules(replication.__path__)
        if not info.name.startswith("_") and info.name not in LEFT_OUT
    }
    order = [*FIRST, *sorted(names - set(FIRST))]
    return [
        entry
        for name in order
        for entry in _module(importlib.import_module(f"replication.{name}"), name)
    ]


def _module(module: ModuleType, name: str) -> list[Entry]:
    """Return the entry of a module, followed by those of the public modules inside it."""
    members, inside = [], []
    for key in public(module):
        value = getattr(module, key)
        if isinstance(value, ModuleType):
            inside += _module(value, f"{name}.{key}")
        else:
            members.append(_entry(value, f"{name}.{key}"))
    return [Entry(name, "module", escape(name), docstring(module.__doc__), tuple(members)), *inside]


def public(module: ModuleType) -> list[str]:
    """Return the names in ``__all__``; without one, the module's own without an underscore."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__, key=str.lower)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    ]


def _entry(value: Any, name: str) -> Entry:
    if inspect.isclass(value):
        own = {key: item for key, item in vars(value).items() if not key.startswith("_")}
        members = [_member(item, f"{name}.{key}") for key, item in own.items()]
        members = tuple(member for member in members if member)
        return Entry(name, "class", signature(value, name), docstring(value.__doc__), members)
    if callable(value):
        doc = inspect.getdoc(value)
        return Entry(name, "function", signature(value, name), docstring(doc))
    shown = ", ".join(map(str, value)) if isinstance(value, dict) else repr(value)
    if len(shown) > LONGEST or " at 0x" in shown:
        shown = f"a {type(value).__name__}"
    return Entry(name, "constant", escape(name), f"<p><code>{escape(shown)}</code></p>")


def _member(value: Any, name: str) -> Entry | None:
    """Return the entry of a method or property that has a docstring."""
    if isinstance(value, property | functools.cached_property):
        doc = inspect.getdoc(value)
        return Entry(name, "property", escape(name), docstring(doc)) if doc else None
    function = getattr(value, "__func__", value)
    if inspect.isfunction(function) and function.__doc__:
        return Entry(
            name, "method", signature(function, name, method=True), docstring(function.__doc__)
        )
    return None


def signature(value: Any, name: str, method: bool = False) -> str:
    """Return name and parameters as HTML, one line a parameter when they are long."""
    try:
        parameters = list(inspect.signature(value).parameters.values())[int(method) :]
    except (TypeError, ValueError):
        return escape(name)
    parts, starred = [], False
    for parameter in parameters:
        if parameter.name.startswith("_"):
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            starred = True
        elif parameter.kind is parameter.KEYWORD_ONLY and not starred:
            starred = True
            parts.append("*")
        text = re.sub(r"<(?:built-in )?function (\w+)(?: at 0x\w+)?>", r"\1", str(parameter))
        text = re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Z]\w)", "", text)  # torch.Tensor: Tensor
        parts.append(re.sub(r"(: )'([^']*)'", r"\1\2", text))
    line = f"{name}({', '.join(parts)})"
    if len(line) > 88:
        line = f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + ")"
    return escape(line, quote=False)


def docstring(text: str | None) -> str:
    """Return a numpydoc docstring as HTML: prose, and a definition list a section."""
    if not text:
        return ""
    html = []
    for head, body in sections(inspect.cleandoc(text)):
        if head:
            html.append(f'<p class="head">{head}</p>')
        html.append(_definitions(body) if head in HEADS else _prose(body))
    return "\n".join(html)


def sections(text: str) -> list[tuple[str, str]]:
    """Return the sections of a cleaned docstring, title and body; what comes first has no title."""
    found, lines = [("", [])], text.splitlines()
    skip = False
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if skip:
            skip = False
        elif line and not line.startswith(" ") and re.fullmatch("-{3,}", below.strip()):
            found.append((line.strip(), []))
            skip = True
        else:
            found[-1][1].append(line)
    return [(head, "\n".join(body).strip("\n")) for head, body in found if head or any(body)]


def _definitions(text: str) -> str:
    """Return ``name : type`` lines and what is indented below each as a definition list."""
    items: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line and not line.startswith(" "):
            items.append((line, []))
        elif items:
            items[-1][1].append(line)
    html = []
    for head, below in items:
        name, colon, kind = head.partition(" : ")
        term = f"<code>{escape(name)}</code>" + (f" {_inline(kind)}" if colon else "")
        body = inspect.cleandoc("\n".join(["", *below]))
        html.append(f"<dt>{term}</dt><dd>{_prose(body)}</dd>")
    return f"<dl>{''.join(html)}</dl>"


@functools.cache
def _markdown() -> Any:
    import mistune

    renderer = mistune.create_markdown(escape=True)
    # a * b is a product here and not emphasis, and >= 0 is not a quotation
    renderer.inline.rules = [rule for rule in renderer.inline.rules if rule != "emphasis"]
    renderer.block.rules = [rule for rule in renderer.block.rules if rule != "block_quote"]
    return renderer


def _inline(text: str) -> str:
    return _prose(text).removeprefix("<p>").removesuffix("</p>")


def _prose(text: str) -> str:
    """Return paragraphs, lists, indented formulas and examples as HTML."""
    lines, listed, example, before = [], False, False, ""
    for line in text.splitlines():
        if line.startswith(">>>") and not example:
            lines += ["", "```python"]
            example = True
        elif example and not line:
            lines.append("```")
            example = False
        if example:
            lines.append(line)
            continue
        bullet = bool(_LIST.match(line))
        if bullet and before and not listed:  # a formula that was broken before a sign
            line = re.sub(r"\S", lambda mark: "\\" + mark[0], line, count=1)
            bullet = False
        listed = bullet or (listed and bool(line))
        before = line
        lines.append(line)
    if example:
        lines.append("```")
    return _markdown()("\n".join(lines)).strip()
