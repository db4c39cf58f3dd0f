"""Checkpoints and bundles from strangers."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hostile_run import ENGINE, TESTS, Case, generated


def checkpoints() -> Iterator[Case]:
    """``inspect``, which reads a checkpoint as ``export`` does; ``export`` of every tenth."""
    from seeds import seeds

    yield Case("honest", ["inspect", str(TESTS / "golden" / "htdemucs_2nn.th")])
    contents = [(".th", data) for data in (*_payloads(), *generated("checkpoint", 150))]
    contents += [(".safetensors", data) for data in (*seeds("safetensors"), *generated("safetensors", 50))]
    golden = (TESTS / "golden" / "htdemucs_2nn.th").read_bytes()
    dice = random.Random(21)
    for _ in range(10):
        flipped = bytearray(golden)
        flipped[dice.randrange(len(golden))] ^= 0xFF
        contents += [(".th", bytes(flipped)), (".th", golden[: dice.randrange(len(golden))])]
    Path("files").mkdir()
    for number, (suffix, data) in enumerate(contents):
        path = Path("files", f"{number}{suffix}")
        path.write_bytes(data)
        command = ["inspect", "--json"] if number % 10 else ["export", "-q", "-o", f"exported{number}"]
        yield Case(str(path), [*command, str(path)])
        path.unlink()
    for name, make in (
        ("fifo.th", os.mkfifo),
        ("folder.th", os.mkdir),
        ("loop.th", lambda p: os.symlink(p, p)),
    ):
        make(name)
        yield Case(name, ["inspect", str(Path(name).absolute())])
        yield Case(name, ["export", "-q", name])


def _payloads() -> list[bytes]:
    """The programs for the pickle machine that ``export/test_hostile_checkpoints.py`` has, each in an archive."""
    import pickle

    import pickles
    import test_hostile_checkpoints as known

    kwargs = [
        *_parameters(known.test_tricks_of_the_pickle_machine),
        *_parameters(known.test_bombs_in_the_pickle),
    ]
    parts: list[dict[str, bytes]] = [{"kwargs": pickles.items(x=payload)} for payload, _ in kwargs]
    parts += [
        {"state": pickles.items(w=payload)} for payload, _ in _parameters(known.test_tensors_that_cannot_be)
    ]
    made = [pickles.write(Path("payload.th"), **part).read_bytes() for part in parts]
    pwned = pickle.dumps(known.Reduced(os.system, "touch ../outside/pwned"))
    return [*made, pwned, pickles.write_zip(Path("payload.th"), pwned).read_bytes()]


def _parameters(test: Any) -> list[Any]:
    return list(test.pytestmark[0].args[1])


def bundles() -> Iterator[Case]:
    """Archives and folders, from ``run``, ``inspect`` and ``models show``."""
    import test_hostile_bundles as known

    from mrsep_deploy.bundle import Bundle, write_archive

    honest = Path("models/tiny")
    Path("case").mkdir()
    copies: list[tuple[str, Path]] = [("honest", write_archive(Bundle.open(honest), Path("case/honest.zip")))]
    folder = _copied(honest, Path("case/members/tiny"))
    with contextlib.suppress(FileNotFoundError):
        for number, (change, _) in enumerate(_parameters(known.test_hostile_archive)):
            made = known.repacked(folder, change)
            copies.append((f"archive {number}", made.rename(f"case/archive{number}.zip")))
        for number, (change, _) in enumerate(_parameters(known.test_broken_archive)):
            made = known.patched(folder, change)
            copies.append((f"broken {number}", made.rename(f"case/broken{number}.zip")))
    for test in (known.test_harmed_file, known.test_harmed_manifest):
        for number, (harm, _) in enumerate(_parameters(test)):
            harmed = _copied(honest, Path(f"case/{test.__name__}{number}/tiny"))
            harm(harmed / (known.GRAPH if test is known.test_harmed_file else "manifest.json"))
            copies.append((f"{test.__name__} {number}", harmed))
    for number, data in enumerate(generated("zip", 80)):
        (path := Path(f"case/generated{number}.zip")).write_bytes(data)
        copies.append((f"zip {number}", path))
    for number, data in enumerate(generated("manifest", 60)):
        (path := _copied(honest, Path(f"case/manifest{number}/tiny")) / "manifest.json").write_bytes(data)
        copies.append((f"manifest {number}", path.parent))
    for number, (name, path) in enumerate(copies):
        ways = (
            ["inspect", str(path)],
            ["run", "honest/a.wav", "-n", str(path), "--dry-run"],
            ["run", "honest/a.wav", "-n", str(path), *ENGINE, "-q", "-o", f"out{number}"],
        )
        yield Case(name, ways[number % 3])
    yield Case("honest", ["run", "honest/a.wav", "-n", "case/honest.zip", *ENGINE, "-q", "-o", "out"])


def _copied(folder: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target
