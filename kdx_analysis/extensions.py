"""A user's own file of metrics, objectives, probes, figures, models and data sets.

Loading a file runs it, so it is only ever done for a file that the user names: in
``Study(extensions=…)``, in the YAML that ``kdx run`` is given, or by ``--load``. What it registers
is from then on named like anything built in.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from kdx_analysis.errors import KdxError
from kdx_analysis.registry import home

_PREFIX = "kdx_extension"


@dataclass(frozen=True)
class Extension:
    """A file that was loaded.

    Attributes:
        path: where it lies.
        sha256: of its content.
        module: the name under which it was imported.
    """

    path: Path
    sha256: str
    module: str

    @property
    def provenance(self) -> dict[str, str]:
        """What a run says of it."""
        return {"file": self.path.name, "sha256": self.sha256}


_LOADED: dict[str, Extension] = {}


def load(path: str | Path) -> Extension:
    """Run a Python file, so that what it registers can be named; one that is unchanged is run once.

    Raises KdxError for a file that is not there, is no Python, or raises an error itself.
    """
    file = Path(path).resolve()
    if file.suffix != ".py" or not file.is_file():
        raise KdxError(
            f"{str(path)!r} is no Python file that can be loaded; give the path of a .py file"
        )
    content = file.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    name = _module_name(file)
    if name in _LOADED and _LOADED[name].sha256 == sha256:
        return _LOADED[name]
    spec = spec_from_file_location(name, file)
    assert spec is not None
    module = module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        exec(compile(content, str(file), "exec"), module.__dict__)
    except BaseException as error:
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
        if isinstance(error, KdxError) or not isinstance(error, Exception):
            raise
        raise KdxError(f"{str(path)!r} can't be loaded: {_where(error, file)}{error!r}") from error
    _LOADED[name] = Extension(file, sha256, name)
    return _LOADED[name]


def loaded(paths: Iterable[str | Path]) -> tuple[Extension, ...]:
    """Files that were loaded, as they were then: they are not looked at again.

    A file that is edited while a study trains would else be run again in the middle of it, and runs
    would name what they were not made with.
    """
    return tuple(_LOADED[_module_name(Path(path).resolve())] for path in paths)


def loaded_now() -> tuple[Extension, ...]:
    """All files that are loaded, in the order in which they were first."""
    return tuple(_LOADED.values())


def load_same(extensions: Iterable[Extension]) -> None:
    """Load what another process has loaded; what is the same here already is not looked at again.

    Raises KdxError for a file that was edited meanwhile.
    """
    for extension in extensions:
        if extension in _LOADED.values():
            continue
        if load(extension.path).sha256 != extension.sha256:
            raise KdxError(
                f"{str(extension.path)!r} was edited while the study was running, so what it "
                "trains would not be of one making; run the study again"
            )


def load_all(paths: Iterable[str | Path]) -> tuple[Extension, ...]:
    """Load several files, each once, in order."""
    return tuple(dict.fromkeys(load(path) for path in paths))


def need(paths: Iterable[str | Path]) -> tuple[Extension, ...]:
    """The files of these names that are loaded already.

    For a study that lies in a folder of results, whose own word is not taken for what code to run.
    Raises KdxError for one that is not, which the user has to name.
    """
    loaded = {extension.path.name: extension for extension in _LOADED.values()}
    missing = [str(path) for path in paths if Path(path).name not in loaded]
    if missing:
        raise KdxError(
            f"the study was run with {', '.join(missing)}, which is not loaded by itself, as it "
            f"may hold any code; look at it and give it as --load {Path(missing[0]).name}"
        )
    return tuple(loaded[Path(path).name] for path in paths)


def extension_of(thing: Any) -> Extension | None:
    """The file that declares a thing of a registry; None of what is built in or installed."""
    module = home(thing).partition(".")[0]
    return _LOADED.get(module)


def _module_name(file: Path) -> str:
    """The name that a file, by its resolved path, is imported under.

    It is named for its path, so that worker processes find its classes, and one that was changed
    takes its own place.
    """
    return f"{_PREFIX}_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"


def _where(error: Exception, file: Path) -> str:
    """The line of the file that raised, where it is known."""
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f"line {line}: "
