"""Converting, emulating and predicting need onnx and onnx-ir, and neither torch nor anything of export."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mrsep_deploy.bundle import shipped

CODE = """
import importlib, pkgutil, sys
from pathlib import Path

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnxscript") or name.startswith("mrsep_deploy.export"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import mrsep_deploy.precision as room
for module in pkgutil.iter_modules(room.__path__):
    importlib.import_module(f"{room.__name__}.{module.name}")
from mrsep_deploy.bundle import Bundle
from mrsep_deploy.precision.emulate import rounded_graph
from mrsep_deploy.precision.requested import in_precision
half = in_precision(Bundle.open(Path(sys.argv[1])), "fp16")
for stage in half.manifest.graph_stages:
    assert rounded_graph(half.graph_bytes(stage))
print(half.manifest.precision, len(half.manifest.graph_stages))
"""


def test_the_room_runs_without_torch_and_without_export(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(shipped.BUNDLE)],
        env={"MRSEP_DEPLOY_HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "float16"
    # every rule that the family expects somewhere matches there
    assert done.stderr == ""
