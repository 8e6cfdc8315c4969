"""Every engine gives the output of the network itself."""

import sys

import pytest
import torch

from lasr.errors import UserError
from trainer.models.rrdb import RRDB
from trainer.upscale.engines import make_engine, onnx_engine


def test_engines_answer_alike() -> None:
    torch.manual_seed(0)
    network = RRDB(8, 1, 8)
    x = torch.rand(1, 3, 131, 34)  # more than two strips of `reconstruct`
    with torch.no_grad():
        expected = network(x)
    onnx = onnx_engine(network)
    torch.testing.assert_close(onnx(x), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(onnx(x[..., :9]), network(x[..., :9]).detach(), atol=1e-4, rtol=0)
    with torch.inference_mode():
        torch.testing.assert_close(
            make_engine(network, torch.device("cpu"), "torch")(x), expected, atol=1e-4, rtol=0
        )
    with pytest.raises(UserError, match="needs a GPU"):
        make_engine(network, torch.device("cpu"), precision="float16")


def test_a_missing_onnx_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime.*pip install 'la-sr\[fast\]'"):
        make_engine(RRDB(4, 1, 4), torch.device("cpu"), "onnx")
