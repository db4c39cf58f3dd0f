"""A verification as plain values for ``--json`` and for pages: numbers unrounded, None for what is not finite."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.files.strict_json import plain
from mrsep_deploy.measuring.decibels import ratio_db
from mrsep_deploy.measuring.limits import AUDIBLE_DBFS, SDR_CHANGE_DB
from mrsep_deploy.measuring.surroundings import machine_info
from mrsep_deploy.verification.figures import Figures
from mrsep_deploy.verification.results import StemResult, Verification

if TYPE_CHECKING:
    from mrsep_deploy.verification.bisect import Bisection, Group

RENAMED = {"snr": "snr_db", "si_sdr": "si_sdr_db", "level": "level_db"}
COPIED = ("model", "digest", "precision", "engine", "note", "reference", "segments", "failures", "passes")


def to_plain(found: Verification) -> dict[str, Any]:
    """Returns everything in a verification; dB that are infinite (equal, or silent) are None."""
    limits = {
        "snr_db": found.limit.decibels,
        "reason": found.limit.reason,
        "audible_dbfs": AUDIBLE_DBFS,
        "sdr_change_db": SDR_CHANGE_DB,
    }
    stages = {
        stage.stage: {name: _figures(figures) for name, figures in stage.tensors.items()}
        for stage in found.stages
    }
    copied = {name: getattr(found, name) for name in COPIED}
    made: dict[str, Any] = plain(
        {**copied, "limits": limits, "stages": stages, "stems": [_stem(stem) for stem in found.stems]}
    )
    return made


def about(bundle: Bundle, command: str = "") -> dict[str, object]:
    """Returns what belongs to the result beside what was found: the command, the machine, facts of the model."""
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
        "pytorch_float32_snr_db": stem.yardstick,
        "sdr_db": stem.sdr,
        "sdr_change_db": stem.sdr_change,
        "judged": stem.judged,
        "passes": not stem.failures,
    }


def _figures(figures: Figures) -> dict[str, object]:
    return {RENAMED.get(name, name): value for name, value in asdict(figures).items()}


def bisection_to_plain(found: Bisection, limit: float) -> object:
    """Returns everything in a bisection; ``alone_db`` is None where values are not finite."""
    return plain(
        {
            "stages": [_group(group, limit) for group in found.stages],
            "kept": [_group(group, limit) for group in found.kept],
            "error_over_allowed_before": found.before,
            "error_over_allowed_after": found.after,
            "proved": found.proved,
            "measurements": found.measurements,
        }
    )


def _group(group: Group, limit: float) -> dict[str, object]:
    return {"stage": group.stage, "nodes": group.nodes, "alone_db": alone(group, limit)}


def alone(group: Group, limit: float) -> float:
    """Returns the SNR in dB of the worst stem, about, if only these nodes are of low precision."""
    return limit + ratio_db(1.0, group.worst)
