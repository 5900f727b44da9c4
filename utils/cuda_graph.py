"""A step of training as a single launch, on GPUs: launching a kernel takes longer there than it runs."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from utils.engine import Step
from utils.runtime import Runtime


class GraphedStep(Step):
    """A `Step` that is captured as a CUDA graph, one for each size of batch (docs.pytorch.org/docs/stable/notes/cuda).

    `loss`: what `Step` takes besides, label smoothing and teacher.

    The first step of a size runs as it is, and prepares what a capture must not: libraries, momentum, the compiler.
    The second one is captured; for each later one, the batch is copied to where the captured one lay, and the graph is
    replayed. The default stream cannot be captured: from its construction on, this thread works on another.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], optimizer: Optimizer, runtime: Runtime, *loss: object):
        super().__init__(forward, optimizer, runtime, *loss)
        self.prepared: set[int] = set()
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self.lr = torch.zeros((), device=runtime.device)  # where a replayed step finds it
        (group,) = optimizer.param_groups
        group["fused"] = True  # the implementation of SGD that takes it from there
        torch.cuda.set_stream(torch.cuda.Stream(runtime.device))
        torch.cuda.synchronize(runtime.device)  # what the default stream has still to do for weights and images

    def __call__(self, images: Tensor, labels: Tensor, size: int) -> None:
        (group,) = self.optimizer.param_groups
        number, group["lr"] = group["lr"], self.lr.fill_(group["lr"])  # a number would stay in the graph as it is now
        try:
            self._learn(images, labels, size)
        finally:
            group["lr"] = number

    def _learn(self, images: Tensor, labels: Tensor, size: int) -> None:
        if size not in self.prepared:
            self.prepared.add(size)
            super().__call__(images, labels, size)
            return
        if size not in self.graphs:
            graph, captured = torch.cuda.CUDAGraph(), (images.clone(), labels.clone())
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                super().__call__(*captured, size)
            self.graphs[size] = graph, *captured
        graph, captured_images, captured_labels = self.graphs[size]
        captured_images.copy_(images)
        captured_labels.copy_(labels)
        graph.replay()


def step_class(runtime: Runtime) -> type[Step]:
    """The kind of step that is fastest here; one in which several processes wait for each other is not captured."""
    return GraphedStep if runtime.device.type == "cuda" and runtime.world_size == 1 else Step
