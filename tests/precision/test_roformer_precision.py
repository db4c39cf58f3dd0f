"""RoFormers in float16 and bfloat16: whole songs beside their float32 bundles, and what the family's rules keep.

SNR of the worst stem on ONNX Runtime, which rounds more than OpenVINO, in dB:

    float16     bs_roformer 62.3    mel_band_roformer_2 63.6    roformer_small_bs 63.0    roformer_small_mel 59.9
    bfloat16    bs_roformer 43.3    mel_band_roformer_2 45.7    roformer_small_bs 41.8    roformer_small_mel 36.2

The small ones are below what trained models reach: with tokens of 8 and of 4 numbers, few rounding errors average out.
The loss of the last has no one place: in float16, with all of its blocks in float32 it is 63.0 dB, and with its band
split in float32 instead it is 57.9.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from goldens import Export, Lower, golden
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import Layout
from mrsep_deploy.measuring.deviation import Deviation
from mrsep_deploy.measuring.limits import limit_for
from mrsep_deploy.precision.convert_bundle import convert_report
from mrsep_deploy.precision.names import Low
from mrsep_deploy.precision.plan import default_plan
from mrsep_deploy.separation.separator import Separator

CASES: list[object] = [
    *((name, "split") for name in ("roformer_small_bs", "roformer_small_mel")),
    *(
        pytest.param(name, layout, marks=pytest.mark.slow)
        for name in ("bs_roformer", "mel_band_roformer_2")
        for layout in ("split", "whole")
    ),
]

ALLOWED = {
    ("roformer_small_mel", "float16"): 4.0,
    ("roformer_small_mel", "bfloat16"): 8.0,
    ("roformer_small_bs", "bfloat16"): 2.0,
}
"""How far below the limit of trained models, in dB: 2 to 4 lower than measured, as another choice of types moves it."""

KEPT = (".rotary_embed/", ".ends.", "product/", "/ReduceL2", "/Clip")
"""Rotations, the masks' last layers, the complex product, the norms' lengths."""


def separated(bundle: Bundle, name: str, engine: str) -> dict[str, NDArray[np.float32]]:
    with Separator(bundle, engine=engine, threads=1, gate=math.inf) as separator:
        return separator.separate(golden(name).mix)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize(("name", "layout"), CASES)
def test_songs(
    exports: Export,
    lowered: Lower,
    name: str,
    layout: Layout,
    precision: Low,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle, low = exports(name, layout), lowered(name, precision, layout)
    exact = separated(bundle, name, "ort")
    for engine in ("ort", "openvino") if precision == "float16" else ("ort",):
        stems = separated(low, name, engine)
        found = {stem: Deviation.between(stems[stem], exact[stem]).snr for stem in exact}
        with capsys.disabled():
            print(
                f"\n{name} ({layout}) in {precision}, {engine}:",
                *(f"{stem} {db:.1f}" for stem, db in found.items()),
            )
        assert min(found.values()) >= limit_for(precision).decibels - ALLOWED.get((name, precision), 0)


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_what_the_rules_keep(exports: Export, name: str, layout: Layout) -> None:
    """Every rule of the family matches where it should, and the arithmetic between them is in float16."""
    bundle = exports(name, layout)
    report = convert_report(bundle, default_plan("float16", bundle.manifest.float32))
    assert not any(graph.unmatched for graph in report.values())
    low = [node for graph in report.values() for node in graph.low]
    kept = [node for graph in report.values() for node in graph.kept]
    for part in KEPT:
        assert any(part in node for node in kept), part
        assert not any(part in node for node in low), part
    assert any("Attention" in node for node in low)
    assert not any("Attention" in node for node in kept)
    # matrix products: the masks' ends alone, all of them
    assert all(".ends." in node for node in kept if "MatMul" in node)
    costs = [graph.cost for graph in report.values()]
    assert 0 < sum(cost.kept_macs for cost in costs) < sum(cost.macs for cost in costs) / 2
