"""Write the averaged weights of a training state as a published package, which ``mrsep-deploy export`` reads.

    python publish.py RUN/state.pt model.th [--segment 8]

The parameters do not depend on the length of the segments, so the published one may be longer than those of the
training. Weights are stored as float16.
"""

from __future__ import annotations

import argparse
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from network import ARGUMENTS, FAMILY, KLASS
from store import SOURCES

from mrsep_deploy.export.families.demucs.config import parse_config
from mrsep_deploy.export.families.demucs.variants import build_model

SEGMENT = 8.0


@contextmanager
def pickled_class(qualified: str) -> Iterator[type]:
    """A class that pickles as the name, inside the block only."""
    module, _, name = qualified.rpartition(".")
    klass = type(name, (), {"__module__": module})
    # The name is one in files: there is no such module, and pickling wants to import it.
    stand_in = types.ModuleType(module)
    setattr(stand_in, name, klass)
    with mock.patch.dict(sys.modules, {module: stand_in}):
        yield klass


def publish(state_file: Path, target: Path, segment: float = SEGMENT) -> None:
    """Write the package, whole or not at all.

    Raises:
        ValueError: a weight does not fit float16.
    """
    state = torch.load(state_file, map_location="cpu", weights_only=True)
    plan = state["plan"]
    arguments: dict[str, Any] = {**ARGUMENTS, **dict(plan["network"]), "segment": segment}
    config, _ = parse_config(FAMILY, (list(SOURCES),), arguments)
    build_model(config).load_state_dict(state["average"])  # a model that cannot be made is not published
    weights = {name: tensor.half().contiguous() for name, tensor in state["average"].items()}
    unfit = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if unfit:
        raise ValueError(f"{len(unfit)} weights do not fit float16, first {unfit[0]}")
    training = {
        **plan,
        "network": dict(plan["network"]),
        "step": state["step"],
        "hours": state["seconds"] / 3600,
    }
    with pickled_class(KLASS) as klass:
        package = {
            "klass": klass,
            "args": (list(SOURCES),),
            "kwargs": arguments,
            "state": weights,
            "training_args": training,
        }
        work = target.with_name(f".{target.name}.{os.getpid()}")
        torch.save(package, work)
    os.replace(work, target)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("state", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--segment", type=float, default=SEGMENT, help="seconds")
    options = parser.parse_args()
    publish(options.state, options.target, options.segment)
    print(f"{options.target}: {options.target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
