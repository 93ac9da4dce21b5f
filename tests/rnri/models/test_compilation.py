"""A compiled network predicts the same as the network, and a missing compiler is reported."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from rnri import LatentDiffusion, anderson_inverter
from rnri.models.compilation import check_compiler, compile_network
from rnri.models.fingerprint import is_compiled
from rnri.validation import ConfigError
from tests.pipelines import tiny_stable_diffusion

CPU = torch.device("cpu")


@pytest.fixture
def no_compiler(monkeypatch):
    def fail():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", fail)


@pytest.fixture
def compiler():
    """Skip the test if PyTorch finds no compiler."""
    try:
        check_compiler(CPU)
    except ConfigError:
        pytest.skip("PyTorch finds no C++ compiler")


@pytest.mark.usefixtures("no_compiler")
def test_missing_compiler_is_reported_before_the_model_is_loaded(tmp_path):
    with pytest.raises(ConfigError, match=r"^compile: needs a C\+\+ compiler such as g\+\+"):
        LatentDiffusion.from_pretrained(tmp_path, device="cpu", dtype="float32", compile=True)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_network_is_compiled_for_more_batch_sizes_than_the_default_limit():
    network = torch.nn.Linear(2, 2)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1), torch.no_grad():
        compile_network(network, CPU)
        for batch_size in range(1, 3):
            network(torch.zeros(batch_size, 2))
        assert counters["stats"]["unique_graphs"] == 2
        assert torch._dynamo.config.recompile_limit == 64


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_network_gives_the_same_seeds():
    one_level = {  # the network is compiled in a fraction of the time
        "block_out_channels": (32,), "down_block_types": ("CrossAttnDownBlock2D",), "mid_block_type": None,
        "up_block_types": ("CrossAttnUpBlock2D",), "layers_per_block": 1,
    }  # fmt: skip
    model = LatentDiffusion(tiny_stable_diffusion(unet=one_level))
    plain = model.fingerprint
    schedule = model.schedule(3)
    predictor = model.predictor(["a cat"] * 2)
    z0 = model.noise([0, 1], seed=0)
    expected = anderson_inverter(2).invert(z0, predictor, schedule)
    assert not is_compiled(model.family.network)
    model.compile_network()
    result = anderson_inverter(2).invert(z0, predictor, schedule)
    assert is_compiled(model.family.network) and model.fingerprint != plain
    torch.testing.assert_close(result.seed, expected.seed, atol=1e-4, rtol=1e-4)
    assert torch.equal(result.nfe, expected.nfe)
