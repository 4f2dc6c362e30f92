"""What provokes each code that no description of an optimizer provokes: code -> (act, words)."""

from __future__ import annotations

import builtins
import itertools
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from signconv.generated.adamw import AdamW
from signconv.generated.adamw_fp4 import AdamWFP4
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.prodigy import Prodigy
from signconv.generated.s3 import S3
from signconv.generated.schedulefree_adamw import ScheduleFreeAdamW
from signconv.generated.sophia import Sophia

import signconv
from signconv import pictures, pipeline
from signconv.bench import chart, limits, page, run, subjects, workloads
from signconv.dsl import Optimizer, grad, hyper
from signconv.integrations import names
from signconv.ir.check import check
from signconv.ir.evaluate import Evaluator
from signconv.ir.nodes import GRAD, Op, Ref
from signconv.lower.kernel_program import Statement
from signconv.pipeline import checkpoint, files, starter
from signconv.render import environment
from signconv.runtime import averaging, cast, checks, offload, release, seeds, staging
from signconv.runtime.cpu import backend as cpu_backend
from signconv.runtime.inspect import inspect
from signconv.runtime.kernel import backend as kernel_backend
from signconv.runtime.optimizer import FusedOptimizer
from signconv.runtime.reference import ops as reference_ops
from signconv.runtime.release import gradient_release
from signconv.tuning import command as tuning
from signconv.tuning.lr_range import lr_range
from signconv.verification import aot, bits, differential
from tests.bench import records
from tests.support import HEAD, built_class, spec_file

Act = Callable[[Path, pytest.MonkeyPatch], Any]
FAULTS: dict[str, tuple[Act, str]] = {}


def fault(code: str, words: str) -> Callable[[Act], Act]:
    """Enter what provokes ``code``, and what its message says."""

    def enter(act: Act) -> Act:
        assert code not in FAULTS, f"{code} has two acts"
        FAULTS[code] = act, words
        return act

    return enter


def parameter(*shape: int, dtype: torch.dtype = torch.float32, **k: Any) -> torch.Tensor:
    return torch.zeros(shape or (3,), dtype=dtype, requires_grad=True, **k)


def stepped(cls: Any = AdamW, **arguments: Any) -> Any:
    """An optimizer on the reference, after one step."""
    p = parameter(64)
    p.grad = torch.ones(64)
    made = cls([p], backend="reference", **arguments)
    made.step()
    return made


# ---------------------------------------------------------------- 1xx: what names an optimizer

fault("SC101", "3 describes no optimizer: give a subclass")(lambda *_: pipeline.build(3))  # type: ignore[arg-type]
fault("SC155", "named by one string")(lambda *_: pipeline.build("sgd", convert=["stosign"]))  # type: ignore[arg-type]
fault("SC102", "unknown optimizer 'adamww'; did you mean 'adamw'")(
    lambda *_: pipeline.resolve("adamww")
)
fault("SC106", "there is no file .*nothing.py")(
    lambda folder, _: pipeline.resolve(f"{folder}/nothing.py:Mine")
)
fault("SC107", "there is no module 'no_such_package'")(
    lambda *_: pipeline.resolve("no_such_package.module:Mine")
)


@fault("SC103", "after the colon comes the name of an optimizer class")
def _(folder: Path, _: Any) -> None:
    pipeline.resolve(f"{spec_file(folder, 'numerator = grad').path}:1x")


@fault("SC104", "names a file; name the optimizer in it: .*mine.py:Mine")
def _(folder: Path, _: Any) -> None:
    pipeline.resolve(str(spec_file(folder, "numerator = grad").path))


@fault("SC105", "defines no optimizer 'Mime'; did you mean 'Mine'")
def _(folder: Path, _: Any) -> None:
    pipeline.resolve(f"{spec_file(folder, 'numerator = grad').path}:Mime")


@fault("SC108", r"mine.py:1: syntax error: invalid syntax")
def _(folder: Path, _: Any) -> None:
    pipeline.resolve(spec_file(folder, "x = = 3", head="").spec)


@fault("SC138", "Mine has no lr: add `lr = hyper")
def _(folder: Path, _: Any) -> None:
    head = HEAD.replace("    lr = hyper(1e-3, ge=0)\n", "")
    pipeline.resolve(spec_file(folder, "numerator = grad", head=head).spec)


fault("SC151", "unknown link 'cosine'; did you mean 'stosign'")(
    lambda *_: check(replace(pipeline.resolve("adamw"), link="cosine"))
)
fault("SC152", "unknown function 'sine'; did you mean 'sign'")(
    lambda *_: check(replace(pipeline.resolve("sgd"), numerator=Op("sine", (GRAD,))))
)


# ---------------------------------------------------------------- 3xx: lowering and building


def kernel(**changes: Any) -> Any:
    return replace(pipeline.build("lion", state="fp32").kernel, **changes)


fault("SC306", "x: no backend can print 'mod' here")(
    lambda *_: kernel(math=(Statement("x", Op("mod", (GRAD, GRAD))),)).check()
)
fault("SC307", "--name '1x' is not a class name")(lambda *_: pipeline.build("sgd", name="1x"))
fault("SC309", "AdamW has no hyperparameter 'momentum'")(
    lambda *_: Evaluator(pipeline.resolve("adamw"), momentum=0.9)
)
fault("SC390", r"scalars \['gain'\] are read but never computed")(
    lambda *_: kernel(outputs=("gain",)).check()
)


@fault("SC316", "sgd.py is there already and signconv did not write it")
def _(folder: Path, _: Any) -> None:
    (folder / "sgd.py").write_text("mine = 1")
    pipeline.build("sgd").write(folder)


@fault("SC317", "sgd.py is there already: choose another name")
def _(folder: Path, _: Any) -> None:
    (folder / "sgd.py").write_text("")
    files.create({folder / "test_sgd.py": "", folder / "sgd.py": ""})


fault("SC318", "'adam_w' cannot name a new optimizer: signconv has an optimizer of that name")(
    lambda folder, _: starter.new("adam_w", folder)
)


@fault("SC308", "cannot write .*sgd.py: ")
def _(folder: Path, _: Any) -> None:
    (folder / "file").write_text("")
    pipeline.write(pipeline.build("sgd").module, folder / "file")


@fault("SC310", "a stochastic sign needs its draw: pass noise=")
def _(*_: Any) -> None:
    evaluator = Evaluator(pipeline.build("sgd", convert="stosign").program)
    p = np.ones(3)
    evaluator.step(p, p, evaluator.initial_state(p), 1)


# ---------------------------------------------------------------- 4xx: running


def made(**arguments: Any) -> Any:
    return AdamWStoSign([parameter()], **arguments)


fault("SC401", "backend='cuda' is not one of")(lambda *_: made(backend="cuda"))
fault("SC402", "seed = -1 is not an integer in 0 <= seed")(lambda *_: made(seed=-1))
fault("SC403", "AdamWStoSign has no 'eps': .*stosign:eps=keep")(lambda *_: made(eps=1e-8))
fault("SC404", r"betas = \(0.9,\) needs 2 numbers")(lambda *_: made(betas=(0.9,)))
fault("SC405", "lr is a tensor of 2 elements: it needs 1")(lambda *_: made(lr=torch.ones(2)))
fault("SC406", "weight_decay = 'x' is not a number")(lambda *_: made(weight_decay="x"))
fault("SC407", "lr = -1 is outside its range: 0 <= lr")(lambda *_: made(lr=-1.0))
fault("SC408", "master='fp32' is not one of None, 'split'")(lambda *_: made(master="fp32"))
fault("SC409", "maximize = 'no' is not True or False")(lambda *_: made(maximize="no"))
fault("SC410", "is of program 'x' .*: leave out 'program' and 'format'")(
    lambda *_: AdamW([{"params": [parameter()], "program": "x"}])
)
fault("SC411", "complex parameters: optimize torch.view_as_real")(
    lambda *_: AdamW([parameter(dtype=torch.complex64)])
)
fault("SC412", r"not torch.float16: convert the model with \.float\(\) or \.bfloat16\(\)")(
    lambda *_: AdamW([parameter(dtype=torch.float16)])
)
fault("SC413", "torch.sparse_coo parameters: use dense ones")(
    lambda *_: AdamW([torch.eye(3).to_sparse().requires_grad_()])
)


def check_grad(gradient: torch.Tensor) -> None:
    checks.grad(parameter(), gradient, "AdamW")


fault("SC414", "build the embedding with sparse=False")(
    lambda *_: check_grad(torch.ones(3).to_sparse())
)


def sharded(dim: int) -> torch.Tensor:
    """A DTensor parameter over a mesh of this process alone."""
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    return distribute_tensor(torch.ones(4, 32), mesh, [Shard(dim)]).requires_grad_()


def alone(provoke: Callable[..., object]) -> Callable[..., object]:
    """``provoke``, after which no process group is left."""

    def run(*arguments: object) -> None:
        try:
            provoke(*arguments)
        finally:
            dist.destroy_process_group()

    return run


def partial() -> torch.Tensor:
    """A DTensor that is a sum of what the ranks have."""
    from torch.distributed.tensor import DTensor, Partial

    p: Any = sharded(0)
    return DTensor.from_local(p.to_local(), p.device_mesh, [Partial()]).detach().requires_grad_()


fault("SC419", "is placed .*: redistribute it")(alone(lambda *_: AdamW([partial()])))
fault("SC420", "its gradient is a plain tensor: they must be placed alike")(
    alone(lambda *_: checks.grad(sharded(0), torch.ones(4, 32), "AdamW"))
)
fault("SC415", "a parameter on cpu has its gradient on meta: move the model")(
    lambda *_: check_grad(torch.ones(3, device="meta"))
)
fault("SC416", "needs fp32 or bf16 gradients, not torch.float64")(
    lambda *_: check_grad(torch.ones(3, dtype=torch.float64))
)
fault("SC417", "on the meta device and has no data: move the model")(
    lambda *_: AdamW([parameter()])._new_state(parameter(device="meta"), None)
)
fault("SC421", "cast takes torch.bfloat16 or torch.float32, not torch.float16")(
    lambda *_: cast.cast(torch.nn.Linear(2, 2), torch.float16)
)
fault("SC422", r"keep='\*norm\*' fits none of the model's 2 parameter names \(weight, bias")(
    lambda *_: cast.cast(torch.nn.Linear(2, 2), torch.bfloat16, keep="*norm*")
)
fault("SC431", "inspect needs an optimizer generated by signconv, not SGD")(
    lambda *_: inspect(torch.optim.SGD([parameter()]))
)
fault("SC433", "construct the optimizer with skip_nonfinite=False")(
    lambda *_: gradient_release(made(skip_nonfinite=True))
)


def changed(change: Callable[[Any], None]) -> Callable[..., None]:
    """A step after ``change`` of the only parameter, which has a gradient."""

    def run(*_: Any) -> None:
        running = stepped()
        change(running.param_groups[0]["params"][0])
        running.step()

    return run


def inference_parameter(*_: Any) -> None:
    with torch.inference_mode():
        p = parameter(64)
    p.grad = torch.ones(64)
    AdamW([p], backend="reference").step()


def shared_memory(*_: Any) -> None:
    p = parameter(64)
    q = torch.nn.Parameter(p.detach()[32:])
    p.grad, q.grad = torch.ones(64), torch.ones(32)
    AdamW([p, q], backend="reference").step()


def converted_state(*_: Any) -> None:
    running = stepped()
    (entry,) = running.state.values()
    entry["m"] = entry["m"].float()
    running.step()


fault("SC423", "a parameter of type Tensor has no memory that is its elements")(
    changed(lambda p: p.untyped_storage().resize_(0))
)
fault("SC424", r"made in inference mode .*: make the model outside")(inference_parameter)
fault("SC425", r"share memory \(strides \[0\]")(
    changed(lambda p: setattr(p, "data", torch.ones(1).expand(64)))
)
fault("SC426", r"state\[p\]\['m'\] is torch.float32 \[64\] on cpu, and a step needs .*uint8")(
    converted_state
)
fault("SC427", r"two parameters \(.*\[64\] and .*\[32\]\) share memory: tie them")(shared_memory)
fault("SC428", "has the same parameter twice: list it once")(lambda *_: AdamW([parameter(3)] * 2))
fault("SC429", r"has shape \[32\] and its gradient \[64\]: its data was replaced after backward")(
    changed(lambda p: setattr(p, "data", torch.zeros(32)))
)
fault("SC430", "a gradient of type Tensor has no memory that is its elements")(
    changed(lambda p: p.grad.untyped_storage().resize_(0))
)


@fault("SC418", r"has shape \[32\] and its optimizer state \[64\]: its data was replaced")
def _(*_: Any) -> None:
    running = stepped()
    p = running.param_groups[0]["params"][0]
    p.grad, p.data = None, torch.zeros(32)
    p.grad = torch.ones(32)
    running.step()


@fault("SC432", r"already on for this optimizer: remove\(\) it first")
def _(*_: Any) -> None:
    running = made()
    with gradient_release(running):
        gradient_release(running)


@fault("SC434", "before DDP has averaged the gradients")
def _(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(release, "_several_ranks", lambda: True)
    gradient_release(made())


@fault("SC435", "GradScaler does not work with gradient_release")
def _(*_: Any) -> None:
    running = made()
    with gradient_release(running):
        running.grad_scale = torch.ones(())
        running.step()


@fault("SC436", "'weight' in a param group is no parameter: put tensors there")
def _(*_: Any) -> None:
    running = stepped()
    running.param_groups[0]["params"].append("weight")
    running.step()


@fault("SC437", "this rank has seed 0 and another has 1 for the same parameters")
def _(_: Path, patch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    patch.setattr(dist, "is_initialized", lambda: True)
    patch.setattr(dist, "get_world_size", lambda: 2)
    patch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    for rank, seed in enumerate((1, 0)):
        patch.setattr(dist, "get_rank", lambda rank=rank: rank)
        patch.setattr(seeds, "_compared", itertools.count())
        waiting = made()
        waiting.defaults["seed"] = seed
        seeds.Ranks(waiting).ask()


@fault("SC439", r"was freed: keep gradients with zero_grad\(set_to_none=False\), or step outside")
def _(*_: Any) -> None:
    p = parameter(64)
    running = AdamW([p], backend="triton")
    with running.frozen():
        for _ in range(4):
            p.grad = torch.ones(64) if p.grad is None else p.grad
            running.step()
        running.zero_grad()
        p.grad = torch.ones(64)
        running.step()


@fault("SC438", "step = 1.5 is no count of steps: put a whole number")
def _(*_: Any) -> None:
    running = stepped()
    p = running.param_groups[0]["params"][0]
    running.state[p]["step"] = 1.5
    running.step()


# ---------------------------------------------------------------- 5xx: state dicts


def loaded(change: Callable[[dict[str, Any]], Any], **arguments: Any) -> None:
    state = stepped(**arguments).state_dict()
    change(state)
    AdamW([parameter(64)]).load_state_dict(state)


fault("SC501", "no optimizer's state_dict: it has no 'state'")(
    lambda *_: loaded(lambda s: s.pop("state"))
)
fault("SC502", "the state_dict has 0 param groups, AdamW has 1")(
    lambda *_: loaded(lambda s: s["param_groups"].clear())
)
fault("SC503", "belongs to program .* load it with the optimizer that wrote it")(
    lambda *_: loaded(lambda s: None, cls=AdamWStoSign)
)
fault("SC504", r"param group 0 of the state_dict lacks \['params'\]")(
    lambda *_: loaded(lambda s: s["param_groups"][0].pop("params"))
)
fault("SC506", r"state of parameter 0: missing \['m'\], unknown \[\]")(
    lambda *_: loaded(lambda s: s["state"][0].pop("m"))
)
fault("SC507", r"m is torch.uint8 \[3\], needs torch.uint8 \[64\]")(
    lambda *_: loaded(lambda s: s["state"][0].update(m=torch.zeros(3, dtype=torch.uint8)))
)


@fault("SC505", "construct AdamW with master='split', or export the fp32 weights")
def _(*_: Any) -> None:
    p = parameter(64, dtype=torch.bfloat16)
    p.grad = torch.ones_like(p)
    kept = AdamW([p], master="split", backend="reference")
    kept.step()
    AdamW([parameter(64)]).load_state_dict(kept.state_dict())


def compiled(folder: Path, patch: pytest.MonkeyPatch, body: str) -> Any:
    patch.setenv("SIGNCONV_CACHE", str(folder / "cache"))
    return signconv.compile(spec_file(folder, body).spec)


@fault("SC508", "Mine cannot be pickled: .* is not found as .*<locals>.Mine; define it once")
def _(folder: Path, patch: pytest.MonkeyPatch) -> None:
    class Mine(Optimizer):
        lr = hyper(0.1, ge=0)
        numerator = grad

    patch.setenv("SIGNCONV_CACHE", str(folder / "cache"))
    pickle.dumps(signconv.compile(Mine))


@fault("SC509", r"mine.py:Mine has changed since this was pickled: it is program \w{16} now")
def _(folder: Path, patch: pytest.MonkeyPatch) -> None:
    cls = compiled(folder, patch, "numerator = grad")
    text = pickle.dumps(cls)
    spec_file(folder, "numerator = -grad")
    del sys.modules[cls.__module__]  # as in another process
    pickle.loads(text)


# ---------------------------------------------------------------- 6xx: this machine


@fault("SC601", "backend='triton' cannot run on cpu: .*leave backend='auto'")
def _(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(kernel_backend, "interpreted", lambda: False)
    p = parameter()
    p.grad = torch.ones(3)
    AdamW([p], backend="triton").step()


fault("SC602", "backend='cpu' cannot run on meta: leave backend='auto'")(
    lambda *_: AdamW([parameter()], backend="cpu").backend_for(torch.device("meta"))
)


@fault("SC603", "backend='cpu' needs llvmlite: ")
def _(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cpu_backend, "HAS_LLVM", False)
    AdamW([parameter()], backend="cpu").backend_for(torch.device("cpu"))


@fault("SC604", "cannot compile erfinv.*use backend='reference'")
def _(folder: Path, patch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llvmlite")
    patch.setattr(reference_ops, "sqrt", torch.erfinv)
    p = parameter(32)
    p.grad = torch.ones(32)
    built_class(folder, "update = sqrt(abs(grad))")([p], backend="cpu").step()


@fault("SC605", "device cuda: this machine has no CUDA device")
def _(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: False)
    signconv.verify("sgd", device="cuda")


@fault("SC606", "belongs to another user.*set SIGNCONV_CACHE")
def _(folder: Path, patch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "geteuid"):
        pytest.skip("needs POSIX")
    patch.setenv("SIGNCONV_CACHE", str(folder))
    patch.setattr(os, "geteuid", lambda: os.stat(folder).st_uid + 1)
    pipeline.cache_folder()


@fault("SC607", "cannot make the cache folder .*set SIGNCONV_CACHE")
def _(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "file").write_text("")
    patch.setenv("SIGNCONV_CACHE", str(folder / "file" / "below"))
    pipeline.cache_folder()


@fault("SC608", "the templates are missing beside .*: install signconv again")
def _(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(environment, "__file__", str(folder / "a" / "b" / "environment.py"))
    environment.template_folder()


@fault("SC609", "drawing a.png needs matplotlib: pip install matplotlib")
def _(folder: Path, patch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def without(name: str, *rest: Any, **k: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(name)
        return plain(name, *rest, **k)

    patch.setattr(builtins, "__import__", without)
    pictures.check(folder / "a.png")


@fault("SC610", "unset TRITON_INTERPRET to compile them")
def _(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(aot, "interpreted", lambda: True)
    aot._compile(None, {}, {}, "sm_90")


@fault("SC611", "generated by signconv 0.1: rebuild it with the command in its docstring")
def _(*_: Any) -> None:
    from signconv.runtime import device_ops  # type: ignore[attr-defined]  # noqa: F401


# ---------------------------------------------------------------- 7xx: command line, verify, bench


@fault("SC706", "unknown target 'sm_9'; valid: .*sm_90")
def _(_: Path, patch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    patch.setattr(aot, "interpreted", lambda: False)
    aot._compile(None, {}, {}, "sm_9")


@fault("SC701", "leave out --convert, --math")
def _(*_: Any) -> None:
    signconv.verify("generated/adamw.py", convert="stosign", math="bf16")


@fault("SC707", "mine.py was built from a class that only its own Python process has")
def _(folder: Path, _: Any) -> None:
    class Mine(Optimizer):
        lr = hyper(0.1, ge=0)
        numerator = grad

    signconv.verify(str(signconv.build(Mine).write(folder)))


fault("SC708", "FusedOptimizer is derived from a generated class or is the base")(
    lambda *_: signconv.verify(FusedOptimizer)
)
fault("SC709", "steps=0: at least one")(lambda *_: signconv.verify("sgd", steps=0))
fault("SC710", "unknown device 'tpu'")(lambda *_: signconv.verify("sgd", device="tpu"))


fault("SC702", "there is no module .*nothing.py")(
    lambda folder, _: bits.load_class(folder / "nothing.py")
)


@fault("SC703", "broken.py cannot be loaded: ZeroDivisionError")
def _(folder: Path, _: Any) -> None:
    (folder / "broken.py").write_text("1 / 0\n")
    bits.load_class(folder / "broken.py")


@fault("SC704", "other.py defines no generated optimizer")
def _(folder: Path, _: Any) -> None:
    (folder / "other.py").write_text("x = 1\n")
    bits.load_class(folder / "other.py")


@fault("SC705", r"says it was built from 'mine.py:Mine': there is no file .*SC106")
def _(folder: Path, _: Any) -> None:
    module = pipeline.build(spec_file(folder, "numerator = grad").spec).module
    differential.from_module(pipeline.write(module, folder / "out")[0])


SUBJECT = subjects.Subject("", None, "fp8", "fp32", "bf16")
fault("SC711", "'' names no optimizer; SPEC")(lambda *_: subjects.parse("", SUBJECT))
fault("SC712", "unknown @fp9; did you mean 'fp8'")(lambda *_: subjects.parse("adamw@fp9", SUBJECT))
fault("SC714", "unknown workload 'F'; .*valid: A, B, C, D, E, all")(
    lambda *_: workloads.choose("F", True)
)
fault("SC715", r"a.txt: a picture's name ends in \.png")(lambda *_: pictures.check(Path("a.txt")))
fault("SC716", "nothing to draw")(lambda folder, _: chart.draw(records.record(), folder / "c.png"))
fault("SC718", "is no record of `signconv bench --json`")(lambda folder, _: run.read(text(folder)))
fault("SC719", "the page has no place for measurements")(
    lambda folder, _: page.rendered("# Head\n", folder)
)
fault("SC721", "no machine code was compiled")(lambda *_: limits.compiled_cubin(object(), set()))


def text(folder: Path) -> Path:
    (folder / "x.json").write_text("[]")
    return folder / "x.json"


@fault("SC713", "unknown peer 'torsh'; ")
def _(*_: Any) -> None:
    from signconv.bench import command

    options = command.Options(
        ["sgd"], None, "fp8", "fp32", "bf16", "cpu", "A", False, ("torsh",), 1, None, None, True
    )
    command._plan(options, [])


@fault("SC717", "cannot write .*record.json: ")
def _(folder: Path, _: Any) -> None:
    (folder / "file").write_text("")
    run.write(records.record(), folder / "file" / "record.json")


@fault("SC720", r"is outside .*: copy it to .*raw first")
def _(folder: Path, _: Any) -> None:
    (folder / "sub").mkdir()
    target = folder / "sub" / "page.md"
    target.write_text("<!-- bench: -->\n<!-- end of bench -->\n")
    page.main([str(target), str(text(folder))])


@fault("SC440", "piece of FullyShardedDataParallel's flat one, .* shard with FSDP2")
def _(*_: Any) -> None:
    p = parameter(64)
    p._fsdp_flattened = True  # type: ignore[attr-defined]
    AdamW([p])


def gone_on(cls: Any = torch.optim.AdamW) -> Any:
    """An optimizer of torch's, or one of ours, after a step."""
    p = parameter(64)
    optimizer = cls([p])
    p.grad = torch.ones(64)
    optimizer.step()
    return optimizer


fault("SC510", r"s cannot be taken from it")(lambda *_: S3([parameter(64)]).load_moments(gone_on()))


@fault("SC511", "load it there with block_wise=True first")
def _(*_: Any) -> None:
    saved = gone_on().state_dict()
    codes, table = torch.zeros(64, dtype=torch.uint8), torch.zeros(256)
    saved["state"][0] = {"step": 1, "state1": codes, "qmap1": table}
    AdamW([parameter(64)]).load_moments(saved)


fault("SC512", "of another give load_moments the optimizer itself")(
    lambda *_: AdamW([parameter(64)]).load_moments(gone_on(AdamW).state_dict())
)
fault("SC513", "keeps s, for which torch.optim has no key")(
    lambda *_: gone_on(S3).torch_state_dict()
)


def converted(saved: Any, folder: Path, to: str = "adamw", target: str = "new.pt") -> object:
    torch.save(saved, folder / "old.pt")
    return checkpoint.convert_state(folder / "old.pt", folder / target, checkpoint.Target(to))


fault("SC722", "no optimizer's state_dict in .*which has: model; name its key with --key")(
    lambda tmp_path, *_: converted({"model": 1}, tmp_path)
)
fault("SC723", "was written by an optimizer of signconv: name it with --from")(
    lambda tmp_path, *_: converted(gone_on(AdamW).state_dict(), tmp_path)
)


@fault("SC724", "4-bit state does not say its parameter's shape")
def _(tmp_path: Path, *_: Any) -> None:
    torch.save(gone_on(AdamWFP4).state_dict(), tmp_path / "old.pt")
    to, of = checkpoint.Target("torch"), checkpoint.Target("adamw")
    checkpoint.convert_state(tmp_path / "old.pt", tmp_path / "new.pt", to, of)


@fault("SC725", "cannot write")
def _(tmp_path: Path, *_: Any) -> None:
    (tmp_path / "file").touch()
    converted(gone_on().state_dict(), tmp_path, target="file/new.pt")


@fault("SC441", "first `with handle.norm")
def _(*_: Any) -> None:
    p = parameter(64)
    signconv.gradient_release(AdamW([p]), max_norm=1.0)
    p.square().sum().backward()


fault("SC442", "has to be above 0")(
    lambda *_: signconv.gradient_release(AdamW([parameter(64)]), max_norm=0.0)
)


@fault("SC445", r"offload_policy=CPUOffloadPolicy\(\)")
def _(_: Path, patch: pytest.MonkeyPatch) -> None:
    optimizer = AdamW([parameter(64)])
    patch.setattr(offload.mesh, "is_sharded", lambda p: True)
    offload.offload(optimizer)


@fault("SC446", r"offload is already on.*remove\(\)")
def _(_: Path, patch: pytest.MonkeyPatch) -> None:
    optimizer = AdamW([parameter(64)])
    offload._offload(optimizer, 1 << 20)
    offload.offload(optimizer)


@fault("SC447", r"does not let 4,096 bytes of host memory be held in place")
def _(_: Path, patch: pytest.MonkeyPatch) -> None:
    class Runtime:
        def cudaHostRegister(self, *_: int) -> int:
            return 2

    patch.setattr(torch.cuda, "cudart", Runtime)
    staging.pinned(4096, torch.device("cuda"))


fault("SC448", "a parameter on the CPU")(lambda *_: offload.offload(AdamW([parameter(64)])))


@fault("SC449", "an offloaded optimizer waits for the host at every step")
def _(_: Path, patch: pytest.MonkeyPatch) -> None:
    p = parameter(64)
    optimizer = AdamW([p])
    offload._offload(optimizer, 1 << 20)
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    p.grad = torch.ones(64)
    optimizer.step()


@fault("SC450", "keep it while the step is in use")
def _(*_: Any) -> None:
    torch.ops.signconv.step([parameter(64)], [torch.ones(64)], [0], 1)


@fault("SC451", r"call optimizer.step\(\) after every backward")
def _(*_: Any) -> None:
    a, b = parameter(64), parameter(64)
    optimizer = AdamW([a, b])
    offload._offload(optimizer, 1 << 20)
    gradient_release(optimizer)
    for _ in range(2):
        a.square().sum().backward()


fault("SC452", "no generated optimizer is called 'signconv-adam-w'; did you mean")(
    lambda *_: names.optimizer_class("signconv-adam-w")
)


@fault("SC453", "DistributedDataParallel is around the model, take it off")
def _(*_: Any) -> None:
    p = parameter(64)
    optimizer = AdamW([p])
    handle = gradient_release(optimizer)
    p.square().sum().backward()
    handle._averaging = "all"  # as with average=True on several ranks
    p.grad = torch.ones(64)
    optimizer.step()


@fault("SC455", "added or unfrozen after gradient_release")
def _(*_: Any) -> None:
    p, q = parameter(64), parameter(64)
    optimizer = AdamW([p])
    gradient_release(optimizer, max_norm=1.0)
    optimizer.add_param_group({"params": [q]})
    q.grad = torch.ones(64)
    optimizer.step()


@fault("SC456", "the ranks used different parameters in a backward")
def _(*_: Any) -> None:
    averages = averaging.Averaging(None, [parameter(64)], lambda p: None)
    averages._compared = torch.tensor([7, -3]), 5  # what two ranks found
    averages.finish()


fault("SC457", r"there is no process group yet: init_process_group\(\) first")(
    lambda *_: gradient_release(AdamW([parameter(64)]), average=True)
)


@fault("SC454", "is for plain parameters: .* leave it out")
def _(_: Path, patch: pytest.MonkeyPatch) -> None:
    optimizer = AdamW([parameter(64)])
    patch.setattr(release.mesh, "is_sharded", lambda p: True)
    gradient_release(optimizer, average=True)


def _evaluated() -> FusedOptimizer:
    optimizer = stepped(ScheduleFreeAdamW)
    optimizer.eval()
    return optimizer


@fault("SC459", "has not the values of training: save after")
def _(*_: Any) -> None:
    optimizer = _evaluated()
    for entry in optimizer.state.values():
        del entry["training"]
    optimizer.train()


fault("SC460", r"call optimizer.train\(\) before training goes on")(lambda *_: _evaluated().step())


fault("SC458", "cannot step AdamWClip inside backward.*give gradient_release max_norm=")(
    lambda *_: gradient_release(signconv.compile("adamw", convert="clip")([parameter(64)]))
)


# ---------------------------------------------------------------- extra inputs


def _hessian(hessian: Any, **more: Any) -> None:
    """A first step of Sophia's, of one parameter of three numbers."""
    p = parameter(3)
    p.grad = torch.ones(3)
    Sophia([p], backend="reference").step(hessian=hessian, **more)


def _polyak(folder: Path, **given: Any) -> None:
    body = 'loss = extra(per="step")\nupdate = loss * grad'
    p = parameter(3)
    p.grad = torch.ones(3)
    built_class(folder, body)([p], backend="reference").step(**given)


fault("SC465", "Sophia has no extra input 'hessain'; did you mean 'hessian'")(
    lambda *_: _hessian(None, hessain=[torch.ones(3)])
)
fault("SC466", "reads 'loss' at every step, and this one was not given it: step")(
    lambda folder, _: _polyak(folder)
)
fault("SC467", r"loss=torch.float32 \[2\] is no number: give a float")(
    lambda folder, _: _polyak(folder, loss=torch.ones(2))
)
fault("SC468", "a tensor for each of the 1 parameters.*it got one tensor")(
    lambda *_: _hessian(torch.ones(3))
)
fault("SC469", r"the hessian of a torch.float32 parameter of shape \[3\] has shape \[4\]")(
    lambda *_: _hessian([torch.ones(4)])
)
fault("SC470", "steps Sophia inside backward, where nobody can pass it hessian")(
    lambda *_: gradient_release(Sophia([parameter(3)]))
)


fault("SC471", "steps Prodigy parameter by parameter, and it reads sums over all of them")(
    lambda *_: gradient_release(Prodigy([parameter(3)]))
)
fault("SC472", "offload steps Prodigy batch by batch, and it reads sums over all tensors")(
    lambda *_: offload.offload(Prodigy([parameter(3)]))
)


fault("SC473", "hybrid.. takes optimizers generated by signconv, and got Adam; step others")(
    lambda *_: signconv.hybrid(torch.optim.Adam([parameter(3)]))  # type: ignore[arg-type]
)


@fault("SC474", r"the parameter 'w' is in AdamW and in S3: a hybrid steps each by one rule")
def _(*_: Any) -> None:
    p = parameter(3)
    signconv.hybrid(AdamW([p]), S3([("w", p)]))


@fault("SC475", r"a param group of a hybrid says no rule: it needs one of AdamW, as in")
def _(*_: Any) -> None:
    signconv.hybrid(AdamW([parameter(3)])).add_param_group({"params": [parameter(3)]})


@fault("SC476", "is on for AdamW by itself: remove.. it, and call gradient_release with the hybrid")
def _(*_: Any) -> None:
    part = AdamW([parameter(3)])
    gradient_release(part)
    signconv.hybrid(part)


fault("SC477", r"but='\*router\*' fits none of the model's 2 parameter names \(weight, bias")(
    lambda *_: signconv.matrices(torch.nn.Linear(2, 2), but="*router*")
)


@fault("SC514", r"have the rules \(none\), this hybrid's AdamW: make the optimizers as they were")
def _(*_: Any) -> None:
    part = AdamW([parameter(3)])
    saved = part.state_dict()
    signconv.hybrid(part).load_state_dict(saved)


@fault("SC315", "Sophiac reads hessian: pass extras=")
def _(*_: Any) -> None:
    program = replace(pipeline.resolve("sophia"), name="Sophiac", numerator=Ref("extra", "hessian"))
    p = np.ones(3)
    evaluator = Evaluator(program)
    evaluator.step(p, p, evaluator.initial_state(p), 1)


@fault("SC225", "stosign needs a denominator that is never negative")
def _(folder: Path, _: Any) -> None:
    body = 'h = extra(per="element")\nnumerator = grad\ndenominator = h'
    pipeline.build(spec_file(folder, body).spec, convert="stosign")


@fault("SC444", "says state='fp32': all groups .* an optimizer of their own")
def _(*_: Any) -> None:
    AdamW([{"params": [parameter(64)], "state": "fp32"}])


@fault("SC443", "would free unstepped")
def _(*_: Any) -> None:
    p = parameter(64)
    handle = signconv.gradient_release(AdamW([p]), max_norm=1.0)
    with handle.accumulate():
        p.square().sum().backward()
    with handle.norm():
        pass


def ranged(make: Callable[[], Any], **k: Any) -> Any:
    return lr_range(make, {"sgd": torch.optim.SGD}, **k)


fault("SC726", "is no range of learning rates")(
    lambda *_: ranged(lambda: ([parameter(4)], None), low=1.0)
)
fault("SC727", r"has to return \(model, loss\)")(lambda *_: ranged(lambda: 3))
fault("SC728", r"raised ZeroDivisionError: division by zero")(lambda *_: ranged(lambda: 1 / 0))
MODEL = torch.nn.Linear(4, 1)
fault("SC730", "returned the same model twice")(
    lambda *_: ranged(lambda: (MODEL, lambda step: MODEL(torch.ones(2, 4)).sum()))
)
fault("SC729", "names no function: write path/to/file.py:make")(
    lambda *_: tuning.function("train.py")
)
