"""Started by test_torchrun.py, with and without torchrun: train.py for one step, whose gradients go into a file."""

import sys

import torch

import train

OPTIONS = "--data synthetic --subset 101 --batch-size 128 --widths 4 8 --blocks 1 1 --epochs 1 --lr 1e-9".split()
HERE = "--device cpu --compile off --precision fp32".split()


def main(path):
    def build_network(*arguments):
        network = build(*arguments).eval()
        network.train = lambda mode=True: network  # batch statistics differ from process to process
        return network

    folder = f"{path}.checkpoints"

    def save(_, network, optimizer, scheduler, history, config):
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        validation = history[-1]["val_loss"], history[-1]["val_accuracy"]
        torch.save({"gradients": gradients, "validation": validation}, path)

    build, keep = train.build_network, train.checkpoint.save
    train.build_network, train.checkpoint.save = build_network, save
    try:
        train.main([*OPTIONS, *HERE, "--checkpoint-dir", folder])
    finally:
        train.build_network, train.checkpoint.save = build, keep


if __name__ == "__main__":
    main(sys.argv[1])
