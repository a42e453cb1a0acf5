"""A small random Llama checkpoint (float32 safetensors, byte-level BPE tokenizer), written with the standard library
only. Greedy text from it is printable ASCII and never ends: the output rows of all other tokens are zero.
And writers of safetensors and GGUF files for other test models."""

import array
import json
import os
import random
import struct

DIM, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, CONTEXT = 128, 2, 8, 4, 16, 256, 2048
BEGIN, END = 0, 1
MERGES = [("t", "h"), ("th", "e"), ("i", "n"), ("\u0120", "a")]


def byte_characters():
    """The printable stand-ins of the 256 bytes in byte-level BPE (GPT-2's table)."""
    plain = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    table, extra = {}, 0
    for byte in range(256):
        if byte in plain:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(256 + extra)
            extra += 1
    return table


def vocabulary():
    tokens = ["<|begin|>", "<|end|>"] + list(byte_characters().values()) + ["".join(pair) for pair in MERGES]
    return {token: i for i, token in enumerate(tokens)}


def added_token(number, content):
    return {"id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True}


def write_tokenizer(path):
    begin = {"SpecialToken": {"id": "<|begin|>", "type_id": 0}}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(BEGIN, "<|begin|>"), added_token(END, "<|end|>")],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [BEGIN], "tokens": ["<|begin|>"]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocabulary(), "merges": [list(pair) for pair in MERGES]},
    }
    with open(os.path.join(path, "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(tokenizer, f)
    with open(os.path.join(path, "tokenizer_config.json"), "w", encoding="utf-8") as f:
        json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|end|>"}, f)


def write_config(path):
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "attention_bias": False,
        "mlp_bias": False, "bos_token_id": BEGIN, "eos_token_id": END, "head_dim": HEAD_DIM, "hidden_size": DIM,
        "intermediate_size": FFN, "max_position_embeddings": CONTEXT, "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS, "num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "torch_dtype": "float32", "vocab_size": len(vocabulary()),
    }
    with open(os.path.join(path, "config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f)


def tensors():
    """Yields (name, shape, values)."""
    rng = random.Random(1)

    def matrix(rows, columns, scale):
        return array.array("f", (rng.gauss(0, scale) for _ in range(rows * columns)))

    n_vocab = len(vocabulary())
    ones = array.array("f", [1.0] * DIM)
    yield "model.embed_tokens.weight", (n_vocab, DIM), matrix(n_vocab, DIM, 1.0)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (DIM,), ones
        yield prefix + "post_attention_layernorm.weight", (DIM,), ones
        shapes = {"self_attn.q_proj": (HEADS * HEAD_DIM, DIM), "self_attn.k_proj": (KV_HEADS * HEAD_DIM, DIM),
                  "self_attn.v_proj": (KV_HEADS * HEAD_DIM, DIM), "self_attn.o_proj": (DIM, HEADS * HEAD_DIM),
                  "mlp.gate_proj": (FFN, DIM), "mlp.up_proj": (FFN, DIM), "mlp.down_proj": (DIM, FFN)}
        for name, (rows, columns) in shapes.items():
            yield prefix + name + ".weight", (rows, columns), matrix(rows, columns, 0.15)
    yield "model.norm.weight", (DIM,), ones
    head = matrix(n_vocab, DIM, 0.15)
    characters = byte_characters()
    printable = {i for token, i in vocabulary().items() if token in (characters[b] for b in range(32, 127))}
    for row in set(range(n_vocab)) - printable:
        head[row * DIM:(row + 1) * DIM] = array.array("f", [0.0] * DIM)
    yield "lm_head.weight", (n_vocab, DIM), head


def pack_floats(values, dtype="F32"):
    """Bytes of numbers as F32, F16 or BF16 (which cuts what BF16 cannot hold)."""
    data = struct.pack(f"<{len(values)}{'e' if dtype == 'F16' else 'f'}", *values)
    if dtype != "BF16":
        return data
    halves = bytearray(len(data) // 2)
    halves[0::2], halves[1::2] = data[2::4], data[3::4]
    return bytes(halves)


def write_safetensors(file, tensors):
    """tensors: {name: (dtype, shape, bytes)}"""
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            f.write(data)


# ggml's numbers of tensor types
GGML_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14, "BF16": 30}


def write_gguf(file, metadata, tensors, version=3, alignment=32):
    """metadata: {key: int, float or str}; tensors: {name: (dtype, shape, bytes)}"""

    def string(s):
        return struct.pack("<Q", len(s.encode())) + s.encode()

    if alignment != 32:
        metadata = {**metadata, "general.alignment": alignment}
    parts = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(metadata))]
    for key, value in metadata.items():
        number, data = ((4, struct.pack("<I", value)) if isinstance(value, int) else
                        (6, struct.pack("<f", value)) if isinstance(value, float) else (8, string(value)))
        parts.append(string(key) + struct.pack("<I", number) + data)
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        parts.append(string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape)) +
                     struct.pack("<IQ", GGML_TYPES[dtype], offset))
        offset += len(data) + -len(data) % alignment
    header = b"".join(parts)
    with open(file, "wb") as f:
        f.write(header + b"\0" * (-len(header) % alignment))
        for _, _, data in tensors.values():
            f.write(data + b"\0" * (-len(data) % alignment))


def write_weights(path):
    write_safetensors(os.path.join(path, "model.safetensors"),
                      {name: ("F32", shape, pack_floats(values)) for name, shape, values in tensors()})


def write(path):
    os.makedirs(path)
    write_config(path)
    write_tokenizer(path)
    write_weights(path)
