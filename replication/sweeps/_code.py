"""What results depend on besides their specs: the code of the measuring function.

The code is the source of the function and of every helper and class that it names, in its own
module, in `replication.papers` and in the package of its own file; the values of the constants and
closures it reads; and the ``VERSION`` of each part of this package that it calls. Comments,
docstrings, line breaks and the code of other libraries do not count.
"""

import ast
import functools
import hashlib
import inspect
import json
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch

ROOT = __name__.partition(".")[0]
_parsing = threading.Lock()  # ast.parse of Python 3.11 may fail in two threads at once


def named_by_spec(fn: Callable) -> Callable:
    """Mark a function whose result the specs name already, as a network by its key.

    Its source is in no key: a further recipe beside those in use leaves their results valid.
    """
    fn.named_by_spec = True  # type: ignore[attr-defined]
    return fn


def fingerprint(fn: Callable) -> tuple[str, dict[str, int]]:
    """Return the hash, 24 hex digits, of the code that `fn` runs, and the versions it stands on.

    ValueError if it reads a table named SETTINGS: what a profile decides belongs into the specs.
    """
    read: dict[str, Any] = {}
    fn = inspect.unwrap(fn)
    if isinstance(fn, FunctionType | type):
        _read(fn, read)
    else:  # an object that can be called: its class, and the functions that it holds
        _read(type(fn), read)
        _value([part for part in vars(fn).values() if callable(part)], read)
    versions = {k: v for k, v in read.items() if isinstance(v, int)}
    text = json.dumps(read, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest(), versions


def _read(fn: Any, read: dict[str, Any]) -> None:
    """Add the source of a function or class of one's own to `read`, and what it refers to."""
    # A script is the same whether Python runs it or runpy does.
    origin = "__main__" if fn.__module__ == "<run_path>" else fn.__module__
    name, code = f"{origin}.{fn.__qualname__}", getattr(fn, "__code__", None)
    enclosed: Mapping[str, Any] = {}
    if isinstance(fn, FunctionType):
        enclosed = inspect.getclosurevars(fn).nonlocals
        # Two closures of one function differ in what they enclose.
        plain = {k: _value(v, read) for k, v in enclosed.items() if not callable(v)}
        name += json.dumps(plain)
    if name in read:
        return
    tree = _tree(fn)
    read[name] = _bytecode(code) if tree is None else _dump(tree)
    if isinstance(fn, FunctionType):
        read[f"{name} defaults"] = _value([fn.__defaults__, fn.__kwdefaults__], read)
    module = sys.modules.get(fn.__module__)  # none of a file that runpy runs
    known = {**(vars(module) if module else {}), **getattr(fn, "__globals__", {}), **enclosed}
    for path in _names(tree, code):
        if path[0] in known:
            _refer(path, known[path[0]], f"{origin}.{path[0]}", read)


def _refer(path: list[str], value: Any, name: str, read: dict[str, Any]) -> None:
    """Add what a name, or a name within modules, refers to."""
    foreign = False  # a library's value, such as sys.argv, is no constant of the code
    while isinstance(value, ModuleType) and not _part(value.__name__) and len(path) > 1:
        path = path[1:]
        library = "site-packages" in (getattr(value, "__file__", None) or "")
        foreign = library or value.__name__.partition(".")[0] in sys.stdlib_module_names
        name, value = f"{value.__name__}.{path[0]}", getattr(value, path[0], None)
    if isinstance(value, ModuleType):
        _versions(_part(value.__name__), read)
    elif callable(value) and hasattr(value, "__module__"):
        _callable(value, read)
    elif path[0] == "SETTINGS":
        raise ValueError(f"fn: {name} is read; what a profile decides belongs into the specs")
    elif not path[0].startswith("__") and not foreign:
        content = _value(value, read)
        if content is not None:
            read[name] = content


def _callable(value: Any, read: dict[str, Any]) -> str:
    """Add a function or class that is referred to; return its name."""
    while not getattr(value, "named_by_spec", False):
        if isinstance(value, functools.partial):
            own = _value([value.args, value.keywords], read)
            read[f"partial {_callable(value.func, read)}"] = own
            value = value.func
        elif hasattr(value, "__wrapped__"):
            value = value.__wrapped__
        else:
            if part := _part(getattr(value, "__module__", None) or ""):
                _versions(part, read)
            elif isinstance(value, FunctionType | type) and _is_own(value):
                _read(value, read)
            break
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value))}"


def _part(module: str) -> str:
    """Return the part of this package that a module is of, "" for another's and for papers."""
    root, _, rest = module.partition(".")
    return "" if root != ROOT or not rest or rest.startswith("papers") else rest.partition(".")[0]


def _versions(part: str, read: dict[str, Any]) -> None:
    version = getattr(sys.modules.get(f"{ROOT}.{part}"), "VERSION", None)
    if version is not None:
        read[part] = version


def _is_own(value: Callable) -> bool:
    """Return whether the code of `value` is the user's: no library's, no built-in."""
    module = sys.modules.get(value.__module__)
    file = getattr(module, "__file__", None)
    if file is None:  # a notebook or a shell; built-in modules have no functions of Python
        return value.__module__ in ("__main__", "<run_path>")
    folders = Path(file).parts
    return "site-packages" not in folders and not Path(file).is_relative_to(_library())


@functools.cache
def _library() -> Path:
    return Path(inspect.__file__).parent


def _tree(fn: Callable) -> ast.AST | None:
    """Return the syntax tree without docstrings, or None where there is no source."""
    try:
        with _parsing:
            tree = ast.parse(textwrap.dedent(inspect.getsource(fn)))
    except (OSError, TypeError, SyntaxError):  # typed into a shell; a lambda within a line
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


def _dump(node: Any) -> Any:
    """Return a syntax tree as JSON knows it, the same in all versions of Python.

    `ast.dump` has the fields that a version added also where they are empty.
    """
    if isinstance(node, ast.AST):
        known = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, [])]
        return [type(node).__name__, *([name, _dump(value)] for name, value in known)]
    return [_dump(entry) for entry in node] if isinstance(node, list) else repr(node)


def _bytecode(code: CodeType | None) -> list:
    """Return what tells a compiled function from another: instructions, names and constants."""
    if code is None:
        return []
    constants = [_bytecode(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]


def _names(tree: ast.AST | None, code: CodeType | None) -> Iterator[list[str]]:
    """Yield every name, or chain of attributes from a name, that the code has."""
    if tree is None:
        names = list(code.co_names + code.co_freevars) if code else []
        yield from ([name, *names] for name in names)
        return
    used = None if code is None else set(_global_names(code))  # a local may have a global's name
    for node in ast.walk(tree):
        attributes = []
        while isinstance(node, ast.Attribute):
            attributes.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name) and (used is None or node.id in used):
            yield [node.id, *reversed(attributes)]


def _global_names(code: CodeType) -> Iterator[str]:
    """Yield the names that the code, and the functions within it, do not define."""
    yield from code.co_names + code.co_freevars
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _global_names(inner)


def _value(value: Any, read: dict[str, Any]) -> Any:
    """Return what JSON can hold of a constant, functions within it added to `read`."""
    if value is None or isinstance(value, str | bool | int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return [[_value(k, read), _value(v, read)] for k, v in value.items()]
    if isinstance(value, list | tuple | range):
        return [_value(entry, read) for entry in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_value(entry, read)) for entry in value)
    if isinstance(value, torch.Tensor | np.ndarray | pd.DataFrame | pd.Series):
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().numpy()
        if not isinstance(value, np.ndarray):
            value = pd.util.hash_pandas_object(value).to_numpy()
        content = value.tobytes()
        return [str(value.shape), hashlib.blake2b(content, digest_size=12).hexdigest()]
    if is_dataclass(value) and not isinstance(value, type):
        return [_value(getattr(value, field.name), read) for field in fields(value)]
    if callable(value):
        return _callable(value, read)
    return type(value).__qualname__  # of an object without a name nothing lasting is known
