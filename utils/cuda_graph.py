"""A step of training as a single launch, on GPUs, whose kernels here are shorter than the way to them."""

import torch
from torch import Tensor

from utils.engine import Step


class GraphedStep:
    """A `Step` that is captured as a CUDA graph, one for each size of batch (docs.pytorch.org/docs/stable/notes/cuda).

    The first step of a size runs as it is, and prepares what a capture must not: libraries, momentum, the compiler.
    The second one is captured, and from then on replayed on what has been copied to where its images lay.
    """

    def __init__(self, step: Step):
        self.step, self.totals = step, step.totals
        self.prepared: set[int] = set()
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        device = step.totals.device
        self.lr = torch.zeros((), device=device)  # where a replayed step finds it
        for group in step.optimizer.param_groups:
            group["fused"] = True  # the implementation of SGD that takes it from there
        torch.cuda.set_stream(torch.cuda.Stream(device))  # the default one cannot be captured
        torch.cuda.synchronize(device)

    def __call__(self, images: Tensor, labels: Tensor, size: int) -> None:
        if size not in self.prepared:
            self.prepared.add(size)
            self.step(images, labels, size)
            return
        if size not in self.graphs:
            self.graphs[size] = self._capture(images, labels, size)
        graph, captured_images, captured_labels = self.graphs[size]
        captured_images.copy_(images)
        captured_labels.copy_(labels)
        (group,) = self.step.optimizer.param_groups
        self.lr.fill_(group["lr"])
        graph.replay()

    def _capture(self, images: Tensor, labels: Tensor, size: int) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        images, labels, graph = images.clone(), labels.clone(), torch.cuda.CUDAGraph()
        (group,) = self.step.optimizer.param_groups
        number, group["lr"] = group["lr"], self.lr  # the number would stay in the graph as it is now
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                self.step(images, labels, size)
        finally:
            group["lr"] = number
        return graph, images, labels


def fastest(step: Step) -> Step | GraphedStep:
    """`step` as its device does it fastest; one in which several processes wait for each other is not captured."""
    return GraphedStep(step) if step.totals.is_cuda and step.processes == 1 else step
