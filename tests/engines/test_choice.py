"""Which engine runs where none is named, and what is said where none works."""

from __future__ import annotations

from typing import ClassVar

import pytest

from mrsep_deploy.devices.interface import Device, DeviceKind
from mrsep_deploy.engines import AUTO, ENGINE_NAMES, engine_class
from mrsep_deploy.engines import choice as choice_module
from mrsep_deploy.engines.choice import choices, choose, preferred
from mrsep_deploy.engines.contract import Availability, Engine, EngineOptions, Preference
from mrsep_deploy.errors import EngineUnavailableError, UsageError
from mrsep_deploy.precision.names import Precision

GPU = ("ort-cuda", "trt", "trt-rtx")


def only(monkeypatch: pytest.MonkeyPatch, *working: str) -> None:
    """A machine where only these engines work."""

    def fake(name: str) -> type[Engine]:
        class Fake(Engine):
            title: ClassVar[str] = name
            precisions: ClassVar[tuple[Precision, ...]] = engine_class(name).precisions
            only_named: ClassVar[tuple[Precision, ...]] = engine_class(name).only_named
            preference: ClassVar[Preference | None] = engine_class(name).preference
            runs_on: ClassVar[DeviceKind] = engine_class(name).runs_on

            @classmethod
            def availability(cls, device: int = 0) -> Availability:
                if name in working:
                    return Availability(True, "1", "here")
                return Availability(False, reason=f"{name} is missing", fix=f"pip install {name}")

            @property
            def device(self) -> Device:
                raise NotImplementedError

            def prepare(self, *_: object) -> None:  # type: ignore[override]
                raise NotImplementedError

        Fake.name = name
        return Fake

    classes = {name: fake(name) for name in ENGINE_NAMES}
    monkeypatch.setattr(choice_module, "engine_class", classes.__getitem__)


@pytest.mark.parametrize(
    ("working", "expected"),
    [
        (ENGINE_NAMES, "ort-cuda"),
        (("ort", "openvino", "trt", "trt-rtx"), "trt"),
        (("ort", "openvino", "torch"), "openvino"),
        (("ort", "torch"), "ort"),
        (("ort", "openvino", "ort-cuda", "ort-trt"), "ort-cuda"),
        (("ort", "openvino", "trt-rtx"), "trt-rtx"),
    ],
)
def test_auto_takes_the_first_that_works(
    monkeypatch: pytest.MonkeyPatch, working: tuple[str, ...], expected: str
) -> None:
    only(monkeypatch, *working)
    choice = choose(AUTO, EngineOptions())
    assert choice.engine.name == expected
    assert choice.reason.startswith(f"auto: {reason_of(expected)}")


def reason_of(name: str) -> str:
    preference = engine_class(name).preference
    assert preference is not None
    return preference.reason


def test_what_has_been_accepted_on_a_gpu_comes_before_what_has_not() -> None:
    """``availability`` only says that an engine is there."""
    found = [(each.runs_on, bool(each.preference and each.preference.accepted)) for each in preferred()]
    assert found == [("cuda", True), ("cuda", False), ("cuda", False), ("cpu", False), ("cpu", False)]


def test_all_that_auto_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "ort", "trt", "ort-cuda")
    found = [choice.engine.name for choice in choices(AUTO, EngineOptions())]
    assert found == ["ort-cuda", "trt", "ort"]
    assert [choice.engine.name for choice in choices("trt", EngineOptions())] == ["trt"]


def test_graphs_are_for_engines_that_can_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "ort", "trt", "ort-cuda")
    monkeypatch.setattr(choice_module.engine_class("ort-cuda"), "uncapturable", "it copies")
    assert [each.engine.name for each in choices(AUTO, EngineOptions(), captured=True)] == ["trt"]
    only(monkeypatch, "ort")
    assert [each.engine.name for each in choices(AUTO, EngineOptions(), captured=True)] == ["ort"]


@pytest.mark.parametrize("name", ENGINE_NAMES)
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_named_engine_runs_on_its_own_device_only(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: DeviceKind
) -> None:
    only(monkeypatch, *ENGINE_NAMES)
    if engine_class(name).runs_on == kind:
        assert choose(name, EngineOptions(), kind).engine.name == name
        return
    with pytest.raises(UsageError, match=f"engine {name} does not run on {kind}") as caught:
        choose(name, EngineOptions(), kind)
    assert ("trt" in caught.value.fix) == (kind == "cuda")


def test_the_last_choice_says_that_there_are_faster_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "ort", "torch")
    said = "no faster engine is installed; see mrsep-deploy doctor"
    assert choose(AUTO, EngineOptions()).reason == f"auto: {said}"
    assert choose(AUTO, EngineOptions(), "cpu").reason == f"auto on cpu: {said}"
    only(monkeypatch, "ort", "openvino")
    assert "doctor" not in choose(AUTO, EngineOptions()).reason


def test_half_precision_is_looked_for_where_there_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, *ENGINE_NAMES)
    assert choose(AUTO, EngineOptions(precision="fp16")).engine.name == "trt"
    only(monkeypatch, "ort", "ort-cuda")
    assert choose(AUTO, EngineOptions(precision="fp16")).engine.name == "ort"
    only(monkeypatch, "torch", "ort-cuda")
    with pytest.raises(EngineUnavailableError, match="fp16"):
        choose(AUTO, EngineOptions(precision="fp16"))


def test_bfloat16_is_emulated_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "ort", "openvino")
    assert choose(AUTO, EngineOptions(precision="bf16")).engine.name == "openvino"
    assert choose("ort", EngineOptions(precision="bf16")).engine.name == "ort"
    only(monkeypatch, "ort")
    with pytest.raises(EngineUnavailableError, match="no engine for bf16 works here; openvino: ") as caught:
        choose(AUTO, EngineOptions(precision="bf16"))
    assert caught.value.fix == "pip install openvino"


@pytest.mark.parametrize("working", [(), ("torch",), ("torch", "ort-trt")])
def test_auto_without_an_engine_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, working: tuple[str, ...]
) -> None:
    only(monkeypatch, *working)
    with pytest.raises(EngineUnavailableError) as caught:
        choose(AUTO, EngineOptions())
    assert caught.value.fix == "pip install ort"


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_a_named_engine_is_that_engine_or_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    only(monkeypatch, name)
    choice = choose(name, EngineOptions())
    assert choice.engine.name == name
    assert choice.reason == ""
    only(monkeypatch, *(other for other in ENGINE_NAMES if other != name))
    with pytest.raises(EngineUnavailableError, match=f"{name} is missing") as caught:
        choose(name, EngineOptions())
    assert caught.value.fix == f"pip install {name}"


def test_every_engine_in_the_order_exists() -> None:
    assert [each.name for each in preferred()] == [*GPU, "openvino", "ort"]
    for name in ENGINE_NAMES:
        assert engine_class(name).name == name


def test_a_precision_an_engine_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="fp16"):
        engine_class("torch")(EngineOptions(precision="fp16"))
    for name in ("ort", "openvino"):
        assert engine_class(name).emulation
