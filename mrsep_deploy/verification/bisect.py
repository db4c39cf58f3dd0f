"""Finds the nodes that have to return to float32, by splitting stages in halves, and proves it by running.

Rounding errors of disjoint groups of nodes are independent, so their energies add up. Each group is
measured with only its own nodes in low precision, on the reference's inputs; the error energy at each of the
stage's outputs is taken to the stems by a factor that is measured once. The groups that cost most are split
until they are single nodes, and kept in float32 until what the others cost is allowed. A tensor between two
groups is rounded in both measurements, so predictions are rather too high: nodes that were kept for nothing are
dropped in the end. What was predicted is proved by running the whole model, or the search goes on.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrsep_deploy.bundle import Bundle
from mrsep_deploy.bundle.manifest import STEMS, FileInfo, Stage
from mrsep_deploy.bundle.manifest_json import to_json
from mrsep_deploy.bundle.places import Folder
from mrsep_deploy.engines.cache import EngineCache
from mrsep_deploy.engines.choice import choose
from mrsep_deploy.engines.contract import Engine, EngineOptions
from mrsep_deploy.errors import UsageError
from mrsep_deploy.measuring.deviation import Deviation, ratio_db
from mrsep_deploy.precision.convert_bundle import convert_bundle
from mrsep_deploy.precision.convert_graph import StageGraph, typed_graph
from mrsep_deploy.precision.plan import PrecisionPlan
from mrsep_deploy.verification.chain import Chain, behind
from mrsep_deploy.verification.results import Probe
from mrsep_deploy.verification.tracks import Progress, silent

Array = NDArray[Any]
Excess = NDArray[np.float64]
"""For every probe, error energy over what is allowed."""

MEASUREMENTS = 200
"""Groups measured at most; what is not split by then is kept whole."""
PROOFS = 6
"""Runs of the whole model, to prove a plan and to drop what it does not need."""
MARGIN = 0.8
"""Share of the allowed error energy to aim at first; the rest is for what the prediction misses."""


@dataclass(frozen=True)
class Group:
    """Nodes of one stage, and what they cost if only they are of low precision.

    Attributes:
        excess: predicted error energy of the stems over what is allowed, for every probe; infinite where
            values are not finite.
    """

    stage: str
    nodes: tuple[str, ...]
    excess: Excess

    @property
    def worst(self) -> float:
        return float(self.excess.max())

    def alone(self, limit: float) -> float:
        """Returns the SNR in dB of the worst stem, about, if only these nodes are of low precision.

        An error that passes by the mix is compared with the mix less what lies between both limits.
        """
        return limit + ratio_db(1.0, self.worst)


@dataclass(frozen=True)
class Bisection:
    """What was found.

    Attributes:
        plan: the plan that was searched from, with the found nodes in float32.
        stages: every stage with all its low nodes, the most expensive first.
        kept: the nodes that return to float32, the most expensive first.
        before, after: error energy over what is allowed, the worst probe's, without and with them; at most 1
            passes.
        measurements: how many groups were measured.
    """

    plan: PrecisionPlan
    stages: Sequence[Group]
    kept: Sequence[Group]
    before: float
    after: float
    measurements: int

    @property
    def proved(self) -> bool:
        return self.after <= 1


def bisect(
    bundle: Bundle, engine: Engine, plan: PrecisionPlan, probes: Sequence[Probe], progress: Progress = silent
) -> Bisection:
    """Finds the fewest nodes that have to be float32 for the limit to be met on every probe.

    Args:
        bundle: in float32.
        engine: what runs the low-precision stages, and builds them outside of the user's engine cache; their
            surroundings run on ONNX Runtime in float32.
        plan: where to start from.
        probes: the segments to meet the limit on, of a verification of that plan without a gate.
        progress: called before every measurement.

    Raises:
        EngineError: a typed stage cannot be prepared or fails.
        UsageError: there are no probes.
    """
    with _opened(bundle, engine, plan, probes, progress) as search:
        return search.run()


def stage_costs(
    bundle: Bundle, engine: Engine, plan: PrecisionPlan, probes: Sequence[Probe], progress: Progress = silent
) -> list[Group]:
    """What every stage costs the stems if only it is of low precision; see :func:`bisect`."""
    with _opened(bundle, engine, plan, probes, progress) as search:
        return search.whole_stages()


@contextlib.contextmanager
def _opened(
    bundle: Bundle, engine: Engine, plan: PrecisionPlan, probes: Sequence[Probe], progress: Progress
) -> Iterator[_Search]:
    if not probes:
        raise UsageError(
            "there are no segments to bisect on: none was given, or all ran in float32 because of the gate",
            "Give longer audio, or --gate off.",
        )
    with contextlib.ExitStack() as stack:
        surroundings = choose("ort", EngineOptions(engine.options.threads)).engine
        stack.callback(surroundings.close)
        chain = stack.enter_context(Chain(bundle, surroundings))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mrsep-deploy-bisect-")))
        stack.callback(setattr, engine, "cache", engine.cache)
        if engine.cache is not None:
            engine.cache = EngineCache(folder / "engines")
        yield _Search(bundle, engine, plan, probes, chain, folder, progress)


@dataclass
class _Search:
    bundle: Bundle
    engine: Engine
    plan: PrecisionPlan
    probes: Sequence[Probe]
    chain: Chain
    folder: Path
    progress: Progress
    measurements: int = 0
    proofs: int = 0

    def __post_init__(self) -> None:
        self.exact = [self.chain.run(probe.batch.mix) for probe in self.probes]
        # read once: a stage is converted for every group of nodes that is measured
        self.graphs = {
            each.name: StageGraph.of(self.bundle, each) for each in self.bundle.manifest.graph_stages
        }
        self.factors: dict[tuple[str, str], Excess] = {}

    def whole_stages(self) -> list[Group]:
        low = {name: typed_graph(graph, self.plan).low for name, graph in self.graphs.items()}
        return [self._measure(name, nodes) for name, nodes in low.items() if nodes]

    def run(self) -> Bisection:
        groups = self.whole_stages()
        whole = _ranked(groups)
        before = self._prove(())
        kept: list[Group] = []
        after, target = before, MARGIN
        while after > 1 and self.proofs < PROOFS and groups:
            groups, kept = self._choose(groups, target)
            after = self._prove(kept)
            target /= 4
        if after <= 1:
            kept, after = self._dropped(kept, after)
        return Bisection(self._with(kept), whole, _ranked(kept), before, after, self.measurements)

    # --- measuring

    def _measure(self, name: str, nodes: tuple[str, ...]) -> Group:
        """One group alone in low precision: how far its stage's outputs stray, taken on to the stems."""
        self.progress(f"{name}, {len(nodes)} nodes", self.measurements, MEASUREMENTS)
        self.measurements += 1
        stage = self.chain.stages[name]
        with self._isolated(stage, nodes) as alone:
            outputs = [alone.stage(name, exact) for exact in self.exact]
        excess = np.sum([self._at_stems(stage, each, outputs) for each in stage.outputs], axis=0)
        return Group(name, nodes, excess)

    @contextlib.contextmanager
    def _isolated(self, stage: Stage, low: Sequence[str]) -> Iterator[Chain]:
        """A chain of the stage alone, its inputs and outputs in float32, only these of its nodes in low precision."""
        graph, wanted, manifest = self.graphs[stage.name], set(low), self.bundle.manifest
        others = tuple(name for name in graph.names if name not in wanted)
        data = typed_graph(graph, replace(self.plan, keep={**self.plan.keep, stage.name: others})).data
        assert stage.file is not None
        files = {**manifest.files, stage.file: FileInfo.of(data)}
        changed = replace(manifest, precision=self.plan.precision, files=files)
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            folder = Path(name)
            (folder / stage.file).write_bytes(data)
            # of the other stages only the description is there
            only = Bundle(folder, to_json(changed).encode(), Folder(folder)).made_from(self.bundle)
            with Chain(only, self.engine, stage.name) as chain:
                yield chain

    def _at_stems(self, stage: Stage, output: str, found: Sequence[Mapping[str, Array]]) -> Excess:
        """What the error of one output costs at the stems, by the factor that its first error showed."""
        pairs = [(values[output], exact[output]) for values, exact in zip(found, self.exact, strict=True)]
        factor = self.factors.get((stage.name, output))
        with np.errstate(invalid="ignore", over="ignore"):
            errors = np.array([Deviation.between(*pair).relative ** 2 for pair in pairs])
            if factor is not None:  # infinity times zero would not be a number
                return np.where(np.isinf(errors), np.inf, errors * factor)
        if not errors.any():
            return errors
        # with everything behind the stage in float32
        others = behind(stage, self.bundle.manifest.stages)
        stems = [
            self.chain.resume({**exact, output: values[output]}, others)[STEMS]
            for values, exact in zip(found, self.exact, strict=True)
        ]
        measured = self._ratios(stems)
        if np.isfinite(measured).all() and errors.all():
            self.factors[stage.name, output] = measured / errors
        return measured

    def _ratios(self, stems: Sequence[Array]) -> Excess:
        """Error energy over what is allowed, of the stems of every probe."""
        probes = zip(self.probes, stems, self.exact, strict=True)
        return np.array([probe.ratio(found, exact[STEMS]) for probe, found, exact in probes])

    # --- choosing

    def _choose(self, groups: list[Group], target: float) -> tuple[list[Group], list[Group]]:
        """All groups, split as far as needed, and those of them to keep for the others to cost ``target``."""
        while True:
            chosen = _fewest(groups, target)
            large = [group for group in chosen if len(group.nodes) > 1]
            if not large or self.measurements >= MEASUREMENTS:
                return groups, chosen
            split = max(large, key=lambda group: group.worst)
            middle = len(split.nodes) // 2
            halves = (split.nodes[:middle], split.nodes[middle:])
            groups = [group for group in groups if group is not split]
            groups += [self._measure(split.stage, half) for half in halves]

    # --- proving

    def _prove(self, kept: Iterable[Group]) -> float:
        """The worst probe's error energy over what is allowed, with the whole model run as it will be."""
        self.progress("the whole model", self.measurements, MEASUREMENTS)
        self.proofs += 1
        with tempfile.TemporaryDirectory(dir=self.folder) as work:
            low = convert_bundle(self.bundle, self._with(kept), Path(work) / "bundle", proved=False)
            with Chain(low, self.engine) as chain:
                stems = [chain.run(probe.batch.mix)[STEMS] for probe in self.probes]
        return float(self._ratios(stems).max())

    def _with(self, kept: Iterable[Group]) -> PrecisionPlan:
        keep = {stage: tuple(names) for stage, names in self.plan.keep.items()}
        for group in kept:
            keep[group.stage] = (*keep.get(group.stage, ()), *group.nodes)
        return replace(self.plan, keep=keep)

    def _dropped(self, kept: list[Group], after: float) -> tuple[list[Group], float]:
        """Without the cheapest, as long as the whole still passes."""
        kept = sorted(kept, key=lambda group: group.worst)
        step = max(len(kept) // 2, 1)
        for _ in range(PROOFS):
            if not kept or not step:
                break
            found = self._prove(kept[step:])
            if found <= 1:
                kept, after = kept[step:], found
                step = min(step, len(kept) // 2)
            else:
                step //= 2
        return kept, after


def _ranked(groups: Iterable[Group]) -> list[Group]:
    """The most expensive first."""
    return sorted(groups, key=lambda group: -group.worst)


def _fewest(groups: Sequence[Group], target: float) -> list[Group]:
    """The most expensive groups, as few as leave the others at ``target`` or below on every probe."""
    ranked = sorted(groups, key=lambda group: group.worst)
    total = np.zeros_like(ranked[0].excess)
    for index, group in enumerate(ranked):
        total = total + group.excess
        if not total.max() <= target:
            return ranked[index:]
    return []
