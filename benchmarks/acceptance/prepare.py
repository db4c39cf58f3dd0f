"""What a bare machine lacks, made where there is a network, torch and onnx: bundles and wheels.

Everything is also offered in pieces: where a file or all of it is too large to be carried at once,
``pieces/`` holds one archive cut into parts, which ``gpu_acceptance.py join`` puts together again.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from acceptance.shim import SetUpError

WHEELS = (
    "onnxruntime-gpu",
    "tensorrt_rtx_cu13_libs==1.7.1.116",
    "tensorrt_rtx_cu13_bindings==1.7.1.116",
    "cuda-bindings", "cuda-pathfinder", "numpy", "scipy", "soxr", "soundfile", "cffi", "pycparser", "click",
    "rich", "pygments", "markdown-it-py", "mdurl", "platformdirs", "filelock", "flatbuffers", "packaging",
    "protobuf", "onnx", "onnx-ir", "onnxscript", "ml-dtypes", "typing-extensions", "pyyaml", "safetensors",
)  # fmt: skip
"""What measuring may need beside torch, and what exporting on the target does."""

PYTHON = "3.12"
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 26, 24, 17)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"),
)
PIECE_MB = 60
ARCHIVE = "payload.tar"
_HASHES = "payload.sha256"


def wanted_wheels(present: Iterable[str]) -> list[str]:
    """The requirements of ``WHEELS`` that a machine with these packages lacks."""
    there = {_normal(name) for name in present}
    return [wheel for wheel in WHEELS if _normal(wheel.split("==")[0]) not in there]


def package_names(text: str) -> list[str]:
    """Names out of ``pip list`` or ``pip freeze``, or separated by commas."""
    found = (re.match(r"[A-Za-z0-9][\w.-]*", part.strip()) for part in re.split(r"[\n,]", text))
    return [match[0] for match in found if match]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def download(requirements: Sequence[str], target: Path) -> list[str]:
    """Fetch wheels for the target, one by one; those that cannot be had, with pip's last line."""
    target.mkdir(parents=True, exist_ok=True)
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    only = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", *platforms]
    missing = []
    for requirement in requirements:
        command = [*pip, *only, "--dest", str(target), requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = (done.stdout + done.stderr).strip().splitlines() or ["pip gave no reason"]
            missing.append(f"{requirement}: {lines[-1]}")
    return missing


def export_bundles(models: Sequence[str], folder: Path) -> list[Path]:
    """Export the models that are measured; the trained one with its checkpoint beside it."""
    from acceptance import groups

    places = []
    if "untrained" in models:
        for family in groups.UNTRAINED:
            places += groups.export_untrained(family, folder)
    if "trained" in models:
        from assets import trained_htdemucs

        from mrsep_deploy.export.load import load_model

        checkpoint = trained_htdemucs()
        places += groups.export(load_model(checkpoint), "htdemucs", folder)
        (folder / groups.CHECKPOINTS).mkdir(exist_ok=True)
        shutil.copy2(checkpoint, folder / groups.CHECKPOINTS)
    return places


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def group_pieces(files: dict[str, int], limit: int) -> list[list[str]]:
    """Files in pieces of at most ``limit`` bytes, the largest first; a larger file is a piece of its own."""
    pieces: list[tuple[int, list[str]]] = []
    for name, size in sorted(files.items(), key=lambda item: (-item[1], item[0])):
        fitting = next((index for index, (used, _) in enumerate(pieces) if used + size <= limit), None)
        if fitting is None:
            pieces.append((size, [name]))
        else:
            used, names = pieces[fitting]
            pieces[fitting] = used + size, [*names, name]
    return [names for _, names in pieces]


def cut(folder: Path, names: Sequence[str], target: Path, limit: int) -> list[Path]:
    """One archive of some folders below ``folder`` in parts of at most ``limit`` bytes."""
    target.mkdir(parents=True, exist_ok=True)
    archive = target / ARCHIVE
    with tarfile.open(archive, "w") as tar:
        for name in names:
            if (folder / name).exists():
                tar.add(folder / name, name)
    parts: list[Path] = []
    digest = hashlib.sha256()
    with open(archive, "rb") as file:
        while chunk := file.read(limit):
            digest.update(chunk)
            parts.append(target / f"{ARCHIVE}.{len(parts):03d}")
            parts[-1].write_bytes(chunk)
    archive.unlink()
    (target / _HASHES).write_text(digest.hexdigest() + "\n")
    return parts


def join(pieces: Path, target: Path) -> Path:
    """Put an archive together from its parts and unpack it.

    Raises:
        SetUpError: parts are missing or damaged.
    """
    parts = sorted(pieces.rglob(f"{ARCHIVE}.*"))
    recorded = next(iter(pieces.rglob(_HASHES)), None)
    if not parts or recorded is None:
        raise SetUpError(f"{pieces} holds no parts of {ARCHIVE} with {_HASHES}")
    target.mkdir(parents=True, exist_ok=True)
    archive, digest = target / ARCHIVE, hashlib.sha256()
    with open(archive, "wb") as file:
        for part in parts:
            data = part.read_bytes()
            digest.update(data)
            file.write(data)
    try:
        if digest.hexdigest() != recorded.read_text().strip():
            raise SetUpError(
                f"{len(parts)} parts in {pieces} do not make the archive that was cut; one is missing"
            )
        with tarfile.open(archive) as tar:
            if sys.version_info >= (3, 12):
                tar.extractall(target, filter="data")
            else:
                tar.extractall(target)  # hashed above
    finally:
        archive.unlink()
    return target
