"""Train every run of the plan on all GPUs of this machine, until a deadline; resumable.

One worker process per GPU, each with its model compiled once.  A record is written to
OUT/runs.jsonl the moment its run ends, so that whatever stops this program keeps what was done; a
later call given that file with --done skips those runs.

    python examples/results/gpu_all.py --out build/results --seconds 500
    python examples/results/gpu_all.py --out build/more --done build/results/runs.jsonl
    python examples/results/gpu_all.py --claims large             # 114 million parameters
    python examples/results/gpu_all.py --claims papers papers_s3  # byte-pair tokens (papers.py)
    python examples/results/gpu_all.py --again     # a run of each claim once more (again.py)
    python examples/results/gpu_all.py --device cpu --tiny        # the same, small, without a GPU
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import queue
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterable
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import again
import papers
import plan
import torch
from bpe import package
from gpt import MODELS, TINY, TINY_TOKENS, VOCAB, Size
from records import committed, read_records
from runs import Run, Trainer, final_loss
from texts import same_text, save_texts

TINY_SCALE = plan.Scale(
    full=24 * TINY.tokens,
    short=8 * TINY.tokens,
    finetune=8 * TINY.tokens,
    table=("adamw-fp32", "adamw-raw", "stosignsgd", "s3gd-raw"),
    spikes=("adamw-fp32", "s3-p3-same-nesterov"),
    factors=(1, 10),
    ablation=("adamw", "adamw-stosign"),
    finetuned=("adamw-fp32", "s3gd"),
    extras=("torch-adamw",),
    stall=("s3gd-99-raw",),
    near=("adamw-fp32",),
    defaults=("adamw-fp32",),
    long_spikes=("adamw-fp32",),
    more_seeds=(3,),
    closer=("adamw-fp32",),
    repeated_spikes=("adamw-fp32",),
    noise=("adamw-stosign-then-golden",),
    four_bits=("adamw-fp4",),
    four_bits_closer=("adamw-fp4",),
    stosignsgd=("stosignsgd-99",),
    large=("adamw-fp4",),
    large_seeds=(1,),
    plateau=("adamw-stosign",),
    plateau_tokens=8 * TINY.tokens,
    papers=papers.Part(
        tokens=8 * TINY.tokens,
        finetune=4 * TINY.tokens,
        arms=("adamw-ours", "stosignsgd-theirs", "s3-p3-0.95", "s3-ours", "s3gd-ours"),
        first_lrs=1,
        seeds=(1,),
    ),
)
OVERHEAD = 4.0  # seconds of a run that are not training: first compilation, evaluation
GRACE = 10.0  # seconds after the deadline before workers are ended
RESTARTS = 3  # of workers whose device broke, in all


# ---------------------------------------------------------------- the worker


def work(index: int, device: str, size: Size, scratch: str, inbox: Any, outbox: Any) -> None:
    """Train what comes through inbox on one device; runs in a process of its own."""
    try:
        where = torch.device(device)
        if where.type == "cuda":
            torch.cuda.set_device(where)
            torch.set_float32_matmul_precision("high")
        else:
            torch.set_num_threads(1)
        trainer = Trainer(size, where, Path(scratch), compiled=where.type == "cuda")
        facts = {
            "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
            "compiled": trainer.compiled,
            "problem": trainer.problem,
            "model_tokens_per_second": round(trainer.tokens_per_second),
        }
        texts = Path(scratch, "texts.pt")
        while not texts.exists():  # written whole by the main process, then renamed
            time.sleep(0.1)
        for text in torch.load(texts, weights_only=False):
            trainer.add_text(text)
        outbox.put(("ready", index, facts))
        while (job := inbox.get()) is not None:
            run, stop_at = job
            try:
                record = trainer.train(run, stop_at)
            except Exception as problem:
                record = {**vars(run), "status": "error", "error": _short(problem)}
                traceback.print_exc()
                try:  # a device that broke fails every later run: end, and be restarted
                    trainer._wait()
                except Exception:
                    outbox.put(("done", index, record))
                    outbox.put(("broken", index, {}))
                    return
                trainer.model.zero_grad()
            outbox.put(("done", index, record))
    except Exception as problem:
        traceback.print_exc()
        outbox.put(("broken", index, {"problem": _short(problem)}))


def _short(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}"[:2000]


# ---------------------------------------------------------------- the main process


def environment() -> dict[str, Any]:
    """Software and hardware of this machine."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    try:
        import triton

        versions["triton"] = triton.__version__
    except ImportError:
        pass
    cuda = torch.cuda.is_available()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
    return {**versions, "gpus": gpus, "cpus": os.cpu_count()}


#: What is to be trained, the most valuable first, from what is done and the checkpoints there are.
Pending = Callable[[dict[str, dict[str, Any]], Collection[str]], Iterable[Run]]


class Scheduler:
    """Gives runs to workers, most valuable first, as long as they can end before the deadline."""

    def __init__(
        self,
        devices: list[str],
        size: Size,
        pending: Pending,
        done: dict[str, dict[str, Any]],
        out: Path,
        scratch: Path,
        deadline: float,
    ) -> None:
        self.devices, self.size, self.pending = devices, size, pending
        self.done, self.out, self.scratch, self.deadline = done, out, scratch, deadline
        self.context = multiprocessing.get_context("spawn")
        self.outbox = self.context.Queue()
        self.inboxes: dict[int, Any] = {}
        self.workers: dict[int, Any] = {}
        self.busy: dict[int, Run] = {}
        self.idle: set[int] = set()
        self.restarts = RESTARTS
        self.lost_once: set[str] = set()
        self.rate = 0.0  # tokens a second of one worker
        self.worker_facts: dict[int, dict[str, Any]] = {}
        self.began = time.time()
        for index in range(len(devices)):
            self._start(index)

    def _start(self, index: int) -> None:
        self.inboxes[index] = self.context.Queue()
        arguments = (index, self.devices[index], self.size, str(self.scratch))
        self.workers[index] = self.context.Process(
            target=work, args=(*arguments, self.inboxes[index], self.outbox), daemon=False
        )
        self.workers[index].start()

    def say(self, text: str) -> None:
        """One line with the time since the start."""
        print(f"[{time.time() - self.began:6.1f} s] {text}", flush=True)

    def have(self) -> set[str]:
        """The checkpoints that exist."""
        return {p.name for p in self.scratch.glob("*.pt")}

    def next_run(self) -> Run | None:
        """The most valuable run that nobody trains and that can end in time."""
        running = {run.id for run in self.busy.values()}
        left = self.deadline - time.time()
        for run in self.pending(self.done, self.have()):
            seconds = OVERHEAD + 1.05 * run.tokens / self.rate if self.rate else 0.0
            if run.id not in running and seconds <= left:
                return run
        return None

    def record(self, record: dict[str, Any]) -> None:
        """Keep one record, on disk at once."""
        self.done[record["id"]] = record
        with (self.out / "runs.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if record["status"] == "ok" and record["tokens_per_second"]:
            new = record["tokens_per_second"]
            if record["steps"] >= 100 or not self.rate:
                self.rate = 0.7 * self.rate + 0.3 * new if self.rate else new
        loss = final_loss(record)
        self.say(
            f"{record['id']}: {record['status']} {record.get('error', '')} held-out {loss:.4f}, "
            f"{record.get('seconds')} s, {record.get('tokens_per_second', 0):,} tokens/s"
        )

    def handle(self, kind: str, index: int, payload: dict[str, Any]) -> None:
        """One message of a worker."""
        if kind == "ready":
            self.worker_facts[index] = payload
            self.idle.add(index)
            self.rate = self.rate or 0.8 * payload["model_tokens_per_second"]
            self.say(f"worker {index} ready: {payload}")
        elif kind == "done":
            self.busy.pop(index, None)
            self.idle.add(index)
            self.record(payload)
        else:
            self.lost(index, payload.get("problem", "the device broke"))

    def lost(self, index: int, why: str) -> None:
        """A worker ended: what it trained is tried once more; start another."""
        self.say(f"worker {index} ended: {why}")
        self.idle.discard(index)
        if run := self.busy.pop(index, None):
            if run.id in self.lost_once:
                self.record({**vars(run), "status": "error", "error": why})
            self.lost_once.add(run.id)
        self.workers.pop(index).join(1)
        if self.restarts > 0:
            self.restarts -= 1
            self._start(index)

    def run(self) -> None:
        """Until nothing is left, or the deadline."""
        while self.workers:
            try:
                self.handle(*self.outbox.get(timeout=0.3))
                continue  # all that waits, before anything is given out
            except queue.Empty:
                pass
            for index, worker in list(self.workers.items()):
                if not worker.is_alive():
                    self.lost(index, f"exit code {worker.exitcode}")
            for index in sorted(self.idle):
                if (run := self.next_run()) is None:
                    break
                self.idle.discard(index)
                self.busy[index] = run
                self.inboxes[index].put((run, self.deadline))
            waiting = len(self.workers) - len(self.idle) - len(self.busy)  # still starting
            late = time.time() > self.deadline + GRACE
            if late or (not self.busy and not waiting and self.next_run() is None):
                if late and self.busy:
                    self.say(f"past the deadline: {[r.id for r in self.busy.values()]} given up")
                break
        self.stop()

    def stop(self) -> None:
        """End the workers, asking first those that wait."""
        for index, worker in self.workers.items():
            if index in self.busy or index not in self.idle:
                worker.terminate()
            else:
                self.inboxes[index].put(None)
        for worker in self.workers.values():
            worker.join(5)
            if worker.is_alive():
                worker.kill()


def plain(x: Any) -> Any:
    """For JSON: a part of the plan by its fields, a set as a list."""
    return vars(x) if is_dataclass(x) else list(x)


def devices_of(kind: str, per_gpu: int = 1) -> list[str]:
    """One entry per worker: every GPU, or two processes on the CPU."""
    if kind == "cpu":
        return ["cpu", "cpu"]
    if not torch.cuda.is_available():
        raise SystemExit("error: torch finds no CUDA device; use --device cpu --tiny")
    return [f"cuda:{i}" for _ in range(per_gpu) for i in range(torch.cuda.device_count())]


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/results"))
    resumed = parser.add_mutually_exclusive_group()
    resumed.add_argument("--done", type=Path, nargs="*", default=[], help="records to resume")
    resumed.add_argument("--again", action="store_true", help="a recorded run of each claim anew")
    parser.add_argument("--seconds", type=float, default=500, help="start nothing that ends later")
    usual = [claim for claim in plan.CLAIMS if claim not in plan.MODELS]
    parser.add_argument("--claims", nargs="*", choices=plan.CLAIMS, default=usual)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small model and short runs")
    parser.add_argument("--full-tokens", type=int, default=plan.FULL_SCALE.full)
    parser.add_argument("--short-tokens", type=int, default=plan.FULL_SCALE.short)
    parser.add_argument("--max-bytes", type=int, default=None, help="of each kind of text")
    parser.add_argument("--per-gpu", type=int, default=1, help="processes on each GPU")
    parser.add_argument("--arms", nargs="+", help="of the claims papers…: these alone")
    parser.add_argument(
        "--cache", type=Path, default=Path("build/tokens"), help="where byte-pair tokens are kept"
    )
    given = parser.parse_args(arguments)

    began = time.time()
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "runs.jsonl").touch()
    done = read_records([*given.done, given.out / "runs.jsonl"])
    models = {plan.MODELS.get(claim, "full") for claim in given.claims}
    if len(models) > 1 and not given.tiny:
        parser.error(f"--claims: these train models of {len(models)} sizes; name those of one")
    size = MODELS[models.pop() if models else "full"]
    if given.tiny:
        size = replace(TINY if size.vocab == VOCAB else TINY_TOKENS, matmul=size.matmul)
    scale = TINY_SCALE if given.tiny else plan.Scale(
        full=given.full_tokens, short=given.short_tokens, finetune=plan.FULL_SCALE.finetune
    )  # fmt: skip
    if given.arms:
        if unknown := set(given.arms) - papers.arms():
            parser.error(f"--arms: not in the plan of papers.py: {', '.join(sorted(unknown))}")
        scale = replace(scale, papers=replace(scale.papers, arms=tuple(given.arms)))
    known = committed() if given.again else given.done
    chosen = again.chosen(read_records(known), given.claims) if given.again else None

    def pending(done: dict[str, dict[str, Any]], have: Collection[str]) -> Iterable[Run]:
        if chosen is None:
            return plan.pending(done, have, scale, given.claims)
        return [run for run in chosen if run.id not in done]

    stem = "environment"
    if size.vocab != VOCAB:
        stem = "papers_environment"
        package()  # told at once where it is missing
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        os.environ.setdefault("SIGNCONV_CACHE", str(scratch / "signconv"))
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "12")
        scheduler = Scheduler(
            devices_of(given.device, given.per_gpu), size, pending, done, given.out, scratch,
            began + given.seconds,
        )  # fmt: skip
        try:
            texts = save_texts(
                given.max_bytes or (3_000_000 if given.tiny else 400_000_000),
                size.vocab, given.cache, scratch,
            )  # fmt: skip
            if not given.tiny:
                same_text(texts, known, stem)
            for text in texts:
                scheduler.say(f"{text.kind}: {len(text.train):,} + {len(text.held_out):,} tokens")
            facts = {
                **environment(),
                "arguments": sys.argv[1:],
                "model": vars(size),
                "scale": vars(scale),
                "texts": [text.facts() for text in texts],
            }
            path = given.out / f"{stem}.json"
            path.write_text(json.dumps(facts, indent=1, default=plain))
            scheduler.run()
        except BaseException:
            scheduler.stop()
            raise
        facts["workers"] = scheduler.worker_facts
        facts["seconds"] = round(time.time() - began, 1)
        left = list(pending(done, scheduler.have()))
        facts["not_run"] = [run.id for run in left]
        path.write_text(json.dumps(facts, indent=1, default=plain))
        statuses = [record["status"] for record in done.values()]
        counts = {status: statuses.count(status) for status in sorted(set(statuses))}
        scheduler.say(f"records: {counts}; known and not run: {len(left)}")


if __name__ == "__main__":
    main()
