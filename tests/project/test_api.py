"""The Python interface: the same verbs as the command line, and an import that costs nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bundles import tiny_bundle

import mrsep_deploy
from mrsep_deploy import errors


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names() -> None:
    assert mrsep_deploy.__all__ == sorted(mrsep_deploy.__all__)
    assert set(mrsep_deploy.__all__) == {"Bundle", "Separator", "__version__", "errors", "export", "inspect"}
    assert set(mrsep_deploy.__all__) <= set(dir(mrsep_deploy))
    for name in mrsep_deploy.__all__:
        assert getattr(mrsep_deploy, name) is not None


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="'mrsep_deploy' has no attribute 'separate'"):
        getattr(mrsep_deploy, "separate")  # noqa: B009


def test_importing_imports_nothing_else() -> None:
    out = python("import sys, mrsep_deploy; print([m for m in sys.modules if m.startswith('mrsep_deploy')])")
    assert out.strip() == "['mrsep_deploy']"


@pytest.mark.parametrize("name", ["Bundle", "Separator", "errors", "export", "inspect"])
def test_no_name_needs_the_extra(name: str) -> None:
    code = f"import sys; sys.modules['torch'] = sys.modules['onnx'] = None\nfrom mrsep_deploy import {name}"
    python(code)


@pytest.mark.parametrize(
    "first",
    [
        "import mrsep_deploy; export = mrsep_deploy.export",
        "from mrsep_deploy import export",
        "from mrsep_deploy.export import export",
        "import mrsep_deploy, mrsep_deploy.export.api; export = mrsep_deploy.export",
        "import mrsep_deploy as m; m.export; import mrsep_deploy.export.api; export = m.export",
        "import mrsep_deploy.inspection.inspect, mrsep_deploy; export = mrsep_deploy.export",
    ],
)
def test_export_is_the_verb_and_the_package(first: str) -> None:
    """Whatever was imported before, and in which order."""
    python(
        f"{first}\nimport sys; sys.modules['torch'] = None\nfrom mrsep_deploy.errors import ExportError\n"
        "try: export('nothing.th')\nexcept ExportError: pass\nelse: raise SystemExit(1)\n"
        "from mrsep_deploy.export.api import INSTALL"
    )


def test_inspect_is_the_verb(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    assert mrsep_deploy.inspect(bundle.path).digest == mrsep_deploy.Bundle.open(bundle.path).digest
    assert issubclass(mrsep_deploy.errors.BundleError, errors.MrsepError)
