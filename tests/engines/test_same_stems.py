"""One bundle, every engine on a CPU, every mode, both layouts: the same stems."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from goldens import Export, golden
from numpy.typing import NDArray

from mrsep_deploy.bundle.manifest import Layout
from mrsep_deploy.engines import engine_class
from mrsep_deploy.files.paths import HOME_VARIABLE
from mrsep_deploy.measuring.deviation import Deviation
from mrsep_deploy.runtime.schedule import Mode
from mrsep_deploy.separation.separator import Separator

pytestmark = pytest.mark.slow

ENGINES = ("torch", "ort", "openvino")
MODES: tuple[Mode, ...] = ("sequential", "concurrent")


@pytest.mark.parametrize("layout", ["split", "whole"])
@pytest.mark.parametrize("name", ["htdemucs", "htdemucs_n"])
def test_engines_and_modes_agree(
    exports: Export, name: str, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modes to the last bit where stages have the same threads, engines within what float32 may lose."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    expected, bundle = golden(name), exports(name, layout)
    for engine in ENGINES:
        if not engine_class(engine).availability().works:
            continue
        found: dict[str, NDArray[np.float32]] = {}
        for mode in MODES:
            with Separator(bundle, engine=engine, mode=mode, threads=1) as separator:
                found[mode] = separator.run_segments(expected.mix[None])[0].copy()
            assert Deviation.between(found[mode], expected.stems).relative < 1e-5, (engine, mode)
        np.testing.assert_array_equal(found["sequential"], found["concurrent"], err_msg=engine)
