"""Fewer launches: blocks of networks compiled, and whole training steps as CUDA graphs."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lasr.errors import one_line

log = logging.getLogger(__name__)

WARM_UP = 3  # calls before one is captured: libraries initialise, and choose their kernels


def compile_blocks(network: nn.Module, mode: str) -> None:
    """Compile a network in place, block by block if it repeats one.

    The blocks of a trunk are equal but for their weights, and one compiled block serves them all:
    seconds at the start, where a whole trunk takes minutes.
    """
    blocks = _repeated(network)
    for module in blocks or [network]:
        module.compile(mode=mode, dynamic=False)


def _repeated(network: nn.Module) -> list[nn.Module]:
    """The children of the outermost lists whose elements are all of one class of ours or theirs."""
    found: list[nn.Module] = []
    for child in network.children():
        elements = (
            list(child.children()) if isinstance(child, nn.Sequential | nn.ModuleList) else []
        )
        if len(elements) > 1 and len({type(element) for element in elements}) == 1:
            found += elements
        else:
            found += _repeated(child)
    return found


class Captured:
    """A function of tensors whose kernels are launched together, as one CUDA graph.

    One by one, launching the kernels of a training step takes the host longer than computing them
    takes the GPU. The kernels and their order stay the same, and so do the numbers.

    function: of tensors whose shapes never change. It must not wait for the device. Tensors that it
    keeps (gradients, an optimizer's state) are valid until the next call. Its first WARM_UP calls
    run as they are. If it cannot be captured, all others do, too.
    """

    def __init__(self, function: Callable[..., Tensor]):
        self.function = function
        self.calls = 0
        self.stream = torch.cuda.Stream()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Tensor, ...] = ()
        self.result = torch.empty(0)

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == WARM_UP + 1:
            self.capture(inputs)
        if self.graph is None:
            return self._launch(inputs)
        for ours, given in zip(self.inputs, inputs, strict=True):
            ours.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.result

    def _launch(self, inputs: tuple[Tensor, ...]) -> Tensor:
        # On the stream of the capture, because nodes of autograd may remember theirs.
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = self.function(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def capture(self, inputs: tuple[Tensor, ...]) -> None:
        """Record what the function launches for inputs of these shapes; nothing is computed."""
        self.inputs = tuple(tensor.clone() for tensor in inputs)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the graph has memory of its own
        try:
            # thread_local: other threads pin memory meanwhile.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.result = self.function(*self.inputs)
        except RuntimeError as error:
            log.warning("no CUDA graph, steps are slower: %s", one_line(error, 200))
            self.inputs = ()
            return
        self.graph = graph
