from pathlib import Path

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

import train
from dataset import Batches, Split
from models import ResidualCNN
from utils import checkpoint, engine
from utils.accelerate import GraphedStep
from utils.runtime import Runtime

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("recipe", [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0}])
def test_a_step_as_a_cuda_graph_learns_what_the_step_learns(recipe, taught):
    def learn(graphed):
        """Losses and weights of four epochs of three batches, the last one short, with drops of the learning rate."""
        runtime = Runtime(torch.device("cuda"))
        torch.manual_seed(0)
        network = ResidualCNN((8, 16), (1, 1), dropout=0).to(runtime.device, memory_format=torch.channels_last)
        teacher = ResidualCNN((8,), (1,)).to(runtime.device).eval() if taught else None
        optimizer = SGD(network.parameters(), 0.1, **recipe, weight_decay=5e-4)
        scheduler, step = StepLR(optimizer, 2), engine.TrainingStep(network, optimizer, runtime, 0.1, teacher)
        step = GraphedStep(step) if graphed else step
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (80, 3, 32, 32), dtype=torch.uint8, generator=generator)
        split = Split(images, torch.arange(80) % 10).to(runtime.device)
        epochs = [Batches(split, 32, [0.5] * 3, [0.25] * 3, generator) for _ in range(4)]
        losses = [engine.train_one_epoch(network, step, batches, scheduler, runtime)[0] for batches in epochs]
        assert not graphed or step.graphs.keys() == {16, 32}
        return torch.tensor(losses), torch.cat([weights.detach().flatten() for weights in network.parameters()])

    with torch.cuda.stream(torch.cuda.current_stream()):  # which is so again after it
        for plain, fast in zip(learn(graphed=False), learn(graphed=True)):
            torch.testing.assert_close(fast, plain, rtol=0, atol=2e-2)


def test_a_run_on_a_gpu_trains_and_resumes():
    options = "--data synthetic --subset 300 --widths 8 16 --blocks 1 1 --device cuda --compile off".split()
    assert train.main([*options, "--epochs", "1"]) == 0
    assert train.main(["--resume", "--epochs", "2", "--device", "cuda"]) == 0
    assert len(checkpoint.load_newest(Path("checkpoints")).history) == 2
