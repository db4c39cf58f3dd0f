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
    # One process a core, each on one half of the tests, so that what a file makes is made once, until one has nothing
    # left and takes of the other's. Given arguments are taken as they are.
    everything = ["-n", "auto", "--dist", "worksteal"]
    arguments = sys.argv[1:] or everything
    sys.exit(subprocess.call([sys.executable, "-m", "pytest", *arguments], cwd=ROOT))
