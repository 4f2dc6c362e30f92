"""One training run, and what is measured of it.

Weights: fp32 masters that the optimizer steps, copied to bf16 for the model (fp32 on a CPU), so
that runs differ in the optimizer and its state alone.  lr: linear warmup, then a cosine to a tenth.
No gradient is clipped, unless the optimizer's entry says so.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from data import Text, starts, windows
from gpt import GPT, VOCAB, Size, initial_weights
from measures import by_layer, histogram, sign_means, update_rms, zero_shares
from optimizers import CHOICES, make, round_raw, rounded_gradients, state_bytes, successor
from torch import Tensor

WARMUP = 0.05  # share of the steps
FLOOR = 0.1  # of the peak lr, at the end of the cosine
CHECK_EVERY = 50  # steps between looks at the clock and for a loss that is not finite
COLLAPSE_STEP = 103  # of the StoSignSGD paper's Table 12
PROBES = (1, 3, 10, 30, COLLAPSE_STEP, 300, 1000, 3000)  # steps after which the state is looked at
TIMED = range(20, 60)  # steps whose optimizer is timed
PARTS = 20  # of a training whose losses a record keeps apart

# ---------------------------------------------------------------- loss spikes: fixed beforehand

SPIKE_WINDOW = 25  # steps before, whose median and spread a step is compared with
SPIKE_RISE = 0.15  # nats per byte above the median, at least ...
SPIKE_SIGMAS = 6.0  # ... and so many standard deviations (1.4826 * MAD of the window)
SPIKE_GAP = 10  # steps; closer ones are one spike


def spikes(losses: list[float], warmup: int) -> int:
    """How many loss spikes: steps after warmup whose training loss stands above the window.

    A step that is not finite counts as above.  Steps above that lie within SPIKE_GAP of one
    another are one spike.
    """
    count, last = 0, -math.inf
    for i in range(max(warmup, SPIKE_WINDOW), len(losses)):
        window = [x for x in losses[i - SPIKE_WINDOW : i] if math.isfinite(x)]
        if not window:
            break
        median = statistics.median(window)
        deviation = 1.4826 * statistics.median(abs(x - median) for x in window)
        above = not losses[i] - median <= max(SPIKE_RISE, SPIKE_SIGMAS * deviation)
        if above:
            count += i - last > SPIKE_GAP
            last = i
    return count


# ---------------------------------------------------------------- what a record keeps


def parts(losses: list[float]) -> dict[str, list[float | None]]:
    """Median and maximum of the training loss in PARTS equal parts; None for what is not finite.

    The last step of part i of n is (i + 1)*len(losses)//n.
    """
    n = min(PARTS, len(losses))
    bounds = [i * len(losses) // n for i in range(n + 1)] if n else [0]
    cut = [losses[a:b] for a, b in pairwise(bounds)]
    return {
        "median": [_number(statistics.median(x)) for x in cut],
        "max": [_number(math.nan if any(map(math.isnan, x)) else max(x)) for x in cut],
    }


def _number(x: float) -> float | None:
    """Four decimals for JSON; None for what is not finite."""
    return round(x, 4) if math.isfinite(x) else None


# ---------------------------------------------------------------- runs


@dataclass(frozen=True)
class Run:
    """What to train; ``id`` names it in the records."""

    id: str
    claim: str
    optimizer: str  # a key of optimizers.CHOICES
    lr: float
    tokens: int
    seed: int
    text: str = "python"
    start: str = ""  # checkpoint to start from, a name in the scratch folder
    save: str = ""  # checkpoint to write at the end
    evaluations: int = 10
    detail: bool = False  # also zeros by layer, sizes of m, the sign's mean

    def steps(self, size: Size) -> int:
        """Steps that make up the tokens."""
        return max(1, math.ceil(self.tokens / size.tokens))


def schedule(step: int, steps: int) -> float:
    """The factor on lr at step 0, 1, …: linear warmup, then a cosine to FLOOR."""
    warmup = warmup_steps(steps)
    if step < warmup:
        return (step + 1) / warmup
    along = (step - warmup) / max(1, steps - warmup)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * along))


def warmup_steps(steps: int) -> int:
    """Steps of the linear warmup."""
    return max(1, round(WARMUP * steps))


class Trainer:
    """A model on one device, compiled once, and the texts; trains any number of runs.

    ``compiled`` says whether torch.compile worked; without it the runs are the same and slower.
    """

    def __init__(self, size: Size, device: torch.device, scratch: Path, compiled: bool) -> None:
        self.size, self.device, self.scratch = size, device, scratch
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.model = GPT(size).to(device, self.dtype)
        self.texts: dict[str, tuple[Tensor, Tensor]] = {}
        self.lengths: dict[str, Tensor] = {}  # bytes of each token, where tokens are not bytes
        self.loss: Callable[[Tensor], Tensor] = self.model.loss
        self.compiled = False
        self.problem = ""
        self.tokens_per_second = 0.0
        if compiled:
            self._compile()

    def _compile(self) -> None:
        eager = self.loss
        try:
            self.loss = torch.compile(eager, dynamic=False)
            self._warm()
            self.compiled = True
        except Exception as problem:  # a machine without a C compiler, say
            self.loss, self.problem = eager, repr(problem)[:500]
            self.model.zero_grad()
            self._warm()

    def _warm(self) -> None:
        """Compile both graphs on random tokens, and time a step."""
        shape = (self.size.batch, self.size.context + 1)
        dtype = torch.uint8 if self.size.vocab == VOCAB else torch.int16
        rows = torch.randint(self.size.vocab, shape, dtype=dtype, device=self.device)
        with torch.no_grad():
            self.loss(rows)
        for _ in range(3):
            self.loss(rows).backward()
        self._wait()
        started = time.perf_counter()
        for _ in range(10):
            self.loss(rows).backward()
        self._wait()
        self.tokens_per_second = 10 * self.size.tokens / (time.perf_counter() - started)
        self.model.zero_grad()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def add_text(self, text: Text) -> None:
        """Make a kind of text available, on the device."""
        self.texts[text.kind] = (text.train.to(self.device), text.held_out.to(self.device))
        if text.lengths is not None:
            self.lengths[text.kind] = text.lengths.to(self.device)

    def held_out_windows(self, kind: str) -> Tensor:
        """The fixed windows of a held-out text."""
        held_out, context = self.texts[kind][1], self.size.context
        generator = torch.Generator().manual_seed(0)
        first = starts(held_out, (self.size.held_out_windows,), context, generator)
        return windows(held_out, first, context)

    def bytes_per_token(self, kind: str) -> float | None:
        """Of what is predicted in the held-out windows; None where tokens are bytes."""
        if (lengths := self.lengths.get(kind)) is None:
            return None
        return float(lengths[self.held_out_windows(kind)[:, 1:].long()].double().mean())

    @torch.no_grad()
    def evaluate(self, kind: str) -> float:
        """Held-out loss of a kind of text on its fixed windows, nats per token."""
        rows = self.held_out_windows(kind).split(self.size.batch)
        losses = [self.loss(part.clone()) for part in rows]  # whole tensors, as when compiled
        return float(torch.stack(losses).float().mean())

    def train(self, run: Run, stop_at: float = math.inf) -> dict[str, Any]:
        """Train `run` and return its record, plain numbers.

        ``status`` is ok, diverged (a loss that is not finite: the run ends there) or cut (the
        clock passed stop_at: the run does not count).
        """
        began = time.perf_counter()
        choice, steps = CHOICES[run.optimizer], run.steps(self.size)
        params: list[Tensor] = list(self.model.parameters())
        fresh = (
            torch.load(self.scratch / run.start, map_location=self.device)
            if run.start
            else initial_weights(self.model, run.seed)
        )
        if choice.masters == "bf16":
            fresh = [w.bfloat16().float() for w in fresh]
        masters = [w.to(self.device).requires_grad_() for w in fresh]
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        optimizer = make(run.optimizer, masters, run.lr, run.seed)
        gradients = [torch.empty_like(w) for w in masters]
        rates = torch.tensor([run.lr * schedule(i, steps) for i in range(steps)]).to(self.device)
        lr = rates[0].clone()  # changed in place on the device: no step waits for a copy
        for group in optimizer.param_groups:
            group["lr"] = lr
        with torch.no_grad():
            torch._foreach_copy_(params, masters)

        train, (batch, context) = self.texts[run.text][0], (self.size.batch, self.size.context)
        generator = torch.Generator().manual_seed(1_000 + run.seed)
        order = starts(train, (steps, batch), context, generator)  # one copy: no step waits for it
        losses = torch.full((steps,), math.nan, device=self.device)
        others = [k for k in self.texts if k != run.text] if run.start else []
        held_out = [(0, self.evaluate(run.text))]
        other_before = {k: self.evaluate(k) for k in others}
        zero: dict[int, Any] = {}
        detail: dict[str, Any] = {"sign_means": {}} if run.detail else {}
        named = list(zip([name for name, _ in self.model.named_parameters()], masters))
        rms: dict[int, float | None] = {}
        timers: list[tuple[Any, Any]] = []
        every = max(1, steps // run.evaluations)
        status, done = "ok", 0
        for step in range(steps):
            if choice.later and step == int(choice.later_from * steps):
                optimizer = successor(run.optimizer, optimizer, masters, run.seed)
                for group in optimizer.param_groups:
                    group["lr"] = lr
            lr.copy_(rates[step])
            loss = self.loss(windows(train, order[step], context))
            loss.backward()
            losses[step] = loss.detach()
            with torch.no_grad():
                torch._foreach_copy_(gradients, [_grad(p) for p in params])
                if choice.scale != 1.0:
                    torch._foreach_mul_(gradients, choice.scale)
                if choice.gradient == "e5m2":
                    rounded_gradients(gradients)
            for p in params:
                p.grad = None
            for w, g in zip(masters, gradients):
                w.grad = g
            if choice.clip:
                torch.nn.utils.clip_grad_norm_(masters, choice.clip * choice.scale)
            probe = step + 1 in PROBES
            before = [w.detach().clone() for w in masters] if probe else []
            timed = step in TIMED and self.device.type == "cuda"
            if timed:
                timers.append((torch.cuda.Event(True), torch.cuda.Event(True)))
                timers[-1][0].record()
            optimizer.step()
            if timed:
                timers[-1][1].record()
            if choice.raw:
                round_raw(optimizer)
            if probe:
                rms[step + 1] = update_rms(optimizer, masters, before)
                zero[step + 1] = zero_shares(optimizer, masters[0])
                if run.detail:
                    detail["sign_means"][step + 1] = sign_means(optimizer, masters, step + 1)
                if run.detail and step + 1 == COLLAPSE_STEP:
                    detail["layers"] = by_layer(optimizer, named, self.size.layers)
            with torch.no_grad():
                if choice.masters == "bf16":
                    torch._foreach_copy_(masters, [w.bfloat16() for w in masters])
                torch._foreach_copy_(params, masters)
            done = step + 1
            if done % every == 0 and done < steps:
                held_out.append((done, self.evaluate(run.text)))
            if done % CHECK_EVERY == 0:
                if not math.isfinite(float(losses[step])):
                    status = "diverged"
                    break
                if time.time() > stop_at:
                    status = "cut"
                    break
        held_out.append((done, self.evaluate(run.text)))
        path = losses[:done].tolist()
        if status == "ok" and not all(math.isfinite(x) for x in (*path, held_out[-1][1])):
            status = "diverged"
        if run.save and status == "ok":
            partial = self.scratch / f"{run.save}.partial"
            torch.save([w.detach().cpu() for w in masters], partial)
            partial.rename(self.scratch / run.save)  # whole or absent
        if run.detail:
            detail["histogram"] = histogram(optimizer, masters)
        self._wait()
        seconds = time.perf_counter() - began
        milliseconds = [a.elapsed_time(b) for a, b in timers]
        return {
            **asdict(run),
            "status": status,
            "steps": steps,
            "steps_done": done,
            "tokens_per_step": self.size.tokens,
            "train_loss": parts(path),
            "held_out": [(s, _number(x)) for s, x in held_out],
            "other_held_out": {
                k: [_number(other_before[k]), _number(self.evaluate(k))] for k in others
            },
            "zero_shares": zero,
            "update_rms": rms,
            "spikes": spikes(path, warmup_steps(steps)),
            "state_bytes_per_parameter": state_bytes(optimizer, choice.raw),
            "optimizer_ms": statistics.median(milliseconds) if milliseconds else None,
            "seconds": round(seconds, 2),
            "tokens_per_second": round(done * self.size.tokens / seconds),
            **self._beside(run, detail),
        }

    def _beside(self, run: Run, detail: dict[str, Any]) -> dict[str, Any]:
        """What records have beyond those of runs on bytes."""
        if (ratio := self.bytes_per_token(run.text)) is None:
            return detail
        made = {"bytes_per_token": round(ratio, 4), **detail}
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            made["peak_gib"] = round(peak / 2**30, 2)
        return made


def _grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def final_loss(record: Mapping[str, Any]) -> float:
    """Final held-out loss of a record, a token; infinity where the run diverged or failed."""
    if record.get("status") != "ok":
        return math.inf
    value = record["held_out"][-1][1]
    return math.inf if value is None else float(value)


def per_byte(record: Mapping[str, Any]) -> float:
    """The same in nats per byte, also where tokens are longer."""
    return final_loss(record) / float(record.get("bytes_per_token", 1.0))
