"""Turns a request into candidate, reference, engine and tracks."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mrsep_deploy.bundle import ARCHIVE_SUFFIX, Bundle
from mrsep_deploy.engines import AUTO
from mrsep_deploy.engines.choice import choose
from mrsep_deploy.engines.contract import Engine, EngineOptions
from mrsep_deploy.errors import UsageError
from mrsep_deploy.precision.names import ARITHMETIC, Accumulation, AskedPrecision, arithmetic
from mrsep_deploy.precision.requested import chosen_plan, require_onnx
from mrsep_deploy.verification.reference import (
    BundleReference,
    Reference,
    TorchReference,
    require_same_stages,
)
from mrsep_deploy.verification.results import Verification
from mrsep_deploy.verification.tracks import Progress, Track, builtin_tracks, read_tracks
from mrsep_deploy.verification.verify import verify

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
        gate: burstiness above which segments run in float32; None for the bundle's, or with ``bisect`` for none, as
            segments in float32 tell nothing of nodes in lower precision.
        threads: CPU threads, 0 for all.
        accumulation: of products in float16, emulated on a CPU: float32 is expected, float16 the worst case.
        bisect: search for a plan if it fails, so that conversions which would be refused are judged, too.
        excerpt: also keep the stem the candidate did worst on, to be looked at.
    """

    bundle: Bundle
    engine: str | None = None
    precision: AskedPrecision | None = None
    plan: Path | None = None
    against: Path | None = None
    audio: Sequence[Path] = ()
    limit: float | None = None
    gate: float | None = None
    threads: int = 0
    bisect: bool = False
    excerpt: bool = False
    accumulation: Accumulation = "float32"


@dataclass(frozen=True)
class Job:
    """A request made ready, to be run once or more; without a ``plan`` the bundle is the candidate."""

    request: Request
    plan: PrecisionPlan | None
    tracks: Sequence[Track]
    engine: Engine
    reference: Reference

    def verify(self, progress: Progress, plan: PrecisionPlan | None = None) -> Verification:
        """Verifies the bundle, or the one derived from it by ``plan``, by default the request's own."""
        asked, plan = self.request, plan or self.plan
        with contextlib.ExitStack() as stack:
            candidate = asked.bundle if plan is None else self.candidate(stack, plan)
            gate = math.inf if asked.bisect and asked.gate is None else asked.gate
            how = (asked.limit, progress, asked.excerpt, gate)
            return verify(candidate, self.engine, self.reference, self.tracks, *how)

    def candidate(self, stack: contextlib.ExitStack, plan: PrecisionPlan | None = None) -> Bundle:
        """Returns the bundle derived by a plan, by default the request's own: the cache's, or for a search one that
        nothing is refused in and that ``stack`` removes."""
        from mrsep_deploy.precision.convert_bundle import convert_bundle, derived_bundle

        bundle, plan = self.request.bundle, plan or self.plan
        assert plan is not None
        if not self.request.bisect:
            return derived_bundle(bundle, plan)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mrsep-deploy-verify-"))
        made = convert_bundle(bundle, plan, Path(folder) / "bundle", twins=False, proved=False)
        return made.at_batch(bundle.manifest.batch).made_from(bundle)

    def bisect(self, found: Verification, progress: Progress) -> tuple[list[Bisection], Verification]:
        """Searches for nodes to keep in float32 until a verification passes.

        Returns:
            What each search found, and the verification with the last one's plan.
        """
        from mrsep_deploy.verification.bisect import bisect

        assert self.plan is not None
        plan, searches = self.plan, []
        for _ in range(ROUNDS):
            searches.append(bisect(self.request.bundle, self.engine, plan, found.probes, progress))
            if searches[-1].plan == plan:
                break
            plan = searches[-1].plan
            found = self.verify(progress, plan)
            if found.passes:
                break
        return searches, found


@contextlib.contextmanager
def opened(request: Request) -> Iterator[Job]:
    """Makes a request ready; closes its engine and reference in the end.

    The default reference is the float32 bundle if the candidate is derived from it, and PyTorch if not.

    Raises:
        UsageError: options that contradict each other or the bundle.
        MrsepError: engine, reference or audio are not usable.
    """
    bundle, against = request.bundle, request.against
    manifest, plan = bundle.manifest, requested_plan(request)
    tracks = read_tracks(request.audio, manifest) if request.audio else builtin_tracks(manifest)
    with contextlib.ExitStack() as stack:
        candidate = manifest if plan is None else replace(manifest, precision=plan.precision)
        is_bundle = against is not None and (against.is_dir() or against.suffix.lower() == ARCHIVE_SUFFIX)
        checkpoint = None if is_bundle else against
        if candidate.precision == "float32" and request.accumulation != "float32":
            raise UsageError(
                f"accumulation in {request.accumulation} was asked for with float32 graphs, which have none",
                "Give --precision fp16, or leave out --accumulation.",
            )
        options = EngineOptions(
            request.threads, checkpoint, arithmetic(candidate), accumulation=request.accumulation
        )
        default = AUTO if candidate.precision == "float32" else "ort"
        engine = choose(request.engine or default, options).engine
        stack.callback(engine.close)
        if against is not None and is_bundle:
            bundle = Bundle.open(against)
            require_same_stages(manifest, bundle.manifest)
        reference: Reference
        if is_bundle or (plan is not None and against is None):
            reference = BundleReference(bundle, request.threads)
            stack.callback(reference.close)
        else:
            reference = TorchReference(manifest, checkpoint)
        yield Job(request, plan, tracks, engine, reference)


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
    if request.plan is None and asked in (None, "fp32"):
        return None
    require_onnx("another precision")
    if request.plan is None:
        return chosen_plan(asked, None, request.bundle.manifest.float32)
    from mrsep_deploy.precision.plan import read_plan

    plan = read_plan(request.plan)
    if asked not in (None, "mixed", ARITHMETIC[plan.precision]):
        raise UsageError(
            f"{request.plan} is a plan for {ARITHMETIC[plan.precision]}, {asked} was asked for", "Choose one."
        )
    return plan
