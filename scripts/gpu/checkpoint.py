"""A Llama checkpoint of random bf16 weights from a seed, with the smallest tokenizer that serves, as a folder.

The weights are those of a trained model in size and count only: norms are ones, matrices normal with a deviation that keeps
activations within range. config.json is written last: a folder that has one is whole, and is left as it is.
"""

import argparse
import json
import pathlib
import sys

SEED = 1
SHAPES = {
    # name: hidden, layers, heads, KV heads, head_dim, intermediate, vocab
    "8b": (4096, 32, 32, 8, 128, 14336, 128256),
    "small": (256, 2, 4, 2, 64, 512, 1024),
}
CHAT = ("{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")
SHARD_BYTES = 4 << 30
END = 256  # the id of the end of text, after the bytes


def config(shape):
    hidden, layers, heads, kv_heads, head_dim, intermediate, vocab = SHAPES[shape]
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
        "intermediate_size": intermediate, "vocab_size": vocab, "max_position_embeddings": 131072, "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": False, "bos_token_id": END, "eos_token_id": END, "torch_dtype": "bfloat16",
    }


def byte_letters():
    """The 256 letters that byte-level BPE writes bytes as (GPT-2's table): itself where printable, else from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(rest))]


def tokenizer(vocab_size):
    """Byte-level BPE without merges; ids past the bytes and the end have names, so that each can be written."""
    vocab = {letter: i for i, letter in enumerate(byte_letters())}
    vocab |= {f"<{i}>": i for i in range(END + 1, vocab_size)}
    end = {"id": END, "content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
           "special": True}
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [end], "normalizer": None,
        "pre_tokenizer": bytes_only, "post_processor": None, "decoder": bytes_only,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": []},
    }


def tensors(shape):
    """(name, dimensions) of every tensor, in the order of the model."""
    hidden, layers, heads, kv_heads, head_dim, intermediate, vocab = SHAPES[shape]
    yield "model.embed_tokens.weight", (vocab, hidden)
    for i in range(layers):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", (hidden,)
        for name, width in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            yield f"{layer}self_attn.{name}_proj.weight", (width * head_dim, hidden)
        yield layer + "self_attn.o_proj.weight", (hidden, heads * head_dim)
        yield layer + "post_attention_layernorm.weight", (hidden,)
        for name in ("gate", "up"):
            yield f"{layer}mlp.{name}_proj.weight", (intermediate, hidden)
        yield layer + "mlp.down_proj.weight", (hidden, intermediate)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def num_params(shape):
    """(all, those that a token is multiplied by: without the embedding)."""
    sizes = {name: dims[0] * (dims[1] if len(dims) > 1 else 1) for name, dims in tensors(shape)}
    return sum(sizes.values()), sum(sizes.values()) - sizes["model.embed_tokens.weight"]


def head_params(shape):
    hidden, *_, vocab = SHAPES[shape]
    return hidden * vocab


def write_safetensors(torch, path, entries, where):
    """The format of huggingface/safetensors: a header's length, the header, the values. `entries` are (name, dimensions)."""
    header, end = {}, 0
    for name, dims in entries:
        begin, end = end, end + 2 * torch.Size(dims).numel()
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, dims in entries:
            if len(dims) == 1:
                values = torch.ones(dims, dtype=torch.bfloat16)
            else:
                values = torch.empty(dims, dtype=torch.bfloat16, device=where).normal_(0, dims[1] ** -0.5).cpu()
            file.write(values.view(torch.uint8).numpy())


def kv_bytes_per_token(shape):
    """In bf16."""
    _, layers, _, kv_heads, head_dim, _, _ = SHAPES[shape]
    return 2 * 2 * layers * kv_heads * head_dim


def make(shape, scratch):
    """The checkpoint's folder under `scratch`, made unless it is there."""
    folder = pathlib.Path(scratch) / f"random-{shape}"
    if (folder / "config.json").exists():
        return folder
    import torch

    where = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(SEED)
    folder.mkdir(parents=True, exist_ok=True)
    shards = [[]]
    for name, dims in tensors(shape):
        if sum(2 * torch.Size(d).numel() for _, d in shards[-1]) > SHARD_BYTES:
            shards.append([])
        shards[-1].append((name, dims))
    index, names = {}, [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, entries in zip(names, shards):
        write_safetensors(torch, folder / file, entries, where)
        index |= {name: file for name, _ in entries}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    described = config(shape)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(described["vocab_size"])))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": CHAT}))
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "eos_token_id": END}))
    (folder / "config.json").write_text(json.dumps(described, indent=1))
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("scratch", help="the folder that gets the checkpoint's")
    args = parser.parse_args()
    print(f"{make(args.shape, args.scratch)}: {num_params(args.shape)[0] / 1e6:.1f} million parameters")


if __name__ == "__main__":
    sys.exit(main())
