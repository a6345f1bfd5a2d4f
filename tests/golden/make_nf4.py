"""What bitsandbytes makes of a small matrix: the golden file of tests/test_codec.py.

    pip install torch bitsandbytes && python tests/golden/make_nf4.py

Made with bitsandbytes 0.50.2 and torch 2.13 on CPU. Writes nf4.npz: the weight [out, in], its packed NF4 codes and
absmaxes, and the 8-bit table of its double quantization.
"""

from pathlib import Path

import bitsandbytes.functional as bnb
import numpy as np
import torch

torch.manual_seed(0)
weight = torch.randn(24, 128) * 0.02  # blocks of 64 do not reach over the end of a row
weight[3, 70], weight[5] = 0.5, 0.0
codes, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=False, quant_type="nf4")
_, double = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
np.savez_compressed(
    Path(__file__).parent / "nf4.npz",
    weight=weight.numpy(),
    codes=codes.numpy().reshape(24, 64),
    absmax=state.absmax.numpy().reshape(24, 2),
    decoded=bnb.dequantize_4bit(codes, state).numpy(),
    offset=double.offset.numpy(),
    table=double.state2.code.numpy(),
)
