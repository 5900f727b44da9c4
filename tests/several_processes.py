"""Started by test_torchrun.py, with and without torchrun: the first step's gradients and a validation, into a file."""

import sys

import torch

import train
from utils.runtime import start

OPTIONS = "--data synthetic --subset 101 --batch-size 128 --widths 4 8 --blocks 1 1 --epochs 1 --compile off".split()


def main(path):
    options = train.build_parser().parse_args(OPTIONS)
    with start("cpu") as runtime:
        run = train.Run(options, runtime, train.build_network(options))
        validation = run.validate()
        network = run.network.eval()
        network.train = lambda mode=True: network  # batch statistics differ from process to process
        run.train_epoch()  # one batch: its gradients stay
        if runtime.is_first:
            gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
            torch.save({"gradients": gradients, "validation": validation}, path)
        del run, network.train  # a cycle would keep the replica, and with it the group, to the very end


if __name__ == "__main__":
    main(sys.argv[1])
