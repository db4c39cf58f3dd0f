"""What the training music is made of: MIDI songs, soundfonts and programs from Debian packages, all free.

    music     openttd-openmsx, simutrans-data, planetblupi-music-midi, freedoom
    grooves   mma, which plays accompaniments in a thousand styles
    sound     fluid-soundfont-gm, musescore-general-soundfont, opl3-soundfont, csound-soundfont,
              avldrums.lv2-soundfont, timgm6mb-soundfont (held out)
    guitars   fretsonfire-songs-sectoid, the guitar stems of three songs

Packages are downloaded and unpacked, not installed; the files used are checked by one hash a package.
``DATA.md`` says who made them and under which licence.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# The registries' clients and the cache are those of the benchmarks.
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import assets

_WAD_ENTRY = struct.Struct("<ii8s")


@dataclass(frozen=True)
class Package:
    """A Debian package; ``files`` are patterns of what is used of it, ``sha256`` of those files."""

    name: str
    files: tuple[str, ...]
    licence: str
    sha256: str


PACKAGES = {
    package.name: package
    for package in (
        Package(
            "openttd-openmsx",
            ("**/*.mid",),
            "GPL-2",
            "48778c58ea677a56bce85a500b7c663ec01fc623440c6c84f9b99e4e7597eecf",
        ),
        Package(
            "simutrans-data",
            ("**/*.mid",),
            "Artistic-1.0",
            "cb9b872c9e97d94f18e6ca5a11fa24adc4ac969627e4f7e7a49509a917209864",
        ),
        Package(
            "planetblupi-music-midi",
            ("**/*.mid",),
            "GPL-3+",
            "451ddb6e2eaf5fc30a9a719aa374dfebda21686cd1f5444b66f1f59591c95534",
        ),
        Package(
            "freedoom",
            ("**/*.wad",),
            "BSD-3-Clause",
            "2a9ca23b2948062ee461306f270686c06da642256c5411dc27ba4a94c87b5c66",
        ),
        Package(
            "mma",
            ("usr/share/mma/**/*.mma", "usr/bin/mma", "usr/share/mma/**/*.py"),
            "GPL-2+",
            "a5e2c244da8e5f5b9aedc6cfc165e91bc60a46ed3717a9d4d30207189dda013d",
        ),
        Package(
            "fluid-soundfont-gm",
            ("**/*.sf2",),
            "MIT",
            "0677f3bbf1b6d66ce947d3b264093237ebdda177fe31e9c46da0cf8ae3318292",
        ),
        Package(
            "musescore-general-soundfont",
            ("**/*.sf3",),
            "MIT",
            "fc0770d4803c541ac49fe57c1dc0031fe696e414ac837976f233474038733c3d",
        ),
        Package(
            "opl3-soundfont",
            ("**/*.sf2",),
            "CC-BY-SA-4.0",
            "97b1c29b66200a6b3212d7737c6d783ede9369e3dcb400f8b310f59f744fd2aa",
        ),
        Package(
            "csound-soundfont",
            ("**/*.sf2",),
            "public domain",
            "244b5b27ec541c88a6b5c09e9d3cec4890ddcbed0e5ce436b1db0c954bf0d166",
        ),
        Package(
            "avldrums.lv2-soundfont",
            ("**/*.sf2",),
            "CC-BY-SA-3.0",
            "4f2585e84a65e8173a6ba9353c2fe4c022831d64abffb0134de9f0e42029561c",
        ),
        Package(
            "timgm6mb-soundfont",
            ("**/*.sf2",),
            "GPL-2",
            "e310b641cbe5d914f19494af3ffed51f0cec502eb11ff5fc50c18fdb923c84af",
        ),
        Package(
            "lmms-common",
            ("usr/share/lmms/projects/**/*",),
            "Artistic-2.0 and others, see DATA.md",
            "f16e8d59292dc85afbe12191ceac32b5f74f21f3031a0c38636849eb26c6922f",
        ),
        Package(
            "fretsonfire-songs-sectoid",
            ("**/*.ogg",),
            "Expat",
            "9a3b95aa8ce7614dc2479bc4a372ef23532cbc6c1e01bbda3c808ba646de76ce",
        ),
    )
}


@dataclass(frozen=True)
class Font:
    """A soundfont. ``drums_only`` has one drum kit in bank 0; ``held_out`` is never trained on."""

    name: str
    package: str
    file: str
    drums_only: bool = False
    held_out: bool = False

    @property
    def path(self) -> Path:
        """The file, fetched if need be."""
        found = fetched(self.package).glob(f"**/{self.file}")
        return next(path for path in found if not path.is_symlink())


FONTS = {
    font.name: font
    for font in (
        Font("fluid", "fluid-soundfont-gm", "FluidR3_GM.sf2"),
        Font("musescore", "musescore-general-soundfont", "MuseScore_General_Full.sf3"),
        Font("opl3", "opl3-soundfont", "OPL-3_FM_128M.sf2"),
        Font("csound", "csound-soundfont", "sf_GMbank.sf2"),
        Font("pearl", "avldrums.lv2-soundfont", "Black_Pearl_4_LV2.sf2", drums_only=True),
        Font("zeppelin", "avldrums.lv2-soundfont", "Red_Zeppelin_4_LV2.sf2", drums_only=True),
        Font("timgm6mb", "timgm6mb-soundfont", "TimGM6mb.sf2", held_out=True),
    )
}

#: Songs no stem of which is ever trained on.
HELD_OUT_SONGS = frozenset(
    (
        "openmsx-the_fast_route",
        "simutrans-09-Simupolitan-Swing",
        "simutrans-19-Rockin-trucker",
        "simutrans-36-faded-things",
        "simutrans-43-Driving-on-the-midnight-highway",
        "simutrans-48-Techno-movement",
        "planetblupi-music003",
        "openmsx-train_filled_with_cash",
        "freedoom1-D_E2M4",
        "freedoom2-D_SHAWN",
    )
)

#: Their key signatures are no keys.
_MALFORMED = frozenset(("simutrans-05-Boring-afternoon", "simutrans-30-On-the-waterfront"))

#: Its fourth song is left for listening tests.
GUITAR_SONGS = ("Metal madness", "War of freedom", "Feelings")


@functools.cache
def fetched(name: str) -> Path:
    """The unpacked package, fetched if it is not in the cache.

    Raises:
        FetchError: it cannot be fetched, or its files are not the expected ones.
    """
    package = PACKAGES[name]

    def is_right(unpacked: Path) -> bool:
        return digest(unpacked, package.files) == package.sha256

    return assets._cached(f"train-{name}", is_right, functools.partial(assets._unpack_deb, name))


def digest(folder: Path, patterns: tuple[str, ...]) -> str:
    """sha256 over the names and contents of the files that match, in the order of their names."""
    total = hashlib.sha256()
    matched = {path for pattern in patterns for path in folder.glob(pattern)}
    for path in sorted(path for path in matched if path.is_file() and not path.is_symlink()):
        total.update(str(path.relative_to(folder)).encode() + b"\0")
        total.update(bytes.fromhex(assets._sha256(path)))
    return total.hexdigest()


def midi_songs() -> dict[str, bytes]:
    """Every composed song by name, as a MIDI file."""
    songs: dict[str, bytes] = {}
    for package in ("openttd-openmsx", "simutrans-data", "planetblupi-music-midi"):
        short = package.partition("-")[2] if package.startswith("openttd") else package.partition("-")[0]
        for path in sorted(fetched(package).glob("**/*.mid")):
            songs[f"{short}-{path.stem}"] = path.read_bytes()
    for wad in sorted(fetched("freedoom").glob("**/*.wad")):
        for lump, data in wad_midi(wad.read_bytes()):
            songs[f"{wad.stem}-{lump}"] = data
    return {name: data for name, data in songs.items() if name not in _MALFORMED}


def wad_midi(wad: bytes) -> Iterator[tuple[str, bytes]]:
    """The MIDI lumps of a WAD archive: a directory of (offset, size, name), its place in the header."""
    lumps, directory = struct.unpack_from("<ii", wad, 4)
    for index in range(lumps):
        start, size, name = _WAD_ENTRY.unpack_from(wad, directory + index * _WAD_ENTRY.size)
        if wad[start : start + 4] == b"MThd":
            yield name.rstrip(b"\0").decode("ascii"), wad[start : start + size]


def four_stem_excerpt() -> dict[str, NDArray[np.float32]]:
    """The true stems of the excerpt that the benchmarks use; never trained on."""
    return assets.read_excerpt()


def guitar_stems() -> dict[str, Path]:
    """Recorded guitars by song."""
    songs = fetched("fretsonfire-songs-sectoid") / "usr/share/games/fretsonfire/data/songs/sectoid"
    return {name: songs / name / "guitar.ogg" for name in GUITAR_SONGS}
