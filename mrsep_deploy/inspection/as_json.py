"""An inspection as plain values for ``--json``: numbers unrounded, shapes as lists, None if missing."""

from __future__ import annotations

from dataclasses import asdict

from mrsep_deploy.bundle.manifest import ModelInfo
from mrsep_deploy.bundle.provenance import Check
from mrsep_deploy.files.strict_json import finite
from mrsep_deploy.inspection.inspect import FusionReport, Inspection, StageReport


def to_plain(found: Inspection) -> dict[str, object]:
    """Everything in an inspection; what is computed from it (entropies, totals, decibels) too."""
    return {
        "kind": found.kind,
        "path": str(found.path),
        "name": found.name,
        "digest": found.digest,
        "model": _model(found.model),
        "layout": found.layout,
        "batch": found.batch,
        "precision": found.precision,
        "opset": found.opset,
        "macs": found.macs,
        "branches": [asdict(branch) for branch in found.branches],
        "stages": [_stage(stage) for stage in found.stages],
        "fusion": [_fusion(report) for report in found.fusion],
        "files": dict(found.files),
        "whole": _check(found.whole),
        "whole_device": _check(found.whole_device),
        "provenance": {**asdict(found.provenance), "tools": dict(found.provenance.tools)},
    }


def _model(model: ModelInfo) -> dict[str, object]:
    return {
        "family": model.family,
        "sources": model.sources,
        "sample_rate": model.sample_rate,
        "audio_channels": model.audio_channels,
        "segment_seconds": float(model.segment),
        "segment_samples": model.segment_samples,
        "trained": model.trained,
        "parameters": model.parameters,
        "config": dict(model.config),
    }


def _stage(stage: StageReport) -> dict[str, object]:
    return {
        "name": stage.name,
        "kind": stage.kind,
        "branch": stage.branch,
        "inputs": {tensor.name: tensor.shape for tensor in stage.inputs},
        "outputs": {tensor.name: tensor.shape for tensor in stage.outputs},
        "parameters": stage.parameters,
        "macs": stage.macs,
        "check": _check(stage.check),
    }


def _fusion(report: FusionReport) -> dict[str, object]:
    return {
        "where": report.where,
        "source": report.source,
        "weights": dict(zip(report.resolutions, report.weights, strict=True)),
        "entropy_bits": report.entropy,
        "max_entropy_bits": report.max_entropy,
        "evenness": report.evenness,
    }


def _check(check: Check | None) -> dict[str, float | None] | None:
    if check is None:
        return None
    return {
        "relative_l2": check.exported.relative,
        "snr_db": finite(check.exported.snr),
        "pytorch_float32_relative_l2": check.pytorch.relative,
        "pytorch_float32_snr_db": finite(check.pytorch.snr),
    }
