"""Inputs of the Triton kernel, and a program that runs it on them in Triton's interpreter.

Triton reads the choice of its interpreter once, when it is imported: hence a process of its own.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Inputs:
    """Sizes, some no multiples of any block; the order in memory of the inputs' dimensions."""

    n: int
    t: int
    a: int
    b: int
    side: int = 32
    dtype: torch.dtype = torch.float32
    order: tuple[int, int, int] = (0, 1, 2)
    every: int = 1  # entries in memory for one that is read

    def make(self, device="cpu"):
        generator = torch.Generator().manual_seed(0)

        def normal(*shape):
            shape = (*shape[:-1], shape[-1] * self.every)
            stored = torch.randn([shape[i] for i in self.order], generator=generator)
            back = [self.order.index(i) for i in range(3)]
            return stored.to(device, self.dtype).permute(back)[..., :: self.every]

        left, right = normal(self.n, self.t, self.a), normal(self.n, self.t, self.b)
        return left, right, torch.rand(self.a, self.b, generator=generator).to(device)


INPUTS = {
    "one block": Inputs(3, 16, 32, 32),
    "no multiples": Inputs(5, 19, 45, 70),
    "several blocks of tokens": Inputs(2, 77, 33, 31),
    "shared examples": Inputs(70, 3, 70, 50),
    "more tiles than programs": Inputs(70, 5, 130, 200),
    "one token": Inputs(4, 1, 40, 35),
    "one example": Inputs(1, 9, 40, 35),
    "narrow": Inputs(3, 7, 3, 50),
    "many examples": Inputs(150, 3, 20, 20),
    "side 64": Inputs(2, 20, 70, 65, side=64),
    "side 128": Inputs(2, 40, 130, 5, side=128),
    "tokens first": Inputs(3, 18, 40, 35, order=(1, 0, 2)),
    "features first": Inputs(3, 18, 40, 35, order=(2, 0, 1)),
    "every third feature": Inputs(3, 18, 40, 35, every=3),
    "bfloat16": Inputs(3, 70, 40, 35, dtype=torch.bfloat16),
    "float16": Inputs(3, 70, 40, 35, dtype=torch.float16, order=(2, 1, 0)),
}


def two_uses(add, device="cpu"):
    """One matrix used on 6 and on 11 tokens; unchanged if ``add`` declines."""
    left, right, total = Inputs(3, 17, 40, 35).make(device)
    add((left[:, :6], left[:, 6:]), (right[:, :6], right[:, 6:]), total)
    return total


def read_bfloat16(interpreter):
    """Triton 3.7's interpreter multiplies bfloat16 as if its bits were an integer's."""
    plain = interpreter.InterpreterBuilder.create_dot

    def widened(handle):
        if str(handle.dtype.scalar) != "bf16":
            return handle
        bits = handle.data.astype("uint32") << 16
        return interpreter.TensorHandle(bits.view("float32"), interpreter.tl.float32)

    def create_dot(self, a, b, *rest):
        return plain(self, widened(a), widened(b), *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot


def main(output):
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    from fmerge.fisher.engine import triton_kernel as kernel

    read_bfloat16(interpreter)
    # the CPU taken for an accelerator of few multiprocessors
    properties = type("", (), {"multi_processor_count": 5})()
    torch.cuda.get_device_capability = lambda device: (9, 0)
    torch.cuda.get_device_properties = lambda device: properties
    found = {}
    for name, inputs in INPUTS.items():
        left, right, total = inputs.make()
        kernel.add_squares(left, right, total, inputs.side)
        found[name] = total

    found["two uses"] = two_uses(kernel.add_if_faster)
    torch.save(found, output)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
