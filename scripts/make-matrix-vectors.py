#!/usr/bin/env python3
"""Makes tests/data/matrix_vectors: random weights in every format that is served, and what the formats' own
implementations (the Python packages gguf and mlx) decode them to.

    make-matrix-vectors.py OUTPUT_DIRECTORY        needs numpy, gguf, mlx and safetensors

gguf.safetensors: FORMAT.data (u8, rows of whole blocks) and FORMAT.values (f32).
mlx.safetensors:  b4.g64.bf16.weight, .scales and .biases as mlx.core.quantize() made them, .values (f32, scale * q
                  + bias in fp32) and .mlx (what mlx.core.dequantize() gives, in the type of the scales).
"""
import os
import sys

import gguf
import mlx.core as mx
import numpy as np
from safetensors.numpy import save_file

ROWS, COLS = 2, 512
rng = np.random.default_rng(20240229)


def gguf_vectors():
    out = {}
    for name, kind, halves in (
        ("q4_0", gguf.GGMLQuantizationType.Q4_0, [0]),
        ("q8_0", gguf.GGMLQuantizationType.Q8_0, [0]),
        ("q4_k", gguf.GGMLQuantizationType.Q4_K, [0, 2]),
        ("q6_k", gguf.GGMLQuantizationType.Q6_K, [208]),
    ):
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (ROWS * COLS // elements, size), dtype=np.uint8)
        for at in halves:
            scale = (rng.standard_normal(len(blocks)) * 0.02).astype(np.float16)
            scale[0] = np.float16(3e-6)  # subnormal
            blocks[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
        data = blocks.reshape(ROWS, -1)
        out[f"{name}.data"] = data
        out[f"{name}.values"] = gguf.dequantize(data, kind).astype(np.float32).reshape(ROWS, COLS)
    return out


def unpack(weight, bits):
    stream = np.unpackbits(weight.view(np.uint8), axis=1, bitorder="little")
    return (stream.reshape(len(weight), -1, bits) << np.arange(bits)).sum(2).astype(np.float32)


def mlx_vectors():
    out = {}
    rows, cols = 2, 256
    for bits in (3, 4, 5, 6, 8):
        for group in (32, 64, 128):
            for dtype, name in ((mx.float16, "f16"), (mx.bfloat16, "bf16")):
                w = mx.array((rng.standard_normal((rows, cols)) * 0.03).astype(np.float32)).astype(dtype)
                q, scales, biases = mx.quantize(w, group_size=group, bits=bits)
                back = mx.dequantize(q, scales, biases, group_size=group, bits=bits)
                key = f"b{bits}.g{group}.{name}"
                s, b = (np.repeat(np.array(x.astype(mx.float32)), group, axis=1) for x in (scales, biases))
                codes = unpack(np.array(q), bits)
                out |= {f"{key}.weight": q, f"{key}.scales": scales, f"{key}.biases": biases, f"{key}.mlx": back}
                out[f"{key}.values"] = mx.array(s * codes + b)
    return out


def main():
    directory = sys.argv[1]
    os.makedirs(directory, exist_ok=True)
    save_file(gguf_vectors(), os.path.join(directory, "gguf.safetensors"))
    mx.save_safetensors(os.path.join(directory, "mlx.safetensors"), mlx_vectors())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main()
