"""Set up and run all tests: ``python3 tests/run.py [pytest arguments]``.

Makes or updates ``.venv``, then runs pytest in it. Without arguments everything runs, the tests that
fetch trained weights and music included.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from bootstrap import ROOT, enter

if __name__ == "__main__":
    enter("dev")
    everything = ["-n", "auto"]  # one process a core; given arguments are taken as they are
    arguments = sys.argv[1:] or everything
    sys.exit(subprocess.call([sys.executable, "-m", "pytest", *arguments], cwd=ROOT))
