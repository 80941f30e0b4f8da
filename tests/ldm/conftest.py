"""What holds for all tests of this folder."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def bases_are_read_once(request: pytest.FixtureRequest):
    """But where reading them is what is tested."""
    if request.module.__name__.rpartition(".")[2] in ("test_standalone", "test_standalone_command"):
        yield
        return
    pytest.importorskip("ldm", reason="stable-diffusion-sdkit is not installed")
    from tests.ldm import bases

    with pytest.MonkeyPatch.context() as patch:
        bases.install(patch.setattr)
        yield
