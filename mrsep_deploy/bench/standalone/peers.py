"""How each peer takes a model's weights and separates, by the interface that its package documents.

unblend        its importer's model of a state dict; segments through the model, songs through its ``Separator``
demucs         its class with the weights; songs through ``apply_model``, normalised as ``demucs.api`` does
demucs-onnx    its export of demucs' class to ONNX, run with its session's settings; songs through its own chunks

All separate without random shifts, on the CPU, with as many threads as everybody else.
"""

from __future__ import annotations

import abc
import importlib
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

EPS = 1e-5
"""What is added to a song's standard deviation before it divides."""


class Unavailable(Exception):
    """A peer that does not work in this environment, or not with this model; ``fix`` says what to do."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.fix = fix


class Peer(abc.ABC):
    """A peer in its own process, loaded and ready.

    Args:
        contender: the fields of :class:`mrsep_deploy.bench.contenders.Contender`.
        folder: the model, from :mod:`mrsep_deploy.bench.peer_model`.
    """

    package: ClassVar[str]
    version: ClassVar[str]
    """That its interface is known of: the first parts of the number."""
    modules: ClassVar[tuple[str, ...]]
    """What it needs, imported before it is loaded."""
    remark: ClassVar[str] = ""
    """What has to be known to read its figures."""

    @classmethod
    def found(cls) -> str:
        """The installed version.

        Raises:
            Unavailable: there is none, or another one than is known.
        """
        install = f'{sys.executable} -m pip install "{cls.package}=={cls.version}.*"'
        try:
            found = importlib.metadata.version(cls.package)
        except importlib.metadata.PackageNotFoundError:
            place = sys.prefix
            raise Unavailable(
                f"no {cls.package} was found in {place}, expected version {cls.version}", install
            ) from None
        if found.split(".")[: cls.version.count(".") + 1] != cls.version.split("."):
            raise Unavailable(f"{cls.package} {found} was found, expected version {cls.version}", install)
        return found

    @classmethod
    def about(cls, contender: Mapping[str, Any]) -> str:
        """Versions, and the remark: ``unblend 1.0.0, torch 2.13.0, Python 3.11.4``."""
        names = {cls.package: cls.found()}
        for name in ("torch", "onnxruntime"):
            if name in sys.modules:
                names[name] = importlib.metadata.version(name)
        names["Python"] = ".".join(map(str, sys.version_info[:3]))
        versions = ", ".join(f"{name} {version}" for name, version in names.items())
        return f"{versions}; {cls.remark}" if cls.remark else versions

    @classmethod
    def imports(cls) -> None:
        """Import what it needs.

        Raises:
            Unavailable: it cannot be imported.
        """
        cls.found()
        try:
            for name in cls.modules:
                importlib.import_module(name)
        except (ImportError, OSError) as error:
            reason = " ".join(str(error).split())
            raise Unavailable(
                f"{name} cannot be imported in {sys.prefix} ({reason})",
                f"Mend that environment until this works: {sys.executable} -c 'import {name}'",
            ) from error

    @classmethod
    def prepare(cls, contender: Mapping[str, Any], folder: Path) -> None:
        """What is done once, in a process of its own that is not measured: looks whether the package is there."""
        cls.found()

    @abc.abstractmethod
    def __init__(self, contender: Mapping[str, Any], folder: Path) -> None: ...

    @abc.abstractmethod
    def segments(self, mix: Any) -> Any:
        """Segments ``[B, C, L]`` to stems ``[B, S, C, L]``, both arrays of NumPy."""

    @abc.abstractmethod
    def song(self, mix: Any) -> Any:
        """A song ``[C, n]`` to stems ``[S, C, n]``."""

    def close(self) -> None:
        """Let go of the model. Idempotent."""
        vars(self).clear()


def read_model(folder: Path) -> dict[str, Any]:
    """The model's description, its fractions as such."""

    def exact(read: dict[str, Any]) -> Any:
        return Fraction(read["fraction"]) if read.keys() == {"fraction"} else read

    found: dict[str, Any] = json.loads((folder / "model.json").read_text(), object_hook=exact)
    return found


def read_weights(folder: Path) -> Any:
    """The state dict, its tensors mapped from the files: no second copy of the weights."""
    import numpy as np
    import torch

    return {
        path.stem: torch.from_numpy(np.load(path, mmap_mode="c"))
        for path in (folder / "weights").glob("*.npy")
    }


class Unblend(Peer):
    package, version, modules = "unblend", "1.0", ("unblend", "unblend.importer")

    @classmethod
    def about(cls, contender: Mapping[str, Any]) -> str:
        lower = "; its Separator refuses bfloat16 on a CPU, so that the model is cast once it is loaded"
        return super().about(contender) + (lower if contender["precision"] == "bf16" else "")

    def __init__(self, contender: Mapping[str, Any], folder: Path) -> None:
        import torch
        from unblend import Separator, ValidationError
        from unblend.importer import resolve_architecture

        torch.set_num_threads(contender["threads"])
        model = read_model(folder)
        self.overlap, self.rate = contender["overlap"], model["sample_rate"]
        try:
            _name, built = resolve_architecture(
                read_weights(folder),
                model["kwargs"],
                sources=model["sources"],
                samplerate=model["sample_rate"],
                segment_samples=model["segment_samples"],
            )
        except ValidationError as error:
            reason = str(error).splitlines()[0].rstrip(":. ")
            raise Unavailable(f"it does not take {model['family']} ({reason})") from error
        self.separator = Separator(built, device="cpu", chunk_batch_size=contender["batch"])
        if contender["precision"] == "bf16":
            self.separator.model.to(torch.bfloat16)

    def segments(self, mix: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self.separator.model(torch.from_numpy(mix)).float().numpy()

    def song(self, mix: Any) -> Any:
        import numpy as np
        import torch

        with torch.inference_mode():
            found = self.separator.separate(
                (torch.from_numpy(mix), self.rate), shifts=0, split_overlap=self.overlap
            )
        return np.stack([found.sources[name].float().numpy() for name in self.separator.model.sources])


def demucs_model(folder: Path) -> Any:
    """The class of the package demucs with the weights.

    Raises:
        Unavailable: the package has no such class.
    """
    model = read_model(folder)
    module, _, name = (model["klass"] or ".").rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, ValueError, AttributeError):
        raise Unavailable(f"the package demucs has no {model['family']}", "Leave it out.") from None
    made = kind(*model["args"], **model["kwargs"])
    made.load_state_dict(read_weights(folder))
    return made.eval()


class Demucs(Peer):
    package, version, modules = "demucs", "4", ("demucs.apply",)

    def __init__(self, contender: Mapping[str, Any], folder: Path) -> None:
        import torch

        torch.set_num_threads(contender["threads"])
        self.overlap, self.model = contender["overlap"], demucs_model(folder)

    def segments(self, mix: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self.model(torch.from_numpy(mix)).numpy()

    def song(self, mix: Any) -> Any:
        import torch
        from demucs.apply import apply_model

        with torch.inference_mode():
            wave = torch.from_numpy(mix)
            mono = wave.mean(0)
            mean, deviation = mono.mean(), mono.std() + EPS
            normalised = ((wave - mean) / deviation)[None]
            stems = apply_model(self.model, normalised, shifts=0, split=True, overlap=self.overlap)
            return (stems[0] * deviation + mean).numpy()


class DemucsOnnx(Peer):
    package, version, modules = "demucs-onnx", "0.3", ("demucs_onnx.inference", "demucs_onnx.providers")
    remark = (
        "its graph takes one segment, so that a batch is one after the other; in songs it has its own overlap"
    )

    @classmethod
    def prepare(cls, contender: Mapping[str, Any], folder: Path) -> None:
        """Export the model by its exporter, which reads a whole model out of a file."""
        cls.found()
        try:
            import torch
            from demucs_onnx.export import export_to_onnx
        except ImportError as error:
            raise Unavailable(
                f"its export cannot be imported in {sys.prefix} ({str(error).splitlines()[-1]})",
                f"{sys.executable} -m pip install torch demucs onnx onnxscript",
            ) from error
        model, pickled = read_model(folder), folder / "demucs-onnx.th"
        torch.save(demucs_model(folder), pickled)
        # half a sample more: the exporter cuts what the product of both is short of a whole number
        seconds = (model["segment_samples"] + 0.5) / model["sample_rate"]
        export_to_onnx(
            pickled,
            _graph(folder),
            segment_seconds=seconds,
            sample_rate=model["sample_rate"],
            parity_check=False,
            verbose=False,
        )
        pickled.unlink()

    def __init__(self, contender: Mapping[str, Any], folder: Path) -> None:
        import onnxruntime
        from demucs_onnx import inference
        from demucs_onnx.providers import resolve_providers

        self.sources = tuple(read_model(folder)["sources"])
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = contender["threads"]
        self.session = onnxruntime.InferenceSession(
            str(_graph(folder)), options, providers=resolve_providers("cpu")
        )
        # What its chunks are cut to is a constant there, of the graphs that it publishes.
        inference.N_SAMPLES = self.session.get_inputs()[0].shape[-1]
        self.chunked = inference._chunked_separate_single

    def segments(self, mix: Any) -> Any:
        import numpy as np

        return np.concatenate([self.session.run(["stems"], {"mix": each[None]})[0] for each in mix])

    def song(self, mix: Any) -> Any:
        import numpy as np

        found = self.chunked(self.session, self.sources, mix, progress=False)
        return np.stack([found[name] for name in self.sources])


def _graph(folder: Path) -> Path:
    return folder / "demucs-onnx.onnx"
