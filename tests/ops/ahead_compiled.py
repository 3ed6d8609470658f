"""Compiles the kernels of a greedy choice ahead, twice, for a GPU that is only pretended. Prints as JSON what this process found
compiled, and whether it had started the program that compiles.

A process of its own, since Triton's interpreter, which the tests switch on, and its compiler exclude each other.
"""

import json
from contextlib import nullcontext

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from zamba_lm.ops import ahead, gpu
from zamba_lm.ops.sample import triton as sample

found, programs = [], []
leave = ahead.Forks.__exit__


class Pretended:
    launcher_cls = None

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def note(*, src, cache_hit, **others):
    found.append([src.name, cache_hit])


def left(forks, *error):
    programs.append(forks.process is not None)
    leave(forks, *error)


def on_a_gpu(*args, device, **options):
    launch(*args, device=torch.device("cuda"), **options)


if __name__ == "__main__":
    driver.set_active(Pretended())
    triton.knobs.compilation.listener = note
    torch.cuda.device, torch.cuda.set_device = (lambda device: nullcontext()), (lambda device: None)
    gpu.capability = lambda device: (9, 0)
    ahead.cores = lambda: 2
    launch, sample.launch = gpu.launch, on_a_gpu
    ahead.Forks.__exit__ = left
    for _ in range(2):
        with ahead.compiling(torch.device("cuda")):
            sample.greedy_triton(torch.zeros(4, 32000), torch.zeros(4, dtype=torch.long))
        for kernel in (sample.argmax_kernel, sample.best_part_kernel):
            kernel.device_caches.clear()  # as in a new process
    print(json.dumps({"found": found, "programs": programs}))
