"""Turns a request into candidate, reference, engine and tracks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mrsep_deploy.bundle import ARCHIVE_SUFFIX, Bundle
from mrsep_deploy.bundle.manifest import Manifest
from mrsep_deploy.engines import AUTO
from mrsep_deploy.engines.choice import choose
from mrsep_deploy.engines.contract import Engine, EngineOptions
from mrsep_deploy.errors import UsageError
from mrsep_deploy.precision.names import ARITHMETIC, AskedPrecision, arithmetic
from mrsep_deploy.precision.requested import chosen_plan, require_onnx
from mrsep_deploy.verification.reference import (
    BundleReference,
    Reference,
    TorchReference,
    require_same_stages,
)
from mrsep_deploy.verification.results import Verification
from mrsep_deploy.verification.tracks import Track, builtin_tracks, for_model, read_tracks
from mrsep_deploy.verification.verify import Progress, verify

if TYPE_CHECKING:
    from mrsep_deploy.precision.plan import PrecisionPlan
    from mrsep_deploy.verification.bisect import Bisection

ROUNDS = 3
"""Searches at most: each is proved on all that is listened to, and what fails there is searched on again."""


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        bundle: to verify, or in float32 to derive the candidate from.
        engine: a name, or None for the default: ``auto`` for float32, else ``ort``, which stands in for a GPU.
        precision: of the candidate, one of ``mrsep_deploy.precision.names.ASKED``; None for the bundle's own.
        plan: file of a precision plan, or None for the default plan.
        against: the reference: a checkpoint, or a float32 bundle.
        audio: files to listen to; none for the built-in signals.
        limit: the least SNR in dB, or None for that of the precision.
        threads: CPU threads, 0 for all.
        excerpt: also keep the stem the candidate did worst on, to be looked at.
    """

    bundle: Bundle
    engine: str | None = None
    precision: AskedPrecision | None = None
    plan: Path | None = None
    against: Path | None = None
    audio: Sequence[Path] = ()
    limit: float | None = None
    threads: int = 0
    excerpt: bool = False


class Job:
    """A request made ready; ``with`` it, run it once or more.

    Raises:
        UsageError: options that contradict each other or the bundle.
        MrsepError: engine, reference or audio are not usable.
    """

    def __init__(self, request: Request, stack: contextlib.ExitStack) -> None:
        self.request = request
        self.bundle = request.bundle
        self.plan = requested_plan(request)
        self.tracks = _tracks(request)
        precision = self.bundle.manifest.precision if self.plan is None else self.plan.precision
        self.engine = _engine(request, replace(self.bundle.manifest, precision=precision))
        stack.callback(self.engine.device.close)
        self.reference: Reference = _reference(request, derived=self.plan is not None)
        stack.callback(self.reference.close)

    def verify(self, plan: PrecisionPlan | None = None, progress: Progress | None = None) -> Verification:
        """Verify the bundle, or the one derived from it by ``plan``, by default the request's own."""
        candidate = self._candidate(plan or self.plan)
        asked = self.request
        return verify(
            candidate, self.engine, self.reference, self.tracks, asked.limit, progress, asked.excerpt
        )

    def _candidate(self, plan: PrecisionPlan | None) -> Bundle:
        if plan is None:
            return self.bundle
        from mrsep_deploy.precision.convert_bundle import derived_bundle

        return derived_bundle(self.bundle, plan)

    def bisect(
        self, found: Verification, progress: Progress | None = None
    ) -> tuple[list[Bisection], Verification]:
        """Search for nodes to keep in float32 until a verification passes.

        Returns:
            What each search found, and the verification with the last one's plan.
        """
        from mrsep_deploy.verification.bisect import bisect

        assert self.plan is not None
        plan, searches = self.plan, []
        for _ in range(ROUNDS):
            searches.append(bisect(self.bundle, self.engine, plan, found.probes, progress))
            if searches[-1].plan == plan:
                break
            plan = searches[-1].plan
            found = self.verify(plan, progress)
            if found.passes:
                break
        return searches, found


@contextlib.contextmanager
def opened(request: Request) -> Iterator[Job]:
    """A job, whose engine and reference are closed in the end."""
    with contextlib.ExitStack() as stack:
        yield Job(request, stack)


def requested_plan(request: Request) -> PrecisionPlan | None:
    """The plan to derive the candidate by; None if the bundle is the candidate.

    Raises:
        UsageError: the bundle is of another precision already; a plan and a precision that contradict.
        EngineUnavailableError: the package onnx is not installed.
    """
    own, asked = request.bundle.manifest.precision, request.precision
    if own != "float32":
        if request.plan is not None or asked not in (None, arithmetic(request.bundle.manifest)):
            raise UsageError(
                f"{request.bundle.manifest.name} is of precision {own} already",
                "Give the float32 bundle, or leave out --precision and --plan.",
            )
        return None
    if request.plan is None:
        if asked not in (None, "fp32"):
            require_onnx("another precision")
        return chosen_plan(asked, None, request.bundle.manifest.float32)
    require_onnx("another precision")
    plan = chosen_plan("mixed", request.plan)
    assert plan is not None
    if asked not in (None, "mixed", ARITHMETIC[plan.precision]):
        raise UsageError(
            f"{request.plan} is a plan for {ARITHMETIC[plan.precision]}, {asked} was asked for", "Choose one."
        )
    return plan


def _engine(request: Request, candidate: Manifest) -> Engine:
    default = AUTO if candidate.precision == "float32" else "ort"
    options = EngineOptions(request.threads, _checkpoint(request), precision=arithmetic(candidate))
    return choose(request.engine or default, options).engine


def _checkpoint(request: Request) -> Path | None:
    against = request.against
    return None if against is None or _is_bundle(against) else against


def _is_bundle(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() == ARCHIVE_SUFFIX


def _reference(request: Request, derived: bool) -> Reference:
    """What was asked for; else the float32 bundle if the candidate comes from it, and PyTorch if not."""
    manifest = request.bundle.manifest
    if request.against is not None and _is_bundle(request.against):
        other = Bundle.open(request.against)
        require_same_stages(manifest, other.manifest)
        return BundleReference(other, request.threads)
    if derived and request.against is None:
        return BundleReference(request.bundle, request.threads)
    return TorchReference(manifest, request.against)


def _tracks(request: Request) -> list[Track]:
    manifest = request.bundle.manifest
    model = manifest.model
    tracks = read_tracks(request.audio, model) if request.audio else builtin_tracks(manifest)
    return for_model(tracks, manifest.application)
