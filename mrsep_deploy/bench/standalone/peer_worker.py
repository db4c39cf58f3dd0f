"""The measuring process of a peer, run by the Python of the environment that the peer is installed in.

VENV/bin/python mrsep_deploy/bench/standalone/peer_worker.py

It takes the orders of ``mrsep_deploy.bench.worker`` and times them by the same code.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrsep_deploy.bench.standalone import energy, peers, serving
else:  # neighbours: the folder of the script is where Python looks first
    import serving  # isort: skip  # starts the clock
    import energy
    import peers


class PeerWorker(serving.Server):
    """Carries out orders on a peer."""

    def failure(self, error: Exception) -> serving.Answer:
        if isinstance(error, peers.Unavailable):
            return {"error": str(error), "fix": error.fix, "status": "unavailable"}
        said = " ".join(str(error).split())
        reason = f"{type(error).__name__}: {said}" if said else type(error).__name__
        return {"error": reason[:300], "fix": "", "status": "failed"}

    # --- orders

    def prepare(self, contender: dict[str, Any], model: str) -> serving.Answer:
        """What has to be done once before the peer is measured."""
        _kind(contender).prepare(contender, Path(model))
        return {}

    def open(self, contender: dict[str, Any], model: str, mix: str, born: float) -> serving.Answer:
        """Import, load, and run the first segments, each timed; ``born`` is when the process was asked for."""
        kind = _kind(contender)
        started = self.start(kind.imports, lambda: kind(contender, Path(model)), mix, born)
        return {
            **started,
            **self.measure({"cpu": energy.cpu_meter()}),
            "device_bytes": None,
            "about": kind.about(contender),
        }


def _kind(contender: dict[str, Any]) -> type[peers.Peer]:
    found: type[peers.Peer] = getattr(peers, contender["opener"].split(":")[1])
    return found


if __name__ == "__main__":
    serving.serve(PeerWorker())
