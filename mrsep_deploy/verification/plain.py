"""A verification as plain values for ``--json``: numbers unrounded, None for what is not finite."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.files.strict_json import finite
from mrsep_deploy.measuring.limits import AUDIBLE_DBFS, SDR_CHANGE_DB
from mrsep_deploy.measuring.surroundings import machine_info
from mrsep_deploy.verification.figures import Figures
from mrsep_deploy.verification.results import StemResult, Verification

if TYPE_CHECKING:
    from mrsep_deploy.verification.bisect import Bisection, Group


def to_plain(found: Verification) -> dict[str, object]:
    """Everything in a verification; dB that are infinite (equal, or silent) are None."""
    return {
        "model": found.model,
        "digest": found.digest,
        "precision": found.precision,
        "engine": found.engine,
        "note": found.note,
        "reference": found.reference,
        "limits": {
            "snr_db": found.limit.decibels,
            "reason": found.limit.reason,
            "audible_dbfs": AUDIBLE_DBFS,
            "sdr_change_db": SDR_CHANGE_DB,
        },
        "segments": found.segments,
        "stages": {
            stage.stage: {name: _figures(figures) for name, figures in stage.tensors.items()}
            for stage in found.stages
        },
        "stems": [_stem(stem) for stem in found.stems],
        "failures": found.failures,
        "passes": found.passes,
    }


def about(bundle: Bundle, command: str = "") -> dict[str, object]:
    """What belongs to the result beside what was found: the command, the machine, facts of the model."""
    manifest = bundle.manifest
    return {
        "command": command,
        "machine": machine_info(),
        "trained": manifest.model.trained,
        "branches": [asdict(branch) for branch in manifest.branches],
        "fusion": [asdict(shares) for shares in manifest.fusion],
    }


def _stem(stem: StemResult) -> dict[str, object]:
    return {
        "track": stem.track,
        "source": stem.source,
        **_figures(stem.figures),
        "worst_seconds": stem.seconds,
        "limit_db": stem.limit,
        "pytorch_float32_snr_db": finite(stem.yardstick),
        "sdr_db": finite(stem.sdr),
        "sdr_change_db": finite(stem.sdr_change),
        "judged": stem.judged,
        "passes": not stem.failures,
    }


def _figures(figures: Figures) -> dict[str, object]:
    plain = asdict(figures)
    renamed = {"snr": "snr_db", "si_sdr": "si_sdr_db", "level": "level_db"}
    return {
        renamed.get(name, name): finite(value) if isinstance(value, float) else value
        for name, value in plain.items()
    }


def bisection_to_plain(found: Bisection, limit: float) -> dict[str, object]:
    """Everything in a bisection; ``alone_db`` is None where values are not finite."""
    return {
        "stages": [_group(group, limit) for group in found.stages],
        "kept": [_group(group, limit) for group in found.kept],
        "error_over_allowed_before": finite(found.before),
        "error_over_allowed_after": finite(found.after),
        "proved": found.proved,
        "measurements": found.measurements,
    }


def _group(group: Group, limit: float) -> dict[str, object]:
    return {"stage": group.stage, "nodes": group.nodes, "alone_db": finite(alone(group, limit))}


def alone(group: Group, limit: float) -> float:
    """SNR in dB of the worst stem, about, if only these nodes are of low precision."""
    if group.worst == 0:
        return math.inf
    return -math.inf if math.isinf(group.worst) else limit - 10 * math.log10(group.worst)
