"""Small files of text, from strangers or damaged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from hostile_run import ENGINE, PLAN, Case, generated

WORDS = [
    *(
        b"../../outside/secret.wav",
        b"/dev/zero",
        b"null",
        b"-1",
        b"1e999",
        b"NaN",
        b"[[[[[[[[",
        b"{",
        b'"',
        b"\\ud800",
    ),
    *(
        b"\xff\xfe",
        b"!!python/object/apply:os.system ['touch ../outside/pwned']",
        b"&a [*a, *a]",
        b"9" * 400,
        b"\0",
    ),
]


def texts() -> Iterator[Case]:
    """Bags, plans, settings, the registry, the journal, ranges, side-cars of built engines."""
    bag = b'models = ["tiny", "tiny"]\nweights = [[1, 0.5], [0, 1]]\nsegment = 0.008\n'
    yaml = b"models: ['tiny', 'tiny']\nweights: [[1., 0.], [0., 1.]]\n"
    settings = b'[run]\nout = "out"\noverlap = 0.5\nstems = ["drums"]\nflac = true\n'
    home = Path("home")
    registry = next(path for path in home.rglob("*.json") if b'"models"' in path.read_bytes())
    journal = next(Path("warm").rglob(".mrsep-deploy-journal.jsonl"))
    key, side_car = _side_car()
    cache = home / "cache" / "engines" / f"{key}.json"
    dry = ["run", "honest/a.wav", "--dry-run"]
    run = ["run", "honest/a.wav", "-q", *ENGINE]
    yield from _written(Path("bag.toml"), bag, 30, [*dry, "-n", "bag.toml"])
    yield from _written(Path("bag.yaml"), yaml, 30, [*dry, "-n", "bag.yaml"])
    yield from _written(Path("demucs.yaml"), yaml, 15, ["export", "-q", "demucs.yaml"])
    yield from _written(Path("settings.toml"), settings, 40, ["--config", "settings.toml", *dry])
    planned = [*run, "-o", "planned", "--precision", "mixed", "--plan", "plan.json"]
    yield from _written(Path("plan.json"), json.dumps(PLAN).encode(), 40, planned)
    yield from _written(registry, registry.read_bytes(), 40, ["models"])
    yield from _written(journal, journal.read_bytes(), 40, [*run, "-o", "warm", "--resume"])
    yield from _written(cache, side_car, 30, ["cache", "list"])
    yield from _written(Path("ranges.json"), _ranges(), 25, ["it"], _load_ranges)


def _side_car() -> tuple[str, bytes]:
    """Its name and its content, for an engine that is not there."""
    from mrsep_deploy.engines.cache import EngineCache, NewEngine
    from mrsep_deploy.engines.side_car import EngineKey

    key = EngineKey("0" * 64, "trt", "10.9", "sm_90", "570", "fp32", 1, {"level": 3})
    with TemporaryDirectory() as folder:
        EngineCache(Path(folder)).get_or_build(key, lambda: NewEngine(b"engine", {"model": "tiny"}))
        return key.name, (Path(folder) / f"{key.name}.json").read_bytes()


def _ranges() -> bytes:
    from mrsep_deploy.precision.ranges import Calibration, Range, to_json

    return to_json(Calibration({"noise": 2}, {"branch.16": {"x": Range(*map(float, range(1, 7)))}}))


def _load_ranges() -> object:
    """As from a bundle that is consistent with itself."""
    from types import SimpleNamespace

    from mrsep_deploy.precision.ranges import load

    return load(SimpleNamespace(ranges_bytes=Path("ranges.json").read_bytes))  # type: ignore[arg-type]


def _written(
    path: Path, honest: bytes, count: int, arguments: list[str], call: Callable[[], object] | None = None
) -> Iterator[Case]:
    """A file as it should be, and with edits; afterwards it is as it was."""
    from generate import damaged
    from hypothesis import strategies as st

    before = path.read_bytes() if path.exists() else None
    nasty = [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b"a" * (1 << 21),
        b"\xef\xbb\xbf" + honest,
        honest * 2,
    ]
    for data in [honest, *nasty, *generated("", count, damaged(st.just(honest), WORDS))]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        yield Case(f"{path.name} {data[:60]!r}", arguments, call=call)
    if before is None:
        path.unlink()
    else:
        path.write_bytes(before)
