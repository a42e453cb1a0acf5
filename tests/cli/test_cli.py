"""Tests of the program `yoke` from outside: python3 test_cli.py path/to/yoke [unittest arguments].

Wrong command lines and bad inputs must give one clear line on stderr and the right exit status; runs on a small
checkpoint made here must agree with each other however they are split, batched and fed."""

import array
import json
import math
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import tiny_model

YOKE = None  # the program under test
TEMPORARY = None  # a directory for everything these tests write
TINY = None  # the small checkpoint
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DATA = os.environ.get("YOKE_DATA", os.path.join(os.path.dirname(ROOT), "shared", "data"))
COMMANDS = ["run", "topo", "quantize", "perplexity", "tokenize", "logits"]
PROMPT = "It was a dark night in the house, and the rain fell."


def setUpModule():
    global TEMPORARY, TINY
    TEMPORARY = tempfile.mkdtemp(prefix="yoke-cli-")
    TINY = path("tiny")
    tiny_model.write(TINY)


def tearDownModule():
    shutil.rmtree(TEMPORARY)


def path(name):
    return os.path.join(TEMPORARY, name)


def write_file(name, content):
    with open(path(name), "wb") as f:
        f.write(content)
    return path(name)


def yoke(*arguments, **options):
    """Runs the program to its end; stdout and stderr as bytes. Without input its standard input is empty."""
    options.setdefault("input", b"")
    options.setdefault("stdout", subprocess.PIPE)
    return subprocess.run([YOKE, *arguments], stderr=subprocess.PIPE, timeout=120, check=False, **options)


def last_line(stderr):
    return stderr.decode().rstrip("\n").split("\n")[-1]


def floats(data):
    values = array.array("f")
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


class YokeTest(unittest.TestCase):
    def open_terminal(self):
        try:
            return pty.openpty()
        except OSError as e:
            self.skipTest(f"no pseudo-terminal to be had: {e}")

    def done(self, *arguments, **options):
        """Runs the program, which must succeed; returns its stdout."""
        result = yoke(*arguments, **options)
        self.assertEqual(result.returncode, 0, f"{arguments}: {result.stderr.decode(errors='replace')}")
        return result.stdout

    def json(self, *arguments, **options):
        return json.loads(self.done(*arguments, "--json", **options))

    def run_json(self, *arguments, **options):
        """A greedy run of the small checkpoint."""
        return self.json("run", TINY, "--temp", "0", "--no-bandwidth", *arguments, **options)

    def refused(self, status, pattern, *arguments, **options):
        """The program must say why in one line that matches pattern and print nothing else."""
        result = yoke(*arguments, **options)
        message = result.stderr.decode(errors="replace")
        self.assertEqual(result.returncode, status, f"{arguments}: {message}")
        self.assertRegex(message, r"\Ayoke[^\n]*: [^\n]+\n\Z", f"{arguments}: not one line")
        self.assertRegex(message, pattern)
        self.assertNotIn("Assertion", message)
        if result.stdout is not None:
            self.assertEqual(result.stdout, b"", f"{arguments}")
        return message


class CommandLine(YokeTest):
    def test_no_command(self):
        self.refused(2, "COMMAND is missing")

    def test_unknown_command(self):
        self.refused(2, "no command 'qantize'.*did you mean quantize", "qantize")
        self.refused(2, "no command 'frobnicate'", "frobnicate")
        self.refused(2, "unknown option '--json' before the command", "--json", "topo")

    def test_commands_of_other_versions(self):
        for command in ["serve", "bench", "plan"]:
            self.refused(2, f"no command '{command}'", command)
            self.assertNotIn(command, self.done("--help").decode().split())

    def test_help(self):
        overview = self.done("--help").decode()
        for command in COMMANDS:
            self.assertIn(f"  {command} ", overview)
            text = self.done(command, "--help").decode()
            self.assertTrue(text.startswith(f"usage: yoke {command} "))
            self.assertIn("Examples", text)
            self.assertLessEqual(max(len(line) for line in text.split("\n")), 100)
            self.assertEqual(text, self.done(command, "-h").decode())

    def test_help_names_every_documented_option(self):
        shared = "tp threads device ctx kv memory-per-rank isa chunk stall-seconds inject-stall quiet"
        options = {"run": shared + " prompt file max-tokens temp top-p top-k min-p repeat-penalty seed stop echo json"
                                   " batch no-bandwidth ids",
                   "topo": "synthetic tp threads json", "quantize": "output bits group quiet",
                   "perplexity": shared + " tokens reference json",
                   "tokenize": "prompt file json no-bos special decode ids", "logits": shared + " ids output"}
        for command, names in options.items():
            text = self.done(command, "--help").decode()
            for name in names.split():
                self.assertRegex(text, rf"(?m)^  (-\w, |    )--{name}\b", command)

    def test_version(self):
        self.assertRegex(self.done("--version").decode(), r"\Ayoke \d+\.\d+\.\d+\n\Z")

    def test_missing_and_extra_operands(self):
        self.refused(2, "yoke run: MODEL is missing", "run")
        self.refused(2, "FILE is missing", "perplexity", TINY)
        self.refused(2, "unexpected argument 'more'", "run", TINY, "more")
        self.refused(2, "unexpected argument 'x'", "topo", "x")
        self.refused(2, "-o DIR is missing", "quantize", TINY)
        self.refused(2, "--ids is missing", "logits", TINY, "-o", path("never"))
        self.refused(2, "-o FILE is missing", "logits", TINY, "--ids", "1")

    def test_unknown_options(self):
        self.refused(2, r"unknown option '--tmep' \(did you mean --temp\?\)", "run", TINY, "--tmep", "0")
        self.refused(2, r"unknown option '--memory-per-ranks=1G' \(did you mean --memory-per-rank\?\)", "run", TINY,
                     "--memory-per-ranks=1G")
        self.refused(2, "unknown option '--frobnicate'", "run", TINY, "--frobnicate")
        self.refused(2, "unknown option '-x'", "run", TINY, "-x")

    def test_bad_values(self):
        for option, value in [("--temp", "hot"), ("--temp", "-1"), ("--temp", "nan"), ("--top-p", "1.5"), ("-n", "-1"),
                              ("-n", "1.5"), ("-n", "99999999999999999999"), ("--tp", "3"), ("--tp", "two"),
                              ("--threads", "0"), ("--ctx", "0"), ("--kv", "f8"), ("--isa", "sse"), ("--device", "tpu"),
                              ("--memory-per-rank", "12Q"), ("--memory-per-rank", "-1"), ("--memory-per-rank", ""),
                              ("--seed", "-1"), ("--batch", "0"), ("--repeat-penalty", "0"), ("--stall-seconds", "0"),
                              ("--top-k", "0x10"), ("--min-p", "")]:
            name = {"-n": "--max-tokens"}.get(option, option)
            self.refused(2, f"{name}: '{re.escape(value)}' is not", "run", TINY, "-p", "x", option, value)
        self.refused(2, "--prompt needs a value", "run", TINY, "-p")
        self.refused(2, "--json takes no value", "run", TINY, "-p", "x", "--json=yes")
        self.refused(2, "'2' is not one of 3, 4, 5, 6, 8", "quantize", TINY, "-o", path("never"), "--bits", "2")
        self.refused(2, "'16' is not one of 32, 64, 128", "quantize", TINY, "-o", path("never"), "--group", "16")
        self.refused(2, "17|16 times", "run", TINY, "-p", "x", *["--stop", "y"] * 17)

    def test_contradictions(self):
        self.refused(2, "give one", "run", TINY, "-p", "x", "-f", "y")
        self.refused(2, "give one", "run", TINY, "-p", "x", "--ids", "1")
        self.refused(2, "--stop", "run", TINY, "-p", "x", "--stop", "")
        self.refused(2, "--decode needs --ids", "tokenize", TINY, "--decode")
        self.refused(2, "--ids needs --decode", "tokenize", TINY, "--ids", "1")
        self.refused(2, "not a list", "run", TINY, "--ids", "1,,2")

    def test_control_characters_stay_out_of_messages(self):
        self.refused(2, r"'--a\?\[31m\?b'", "run", TINY, "--a\x1b[31m\nb")

    def test_full_disk_on_stdout(self):
        with open("/dev/full", "wb") as full:
            for arguments in [["--help"], ["--version"], ["topo"], ["topo", "--json"], ["tokenize", TINY, "-p", "x"]]:
                self.refused(1, "stdout: No space left", *arguments, stdout=full)


class Topo(YokeTest):
    def test_this_machine(self):
        text = self.done("topo").decode()
        self.assertRegex(text, r"\d+ NUMA nodes?, \d+ L3 domains?, \d+ cores?, \d+ CPUs?")
        machine = self.json("topo")
        self.assertEqual(len(machine["ranks"]), machine["tp"])
        for i, rank in enumerate(machine["ranks"]):
            self.assertEqual(rank["rank"], i)
            self.assertTrue(rank["cpus"])
        self.assertIn("ref", machine["isa"].split())

    def test_described_machine(self):
        machine = self.json("topo", "--synthetic", "numa:2 l3:2 core:8 pu:1")
        self.assertEqual((machine["nodes"], machine["l3"], machine["cores"], machine["cpus"]), (2, 4, 32, 32))
        two = self.json("topo", "--synthetic", "numa:2 l3:2 core:8 pu:1", "--tp", "2")
        self.assertEqual([rank["cpus"] for rank in two["ranks"]], [list(range(16)), list(range(16, 32))])
        self.assertEqual([rank["node"] for rank in two["ranks"]], [0, 1])
        self.assertIn("0-15", self.done("topo", "--synthetic", "numa:2 l3:2 core:8 pu:1", "--tp", "2").decode())

    def test_bad_description(self):
        self.refused(2, ".", "topo", "--synthetic", "what is this?")


class Tokenize(YokeTest):
    def test_round_trip(self):
        for text in ["", "plain", " the thin line\n", "caf\u00e9 \u4e16\u754c \U0001f600\x00end\r\n\t"]:
            ids = self.json("tokenize", TINY, input=text.encode())["ids"]
            self.assertEqual(ids[0], tiny_model.BEGIN)
            file = write_file("ids.json", json.dumps({"ids": ids}).encode())
            self.assertEqual(self.done("tokenize", TINY, "--decode", "--ids", file).decode(), text)
            back = self.json("tokenize", TINY, "--decode", "--ids", ",".join(map(str, ids)))
            self.assertEqual(back, {"text": text})

    def test_merges_and_plain_output(self):
        vocabulary = tiny_model.vocabulary()
        ids = self.done("tokenize", TINY, "-p", "the", "--no-bos").decode()
        self.assertEqual(ids, f"{vocabulary['the']}\n")

    def test_file_equals_text(self):
        file = write_file("prompt.txt", PROMPT.encode())
        self.assertEqual(self.json("tokenize", TINY, "-f", file), self.json("tokenize", TINY, "-p", PROMPT))

    def test_special(self):
        text = "a<|end|>"
        self.assertNotIn(tiny_model.END, self.json("tokenize", TINY, "-p", text)["ids"])
        ids = self.json("tokenize", TINY, "-p", text, "--special")["ids"]
        self.assertEqual(ids[-1], tiny_model.END)
        listed = ",".join(map(str, ids))
        self.assertEqual(self.done("tokenize", TINY, "--decode", "--ids", listed), b"a")
        self.assertEqual(self.done("tokenize", TINY, "--decode", "--special", "--ids", listed), b"<|begin|>a<|end|>")

    def test_refusals(self):
        self.refused(1, "UTF-8", "tokenize", TINY, input=b"bad \xff byte")
        self.refused(1, "No such file", "tokenize", TINY, "-f", path("absent.txt"))
        self.refused(1, "absent", "tokenize", path("absent"), "-p", "x")
        self.refused(1, "not JSON", "tokenize", TINY, "--decode", "--ids", write_file("bad.json", b"{"))
        self.refused(1, "item 1", "tokenize", TINY, "--decode", "--ids", write_file("bad.json", b"[1, -2]"))
        self.refused(1, "neither", "tokenize", TINY, "--decode", "--ids", write_file("bad.json", b'{"x": 1}'))


class Run(YokeTest):
    def test_json_keys(self):
        answer = self.json("run", TINY, "-p", PROMPT, "-n", "8", "--temp", "0", "--tp", "2")
        keys = {"model": str, "tp": int, "device": str, "isa": str, "text": str, "tokens": list, "prompt_tokens": int,
                "finish_reason": str, "ttft_ms": float, "prefill_tok_s": float, "decode_tok_s": float,
                "weight_bytes": int, "decode_gb_s": float, "peak_rss_bytes": int, "logits_hash": str, "ranks": list}
        for key, kind in keys.items():
            self.assertIsInstance(answer[key], kind, key)
        self.assertRegex(answer["logits_hash"], r"\A[0-9a-f]{16}\Z")
        self.assertEqual((answer["tp"], answer["model"], answer["finish_reason"]), (2, TINY, "length"))
        self.assertEqual(len(answer["tokens"]), 8)
        self.assertEqual(answer["prompt_tokens"], len(self.json("tokenize", TINY, "-p", PROMPT)["ids"]))
        self.assertGreater(answer["bandwidth_gb_s"], 0)
        self.assertEqual(len(answer["ranks"]), 2)
        for i, rank in enumerate(answer["ranks"]):
            self.assertEqual(rank["rank"], i)
            self.assertTrue(rank["cpus"])
            for key in ["steps", "all_reduces", "weight_bytes_read", "resident_bytes"]:
                self.assertGreater(rank[key], 0, key)
            for key in ["node", "busy_ms", "wait_ms", "local_bytes"]:
                self.assertIn(key, rank)
        read = sum(rank["weight_bytes_read"] for rank in answer["ranks"])
        self.assertGreaterEqual(read, 8 * answer["weight_bytes"])  # the prefill and seven steps

    def test_stream_equals_json(self):
        answer = self.run_json("-p", PROMPT, "-n", "40")
        result = yoke("run", TINY, "--temp", "0", "-p", PROMPT, "-n", "40")
        self.assertEqual(result.returncode, 0)
        self.assertEqual(result.stdout.decode(), answer["text"])
        self.assertIn(answer["logits_hash"], last_line(result.stderr))
        self.assertRegex(last_line(result.stderr), r"tok/s.*tok/s.*GB/s = \d+% of the measured")
        self.assertIn("weights read", result.stderr.decode())
        quiet = yoke("run", TINY, "--temp", "0", "-p", PROMPT, "-n", "40", "--quiet", "--no-bandwidth")
        self.assertRegex(quiet.stderr.decode(), r"\Alogits [0-9a-f]{16}, [^\n]*GB/s\n\Z")

    def test_prompt_sources_agree(self):
        ids = self.json("tokenize", TINY, "-p", PROMPT)
        file = write_file("prompt.txt", PROMPT.encode() + b"\n")
        expected = self.run_json("-p", PROMPT, "-n", "5")
        for source in [["-f", file], ["-f", "-"], [], ["--ids", write_file("ids.json", json.dumps(ids).encode())],
                       ["--ids", ",".join(map(str, ids["ids"]))], [f"--prompt={PROMPT}"]]:
            answer = self.run_json("-n", "5", *source, input=PROMPT.encode() + b"\n")
            self.assertEqual(answer["tokens"], expected["tokens"], source)
            self.assertEqual(answer["logits_hash"], expected["logits_hash"], source)

    def test_one_answer(self):
        """The same logits however the work is split, chunked, batched and computed."""
        expected = self.run_json("-p", PROMPT, "-n", "12", "--tp", "1")
        isas = self.json("topo")["isa"].split()
        for variant in [["--tp", "2"], ["--tp", "4"], ["--tp", "2", "--threads", "2"], ["--chunk", "1"],
                        ["--chunk", "7"], ["--batch", "4"], ["--batch", "3", "--tp", "2", "--chunk", "5"],
                        ["--ctx", "512"], *(["--isa", isa] for isa in isas)]:
            answer = self.run_json("-p", PROMPT, "-n", "12", *variant)
            self.assertEqual(answer["logits_hash"], expected["logits_hash"], variant)
            self.assertEqual(answer["tokens"], expected["tokens"], variant)

    def test_sampling(self):
        def sample(*options):
            return self.json("run", TINY, "-p", PROMPT, "-n", "24", "--no-bandwidth", *options)["tokens"]

        self.assertEqual(sample("--seed", "3"), sample("--seed", "3"))
        self.assertNotEqual(sample("--seed", "3"), sample("--seed", "4"))
        greedy = self.run_json("-p", PROMPT, "-n", "24")["tokens"]
        self.assertEqual(sample("--top-k", "1"), greedy)
        self.assertEqual(sample("--min-p", "1"), greedy)
        self.assertEqual(sample("--top-p", "0.000001"), greedy)
        self.assertEqual(sample("--seed", "3", "--batch", "3"), sample("--seed", "3"))

    def test_stop(self):
        text = self.run_json("-p", PROMPT, "-n", "40")["text"]
        stop = text[12:15]
        answer = self.run_json("-p", PROMPT, "-n", "40", "--stop", "\u00e9", "--stop", stop)
        self.assertEqual(answer["text"], text[:text.index(stop)])
        self.assertEqual(answer["finish_reason"], "stop")
        streamed = self.done("run", TINY, "--temp", "0", "-p", PROMPT, "-n", "40", "--stop", stop)
        self.assertEqual(streamed.decode(), answer["text"])

    def test_echo(self):
        text = self.run_json("-p", PROMPT, "-n", "4")["text"]
        for prompt in [["-p", PROMPT], ["--ids", ",".join(map(str, self.json("tokenize", TINY, "-p", PROMPT)["ids"]))]]:
            out = self.done("run", TINY, "--temp", "0", *prompt, "-n", "4", "--echo", "--no-bandwidth")
            self.assertEqual(out.decode(), PROMPT + text)

    def test_length(self):
        self.assertEqual(len(self.run_json("-p", PROMPT)["tokens"]), 256)
        n_prompt = len(self.json("tokenize", TINY, "-p", PROMPT)["ids"])
        fits = self.run_json("-p", PROMPT, "--ctx", str(n_prompt + 10))
        self.assertEqual((len(fits["tokens"]), fits["finish_reason"]), (10, "length"))
        none = self.run_json("-p", PROMPT, "-n", "0")
        self.assertEqual((none["text"], none["tokens"]), ("", []))

    def test_prompt_refusals(self):
        self.refused(1, "standard input: the prompt is empty", "run", TINY)
        self.refused(1, "prompt is empty", "run", TINY, "-f", write_file("empty.txt", b"\n"))
        self.refused(1, "No such file", "run", TINY, "-f", path("absent.txt"))
        self.refused(1, "directory", "run", TINY, "-f", TEMPORARY)
        self.refused(1, "UTF-8", "run", TINY, input=b"caf\xe9")
        self.refused(1, "ctx|context", "run", TINY, "-p", PROMPT, "--ctx", "16")
        self.refused(1, "ctx|context", "run", TINY, "-p", PROMPT, "--ctx", "64", "-n", "64")
        self.refused(1, ".", "run", TINY, "--ids", str(len(tiny_model.vocabulary())))
        self.refused(1, ".", "run", TINY, "--ids", write_file("none.json", b"[]"))

    def test_memory_limit(self):
        self.refused(1, "rank", "run", TINY, "-p", "x", "--memory-per-rank", "100K")

    def test_stalled_rank(self):
        result = yoke("run", TINY, "-p", PROMPT, "-n", "20", "--tp", "2", "--inject-stall", "2", "--stall-seconds", "0.5")
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stderr.decode(), r"\Ayoke: [^\n]*rank[^\n]*\n\Z")

    def test_synthetic_weights(self):
        self.refused(2, "unknown shape", "run", "synth:no-such-shape", "--ids", "1")
        self.refused(1, "no tokenizer.*--ids", "run", "synth:tiny", "-p", "x")
        one, two = (self.json("run", "synth:tiny:mlx4", "--ids", "1,2,3", "-n", "3", "--temp", "0", "--ignore-eos",
                              "--no-bandwidth", "--tp", tp) for tp in "12")
        self.assertEqual(one["logits_hash"], two["logits_hash"])


class RunStreams(YokeTest):
    """Runs that are stopped, or whose output goes away."""

    def start(self, *arguments, **options):
        return subprocess.Popen([YOKE, "run", TINY, "--temp", "0", "--ignore-eos", *arguments],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    def test_interrupt(self):
        for extra in [[], ["--batch", "3"]]:
            with self.start("-p", PROMPT, "-n", "1900", *extra, stdin=subprocess.DEVNULL) as process:
                first = process.stdout.read(1)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 130, err)
            self.assertTrue(first)
            self.assertLess(len(first + out), 1900)
            self.assertRegex(err.decode(), "weights read")
            self.assertTrue(last_line(err).startswith("logits "), err)

    def test_closed_pipe(self):
        with self.start("-p", PROMPT, "-n", "1900", stdin=subprocess.DEVNULL) as process:
            process.stdout.read(1)
            process.stdout.close()
            err = process.stderr.read()
            process.wait(timeout=60)
        self.assertEqual(process.returncode, 1)
        self.assertEqual(err, b"yoke: stdout: Broken pipe\n")

    def test_full_disk(self):
        with open("/dev/full", "wb") as full:
            for extra in [[], ["--json", "--quiet", "--no-bandwidth"]]:
                result = yoke("run", TINY, "-p", PROMPT, "-n", "4", *extra, stdout=full)
                self.assertEqual(result.returncode, 1)
                self.assertEqual(last_line(result.stderr), "yoke: stdout: No space left on device")

    def read_until(self, stream, wanted):
        """Reads a pipe until `wanted` comes, for 60 s at most."""
        data, end = b"", time.monotonic() + 60
        while wanted not in data and time.monotonic() < end:
            if select.select([stream], [], [], 1)[0]:
                more = os.read(stream.fileno(), 4096)
                if not more:
                    break
                data += more
        self.assertIn(wanted, data)
        return data

    def test_line_by_line(self):
        terminal, its_end = self.open_terminal()
        try:
            with self.start("-n", "6", "--no-bandwidth", stdin=its_end) as process:
                self.read_until(process.stderr, b"> ")
                os.write(terminal, b"It was\n")
                self.read_until(process.stderr, b"> ")
                os.write(terminal, b"a dark\n")
                self.read_until(process.stderr, b"> ")
                os.write(terminal, b"\n")
                out, err = process.communicate(timeout=60)
        finally:
            os.close(terminal)
            os.close(its_end)
        self.assertEqual(process.returncode, 0, err)
        self.assertTrue(last_line(err).startswith("logits "), err)
        first = self.run_json("-p", "It was", "-n", "6")["text"]
        second = self.run_json("-p", f"It was{first}\na dark", "-n", "6")
        self.assertEqual(out.decode(), first + second["text"])
        self.assertIn(second["logits_hash"], last_line(err))

    def test_line_by_line_until_full(self):
        terminal, its_end = self.open_terminal()
        try:
            with self.start("--ctx", "16", "--no-bandwidth", stdin=its_end) as process:
                self.read_until(process.stderr, b"> ")
                os.write(terminal, b"It was\n")
                self.read_until(process.stderr, b"> ")
                os.write(terminal, b"a dark\n")
                _, err = process.communicate(timeout=60)
        finally:
            os.close(terminal)
            os.close(its_end)
        self.assertEqual(process.returncode, 0, err)
        self.assertIn(b"context is full", err)

    def test_terminal_refuses_what_needs_a_prompt(self):
        terminal, its_end = self.open_terminal()
        try:
            for option in ["--json", "--batch=2"]:
                self.refused(2, "needs a prompt", "run", TINY, option, input=None, stdin=its_end)
        finally:
            os.close(terminal)
            os.close(its_end)


class Logits(YokeTest):
    def logits(self, ids, *options):
        file = path("logits.f32")
        self.done("logits", TINY, "--ids", ",".join(map(str, ids)), "-o", file, *options)
        with open(file, "rb") as f:
            return f.read()

    def test_values(self):
        n_vocab = len(tiny_model.vocabulary())
        ids = self.json("tokenize", TINY, "-p", PROMPT)["ids"]
        data = self.logits(ids)
        self.assertEqual(len(data), 4 * n_vocab * len(ids))
        values = floats(data)
        for n in [1, 2, len(ids)]:
            row = values[(n - 1) * n_vocab:n * n_vocab]
            token = self.run_json("--ids", ",".join(map(str, ids[:n])), "-n", "1")["tokens"]
            self.assertEqual(token, [max(range(n_vocab), key=lambda i: row[i])])
        for variant in [["--tp", "2"], ["--chunk", "3"], ["--ctx", "300"], ["--isa", "ref"]]:
            self.assertEqual(self.logits(ids, *variant), data, variant)

    def test_output(self):
        whole = self.logits([1, 2, 3])
        self.assertEqual(self.done("logits", TINY, "--ids", "1,2,3", "-o", "-"), whole)
        self.refused(1, "/dev/full: No space left", "logits", TINY, "--ids", "1,2,3", "-o", "/dev/full")
        self.refused(1, "No such file", "logits", TINY, "--ids", "1", "-o", path("absent/out.f32"))
        self.refused(1, "directory", "logits", TINY, "--ids", "1", "-o", TEMPORARY)
        with open(path("logits.f32"), "rb") as f:
            self.assertEqual(f.read(), whole)
        self.refused(1, ".", "logits", TINY, "--ids", "1,999999", "-o", path("logits.f32"))
        with open(path("logits.f32"), "rb") as f:
            self.assertEqual(f.read(), whole, "a failed run must leave the old file")
        self.assertEqual([name for name in os.listdir(TEMPORARY) if name.startswith("logits.f32.")], [])

    def test_terminal(self):
        terminal, its_end = self.open_terminal()
        try:
            for output in ["-", "/dev/stdout", os.ttyname(its_end)]:
                self.refused(2, "not for a terminal", "logits", TINY, "--ids", "1", "-o", output, stdout=its_end)
        finally:
            os.close(terminal)
            os.close(its_end)

    def test_golden(self):
        golden = os.path.join(DATA, "golden-hf", "llama-a")
        if not os.path.isdir(golden):
            self.skipTest(f"no {golden}: the shared test data is absent")
        self.done("logits", golden, "--ids", os.path.join(golden, "ids.json"), "-o", path("golden.f32"))
        with open(path("golden.f32"), "rb") as ours, open(os.path.join(golden, "logits.f32"), "rb") as theirs:
            pairs = list(zip(floats(ours.read()), floats(theirs.read()), strict=True))
        self.assertLess(max(abs(a - b) for a, b in pairs), 0.02 * max(abs(b) for _, b in pairs))
        with open(os.path.join(golden, "greedy.json"), encoding="utf-8") as f:
            expected = json.load(f)
        answer = self.json("run", golden, "--ids", os.path.join(golden, "ids.json"), "-n", str(len(expected)), "--temp",
                           "0", "--ignore-eos")
        self.assertEqual(answer["tokens"], expected)


class Perplexity(YokeTest):
    def test_against_logits(self):
        ids = self.json("tokenize", TINY, "-p", PROMPT)["ids"]
        n_vocab = len(tiny_model.vocabulary())
        self.done("logits", TINY, "--ids", ",".join(map(str, ids)), "-o", path("ppl.f32"))
        with open(path("ppl.f32"), "rb") as f:
            values = floats(f.read())
        nll = 0.0
        for i, token in enumerate(ids[1:]):
            row = values[i * n_vocab:(i + 1) * n_vocab]
            top = max(row)
            nll += math.log(sum(math.exp(x - top) for x in row)) + top - row[token]
        nll /= len(ids) - 1
        file = write_file("text.txt", PROMPT.encode())
        result = self.json("perplexity", TINY, file)
        self.assertEqual(result["tokens"], len(ids) - 1)
        self.assertAlmostEqual(result["nll"], nll, places=4)
        self.assertAlmostEqual(result["perplexity"], math.exp(nll), delta=1e-3 * math.exp(nll))
        self.assertIn("perplexity", self.done("perplexity", TINY, file).decode())
        two = self.json("perplexity", TINY, file, "--tp", "2", "--reference", TINY, "--tokens", "20", "--ctx", "16")
        self.assertEqual((two["tokens"], two["ctx"]), (20, 16))
        self.assertAlmostEqual(two["kl"], 0, places=6)

    def test_refusals(self):
        self.refused(1, "No such file", "perplexity", TINY, path("absent.txt"))
        self.refused(1, ".", "perplexity", TINY, write_file("empty.txt", b""))
        self.refused(1, ".", "perplexity", TINY, write_file("bad.txt", b"\xff\xfe"))
        text = write_file("text.txt", PROMPT.encode())
        self.refused(1, "absent", "perplexity", TINY, text, "--reference", path("absent"))


class Quantize(YokeTest):
    def test_round_trip(self):
        text = write_file("text.txt", PROMPT.encode())
        before = self.json("perplexity", TINY, text)["nll"]
        for bits, group, tolerance in [("8", "32", 0.05), ("6", "64", 0.3), ("4", "64", 1.5), ("3", "32", 3.0)]:
            out = path(f"tiny-{bits}-{group}")
            line = self.done("quantize", TINY, "-o", out, "--bits", bits, "--group", group).decode()
            self.assertRegex(line, rf"{bits} bits, group {group}, .*times smaller\)\n\Z")
            self.assertEqual(self.json("tokenize", out, "-p", PROMPT), self.json("tokenize", TINY, "-p", PROMPT))
            after = self.json("perplexity", out, text, "--reference", TINY)
            self.assertLess(abs(after["nll"] - before), tolerance, bits)
            self.assertGreaterEqual(after["kl"], 0)
            one = self.json("run", out, "-p", PROMPT, "-n", "6", "--temp", "0", "--tp", "1", "--no-bandwidth")
            two = self.json("run", out, "-p", PROMPT, "-n", "6", "--temp", "0", "--tp", "2", "--no-bandwidth")
            self.assertEqual(one["logits_hash"], two["logits_hash"])

    def test_refusals(self):
        self.refused(1, "absent", "quantize", path("absent"), "-o", path("never"))
        self.refused(1, ".", "quantize", TINY, "-o", path("absent/below"))
        self.assertFalse(os.path.exists(path("never")))


class BadModels(YokeTest):
    def copy(self, name):
        shutil.copytree(TINY, path(name))
        return path(name)

    def refused_run(self, pattern, model):
        return self.refused(1, pattern, "run", model, "--ids", "5,6", "-n", "2")

    def test_not_a_model(self):
        self.refused_run("absent", path("absent"))
        os.mkdir(path("hollow"))
        self.refused_run("hollow", path("hollow"))
        self.refused_run("noise.gguf", write_file("noise.gguf", b"this is no model" * 40))
        self.refused_run("magic.gguf", write_file("magic.gguf", b"GGUF\x03\0\0\0" + b"\xff" * 60))
        self.refused_run("zero.gguf", write_file("zero.gguf", b""))

    def test_broken_config(self):
        for name, config in [("syntax", b"{"), ("nothing", b"{}"), ("kind", b"[]")]:
            model = self.copy("config-" + name)
            write_file(f"config-{name}/config.json", config)
            self.refused_run("config.json", model)

    def test_hostile_config(self):
        with open(os.path.join(TINY, "config.json"), encoding="utf-8") as f:
            good = json.load(f)
        changes = {"zero-heads": {"num_attention_heads": 0}, "negative": {"hidden_size": -128},
                   "huge": {"num_hidden_layers": 2**31 - 1}, "text": {"hidden_size": "many"},
                   "family": {"model_type": "unheard-of", "architectures": ["UnheardOf"]},
                   "disagrees": {"intermediate_size": 512}, "vocabulary": {"vocab_size": 4000}}
        for name, change in changes.items():
            model = self.copy("hostile-" + name)
            write_file(f"hostile-{name}/config.json", json.dumps({**good, **change}).encode())
            with self.subTest(name):
                self.refused_run(".", model)

    def test_broken_weights(self):
        with open(os.path.join(TINY, "model.safetensors"), "rb") as f:
            good = f.read()
        header = int.from_bytes(good[:8], "little")
        for name, content in [("empty", b""), ("cut-header", good[:40]), ("cut-data", good[:len(good) // 2]),
                              ("long-header", (2**62).to_bytes(8, "little") + good[8:]),
                              ("no-json", good[:8] + b"x" * header + good[8 + header:]),
                              ("renamed", good.replace(b"model.norm.weight", b"model.mron.weight", 1))]:
            model = self.copy("weights-" + name)
            write_file(f"weights-{name}/model.safetensors", content)
            with self.subTest(name):
                self.refused_run(r"safetensors|model\.mron\.weight", model)

    def test_nan_in_scales(self):
        model = path("nan")
        self.done("quantize", TINY, "-o", model)
        file = os.path.join(model, "model.safetensors")
        with open(file, "rb") as f:
            data = bytearray(f.read())
        header = int.from_bytes(data[:8], "little")
        tensors = json.loads(data[8:8 + header])
        name = "model.layers.1.mlp.up_proj.scales"
        start = 8 + header + tensors[name]["data_offsets"][0]
        width = 4 if tensors[name]["dtype"] == "F32" else 2
        data[start:start + width] = b"\xff" * width  # a NaN in every float format
        with open(file, "wb") as f:
            f.write(data)
        self.refused_run("up_proj", model)

    def test_broken_tokenizer(self):
        for name, content in [("syntax", b"{"), ("empty", b"{}"), ("model", b'{"model": {"type": "Unheard"}}')]:
            model = self.copy("tokenizer-" + name)
            write_file(f"tokenizer-{name}/tokenizer.json", content)
            self.refused(1, "tokenizer", "tokenize", model, "-p", "x")
            self.refused(1, "tokenizer", "run", model, "-p", "x")

    def test_no_tokenizer(self):
        model = self.copy("mute")
        os.remove(os.path.join(model, "tokenizer.json"))
        os.remove(os.path.join(model, "tokenizer_config.json"))
        self.refused(1, "no tokenizer.*--ids", "run", model, "-p", "x")
        self.refused(1, ".", "tokenize", model, "-p", "x")
        answer = self.json("run", model, "--ids", "5,6", "-n", "3", "--temp", "0", "--no-bandwidth")
        self.assertEqual(len(answer["tokens"]), 3)

    @unittest.skipIf(os.geteuid() == 0, "root may read everything")
    def test_no_permission(self):
        model = self.copy("private")
        os.chmod(os.path.join(model, "model.safetensors"), 0)
        self.refused_run("Permission denied", model)


class Demo(YokeTest):
    """The model that comes with Yoke is found without being told where it is."""

    def setUp(self):
        if not os.path.isdir(os.path.join(os.path.dirname(os.path.dirname(YOKE)), "models", "demo")):
            self.skipTest("models/demo is not beside the program's directory")

    def test_run(self):
        answer = self.json("run", "demo", "-p", "It was a dark and stormy", "-n", "16", "--temp", "0")
        self.assertEqual(len(answer["tokens"]), 16)
        self.assertTrue(answer["text"].strip())
        two = self.json("run", "demo", "-p", "It was a dark and stormy", "-n", "16", "--temp", "0", "--tp", "2")
        self.assertEqual(two["logits_hash"], answer["logits_hash"])

    def test_perplexity_of_prose(self):
        text = write_file("prose.txt", b"It was the best of times, and it was the worst of times. " * 4)
        self.assertLess(self.json("perplexity", "demo", text)["perplexity"], 200)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python3 test_cli.py path/to/yoke [unittest arguments]")
    YOKE = os.path.abspath(sys.argv.pop(1))
    unittest.main()
