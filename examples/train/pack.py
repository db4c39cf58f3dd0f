"""Pack a store into pieces small enough to send, and unpack it elsewhere.

    python pack.py pack STORE PIECES [--megabytes 300]      PIECES/000.tar, 001.tar, ... of up to 60 MB
    python pack.py unpack PIECES STORE

Stems are coded as Vorbis, which takes a tenth of the space; the mixtures are sums of the decoded stems, so the
coding changes the stems a little but never their sum. Entries are packed in random order until the size given
is reached; the held-out ones always are.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from store import SAMPLE_RATE, SPLITS, Entry, read_entries, write_entry

PIECE = 59 * 10**6  # bytes, and what the archive adds
_HEADER = 1024
QUALITY = 0.5  # soundfile's compression level: 0 is the best, 1 the smallest
_BLOCK = 2**16


def pack(store: Path, pieces: Path, most: int) -> int:
    """Write the pieces; how many bytes they have."""
    pieces.mkdir(parents=True, exist_ok=True)
    total, number, written = 0, 0, 0
    for split, entry in _in_order(store):
        files = _coded(split, entry)
        size = sum(len(data) + _HEADER for data in files.values())
        if total + size > most:
            break
        if written + size > PIECE:
            number, written = number + 1, 0
        with tarfile.open(pieces / f"{number:03d}.tar", "a" if written else "w") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        written += size
        total += size
    return total


def unpack(pieces: Path, store: Path) -> int:
    """Write the store; how many entries it got."""
    count = 0
    for piece in sorted(pieces.glob("*.tar")):
        with tarfile.open(piece) as archive:
            infos: dict[str, dict[str, object]] = {}
            stems: dict[str, dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]] = {}
            for member in archive:
                entry, _, name = member.name.rpartition("/")
                file = archive.extractfile(member)
                if file is None:
                    continue
                if name == "info.json":
                    infos[entry] = json.loads(file.read())
                else:
                    sound, _ = soundfile.read(io.BytesIO(file.read()), dtype="float32", always_2d=True)
                    stems.setdefault(entry, {})[name.partition(".")[0]] = sound.T
            for path, info in infos.items():
                split, _, name = path.partition("/")
                count += write_entry(store, split, name, stems[path], bool(info["whole"]), info)
    return count


def _in_order(store: Path) -> Iterator[tuple[str, Entry]]:
    for split in reversed(SPLITS):
        entries = read_entries(store, split)
        for index in np.random.default_rng(0).permutation(len(entries)):
            yield split, entries[index]


def _coded(split: str, entry: Entry) -> dict[str, bytes]:
    files = {f"{split}/{entry.name}/info.json": json.dumps(entry.info).encode()}
    for source in entry.stems:
        coded, sound = io.BytesIO(), entry.read(source).T
        with soundfile.SoundFile(
            coded, "w", SAMPLE_RATE, 2, format="OGG", subtype="VORBIS", compression_level=QUALITY
        ) as file:
            for start in range(0, len(sound), _BLOCK):  # libsndfile overruns its stack on long writes
                file.write(sound[start : start + _BLOCK])
        files[f"{split}/{entry.name}/{source}.ogg"] = coded.getvalue()
    return files


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("store", type=Path)
    packing.add_argument("pieces", type=Path)
    packing.add_argument("--megabytes", type=float, default=300.0)
    unpacking = commands.add_parser("unpack")
    unpacking.add_argument("pieces", type=Path)
    unpacking.add_argument("store", type=Path)
    options = parser.parse_args()
    if options.command == "pack":
        print(f"{pack(options.store, options.pieces, round(options.megabytes * 1e6)):,} bytes")
    else:
        print(f"{unpack(options.pieces, options.store)} entries")


if __name__ == "__main__":
    main()
