"""Splitting a model into named stages: which parts there are, and what passes between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mrsep_deploy.bundle.manifest import MIX, STEMS, Branch, Layout, Stage, StageKind
from mrsep_deploy.export.families.demucs import parts
from mrsep_deploy.export.families.demucs.model import SeparationModel

TIME = "time"


@dataclass(frozen=True)
class StagePlan:
    """A stage to be: its place in the manifest, and for a graph the maker of its torch module."""

    stage: Stage
    part: Callable[[SeparationModel], parts.Part] | None = None


def make_branches(model: SeparationModel) -> tuple[Branch, ...]:
    """The branches of a model, spectrograms in the order of ``nfft_list``, the waveform last."""
    config = model.config
    gains = model.gains.detach().double().tolist()
    length = config.segment_samples
    branches = [
        Branch(name, n_fft, hop, n_fft // 2, -(-length // hop), tuple(gain))
        for name, n_fft, hop, gain in zip(
            branch_names(config.nfft_list), config.nfft_list, config.hops, gains, strict=True
        )
    ]
    if config.waveform:
        branches.append(Branch(TIME, 0, 0, 0, length, (1.0,) * len(config.sources)))
    return tuple(branches)


def branch_names(nfft_list: tuple[int, ...]) -> list[str]:
    """Names of the resolutions; a resolution that occurs again gets a suffix (``2048-2``)."""
    names: list[str] = []
    for index, n_fft in enumerate(nfft_list):
        repeat = nfft_list[:index].count(n_fft)
        names.append(f"{n_fft}-{repeat + 1}" if repeat else str(n_fft))
    return names


def _tag(branch: str) -> str:
    """A branch's name as it stands in tensor names, which keep to identifiers."""
    return branch.replace("-", "_")


class Splitter:
    """Collects the stages of one model in an order in which they can run."""

    def __init__(self, model: SeparationModel) -> None:
        self.model = model
        self.names = branch_names(model.config.nfft_list)
        self.waveform = model.config.waveform
        self.merge = model.plan.merge is not None
        self.stages: list[StagePlan] = []

    def split(self, layout: Layout) -> list[StagePlan]:
        """The stages of ``layout``, from ``mix`` to ``stems``."""
        for name in self.names:
            self._add("spectrogram", name, [MIX], [f"spectrogram_{_tag(name)}", f"statistics_{_tag(name)}"])
        if self.waveform:
            self._add("normalize", TIME, [MIX], ["waveform", "statistics_time"])
        if layout == "whole":
            self._core()
        elif self.model.crosstransformer is not None:
            self._with_bottleneck()
        else:
            self._without_bottleneck()
        for name in self.names:
            tag = _tag(name)
            self._add("inverse", name, [f"estimate_{tag}", f"statistics_{tag}"], [f"signal_{tag}"])
        if self.waveform:
            self._add("denormalize", TIME, ["estimate_time", "statistics_time"], ["signal_time"])
        self._fusion()
        return self.stages

    def _add(self, kind: StageKind, branch: str, inputs: list[str], outputs: list[str]) -> None:
        self.stages.append(StagePlan(Stage(f"{kind}.{branch}", kind, branch, tuple(inputs), tuple(outputs))))

    def _graph(
        self,
        name: str,
        branch: str,
        inputs: list[str],
        outputs: list[str],
        part: Callable[[SeparationModel], parts.Part],
    ) -> None:
        stage = Stage(name, "graph", branch, tuple(inputs), tuple(outputs), file=f"{name}.onnx")
        self.stages.append(StagePlan(stage, part))

    def _skips(self, tag: str) -> list[str]:
        count = len(self.model.plan.waveform if tag == TIME else self.model.plan.spectrogram)
        return [f"skip{i}_{tag}" for i in range(count)]

    def _decoder_skips(self) -> list[str]:
        """Skips the waveform decoder uses: all but what a merging model injected."""
        skips = self._skips(TIME)
        return skips[:-1] if self.merge else skips

    def _core(self) -> None:
        inputs = [f"spectrogram_{_tag(n)}" for n in self.names]
        outputs = [f"estimate_{_tag(n)}" for n in self.names]
        if self.waveform:
            inputs.append("waveform")
            outputs.append("estimate_time")
        self._graph("core", "shared", inputs, outputs, parts.Core)

    def _with_bottleneck(self) -> None:
        features = [self._skips(_tag(n))[-1] for n in self.names]
        hidden = [f"hidden_{_tag(n)}" for n in self.names]
        # A merging model's spectrogram encoder waits for the waveform's, so that goes first.
        if self.waveform:
            self._graph("encoder.time", TIME, ["waveform"], self._skips(TIME), parts.WaveformEncoder)
            features.append(self._skips(TIME)[-1])
            if not self.merge:
                hidden.append("hidden_time")
        for index, name in enumerate(self.names):
            self._graph(
                f"encoder.{name}", name, self._encoder_inputs(name), self._skips(_tag(name)),
                lambda model, i=index: parts.SpectrogramEncoder(model, i),  # type: ignore[misc]
            )  # fmt: skip
        self._graph("bottleneck", "shared", features, hidden, parts.Bottleneck)
        for index, name in enumerate(self.names):
            self._graph(
                f"decoder.{name}", name, [hidden[index], *self._skips(_tag(name))], self._estimate(name),
                lambda model, i=index: parts.SpectrogramDecoder(model, i),  # type: ignore[misc]
            )  # fmt: skip
        if self.waveform:
            source = "before_time" if self.merge else "hidden_time"
            self._graph(
                "decoder.time",
                TIME,
                [source, *self._decoder_skips()],
                ["estimate_time"],
                parts.WaveformDecoder,
            )

    def _without_bottleneck(self) -> None:
        if self.merge:
            self._graph("encoder.time", TIME, ["waveform"], self._skips(TIME), parts.WaveformEncoder)
        elif self.waveform:
            self._graph("branch.time", TIME, ["waveform"], ["estimate_time"], parts.WaveformBranch)
        for index, name in enumerate(self.names):
            self._graph(
                f"branch.{name}", name, self._encoder_inputs(name), self._estimate(name),
                lambda model, i=index: parts.SpectrogramBranch(model, i),  # type: ignore[misc]
            )  # fmt: skip
        if self.merge:
            self._graph(
                "decoder.time",
                TIME,
                ["before_time", *self._decoder_skips()],
                ["estimate_time"],
                parts.WaveformDecoder,
            )

    def _encoder_inputs(self, name: str) -> list[str]:
        spectrogram = f"spectrogram_{_tag(name)}"
        return [spectrogram, self._skips(TIME)[-1]] if self.merge else [spectrogram]

    def _estimate(self, name: str) -> list[str]:
        estimate = f"estimate_{_tag(name)}"
        return [estimate, "before_time"] if self.merge else [estimate]

    def _fusion(self) -> None:
        signals = [f"signal_{_tag(n)}" for n in self.names]
        if self.waveform:
            signals.append("signal_time")
        if parts.Fusion(self.model).owned():
            self._graph("fusion", "shared", signals, [STEMS], parts.Fusion)
        else:
            stage = Stage("fusion", "sum", "shared", tuple(signals), (STEMS,))
            self.stages.append(StagePlan(stage))
