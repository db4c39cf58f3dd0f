"""The check before a bundle is written: planted faults are refused, each by the part of the check that is for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from quiet_torch import quiet_torch
from torch import nn

from mrsep_deploy.bundle.manifest import STEMS, Stage
from mrsep_deploy.errors import ExportError
from mrsep_deploy.export import check, exporter
from mrsep_deploy.export.check import Comparison
from mrsep_deploy.export.graphs.trace import export_graph
from mrsep_deploy.export.load import untrained_model
from mrsep_deploy.measuring.deviation import Deviation

__all__ = ["quiet_torch"]

SMALL: dict[str, Any] = {
    "channels": 4, "dconv_comp": 2, "nfft_list": [512, 1024], "samplerate": 8000, "segment": 1,
    "t_layers": 2, "t_heads": 2,
}  # fmt: skip
SOURCES = ("drums", "bass", "other", "vocals")


def export(target: Path) -> None:
    exporter.export_model(untrained_model("mrhdemucs", 3, **SMALL), "small", target)


def off(graph: bytes) -> bytes:
    """The graph with every weight off by a thousandth of itself or less."""
    model, random = onnx.load_from_string(graph), np.random.RandomState(1)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32:
            wrong = value * random.uniform(0.999, 1.001, value.shape)
            tensor.CopyFrom(numpy_helper.from_array(wrong.astype(np.float32), tensor.name))
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize(
    "planted", ["encoder.512", "bottleneck", "decoder.1024", "spectrogram.512", "inverse.1024"]
)
def test_a_fault_in_a_stage_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    traced, built = exporter.export_graph, exporter.transform_graph

    def trace(part: nn.Module, inputs: Any, stage: str, *rest: Any) -> bytes:
        graph = traced(part, inputs, stage, *rest)
        return off(graph) if stage == planted else graph

    def build(stage: Stage, *rest: Any) -> bytes:
        graph = built(stage, *rest)
        return off(graph) if stage.name == planted else graph

    monkeypatch.setattr(exporter, "export_graph", trace)
    monkeypatch.setattr(exporter, "transform_graph", build)
    # What strays by as much strays in the whole, too; here only the stage may say so.
    monkeypatch.setattr(exporter, "require", lambda checks: check.require({planted: checks[planted]}))
    with pytest.raises(ExportError, match=rf"the exported {planted} differs from PyTorch by \d\.\de-0[34]"):
        export(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_fault_of_the_hosts_transforms_is_refused_in_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = check.host_runner

    def faulty(stage: Stage, *rest: Any) -> Callable[[dict[str, np.ndarray[Any, Any]]], None]:
        run = runner(stage, *rest)

        def ran(arrays: dict[str, np.ndarray[Any, Any]]) -> None:
            run(arrays)
            arrays[stage.outputs[0]] *= np.float32(1.0001)

        return ran

    monkeypatch.setattr(check, "host_runner", faulty)
    with pytest.raises(ExportError, match="the exported whole differs from PyTorch"):
        export(tmp_path / "bundle")


# --- comparisons


def comparison(exact: np.ndarray[Any, Any]) -> Comparison:
    return Comparison({STEMS: exact}, [], SOURCES)


def stems() -> np.ndarray[Any, Any]:
    """Of four sources, the second 60 dB below the others."""
    random = np.random.RandomState(1)
    levels = np.array([1, 1e-3, 1, 1]).reshape(1, 4, 1, 1)
    return np.asarray(random.standard_normal((1, 4, 2, 100)) * levels)


def test_a_quiet_source_has_a_limit_of_its_own() -> None:
    exact = stems()
    found = exact.astype(np.float32)
    found[:, 1] *= np.float32(1.001)
    result = comparison(exact).check([STEMS], [found], [exact.astype(np.float32)], "here")
    assert result.exported.relative < check.RELATIVE_LIMIT  # of the whole tensor it is nothing
    assert result.worst.title == "stems, bass"
    assert result.worst.exported.relative == pytest.approx(1e-3, rel=1e-3)
    with pytest.raises(ExportError, match=r"the exported decoder differs .* \(stems, bass\)"):
        check.require({"decoder": result})


def test_deviations_are_those_of_the_tensors() -> None:
    exact = stems()
    found, single = ((exact + step * stems()[..., ::-1]).astype(np.float32) for step in (1e-4, 1e-5))
    result = comparison(exact).check([STEMS], [found], [single], "here")
    for reported, values in ((result.exported, found), (result.pytorch, single)):
        assert reported.relative == pytest.approx(Deviation.between(values, exact).relative, rel=1e-12)
    parts = {name: Deviation.between(found[:, i], exact[:, i]) for i, name in enumerate(SOURCES)}
    worst = result.worst.title.removeprefix("stems, ")
    assert result.worst.exported.relative == pytest.approx(parts[worst].relative, rel=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    exact = stems()
    found = exact.astype(np.float32)
    found[0, 2, 1, 7] = value
    with pytest.raises(ExportError, match="here: the exported graph gives NaN or infinity in stems"):
        comparison(exact).check([STEMS], [found], [found], "here")


def test_a_limit_from_what_is_not_finite_is_refused() -> None:
    """Any graph would be within it."""
    exact = stems()
    single = exact.astype(np.float32)
    single[0, 0, 0, 0] = np.inf
    with pytest.raises(ExportError, match="here: PyTorch in float32 gives NaN or infinity in stems"):
        comparison(exact).check([STEMS], [exact.astype(np.float32)], [single], "here")


def test_another_shape_is_refused() -> None:
    exact = stems()
    found = exact.astype(np.float32).swapaxes(2, 3)
    with pytest.raises(ExportError, match=r"here: .* stems as \(1, 4, 100, 2\), expected \(1, 4, 2, 100\)"):
        comparison(exact).check([STEMS], [found], [found], "here")


# --- tracing


class Half(nn.Module):
    """One of two layers, a parameter of its own, and a tensor that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)
        self.shift = nn.Parameter(torch.ones(3))
        self.constant = torch.arange(3.0)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.used(x) * self.shift + self.constant,)


def test_the_exporter_sees_the_parameters_that_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    part, seen = Half().eval(), list[str]()
    before = dict(part.named_parameters())
    onnx_export = torch.onnx.export

    def spied(module: nn.Module, *rest: Any, **options: Any) -> Any:
        seen.extend(name for name, _ in module.named_parameters())
        return onnx_export(module, *rest, **options)

    monkeypatch.setattr(torch.onnx, "export", spied)
    graph = onnx.load_from_string(export_graph(part, [torch.ones(1, 3)], "half", (["a"], ["b"])))
    assert sorted(seen) == ["shift", "used.bias", "used.weight"]
    assert {tensor.name for tensor in graph.graph.initializer} >= {"shift", "used.bias"}
    after = dict(part.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is value for name, value in before.items())


def test_the_table_of_operators_is_made_once_and_only_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    registration = pytest.importorskip("torch.onnx._internal.exporter._registration")
    made = list[int]()
    registered = registration.ONNXRegistry._register

    def counted(*arguments: Any) -> None:
        made.append(1)
        registered(*arguments)

    original = registration.ONNXRegistry.__dict__["from_torchlib"]
    export_graph(Half(), [torch.ones(1, 3)], "half", (["a"], ["b"]))
    monkeypatch.setattr(registration.ONNXRegistry, "_register", counted)
    export_graph(Half(), [torch.ones(1, 3)], "half", (["a"], ["b"]))
    assert not made
    assert registration.ONNXRegistry.__dict__["from_torchlib"] is original
