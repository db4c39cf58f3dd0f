"""Virtual environments with stubs of peers in them: their interface, and demucs' own model behind it.

Python is a link to the one that runs the tests, and finds its packages behind the stubs.
"""

from __future__ import annotations

import sys
import venv
from collections.abc import Mapping
from pathlib import Path

UNBLEND = {
    "unblend/__init__.py": """
class ValidationError(ValueError):
    pass


class Separator:
    def __init__(self, model, device, chunk_batch_size):
        assert (device, chunk_batch_size) == ("cpu", 1)
        self.model = model

    def separate(self, audio, shifts, split_overlap):
        from types import SimpleNamespace
        from demucs.apply import apply_model
        wave, rate = audio
        assert rate == self.model.samplerate and shifts == 0
        mean, deviation = wave.mean(0).mean(), wave.mean(0).std() + 1e-5
        normalised = ((wave - mean) / deviation)[None]
        stems = apply_model(self.model, normalised, shifts=0, overlap=split_overlap)[0] * deviation + mean
        return SimpleNamespace(sources=dict(zip(self.model.sources, stems)))
""",
    "unblend/importer.py": """
from unblend import ValidationError


def resolve_architecture(state, config, *, sources, samplerate, segment_samples):
    from demucs.htdemucs import HTDemucs
    config = {**config, "sources": sources, "samplerate": samplerate, "segment": segment_samples / samplerate}
    try:
        model = HTDemucs(**config)
        model.load_state_dict(state)
    except Exception as error:
        raise ValidationError(f"Could not load the checkpoint:\\n{error}") from error
    return "htdemucs", model.eval()
""",
}
REVERSED = {
    **UNBLEND,
    "unblend/importer.py": UNBLEND["unblend/importer.py"].replace(
        "    return ",
        """
    import torch
    forward = model.forward
    model.forward = lambda mix: forward(mix).flip(1) if model.cast is torch.bfloat16 else None
    model.to = lambda kind: setattr(model, "cast", kind)
    return """,
    ),
}
"""Wants to be cast to bfloat16, and gives the stems in another order than its sources."""
BROKEN = {
    **UNBLEND,
    "unblend/__init__.py": "raise OSError('libtorch_cuda.so: cannot open\\nshared object file')\n",
}
DEMUCS_ONNX = {
    "demucs_onnx/__init__.py": "",
    "demucs_onnx/export.py": """
from pathlib import Path


def export_to_onnx(checkpoint, output, *, segment_seconds, sample_rate, parity_check, verbose):
    samples = int(segment_seconds * sample_rate)
    Path(output).write_bytes(Path(checkpoint).read_bytes())
    Path(output).with_suffix(".length").write_text(str(samples))
""",
    "demucs_onnx/providers.py": "def resolve_providers(name):\n    return [name]\n",
    "demucs_onnx/inference.py": """
import numpy as np

N_SAMPLES = 343980


def _chunked_separate_single(session, sources, mix, *, progress):
    out = {name: np.zeros_like(mix) for name in sources}
    for start in range(0, mix.shape[1], N_SAMPLES):
        chunk = mix[:, start : start + N_SAMPLES]
        padded = np.pad(chunk, ((0, 0), (0, N_SAMPLES - chunk.shape[1])))
        for name, stem in zip(sources, session.run(["stems"], {"mix": padded[None]})[0][0]):
            out[name][:, start : start + N_SAMPLES] = stem[:, : chunk.shape[1]]
    return out
""",
    "onnxruntime/__init__.py": """
from pathlib import Path
from types import SimpleNamespace

SessionOptions = SimpleNamespace
GraphOptimizationLevel = SimpleNamespace(ORT_ENABLE_ALL=99)


class InferenceSession:
    def __init__(self, path, options, providers):
        import torch
        assert options.intra_op_num_threads == 1 and providers == ["cpu"]
        self.length = int(Path(path).with_suffix(".length").read_text())
        self.model = torch.load(path, weights_only=False)

    def get_inputs(self):
        return [SimpleNamespace(shape=[1, 2, self.length])]

    def run(self, names, given):
        import torch
        assert given["mix"].shape[0] == 1 and given["mix"].shape[2] == self.length
        with torch.inference_mode():
            return [self.model(torch.from_numpy(given["mix"])).numpy()]
""",
}
NOTHING: Mapping[str, str] = {}


def environment(folder: Path, files: Mapping[str, str], **versions: str) -> Path:
    """A virtual environment with these files and packages of these versions, in a folder that it makes."""
    venv.EnvBuilder(symlinks=sys.platform != "win32").create(folder)
    site = next(folder.glob("[Ll]ib/**/site-packages"))
    behind = [place for place in sys.path if Path(place).name == "site-packages"]
    (site / "behind.pth").write_text("\n".join(behind))
    for name, text in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    for name, version in versions.items():
        place = site / f"{name}-{version}.dist-info"
        place.mkdir()
        told = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
        (place / "METADATA").write_text(told)
    return folder
