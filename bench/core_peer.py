"""The cases of bench/core.ts in Python: python core_peer.py THREADS reads "name count" a line and answers with the
nanoseconds of a call."""
import sys
import time

import torch
import torch.nn.functional as F

torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
p, q = torch.ones(1), torch.ones(1)
square, other = torch.randn(4, 4), torch.randn(4, 4)
x, w, b = torch.randn(16, 768), torch.randn(768, 768), torch.randn(768)
inputs, w1, w2 = torch.randn(8, 16), torch.randn(16, 16, requires_grad=True), torch.randn(16, 4, requires_grad=True)


def chain():
    return square.add(other).mul(other).sub(square).relu().exp().add(1).log().matmul(other).tanh().sum()


def train():
    (inputs.matmul(w1).relu().matmul(w2)).sum().backward()
    w1.grad = None
    w2.grad = None


CASES = {
    "add": lambda: p.add(q),
    "add_": lambda: p.add_(q),
    "view": lambda: square.view(2, 8),
    "transpose": lambda: square.transpose(0, 1),
    "matmul": lambda: square.matmul(other),
    "sum": lambda: square.sum(),
    "sum_dim": lambda: square.sum(1, keepdim=True),
    "chain": chain,
    "linear": lambda: F.linear(x, w, b),
    "train": train,
}

for line in sys.stdin:
    name, count = line.split()
    run = CASES[name]
    with torch.set_grad_enabled(name == "train"):
        begin = time.perf_counter_ns()
        for _ in range(int(count)):
            run()
        print((time.perf_counter_ns() - begin) / int(count), flush=True)
