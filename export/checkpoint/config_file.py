"""Configuration files that training toolkits keep beside a bare state dict: YAML in four sections.

    audio: {chunk_size: 352800, sample_rate: 44100}
    model: {dim: 512, depth: 12, stereo: true, multi_stft_resolutions_window_sizes: !!python/tuple [4096, 2048]}
    training: {instruments: [vocals, other], target_instrument: vocals}
    inference: {num_overlap: 4}

They are data from strangers: plain values only, of bounded size and depth. Of YAML's tags for Python objects one is
read, ``!!python/tuple``, because published files have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrsep_deploy.errors import CheckpointError
from mrsep_deploy.export.checkpoint.files import AGAIN, about, opened
from mrsep_deploy.export.checkpoint.values import plain_dict, shown

MAX_BYTES = 2**16  # published files have about two thousand
SECTIONS = ("audio", "model", "training", "inference")
SUFFIXES = (".yaml", ".yml")
FIX = "Give the configuration that was published with the checkpoint."


@dataclass(frozen=True)
class ConfigFile:
    """The sections of a configuration in plain values; a section that is not there is empty."""

    audio: Mapping[str, object]
    model: Mapping[str, object]
    training: Mapping[str, object]
    inference: Mapping[str, object]


def beside(checkpoint: Path) -> Path | None:
    """The configuration that lies beside a checkpoint under its name, if there is one."""
    places = (checkpoint.with_suffix(suffix) for suffix in SUFFIXES)
    return next((place for place in places if place != checkpoint and place.is_file()), None)


def read_config(path: Path) -> ConfigFile:
    """Reads a configuration.

    Raises:
        CheckpointError: it cannot be read, is no YAML in these sections, or holds more than plain values.
    """
    with about(path), opened(path) as file:
        data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise CheckpointError(f"it has more than {MAX_BYTES:,} bytes, expected a configuration", FIX)
        sections = plain_dict(_parsed(data), "the configuration")
        if not isinstance(sections.get("model"), dict):
            keys = ", ".join(shown(key, 40) for key in list(sections)[:6]) or "nothing"
            raise CheckpointError(
                f"it has no section model (it has {keys}), expected {', '.join(SECTIONS)}", FIX
            )
        found = (plain_dict(sections.get(name) or {}, f"the section {name}") for name in SECTIONS)
        return ConfigFile(*found)


def _parsed(data: bytes) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain values and tuples; merge keys, by which a small file can grow without bound, are refused."""

        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
                raise yaml.YAMLError("merge keys (<<) are not read")

    def as_tuple(loader: Loader, node: yaml.SequenceNode) -> tuple[Any, ...]:
        return tuple(loader.construct_sequence(node, deep=True))

    Loader.add_constructor("tag:yaml.org,2002:python/tuple", as_tuple)
    try:
        loader = Loader(data)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    # PyYAML lets through whatever making a date or a number of a text raises.
    except Exception as error:
        problem = getattr(error, "problem", None) or error
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise CheckpointError(
            f"it is not YAML of plain values{where}: {shown(problem, 200)}", AGAIN
        ) from error
