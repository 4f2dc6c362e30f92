"""Memory of the GPU and time of a training step, by optimizer, for a model of 1B or 8B parameters.

    python examples/memory.py 1b
    python examples/memory.py 8b --ways fp8 fp8-release fp8-offload --out record.json

The models have the shapes of Llama 3.2 1B and Llama 3.1 8B and random weights: all weights are
trained, with activations computed anew in backward, and the loss in pieces of the text.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from signconv.generated.adamw import AdamW
from signconv.generated.adamw_fp4 import AdamWFP4
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import signconv


@dataclass(frozen=True)
class Size:
    """Shape of the model."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int
    tied: bool


SIZES = {
    "1b": Size(2048, 16, 32, 8, 8192, 128256, True),
    "8b": Size(4096, 32, 32, 8, 14336, 128256, False),
    "tiny": Size(64, 2, 4, 2, 128, 320, True),
}
GIB = 2**30


class Block(nn.Module):
    """Attention with grouped queries and rotated positions, and a gated perceptron."""

    def __init__(self, s: Size) -> None:
        super().__init__()
        self.size, head = s, s.width // s.heads
        self.norms = nn.ModuleList(nn.RMSNorm(s.width) for _ in range(2))
        self.q = nn.Linear(s.width, s.heads * head, bias=False)
        self.k = nn.Linear(s.width, s.kv_heads * head, bias=False)
        self.v = nn.Linear(s.width, s.kv_heads * head, bias=False)
        self.o = nn.Linear(s.heads * head, s.width, bias=False)
        self.gate = nn.Linear(s.width, s.hidden, bias=False)
        self.up = nn.Linear(s.width, s.hidden, bias=False)
        self.down = nn.Linear(s.hidden, s.width, bias=False)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        """(batch, context, width) in and out."""
        y = self.norms[0](x)
        q, k, v = (f(y).unflatten(-1, (n, -1)).transpose(1, 2) for f, n in self._heads())
        q, k = rotated(q, turn), rotated(k, turn)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))

    def _heads(self) -> list[tuple[nn.Module, int]]:
        s = self.size
        return [(self.q, s.heads), (self.k, s.kv_heads), (self.v, s.kv_heads)]


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """Pairs of features turned by their position's angle."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


class Llama(nn.Module):
    """Loss of a batch of tokens; what is between blocks is all that forward keeps."""

    def __init__(self, s: Size) -> None:
        super().__init__()
        self.size = s
        self.embedding = nn.Embedding(s.vocabulary, s.width)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.norm = nn.RMSNorm(s.width)
        self.head = nn.Linear(s.width, s.vocabulary, bias=False)
        if s.tied:
            self.head.weight = self.embedding.weight
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (batch, context + 1)."""
        half = self.size.width // self.size.heads // 2
        rate = 5e5 ** -(torch.arange(half, device=tokens.device) / half)
        angles = torch.arange(tokens.shape[1] - 1, device=tokens.device)[:, None] * rate
        turn = torch.polar(torch.ones_like(angles), angles)
        x = self.embedding(tokens[:, :-1])
        for block in self.blocks:
            x = checkpoint(block, x, turn, use_reentrant=False)
        rows, wanted = self.norm(x).flatten(0, 1), tokens[:, 1:].flatten()
        pieces = zip(rows.split(512), wanted.split(512), strict=True)
        parts = [checkpoint(self._loss, a, b, use_reentrant=False) for a, b in pieces]
        return torch.stack(parts).sum() / len(wanted)

    def _loss(self, rows: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(self.head(rows).float(), wanted, reduction="sum")


@dataclass(frozen=True)
class Way:
    """One way to train the model: its optimizer, made from the parameters."""

    title: str
    make: Callable[[list[nn.Parameter]], Any]
    dtype: torch.dtype = torch.bfloat16
    release: bool = False
    offload: bool = False


def ours(cls: Any, **options: Any) -> Callable[[list[nn.Parameter]], Any]:
    return lambda params: cls(params, lr=1e-5, **options)


def theirs(params: list[nn.Parameter]) -> Any:
    return torch.optim.AdamW(params, lr=1e-5, fused=params[0].is_cuda)


def torchao(**options: Any) -> Callable[[list[nn.Parameter]], Any]:
    def make(params: list[nn.Parameter]) -> Any:
        from torchao.optim import CPUOffloadOptimizer

        return CPUOffloadOptimizer(params, torch.optim.AdamW, lr=1e-5, **options)

    return make


WAYS = {
    "torch-fp32": Way("torch AdamW, fp32 weights", theirs, torch.float32),
    "torch-bf16": Way("torch AdamW, bf16 weights and state", theirs),
    "fp8": Way("AdamW, FP8", ours(AdamW)),
    "fp8-split": Way("AdamW, FP8, exact master weights", ours(AdamW, master="split")),
    "fp4": Way("AdamW, 4 bits", ours(AdamWFP4)),
    "fp8-release": Way("AdamW, FP8, gradient release", ours(AdamW), release=True),
    "fp4-release": Way("AdamW, 4 bits, gradient release", ours(AdamWFP4), release=True),
    "fp8-offload": Way("AdamW, FP8, offload", ours(AdamW), offload=True),
    "fp4-offload": Way("AdamW, 4 bits, offload", ours(AdamWFP4), offload=True),
    "fp8-both": Way("AdamW, FP8, offload and release", ours(AdamW), release=True, offload=True),
    "fp4-both": Way(
        "AdamW, 4 bits, offload and release", ours(AdamWFP4), release=True, offload=True
    ),
    "torchao-offload": Way("torchao CPUOffloadOptimizer", torchao()),
    "torchao-both": Way(
        "torchao CPUOffloadOptimizer, gradients too", torchao(offload_gradients=True)
    ),
}


@dataclass
class Row:
    """What one way was measured to take; GiB of the GPU, of pinned memory, and ms of a step."""

    size: str
    way: str
    title: str
    parameters: int
    peak: float | None = None
    after: float | None = None  # between two steps
    host: float = 0.0  # state in host memory
    ms: float | None = None  # forward, backward and step
    ms_step: float | None = None  # of that, from the end of backward to the end of the step
    problem: str = ""


def measure(size: str, name: str, device: str, batch: int, context: int, steps: int) -> Row:
    """Train for a few steps in one way."""
    way = WAYS[name]
    model = made_on(device, size, way.dtype)
    params = [*model.parameters()]
    row = Row(size, name, way.title, sum(p.numel() for p in params))
    tokens = torch.randint(SIZES[size].vocabulary, (batch, context + 1), device=device)
    try:
        optimizer = way.make(params)
        if way.offload:
            signconv.offload(optimizer)
        if way.release:
            signconv.gradient_release(optimizer)
        whole, stepping = [], []
        for t in range(steps + 2):
            with watched(device, row) if t == 2 else nullcontext():
                begin = now(device)
                with torch.autocast(device, torch.bfloat16, way.dtype == torch.float32):
                    loss = model(tokens)
                loss.backward()
                middle = now(device)
                optimizer.step()
                optimizer.zero_grad()
                end = now(device)
            if t >= 2:
                whole.append(1e3 * (end - begin))
                stepping.append(1e3 * (end - middle))
        assert torch.isfinite(loss), name
        row.ms, row.ms_step = statistics.median(whole), statistics.median(stepping)
        row.host = in_host_memory(optimizer) / GIB if device != "cpu" else 0.0
    except (torch.OutOfMemoryError, ImportError, ValueError) as problem:  # none of them fits here
        row.peak = row.after = None
        row.problem = f"{type(problem).__name__}: {problem}".splitlines()[0][:160]
    return row


def made_on(device: str, size: str, dtype: torch.dtype) -> Llama:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return Llama(SIZES[size])
    finally:
        torch.set_default_dtype(before)


def now(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def watched(device: str, row: Row) -> Iterator[None]:
    """Note the peak of what is inside."""
    if device == "cpu":
        yield
        return
    torch.cuda.reset_peak_memory_stats()
    yield
    row.peak = torch.cuda.max_memory_allocated() / GIB
    row.after = torch.cuda.memory_allocated() / GIB


def in_host_memory(optimizer: Any) -> int:
    """Bytes of state on the host; of torchao's also its copies of weights and gradients."""
    inner = getattr(optimizer, "optim_dict", None)
    if inner is None:
        states = [optimizer.state]
    else:
        states = [o.state for o in inner.values()]
    total = 0
    for state in states:
        for p, entry in state.items():
            tensors = [x for x in entry.values() if isinstance(x, Tensor)]
            if inner is not None:
                tensors += [p, p.grad]
            total += sum(x.nbytes for x in tensors if x.device.type == "cpu" and x.dim())
    return total


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: what each way takes, by model."""
    sizes = [s for s in SIZES if any(r["size"] == s for r in rows)]
    lines = ["| |" + "".join(f" {s.upper()}: peak, GiB | on the host | step, ms |" for s in sizes)]
    lines.append("|---|" + "---|---|---|" * len(sizes))
    for name, way in WAYS.items():
        cells = []
        for size in sizes:
            found = [r for r in rows if (r["size"], r["way"]) == (size, name)]
            if not found:
                cells += ["not run", "", ""]
            elif found[-1]["peak"] is None:
                cells += ["does not fit", "", ""]
            else:
                r = found[-1]
                host = f"{r['host']:.1f}" if r["host"] else "–"
                cells += [f"{r['peak']:.1f}", host, f"{r['ms']:.0f}"]
        lines.append(f"| {way.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=[*SIZES, "table"], help="table: print that of --out")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path, help="rows are added to this JSON file")
    a = parser.parse_args()
    if a.size == "table" and a.out is None:
        parser.error("table: give the record with --out")
    if a.size == "table":
        print(table(json.loads(a.out.read_text())), end="")
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{card}, torch {torch.__version__}, {a.batch} x {a.context} tokens a step")
    for name in a.ways:
        row = measure(a.size, name, device, a.batch, a.context, a.steps)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        shown = [f"{x:9.2f}" if x is not None else "        –" for x in (row.peak, row.after)]
        shown += [f"{x:9.1f}" if x is not None else "        –" for x in (row.ms, row.ms_step)]
        print(f"{row.title:45}", *shown, f"{row.host:9.2f}", row.problem, flush=True)
        if a.out is not None:
            known = json.loads(a.out.read_text()) if a.out.exists() else []
            about = {"card": card, "torch": torch.__version__, "batch": a.batch}
            known.append({**about, "context": a.context, **asdict(row)})
            a.out.write_text("[\n" + ",\n".join(map(json.dumps, known)) + "\n]\n")


if __name__ == "__main__":
    main()
