import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from dataset import Batches, Split
from models import ResidualCNN
from utils import engine
from utils.cuda_graph import GraphedStep
from utils.runtime import Runtime

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")


def learn(graphed):
    """Losses and weights of two epochs of three batches, the last one short, with a drop of the learning rate."""
    runtime = Runtime(torch.device("cuda"))
    torch.manual_seed(0)
    network = ResidualCNN((8, 16), (1, 1)).to(runtime.device, memory_format=torch.channels_last)
    optimizer = SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    scheduler, step = StepLR(optimizer, 4), engine.Step(network, optimizer, runtime)
    step = GraphedStep(step) if graphed else step
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (80, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.arange(80) % 10).to(runtime.device)
    losses = []
    for _ in range(4):
        batches = Batches(split, 32, [0.5] * 3, [0.25] * 3, generator)
        losses.append(engine.train_one_epoch(network, step, batches, scheduler, runtime)[0])
    return torch.tensor(losses), torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_a_step_as_a_cuda_graph_learns_what_the_step_learns():
    for plain, graphed in zip(learn(graphed=False), learn(graphed=True)):
        torch.testing.assert_close(graphed, plain, rtol=0, atol=2e-2)
