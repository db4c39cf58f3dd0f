"""The readers, each as a function of the bytes of one file.

A target puts the bytes where a user would have them, reads them as the program does, and looks at what comes out. Only
the project's own errors may come out; what is accepted has to be what the reader promises.
"""

from __future__ import annotations

import hashlib
import json
import sys
from abc import ABC, abstractmethod
from itertools import islice
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

GRAPH = "branch.16.onnx"
RATE, CHANNELS = 44100, 2
MOST_BLOCKS = 32  # of a song: a small file may hold hours of silence, honestly


class Target(ABC):
    """One reader.

    Args:
        folder: empty, for the case's file.
    """

    name: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def place(self, data: bytes) -> None:
        """Write the case's file."""

    @abstractmethod
    def read(self) -> None:
        """Read it. Raises ``MrsepError`` for a file that is refused."""


class Checkpoint(Target):
    """Packages of ``torch.save``: the archive, the older row of pickles, and what the arguments in it say."""

    name = "checkpoint"
    file = "model.th"

    def place(self, data: bytes) -> None:
        (self.folder / self.file).write_bytes(data)

    def read(self) -> None:
        import torch

        from mrsep_deploy.export.checkpoint.read import read_checkpoint
        from mrsep_deploy.export.families import known_classes
        from mrsep_deploy.export.families.demucs.config import parse_config

        found = read_checkpoint(self.folder / self.file, known_classes())
        for value in found.state.values():
            assert value.is_contiguous()
            assert not value.is_floating_point() or bool(torch.isfinite(value).all())
        parse_config(known_classes()[found.klass], found.args, found.kwargs)


class Safetensors(Checkpoint):
    """The same in a safetensors file."""

    name = "safetensors"
    file = "model.safetensors"


class Bag(Target):
    """Demucs' bags: YAML beside its models."""

    name = "bag"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for model in ("a.th", "b.safetensors", f"c-{hashlib.sha256(b'x').hexdigest()[:8]}.th"):
            (folder / model).write_bytes(b"x")

    def place(self, data: bytes) -> None:
        (self.folder / "bag.yaml").write_bytes(data)

    def read(self) -> None:
        from mrsep_deploy.export.checkpoint.bags import bag_models

        assert all(model.parent == self.folder for model in bag_models(self.folder / "bag.yaml"))


class Manifest(Target):
    """A bundle's folder whose manifest is the case."""

    name = "manifest"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from bundles import tiny_files, tiny_manifest

        for name, data in tiny_files(tiny_manifest()).items():
            (folder / name).write_bytes(data)

    def place(self, data: bytes) -> None:
        (self.folder / "manifest.json").write_bytes(data)

    def read(self) -> None:
        from mrsep_deploy.bundle import Bundle

        bundle = Bundle.open(self.folder)
        for stage in bundle.manifest.graph_stages:
            assert bundle.graph_path(stage).parent == self.folder
            assert bundle.graph_bytes(stage)


class Graph(Target):
    """A bundle that is consistent with itself, one graph of which is the case."""

    name = "graph"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from bundles import tiny_files, tiny_manifest

        from mrsep_deploy.bundle.manifest import FileInfo
        from mrsep_deploy.bundle.manifest_json import to_json

        manifest = tiny_manifest()
        files = tiny_files(manifest)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        described = {
            name: FileInfo(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()
        }
        object.__setattr__(manifest, "files", described)
        self._tree = json.loads(to_json(manifest))

    def place(self, data: bytes) -> None:
        self._data = data
        self._tree["files"][GRAPH] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        (self.folder / GRAPH).write_bytes(data)
        (self.folder / "manifest.json").write_text(json.dumps(self._tree))

    def read(self) -> None:
        import onnx
        from google.protobuf.message import DecodeError

        from mrsep_deploy.bundle import Bundle

        Bundle.open(self.folder)
        try:
            model = onnx.load_from_string(self._data)
        except DecodeError:
            return
        from onnx.external_data_helper import _get_all_tensors, uses_external_data

        assert not any(uses_external_data(tensor) for tensor in _get_all_tensors(model))


class Zip(Target):
    """A bundle as one archive."""

    name = "zip"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from bundles import tiny_files, tiny_manifest

        self._honest = set(tiny_files(tiny_manifest()).values())

    def place(self, data: bytes) -> None:
        (self.folder / "model.zip").write_bytes(data)

    def read(self) -> None:
        from mrsep_deploy.bundle import Bundle

        bundle = Bundle.open(self.folder / "model.zip")
        for stage in bundle.manifest.graph_stages:
            assert bundle.graph_bytes(stage) in self._honest


class Audio(Target):
    """A song, as ``run`` opens it: libsndfile, and FFmpeg for what that does not know."""

    name = "audio"
    file = "song"

    def place(self, data: bytes) -> None:
        (self.folder / self.file).write_bytes(data)

    def read(self) -> None:
        import numpy as np

        from mrsep_deploy.audio.read import AudioSource
        from mrsep_deploy.audio.tags import read_tags

        source = AudioSource(self.folder / self.file, RATE, CHANNELS)
        for block in islice(source.blocks(), MOST_BLOCKS):
            assert block.dtype == np.float32
            assert block.shape[0] == CHANNELS
            assert block.shape[1] > 0
            assert np.isfinite(block).all()
        for text in read_tags(self.folder / self.file).values():
            assert text.isprintable()


class Ffmpeg(Audio):
    """A song that only FFmpeg knows: m4a, mp4, wma, WebM and the like."""

    name = "ffmpeg"
    file = "song.m4a"

    def read(self) -> None:
        import numpy as np

        from mrsep_deploy.audio.decode_av import AvDecoder
        from mrsep_deploy.audio.info import check_info

        decoder = AvDecoder(self.folder / self.file, 0, "fuzzed")
        check_info(decoder.info)
        frames = 0
        for piece in decoder.pieces():
            assert piece.dtype == np.float32
            assert piece.shape[0] == decoder.info.channels
            frames += piece.shape[1]
            if frames > MOST_BLOCKS * 65536:
                break


TARGETS: dict[str, type[Target]] = {
    each.name: each for each in (Checkpoint, Safetensors, Bag, Manifest, Graph, Zip, Audio, Ffmpeg)
}
