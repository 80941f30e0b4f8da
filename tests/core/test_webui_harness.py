"""What the WebUI's tests skip on: another extension that cannot load for want of a package, and nothing else."""

from __future__ import annotations

import pytest

from tests.webui.logs import missing_package

# As the WebUI reports it (modules/errors.py): indented, and closed by a line.
REPORT = """Startup time: 3 s
*** Error loading script: {script}.py
    Traceback (most recent call last):
      File "/webui/modules/scripts.py", line 515, in load_scripts
      File "/data/extensions/{extension}/scripts/{script}.py", line 12, in <module>
        import something
    {error}

---
*** Error loading script: other.py
    Traceback (most recent call last):
      File "/data/extensions/other/scripts/other.py", line 1, in <module>
    ModuleNotFoundError: No module named 'other_package'

---
"""
MISSING = "ModuleNotFoundError: No module named 'fvcore.nn'"


@pytest.mark.parametrize(
    ("extension", "error", "expected"),
    [
        ("sd-webui-controlnet", MISSING, "fvcore.nn"),
        ("sd-webui-controlnet", "ImportError: cannot import name 'x' from 'y'", ""),
        ("sd-webui-controlnet", "NameError: name 'x' is not defined", ""),
        ("sd-webui-ip-adapter", MISSING, ""),
    ],
)
def test_only_a_missing_package_of_that_extension_is_a_reason(extension: str, error: str, expected: str):
    log = REPORT.format(script="controlnet", extension=extension, error=error)
    assert missing_package(log, "sd-webui-controlnet") == expected
    assert missing_package("all is well", "sd-webui-controlnet") == ""
