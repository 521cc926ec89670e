import ctypes
from types import SimpleNamespace

from kdx_analysis.training.memory import keep_freed_memory


def test_glibc_is_asked_once_to_keep_what_is_freed(monkeypatch):
    asked = []
    library = SimpleNamespace(mallopt=lambda parameter, value: asked.append((parameter, value)))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    keep_freed_memory.cache_clear()
    keep_freed_memory()
    keep_freed_memory()
    assert [parameter for parameter, _ in asked] == [-1, -2, -3]
    assert all(0 < value < 2**31 for _, value in asked)  # they are C ints


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    keep_freed_memory.cache_clear()
    keep_freed_memory()
