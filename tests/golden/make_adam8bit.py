"""What bitsandbytes makes of small matrices in 8 bits: the golden file of tests/train/test_adam8bit.py.

    pip install torch bitsandbytes && python tests/golden/make_adam8bit.py

Made with bitsandbytes 0.50.2 and torch 2.13 on CPU. Writes adam8bit.npz: its two tables of values; numbers of many
magnitudes [4, 512] with their codes and blocks' largest; gradients [steps, 8, 512], in units of 1 / 1024, with the last
of the steps that its Adam makes of them at a learning rate of 1.
"""

from pathlib import Path

import bitsandbytes as bnb
import numpy as np
import torch

random = np.random.default_rng(0)
found: dict[str, np.ndarray] = {}

numbers = torch.tensor(random.standard_normal((4, 512)) * 10 ** random.uniform(-9, 0, (4, 512)), dtype=torch.float32)
for signed, x in ((True, numbers), (False, numbers.abs())):
    table = bnb.functional.create_dynamic_map(signed=signed)
    # float64 takes the way that looks for the nearest value, as a GPU does. In float32 on CPU it looks the code up by
    # the first 16 bits of a share, and all small ones have the same.
    codes, largest = torch.ops.bitsandbytes.quantize_blockwise(x.double(), table, 256)
    name = "signed" if signed else "unsigned"
    found |= {f"{name}_table": table.numpy(), f"{name}_codes": codes.numpy(), "largest": largest.numpy()}

gradients = np.rint(random.standard_normal((4, 8, 512)) * 30).astype(np.int8)
parameter = torch.nn.Parameter(torch.zeros(8, 512))
adam = bnb.optim.Adam8bit([parameter], lr=1.0, betas=(0.9, 0.999), eps=1e-8)
for gradient in gradients:
    with torch.no_grad():
        parameter.zero_()  # so that what is added is read without rounding
    parameter.grad = torch.tensor(gradient, dtype=torch.float32) / 1024
    adam.step()
np.savez_compressed(
    Path(__file__).parent / "adam8bit.npz",
    numbers=numbers.numpy(),
    gradients=gradients,
    last_step=-parameter.detach().numpy(),
    **found,
)
