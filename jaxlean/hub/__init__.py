"""Hugging Face models in and out: names, configs, safetensors, PEFT adapters."""
