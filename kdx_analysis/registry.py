"""Names to things, with the nearest valid names when a name is unknown.

What can be named in a study, a command or a table is declared beside the thing itself, by a
decorator of its registry. A registry knows the rooms in which its things are declared and imports
them when it is first asked, and with them every installed package that has an entry point of the
group ``kdx_analysis.extensions``. What a user's own file registers goes the same way and is named
like anything built in.
"""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

from kdx_analysis.errors import KdxError

T = TypeVar("T")

ENTRY_POINTS = "kdx_analysis.extensions"

_PACKAGE = "kdx_analysis."

_SHOWN = 20


def unknown(kind: str, name: str, valid: Iterable[str], command: str = "") -> KdxError:
    """The error for a ``name`` that is none of the ``valid`` ones of its ``kind``.

    It names the nearest valid ones; where none is near all of them, or, of more than 20, the first
    and the ``command`` that lists them.
    """
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(map(repr, near))}?"
    elif len(valid) <= _SHOWN:
        hint = f"valid: {', '.join(valid)}"
    else:
        hint = f"{len(valid)} are valid, as {', '.join(valid[:3])}"
        hint += f"; list them with {command!r}" if command else ""
    return KdxError(f"unknown {kind} {name!r}; {hint}")


class Registry(Mapping[str, T]):
    """A mapping from names to things of one ``kind``.

    >>> colours: Registry[str] = Registry("colour")
    >>> _ = colours.register("red")("#f00")
    >>> colours["rde"]
    Traceback (most recent call last):
    kdx_analysis.errors.KdxError: unknown colour 'rde'; did you mean 'red'?

    Args:
        kind: what one of its things is called in errors.
        rooms: modules that declare its things, by their dotted names; of a package, all in it.
        follows: from a thing to the name of the one that it comes right after, or None. Things are
            in the order in which they were declared, room by room, but for those that follow
            another one.
    """

    def __init__(
        self,
        kind: str,
        *,
        rooms: Sequence[str] = (),
        follows: Callable[[T], str | None] = lambda thing: None,
    ) -> None:
        self.kind, self.rooms, self.follows = kind, tuple(rooms), follows
        self._things: dict[str, T] = {}
        self._open = False

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that files a thing under ``name``.

        A name is given once; a thing that is defined anew where it was, as by a cell of a notebook
        that is run again, takes its own place. Raises KdxError for the name of another thing.
        """

        def add(thing: T) -> T:
            if is_foreign(thing):
                # The rooms come first, or one that declares this name would fail in its place and
                # leave the registry without all that comes after it.
                _ = self._declared
            there = home(self._things[name]) if name in self._things else ""
            if name in self._things and (not there or there != home(thing)):
                by = f", by {there}" if there else ""
                raise KdxError(
                    f"{self.kind} {name!r} is registered already{by}; choose another name"
                )
            self._things[name] = thing
            return thing

        return add

    def forget(self, name: str) -> None:
        """Take a thing out again, as a test does that has put it in."""
        del self._things[name]

    def __getitem__(self, name: str) -> T:
        things = self._declared
        if name not in things:
            raise unknown(self.kind, name, things)
        return things[name]

    def __contains__(self, name: object) -> bool:
        return name in self._declared

    def __iter__(self) -> Iterator[str]:
        return iter(self._in_order())

    def __len__(self) -> int:
        return len(self._declared)

    @property
    def _declared(self) -> dict[str, T]:
        """The things, once every room has declared its own."""
        if not self._open:
            self._open = (
                True  # first, since a room that is imported may ask for what is there so far
            )
            try:
                for room in self.rooms:
                    _enter(room)
                load_installed()
            except BaseException:
                self._open = False  # or it would be without the rest from then on, in silence
                raise
        return self._things

    def _in_order(self) -> list[str]:
        """Names as their rooms declare them, those that follow another one right behind it."""
        things = dict(sorted(self._declared.items(), key=lambda item: self._room_of(item[1])))
        for name, thing in things.items():
            if (before := self.follows(thing)) is not None and before not in things:
                wrong = unknown(self.kind, before, things)
                raise KdxError(f"{self.kind} {name!r} follows one that is not there: {wrong}")
        order: list[str] = []
        waiting = list(things)
        while waiting:
            placed = [name for name in waiting if self.follows(things[name]) not in waiting]
            for name in placed or waiting:  # a circle is in the order of its declarations
                before = self.follows(things[name])
                order.insert(order.index(before) + 1 if before in order else len(order), name)
            waiting = [name for name in waiting if name not in order]
        return order

    def _room_of(self, thing: T) -> int:
        """The number of the thing's room, behind all of them for one of a user's own."""
        module = home(thing).rpartition(".")[0]
        inside = (
            number
            for number, room in enumerate(self.rooms)
            if module == room or module.startswith(f"{room}.")
        )
        return next(inside, len(self.rooms))


def home(thing: Any) -> str:
    """Where a thing is defined, as ``module.name``; '' of what has no name of its own.

    A declaration says it by its attribute ``home``, a function or class by its own name.

    >>> home(home)
    'kdx_analysis.registry.home'
    """
    stated = getattr(thing, "home", "")
    if isinstance(stated, str) and stated:
        return stated
    return f"{thing.__module__}.{thing.__qualname__}" if hasattr(thing, "__qualname__") else ""


def is_foreign(thing: Any) -> bool:
    """Whether a thing is defined outside of this package, as in a user's own file."""
    return not home(thing).startswith(_PACKAGE)


def load_installed() -> None:
    """Import every installed package that extends this one, each once."""
    for point in entry_points(group=ENTRY_POINTS):
        point.load()


def _enter(room: str) -> None:
    """Import a module, or of a package all modules in it and in packages in it.

    Modules named ``drawing`` declare nothing and load matplotlib, which takes a second: they wait.
    """
    module = import_module(room)
    for inner in pkgutil.iter_modules(getattr(module, "__path__", ())):
        if inner.name != "drawing":
            _enter(f"{room}.{inner.name}")
