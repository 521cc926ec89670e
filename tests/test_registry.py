import pytest

from kdx_analysis.errors import KdxError
from kdx_analysis.registry import Registry, unknown


@pytest.fixture
def colours() -> Registry[str]:
    registry: Registry[str] = Registry("colour")
    registry.register("red")("#f00")
    registry.register("blue")("#00f")
    return registry


def test_it_is_a_mapping_in_order_of_registration(colours):
    assert dict(colours) == {"red": "#f00", "blue": "#00f"}
    assert "red" in colours
    assert "rde" not in colours


def test_a_decorator_gives_back_the_thing(colours):
    def thing() -> None: ...

    assert colours.register("thing")(thing) is thing


def test_a_name_is_given_once(colours):
    with pytest.raises(KdxError, match="colour 'red' is registered already"):
        colours.register("red")("#e00")
    assert colours["red"] == "#f00"


def test_an_unknown_name_is_answered_with_near_ones_or_with_all(colours):
    with pytest.raises(KdxError, match=r"^unknown colour 'rde'; did you mean 'red'[?]$"):
        colours["rde"]
    with pytest.raises(KdxError, match=r"^unknown colour 'zzz'; valid: blue, red$"):
        colours["zzz"]


def test_many_names_are_not_all_printed():
    names = [f"model{i:02}" for i in range(21)]
    message = str(unknown("model", "zzz", names, "kdx list models"))
    assert message == (
        "unknown model 'zzz'; 21 are valid, as model00, model01, model02; list them with 'kdx list "
        "models'"
    )
    assert str(unknown("model", "zzz", names[:20])).endswith("model19")


def test_rooms_come_before_what_is_registered_from_outside(tmp_path, monkeypatch):
    (tmp_path / "declaring_room.py").write_text(
        "class Red: pass\nfrom tests.test_registry import ROOMY\nROOMY[0].register('red')(Red)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("colour", rooms=("declaring_room",))
    ROOMY.append(registry)
    try:
        with pytest.raises(KdxError, match="registered already, by declaring_room"):
            registry.register("red")(type("Red", (), {}))
        assert list(registry) == ["red"]
    finally:
        ROOMY.clear()


def test_a_room_that_fails_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("colour", rooms=("missing_room",))
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError):
            list(registry)


def test_what_follows_nothing_that_is_there_is_refused():
    registry = Registry("colour", follows={"red": None, "blue": "rde"}.get)
    registry.register("red")("red")
    registry.register("blue")("blue")
    with pytest.raises(KdxError, match="colour 'blue' follows one that is not there: unknown"):
        list(registry)


ROOMY: list[Registry] = []
