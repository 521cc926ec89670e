"""Names to things, with the nearest valid names when a name is unknown."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from kdx_analysis.errors import KdxError

T = TypeVar("T")


_SHOWN = 20


def unknown(kind: str, name: str, valid: Iterable[str], command: str = "") -> KdxError:
    """The error for a ``name`` that is none of the ``valid`` ones of its ``kind``.

    It names the nearest valid ones; where none is near all of them, or, of more than 20, the first and the
    ``command`` that lists them.
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
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that files a thing under ``name``; a name is given once."""

        def add(thing: T) -> T:
            if name in self._things:
                raise KeyError(f"{self.kind} {name!r} is registered already")
            self._things[name] = thing
            return thing

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._things:
            raise unknown(self.kind, name, self._things)
        return self._things[name]

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)
