"""Reading and writing models/demo: the plain Hugging Face folder layout."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from data import Encoder
from model import Config, Llama

DEMO = Path(__file__).parents[2] / "models/demo"


def replace(path, write):
    """Writes a file beside its place and moves it in, so that no reader sees half of it."""
    beside = path.with_name(path.name + ".part")
    write(beside)
    beside.chmod(0o644)
    os.replace(beside, path)


def write_json(path, values):
    replace(path, lambda at: at.write_text(json.dumps(values, indent=2) + "\n"))


def save(model, encoder, out):
    out.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
    }
    stops = [encoder.end, encoder.pad]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **model.config.to_dict(),
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": encoder.pad,
        "eos_token_id": stops,
        "pad_token_id": encoder.pad,
        "torch_dtype": "bfloat16",
    }
    generation = {
        "bos_token_id": encoder.pad,
        "eos_token_id": stops,
        "pad_token_id": encoder.pad,
        "do_sample": False,
    }
    replace(out / "model.safetensors", lambda at: save_file(weights, at, {"format": "pt"}))
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", generation)


def load_encoder(folder=DEMO):
    return Encoder(Tokenizer.from_file(str(folder / "tokenizer.json")))


def load(folder=DEMO):
    config = Config.from_dict(json.loads((folder / "config.json").read_text()))
    model = Llama(config)
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model
