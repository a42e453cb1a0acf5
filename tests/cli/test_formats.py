"""The same model in different files: python3 test_formats.py path/to/yoke [unittest arguments].

Float weights must give the same bits from every container. Quantised ones must give what their values, dequantised
here by the formats' definitions, give in F32, but for the rounding of activations to 8 bits. Damaged files must be
refused in one line that names the file and the tensor, and a failed write must leave what was there."""

import json
import math
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import unittest

import test_cli
import tiny_model
from test_cli import YokeTest, floats, path, write_file
from tiny_model import pack_floats, write_gguf, write_safetensors

DIM, FFN, HEADS, KV_HEADS, HEAD_DIM, LAYERS, VOCABULARY = 256, 512, 4, 2, 64, 2, 300
IDS = [1, 299, 17, 42, 256, 255, 0, 128, 42, 42, 3, 77, 211, 150, 90, 12]
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "head_dim": HEAD_DIM,
    "hidden_size": DIM, "intermediate_size": FFN, "max_position_embeddings": 1024, "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS, "num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "vocab_size": VOCABULARY,
}
METADATA = {
    "general.architecture": "llama", "llama.block_count": LAYERS, "llama.embedding_length": DIM,
    "llama.feed_forward_length": FFN, "llama.attention.head_count": HEADS, "llama.attention.head_count_kv": KV_HEADS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 10000.0, "llama.context_length": 1024,
    "llama.rope.dimension_count": HEAD_DIM,
}
# Hugging Face's name: llama.cpp's name, shape
MODEL_WIDE = {
    "model.embed_tokens": ("token_embd", (VOCABULARY, DIM)), "model.norm": ("output_norm", (DIM,)),
    "lm_head": ("output", (VOCABULARY, DIM)),
}
IN_LAYER = {
    "input_layernorm": ("attn_norm", (DIM,)), "self_attn.q_proj": ("attn_q", (HEADS * HEAD_DIM, DIM)),
    "self_attn.k_proj": ("attn_k", (KV_HEADS * HEAD_DIM, DIM)),
    "self_attn.v_proj": ("attn_v", (KV_HEADS * HEAD_DIM, DIM)),
    "self_attn.o_proj": ("attn_output", (DIM, HEADS * HEAD_DIM)), "post_attention_layernorm": ("ffn_norm", (DIM,)),
    "mlp.gate_proj": ("ffn_gate", (FFN, DIM)), "mlp.up_proj": ("ffn_up", (FFN, DIM)),
    "mlp.down_proj": ("ffn_down", (DIM, FFN)),
}
DOWN = "model.layers.0.mlp.down_proj"  # the matrix that the tests of single tensors change
NORM = "model.layers.1.input_layernorm"


def setUpModule():
    test_cli.TEMPORARY = tempfile.mkdtemp(prefix="yoke-formats-")


def tearDownModule():
    shutil.rmtree(test_cli.TEMPORARY)


def modules(tied=False):
    """{Hugging Face's name without .weight: (llama.cpp's name without .weight, shape)}"""
    all_of_them = {}
    for name, entry in MODEL_WIDE.items():
        if name != "lm_head" or not tied:
            all_of_them[name] = entry
    for layer in range(LAYERS):
        for name, (gguf_name, shape) in IN_LAYER.items():
            all_of_them[f"model.layers.{layer}.{name}"] = (f"blk.{layer}.{gguf_name}", shape)
    return all_of_them


# ---- making weights ----

class Weights:
    """A random model: for every module its values and its bytes in one format, and {name: tensor} as files hold it."""

    def __init__(self, make, tied=False, seed=1):
        """make(rng, name, rows, columns) returns a list of values and {suffix: (dtype, shape, bytes)}."""
        rng = random.Random(seed)
        self.values, self.tensors = {}, {}
        for name, (_, shape) in modules(tied).items():
            if len(shape) == 1:
                values = [rng.randint(32, 96) / 64 for _ in range(shape[0])]  # exact in every type
                parts = {".weight": ("F32", shape, pack_floats(values))}
            else:
                values, parts = make(rng, name, *shape)
            self.values[name] = (shape, values)
            for suffix, tensor in parts.items():
                self.tensors[name + suffix] = tensor

    def as_floats(self, dtype="F32"):
        return {name + ".weight": (dtype, shape, pack_floats(values, dtype))
                for name, (shape, values) in self.values.items()}


def deviation(name, columns):
    return 1 if name == "model.embed_tokens" else columns ** -0.5


def make_floats(rng, name, rows, columns):
    """Values that F32, F16 and BF16 hold exactly: 8 bits and a sign, uniform."""
    step = deviation(name, columns) * 3 ** 0.5 / 255
    step = 2.0 ** round(math.log2(step))
    codes = memoryview(rng.randbytes(2 * rows * columns)).cast("H")
    values = [((c & 255) + 1) * (step if c & 256 else -step) for c in codes]
    return values, {".weight": ("F32", (rows, columns), pack_floats(values))}


def half(x):
    return struct.pack("<e", x)


def vary(rng, scale):
    return scale * rng.uniform(0.75, 1.25) * rng.choice((-1, 1))


def block_q4_0(rng, scale):
    return half(vary(rng, scale / 4.6)) + rng.randbytes(16)


def block_q8_0(rng, scale):
    return half(vary(rng, scale / 74)) + rng.randbytes(32)


def block_q4_k(rng, scale):
    # With mins near 7.5 times the scales, values lie around zero.
    sub_scales = [rng.randint(20, 63) for _ in range(8)]
    mins = [min(63, max(0, s + rng.randint(-3, 3))) for s in sub_scales]
    packed = bytearray(12)
    for j in range(4):
        packed[j] = sub_scales[j] | (sub_scales[j + 4] >> 4) << 6
        packed[j + 4] = mins[j] | (mins[j + 4] >> 4) << 6
        packed[j + 8] = (sub_scales[j + 4] & 15) | (mins[j + 4] & 15) << 4
    d = scale / 4.6 / 44 * rng.uniform(0.75, 1.25)
    return half(d) + half(7.5 * d) + bytes(packed) + rng.randbytes(128)


def block_q6_k(rng, scale):
    # One sub-scale in 16 is zero or the extreme of its type.
    sub_scales = bytes(rng.choice((0, 128, 127)) if rng.random() < 1 / 16 else rng.randint(40, 127) ^
                       (0xff if rng.random() < 0.5 else 0) for _ in range(16))
    return rng.randbytes(192) + sub_scales + half(vary(rng, scale / 18.5 / 84))


# ---- the formats' definitions ----

def decode_q4_0(block):
    d, = struct.unpack_from("<e", block)
    return [d * ((c & 15) - 8) for c in block[2:]] + [d * ((c >> 4) - 8) for c in block[2:]]


def decode_q8_0(block):
    d, *codes = struct.unpack("<e32b", block)
    return [d * c for c in codes]


def decode_q4_k(block):
    d, dmin = struct.unpack_from("<ee", block)
    s, values = block[4:16], []
    for j in range(8):
        scale, minimum = ((s[j] & 63, s[j + 4] & 63) if j < 4 else
                          ((s[j + 4] & 15) | (s[j - 4] >> 6) << 4, (s[j + 4] >> 4) | (s[j] >> 6) << 4))
        codes, shift = block[16 + j // 2 * 32:][:32], j % 2 * 4
        scale, minimum = d * scale, dmin * minimum
        values += [scale * (c >> shift & 15) - minimum for c in codes]
    return values


def decode_q6_k(block):
    d, = struct.unpack_from("<e", block, 208)
    scales, values = struct.unpack_from("<16b", block, 192), []
    for half_block in range(2):
        low, high = block[64 * half_block:][:64], block[128 + 32 * half_block:][:32]
        for quarter in range(4):
            codes = low[quarter % 2 * 32:][:32]
            for i, (code, bits) in enumerate(zip(codes, high, strict=True)):
                q = (code >> quarter // 2 * 4 & 15) | (bits >> 2 * quarter & 3) << 4
                values.append(d * scales[half_block * 8 + quarter * 2 + i // 16] * (q - 32))
    return values


BLOCKS = {"Q4_0": (block_q4_0, decode_q4_0, 32), "Q8_0": (block_q8_0, decode_q8_0, 32),
          "Q4_K": (block_q4_k, decode_q4_k, 256), "Q6_K": (block_q6_k, decode_q6_k, 256)}


def blocks_of(dtype, others=None):
    """Makes matrices of GGUF's block formats: `others` where it names the module's last part, else `dtype`."""

    def make(rng, name, rows, columns):
        kind = (others or {}).get(name.split(".")[-1], dtype)
        encode, decode, size = BLOCKS[kind]
        scale = deviation(name, columns)
        blocks = [encode(rng, scale) for _ in range(rows * columns // size)]
        values = [x for block in blocks for x in decode(block)]
        return values, {".weight": (kind, (rows, columns), b"".join(blocks))}

    return make


def mlx_of(bits, group, overrides=None, dtype="F16"):
    """Makes matrices of MLX's affine format; overrides: {module: (bits, group)}."""

    def make(rng, name, rows, columns):
        b, g = (overrides or {}).get(name, (bits, group))
        n_groups, step = rows * columns // g, deviation(name, columns) * 12 ** 0.5 / 2 ** b
        scales = [vary(rng, step) for _ in range(n_groups)]
        biases = [-s * (2 ** b - 1) / 2 * rng.uniform(0.9, 1.1) for s in scales]
        stream = rng.randbytes(rows * columns * b // 8)
        scale_bytes, bias_bytes = pack_floats(scales, dtype), pack_floats(biases, dtype)
        values, mask, piece = [], 2 ** b - 1, 4 * b  # 32 codes at a time
        stored = zip(unpack_floats(scale_bytes, dtype), unpack_floats(bias_bytes, dtype), strict=True)
        for i, (scale, bias) in enumerate(stored):
            for k in range(g // 32):
                codes = int.from_bytes(stream[(i * g // 32 + k) * piece:][:piece], "little")
                values += [scale * (codes >> shift & mask) + bias for shift in range(0, 32 * b, b)]
        return values, {".weight": ("U32", (rows, columns * b // 32), stream),
                        ".scales": (dtype, (rows, columns // g), scale_bytes),
                        ".biases": (dtype, (rows, columns // g), bias_bytes)}

    return make


def unpack_floats(data, dtype):
    if dtype == "F16":
        return struct.unpack(f"<{len(data) // 2}e", data)
    if dtype == "BF16":
        data = b"".join(b"\0\0" + data[i:i + 2] for i in range(0, len(data), 2))
    return struct.unpack(f"<{len(data) // 4}f", data)


# ---- writing files ----

def write_directory(name, tensors, n_shards=1, **config):
    """A checkpoint directory as Hugging Face and MLX have them."""
    os.makedirs(path(name))
    write_file(f"{name}/config.json", json.dumps({**CONFIG, **config}).encode())
    if n_shards == 1:
        write_safetensors(path(f"{name}/model.safetensors"), tensors)
        return path(name)
    weight_map = {}
    for i in range(n_shards):
        shard = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        part = dict(list(tensors.items())[i::n_shards])
        write_safetensors(path(f"{name}/{shard}"), part)
        weight_map.update(dict.fromkeys(part, shard))
    write_file(f"{name}/model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": weight_map}).encode())
    return path(name)


def interleave(data, heads):
    """llama.cpp's order of the rows of q and k: the halves of a head alternate."""
    size = len(data) // (heads * HEAD_DIM)
    rows = [data[i:i + size] for i in range(0, len(data), size)]
    return b"".join(rows[head * HEAD_DIM + j + second * HEAD_DIM // 2] for head in range(heads)
                    for j in range(HEAD_DIM // 2) for second in range(2))


def gguf_tensors(tensors):
    """The tensors of a directory under llama.cpp's names and in its order of rows."""
    names, out = modules(), {}
    for name, (dtype, shape, data) in tensors.items():
        module = name.removesuffix(".weight")
        if module.endswith(("q_proj", "k_proj")):
            data = interleave(data, HEADS if module.endswith("q_proj") else KV_HEADS)
        out[names[module][0] + ".weight"] = (dtype, shape, data)
    return out


def write_model(name, tensors, metadata=None, **options):
    write_gguf(path(name), {**METADATA, **(metadata or {})}, tensors, **options)
    return path(name)


def write_split(name, tensors, n_parts):
    items = list(tensors.items())
    for i in range(n_parts):
        split = {"split.no": i, "split.count": n_parts, "split.tensors.count": len(items)}
        part = dict(items[i * len(items) // n_parts:(i + 1) * len(items) // n_parts])
        write_gguf(path(f"{name}-{i + 1:05}-of-{n_parts:05}.gguf"), {**METADATA, **split} if i == 0 else split, part)
    return path(f"{name}-00001-of-{n_parts:05}.gguf")


class FormatTest(YokeTest):
    def logits(self, model, *options):
        return self.done("logits", model, "--ids", ",".join(map(str, IDS)), "-o", "-", "--kv", "f32", *options)

    def close(self, ours, theirs, error, correlation):
        """Relative error (L2) and correlation of every position's logits."""
        ours, theirs = floats(ours), floats(theirs)
        self.assertEqual(len(ours), len(IDS) * VOCABULARY)
        self.assertEqual(len(theirs), len(ours))
        for i in range(0, len(ours), VOCABULARY):
            a, b = ours[i:i + VOCABULARY], theirs[i:i + VOCABULARY]
            difference = math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
            norms = math.hypot(*a), math.hypot(*b)
            self.assertLess(difference / norms[1], error, f"position {i // VOCABULARY}")
            cosine = sum(x * y for x, y in zip(a, b, strict=True)) / (norms[0] * norms[1])
            self.assertGreater(cosine, correlation, f"position {i // VOCABULARY}")


# ---- tests ----

class Containers(FormatTest):
    """Float weights: the same bits from every file."""

    def test_f32(self):
        for tied in [False, True]:
            tensors = Weights(make_floats, tied).as_floats()
            kind = "tied" if tied else "untied"
            expected = self.logits(write_directory(f"f32-{kind}", tensors, tie_word_embeddings=tied))
            self.assertGreater(max(floats(expected)), 0.1)
            as_gguf = gguf_tensors(tensors)
            files = {
                "gguf": write_model(f"f32-{kind}.gguf", as_gguf),
                "version 2, alignment 256": write_model(f"f32-{kind}-2.gguf", as_gguf, version=2, alignment=256),
                "split": write_split(f"f32-{kind}", as_gguf, 2),
                "sharded": write_directory(f"f32-{kind}-sharded", tensors, 3, tie_word_embeddings=tied),
            }
            for name, file in files.items():
                with self.subTest(kind + ", " + name):
                    self.assertEqual(self.logits(file), expected)
            self.assertEqual(self.logits(files["split"], "--tp", "4"), expected)

    def test_a_head_that_is_not_tied_matters(self):
        tensors = Weights(make_floats).as_floats()
        untied = self.logits(write_directory("head", tensors))
        head = tensors.pop("lm_head.weight")
        tied = self.logits(write_directory("headless", tensors))  # an old checkpoint: not called tied, but no head
        self.assertNotEqual(tied, untied)
        self.assertEqual(self.logits(write_model("headless.gguf", gguf_tensors(tensors))), tied)
        both = write_directory("both", {**tensors, "lm_head.weight": head}, tie_word_embeddings=True)
        self.assertEqual(self.logits(both), tied)

    def test_16_bits(self):
        weights = Weights(make_floats)
        expected = self.logits(write_directory("wide", weights.as_floats()))
        for dtype in ["F16", "BF16"]:
            tensors = weights.as_floats(dtype)
            with self.subTest(dtype):
                self.assertEqual(self.logits(write_directory(f"narrow-{dtype}", tensors)), expected)
                as_gguf = gguf_tensors(tensors)
                for name, tensor in gguf_tensors(weights.as_floats()).items():
                    if len(tensor[1]) == 1:
                        as_gguf[name] = tensor  # GGUF keeps norms in F32
                self.assertEqual(self.logits(write_model(f"narrow-{dtype}.gguf", as_gguf)), expected)


class Quantised(FormatTest):
    """Quantised weights: what their values give in F32, but for 8-bit activations and requantised scales."""

    def check(self, file, exact, error=0.03):
        """Activations alone cost 1.6 to 2.4 %; few and coarse codes suffer more from 7-bit scales."""
        one = self.logits(file, "--tp", "1")
        self.assertNotEqual(one, exact)
        self.close(one, exact, error, correlation=0.999)
        self.assertEqual(self.logits(file, "--tp", "4"), one)

    def test_gguf(self):
        kinds = {kind: blocks_of(kind) for kind in BLOCKS}
        kinds["mixed"] = blocks_of("Q4_K", {"v_proj": "Q6_K", "down_proj": "Q6_K", "lm_head": "Q6_K",
                                            "embed_tokens": "Q8_0", "o_proj": "Q4_0"})
        for kind, make in kinds.items():
            with self.subTest(kind):
                weights = Weights(make)
                exact = self.logits(write_directory(f"exact-{kind}", weights.as_floats()))
                file = write_model(f"{kind}.gguf", gguf_tensors(weights.tensors))
                self.check(file, exact)

    def test_mlx(self):
        for bits, group, dtype in [(4, 64, "F16"), (6, 64, "F16"), (8, 64, "BF16"), (4, 32, "BF16"), (6, 128, "F16"),
                                   (8, 32, "F32"), (4, 128, "F16"), (3, 64, "F16"), (5, 64, "F16")]:
            with self.subTest(bits=bits, group=group):
                weights = Weights(mlx_of(bits, group, dtype=dtype))
                name = f"mlx-{bits}-{group}"
                exact = self.logits(write_directory(name + "-exact", weights.as_floats()))
                quantization = {"bits": bits, "group_size": group}
                self.check(write_directory(name, weights.tensors, quantization=quantization), exact,
                           error=0.04 if bits == 3 else 0.03)

    def test_mlx_with_overrides(self):
        own = {DOWN: (8, 64), "model.embed_tokens": (6, 32), "lm_head": (6, 128)}
        weights = Weights(mlx_of(4, 64, own), seed=2)
        exact = self.logits(write_directory("own-exact", weights.as_floats()))
        quantization = {"bits": 4, "group_size": 64,
                        **{module: {"bits": b, "group_size": g} for module, (b, g) in own.items()}}
        file = write_directory("own", weights.tensors, quantization=quantization)
        self.check(file, exact)
        # The same under the other name, and a module that stayed in floats (as MLX says so: false).
        tensors = {k: v for k, v in weights.tensors.items() if not k.startswith(DOWN)}
        tensors[DOWN + ".weight"] = weights.as_floats()[DOWN + ".weight"]
        config = {**quantization, DOWN: False}
        self.check(write_directory("own-float", tensors, quantization_config=config), exact)

    def test_wrong_bits_are_noticed(self):
        tensors = Weights(mlx_of(4, 64)).tensors
        model = write_directory("wrong-bits", tensors, quantization={"bits": 8, "group_size": 64})
        self.refused(1, r"wrong-bits.*tensor", "logits", model, "--ids", "1", "-o", "-")


class Rope(FormatTest):
    """Scaled rotary frequencies: as config.json and as GGUF say it."""

    @classmethod
    def setUpClass(cls):
        cls.tensors = Weights(make_floats).as_floats()
        cls.as_gguf = gguf_tensors(cls.tensors)

    def test_llama3(self):
        scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 256}
        factors = []
        for i in range(HEAD_DIM // 2):
            wavelength = 2 * math.pi * 10000 ** (2 * i / HEAD_DIM)
            turns = 256 / wavelength
            if turns > 4:
                factors.append(1.0)
            elif turns < 1:
                factors.append(8.0)
            else:
                smooth = (turns - 1) / (4 - 1)
                factors.append(1 / ((1 - smooth) / 8 + smooth))
        self.assertGreater(sum(1 < f < 8 for f in factors), 2)
        frequencies = {"rope_freqs.weight": ("F32", (HEAD_DIM // 2,), pack_floats(factors))}
        expected = self.logits(write_directory("llama3", self.tensors, rope_scaling=scaling))
        file = write_model("llama3.gguf", {**frequencies, **self.as_gguf})
        self.close(self.logits(file), expected, error=1e-5, correlation=1 - 1e-9)
        plain = write_model("plain.gguf", self.as_gguf)
        with self.assertRaises(AssertionError):
            self.close(self.logits(plain), expected, error=1e-3, correlation=0)

    def test_linear(self):
        old = {"type": "linear", "factor": 4.0}
        new = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
        expected = self.logits(write_directory("linear", self.tensors, rope_scaling=old))
        metadata = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
        self.assertEqual(self.logits(write_directory("linear-new", self.tensors, rope_parameters=new)), expected)
        self.assertEqual(self.logits(write_model("linear.gguf", self.as_gguf, metadata)), expected)
        factors = {"rope_freqs.weight": ("F32", (HEAD_DIM // 2,), pack_floats([4.0] * (HEAD_DIM // 2)))}
        self.close(self.logits(write_model("by-factors.gguf", {**self.as_gguf, **factors})), expected, error=1e-5,
                   correlation=1 - 1e-9)
        self.assertNotEqual(self.logits(write_directory("unscaled", self.tensors)), expected)

    def test_theta(self):
        expected = self.logits(write_directory("theta", self.tensors, rope_theta=500000.0))
        file = write_model("theta.gguf", self.as_gguf, {"llama.rope.freq_base": 500000.0})
        self.assertEqual(self.logits(file), expected)


class Damaged(FormatTest):
    """One line that names the file and the tensor; exit status 1."""

    def refused_model(self, model, *parts):
        """The message must name the file and then every one of `parts`."""
        for part in parts:
            self.assertNotIn(part, model)
        pattern = ".*".join(part.replace(".", r"\.") for part in (os.path.basename(model), *parts))
        message = self.refused(1, pattern, "logits", model, "--ids", "1,2", "-o", "-")
        self.assertNotIn(f"{model}: {model}", message)

    @classmethod
    def setUpClass(cls):
        cls.floats = Weights(make_floats).as_floats()
        cls.q4_0 = gguf_tensors(Weights(blocks_of("Q4_0")).tensors)
        cls.mlx = Weights(mlx_of(4, 64)).tensors
        cls.quantization = {"bits": 4, "group_size": 64}

    def test_gguf_tensors(self):
        good = gguf_tensors(self.floats)
        for i, name in enumerate(["blk.1.ffn_up.weight", "blk.0.attn_norm.weight", "output_norm.weight",
                                  "token_embd.weight"]):
            with self.subTest("missing " + name):
                model = write_model(f"lacking-{i}.gguf", {k: v for k, v in good.items() if k != name})
                self.refused_model(model, name, "missing")
        shapes = {"blk.1.ffn_up.weight": ("F32", (FFN, DIM // 2)), "blk.0.attn_k.weight": ("F32", (DIM, DIM)),
                  "blk.1.ffn_norm.weight": ("F32", (DIM // 2,)), "output_norm.weight": ("F32", (1, DIM)),
                  "output.weight": ("F32", (VOCABULARY + 1, DIM)), "token_embd.weight": ("F32", (VOCABULARY * DIM,)),
                  "blk.0.attn_q.weight": ("F32", (HEADS, HEAD_DIM, DIM)), "rope_freqs.weight": ("F32", (HEAD_DIM,))}
        for i, (name, (dtype, shape)) in enumerate(shapes.items()):
            with self.subTest("shape of " + name):
                tensor = dtype, shape, bytes(4 * math.prod(shape))
                self.refused_model(write_model(f"shape-{i}.gguf", {**good, name: tensor}), name)
        for i, name in enumerate(["blk.0.attn_q.bias", "blk.2.ffn_up.weight", "blk.0.ffn_gate_inp.weight"]):
            with self.subTest("unknown " + name):
                model = write_model(f"unknown-{i}.gguf", {**good, name: ("F32", (DIM,), bytes(4 * DIM))})
                self.refused_model(model, name, "not part of")
        q8_0 = "Q8_0", (DIM,), bytes(34 * DIM // 32)
        self.refused_model(write_model("norm.gguf", {**good, "blk.0.attn_norm.weight": q8_0}),
                           "blk.0.attn_norm.weight", "float")

    def test_gguf_metadata(self):
        good = gguf_tensors(self.floats)
        self.refused_model(write_model("family.gguf", good, {"general.architecture": "unheard-of"}), "unheard-of")
        self.refused_model(write_model("scaling.gguf", good, {"llama.rope.scaling.type": "yarn"}), "yarn")
        self.refused_model(write_model("heads.gguf", good, {"llama.attention.head_count": 0}), "head_count")
        self.refused_model(write_model("part.gguf", good, {"llama.rope.dimension_count": 32}), "32 of 64")
        metadata = {k: v for k, v in METADATA.items() if k != "llama.block_count"}
        write_gguf(path("keyless.gguf"), metadata, good)
        self.refused_model(path("keyless.gguf"), "llama.block_count")

    def test_gguf_split(self):
        first = write_split("half", gguf_tensors(self.floats), 2)
        second = first.replace("00001-of", "00002-of")
        shutil.copy(first, path("lone.gguf"))
        self.refused_model(path("lone.gguf"), "split.count")
        shutil.copy(first, second)
        self.refused(1, r"half-00002-of-00002\.gguf.*split\.no", "logits", first, "--ids", "1", "-o", "-")
        os.remove(second)
        self.refused(1, r"half-00002-of-00002\.gguf.*No such file", "logits", first, "--ids", "1", "-o", "-")

    def test_gguf_not_finite(self):
        for i, name in enumerate(["blk.1.ffn_down.weight", "token_embd.weight", "blk.0.attn_q.weight"]):
            for bad in [math.nan, math.inf]:
                with self.subTest(name, bad=bad):
                    dtype, shape, data = self.q4_0[name]
                    at = len(data) // 18 // 2 * 18
                    data = data[:at] + half(bad) + data[at + 2:]
                    model = write_model(f"scale-{i}-{bad}.gguf", {**self.q4_0, name: (dtype, shape, data)})
                    self.refused_model(model, name, "finite")
        for i, name in enumerate(["blk.0.ffn_norm.weight", "output_norm.weight", "output.weight"]):
            dtype, shape, data = gguf_tensors(self.floats)[name]
            tensor = dtype, shape, data[:-4] + pack_floats([math.nan])
            with self.subTest(name):
                model = write_model(f"value-{i}.gguf", {**gguf_tensors(self.floats), name: tensor})
                self.refused_model(model, name, "finite")

    def mlx_directory(self, name, changes, **quantization):
        """The good MLX model with some tensors changed; None removes one."""
        tensors = {k: v for k, v in {**self.mlx, **changes}.items() if v}
        return write_directory(name, tensors, quantization={**self.quantization, **quantization})

    def test_mlx_tensors(self):
        weight, scales, biases = DOWN + ".weight", DOWN + ".scales", DOWN + ".biases"
        groups = FFN // 64
        cases = {
            "narrow": ({scales: ("F16", (DIM, groups // 2), bytes(DIM * groups))}, scales),
            "short": ({biases: ("F16", (DIM // 2, groups), bytes(DIM * groups))}, biases),
            "flat": ({scales: ("F16", (DIM * groups,), bytes(2 * DIM * groups))}, scales),
            "integers": ({scales: ("I16", (DIM, groups), bytes(2 * DIM * groups))}, scales),
            "types": ({biases: ("BF16", (DIM, groups), bytes(2 * DIM * groups))}, biases),
            "no-scales": ({scales: None}, scales),
            "no-biases": ({biases: None}, biases),
            "no-weight": ({weight: None}, weight),
            "rows": ({weight: ("U32", (DIM // 2, FFN // 8), bytes(DIM * FFN // 4))}, DOWN),
            "extra": ({DOWN + ".zeros": ("F16", (1,), bytes(2))}, DOWN + ".zeros"),
            "no-norm": ({NORM + ".weight": None}, NORM),
            "norm": ({NORM + ".weight": ("F32", (DIM // 2,), bytes(2 * DIM))}, NORM),
        }
        for name, (changes, culprit) in cases.items():
            with self.subTest(name):
                self.refused_model(self.mlx_directory(f"mlx-{name}", changes), culprit)

    def test_mlx_not_finite(self):
        for suffix in [".scales", ".biases"]:
            for bad in [math.nan, -math.inf]:
                dtype, shape, data = self.mlx[DOWN + suffix]
                tensor = dtype, shape, data[:-2] + half(bad)
                with self.subTest(suffix, bad=bad):
                    self.refused_model(self.mlx_directory(f"{bad}{suffix}", {DOWN + suffix: tensor}), DOWN, "finite")

    def test_mlx_parameters(self):
        for i, own in enumerate([{"bits": 7}, {"bits": 2}, {"group_size": 16}, {"group_size": 48}, {"bits": "4"},
                                 {"group_size": 128}, {"bits": 8}]):
            with self.subTest(own):
                self.refused_model(self.mlx_directory(f"own-{i}", {}, **{DOWN: own}), DOWN)
        self.refused_model(self.mlx_directory("mode", {}, mode="mxfp4"), "config.json", "mxfp4")
        self.refused_model(write_directory("plain-packed", self.mlx), "weight", "config.json has no")

    def test_other_quantisations(self):
        for i, method in enumerate(["gptq", "awq", "fp8"]):
            model = write_directory(f"method-{i}", self.floats, quantization_config={"quant_method": method, "bits": 4})
            self.refused_model(model, "config.json", method)

    def test_shards(self):
        model = write_directory("torn", self.floats, 2)
        second = os.path.join(model, "model-00002-of-00002.safetensors")
        with open(second, "rb") as f:
            content = f.read()
        with open(second, "wb") as f:
            f.write(content[:-1])
        self.refused_model(model, "model-00002-of-00002.safetensors", "tensor", "past the end")
        os.remove(second)
        self.refused_model(model, "model-00002-of-00002.safetensors", "No such file")
        index = os.path.join(model, "model.safetensors.index.json")
        for name, shard in [("out", "../config.json"), ("number", 1), ("swapped", "model-00001-of-00002.safetensors")]:
            with open(second, "wb") as f:
                f.write(content)
            with open(index, encoding="utf-8") as f:
                weight_map = json.load(f)["weight_map"]
            culprit = list(weight_map)[-1]
            self.assertTrue(weight_map[culprit].startswith("model-00002"))
            weight_map[culprit] = shard
            copy = shutil.copytree(model, path("torn-" + name))
            write_file(f"torn-{name}/model.safetensors.index.json", json.dumps({"weight_map": weight_map}).encode())
            with self.subTest(name):
                self.refused_model(copy, "index.json", culprit)


class PartlyQuantised(FormatTest):
    """Matrices whose columns no group divides stay floats beside quantised ones."""

    def test_odd_columns(self):
        dim, heads, kv_heads, head_dim, ffn, vocab = 64, 6, 2, 10, 172, 301
        rng = random.Random(7)
        shapes = {"model.embed_tokens.weight": (vocab, dim), "model.norm.weight": (dim,),
                  "lm_head.weight": (vocab, dim)}
        for name, shape in [("input_layernorm", (dim,)), ("post_attention_layernorm", (dim,)),
                            ("self_attn.q_proj", (heads * head_dim, dim)), ("self_attn.k_proj", (kv_heads * head_dim, dim)),
                            ("self_attn.v_proj", (kv_heads * head_dim, dim)), ("self_attn.o_proj", (dim, heads * head_dim)),
                            ("mlp.gate_proj", (ffn, dim)), ("mlp.up_proj", (ffn, dim)), ("mlp.down_proj", (dim, ffn))]:
            shapes[f"model.layers.0.{name}.weight"] = shape
        tensors = {}
        for name, shape in shapes.items():
            values = [rng.gauss(1 if len(shape) == 1 else 0, 0.1) for _ in range(math.prod(shape))]
            tensors[name] = "F32", shape, tiny_model.pack_floats(values)
        source, out = path("odd"), path("odd-4")
        os.mkdir(source)
        tiny_model.write_safetensors(os.path.join(source, "model.safetensors"), tensors)
        config = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": dim, "num_attention_heads": heads,
                  "num_key_value_heads": kv_heads, "head_dim": head_dim, "intermediate_size": ffn, "vocab_size": vocab,
                  "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
        write_file("odd/config.json", json.dumps(config).encode())
        self.done("quantize", source, "-o", out, "--bits", "4")
        whole = self.logits(out)
        for options in [("--tp", "2"), ("--tp", "8"), ("--isa", "ref", "--chunk", "1")]:
            with self.subTest(options=options):
                self.assertEqual(self.logits(out, *options), whole)
        config["num_hidden_layers"] = None
        write_file("odd/config.json", json.dumps(config).encode())
        self.refused(1, r'config\.json: "num_hidden_layers" is missing', "logits", source, "--ids", "1", "-o", "-")


class DiskFull(FormatTest):
    """A quantisation that cannot be written must leave the older one as it was."""

    def contents(self, directory):
        found = {}
        for name in os.listdir(directory):
            with open(os.path.join(directory, name), "rb") as f:
                found[name] = f.read()
        return found

    def test_older_output_stays(self):
        source, out = path("source"), path("out")
        tiny_model.write(source)
        self.done("quantize", source, "-o", out, "--bits", "8")
        before = self.contents(out)
        size = len(before["model.safetensors"])
        expected = self.logits_of(out)
        for limit in [0, 4096, size // 2, size - 1]:

            def limited():
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes fail instead, as on a full disk
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

            with self.subTest(limit=limit):
                self.refused(1, r"out/model\.safetensors: .*File too large", "quantize", source, "-o", out, "--bits",
                             "8", "--group", "32", "--quiet", preexec_fn=limited)
                self.assertEqual(self.contents(out), before)
        self.assertEqual(self.logits_of(out), expected)
        self.done("quantize", source, "-o", out, "--bits", "4")
        self.assertLess(os.path.getsize(os.path.join(out, "model.safetensors")), size)
        self.assertEqual(sorted(self.contents(out)), sorted(before))

    def logits_of(self, model):
        return self.done("logits", model, "--ids", "1,2,3", "-o", "-")


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python3 test_formats.py path/to/yoke [unittest arguments]")
    test_cli.YOKE = os.path.abspath(sys.argv.pop(1))
    unittest.main()
