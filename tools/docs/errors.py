"""docs/errors.md: the code of every error a user can meet, and what to do about it.

A code is never given a second meaning: one that is no longer raised goes, its number stays free.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import signconv

HEAD = """\
# Errors

Every error ends in a code in brackets: `path/to/file.py:9: 'm' is bound twice: each name has one
meaning [SC114]`. This page lists them, made by `make docs` from the code; the tests provoke each one and
read its text. `SpecError`, `PassError`, `LoweringError`, `BuildError`, `CheckpointError`, `VerifyError`,
`BenchError`, `TuningError` and `PictureError` are `signconv.errors.SignconvError` and have the code as
`.code`; errors of a running optimizer are the classes that torch raises in such places. The command
line prints the message alone and exits with code 2. Where a message names what is valid, that is the
remedy.
"""

DOORS = {
    "1": "Naming and describing an optimizer",
    "2": "Passes",
    "3": "Lowering and building",
    "4": "Running",
    "5": "State dicts and checkpoints",
    "6": "This machine",
    "7": "Command line, verify and bench",
}

#: Code -> (what is wrong, what to do).
CODES: dict[str, tuple[str, str]] = {
    "SC101": ("What is given as an optimizer is neither its name nor its description", "a subclass of `signconv.dsl.Optimizer`, or a string such as `\"adamw\"`"),
    "SC102": ("No built-in optimizer has this name", "`signconv list`; for your own: `path/to/file.py:Name`"),
    "SC103": ("What stands after the colon is no class name", "`path/to/file.py:Name`, `package.module:Name`"),
    "SC104": ("A file is named, but not the optimizer in it", "append `:Name`; the message lists those in the file"),
    "SC105": ("The module holds no optimizer of this name", "choose one of those it holds"),
    "SC106": ("The file of the optimizer does not exist", "check the path"),
    "SC107": ("A module cannot be imported", "check its name, and that it is installed here"),
    "SC108": ("The optimizer's file has a syntax error", "correct the line"),
    "SC109": ("A symbol is not defined", "define it above, or use the nearest valid name"),
    "SC110": ("The optimizer's file raised an error of its own", "correct the line"),
    "SC111": ("A name is not an ASCII identifier", "rename: generated code uses the name as it is"),
    "SC112": ("A name of the DSL is bound again", "choose another name"),
    "SC113": ("A name is one that generated code uses for itself", "choose another name"),
    "SC114": ("A name is bound twice", "one name, one meaning: choose another for the second"),
    "SC115": ("One moment or hyperparameter gets two names", "use the first"),
    "SC116": ("A moment or hyperparameter without a name is used", "bind it on a line of its own first"),
    "SC117": ("A name is bound to something that is no part of an optimizer", "bind numbers, hyperparameters, moments and expressions alone"),
    "SC118": ("Something that is no number and no term stands in an expression", "use numbers and terms of the DSL"),
    "SC119": ("A number in an expression is infinite or NaN", "use a finite number"),
    "SC120": ("A hyperparameter's default or bound is not a number", "`hyper(0.9, ge=0, lt=1)`"),
    "SC121": ("A hyperparameter's default is outside its own range", "change the default or the range"),
    "SC122": ("A beta is outside 0 ≤ beta ≤ 1", "give a beta inside"),
    "SC123": ("A moment's `init=` is unknown", "`init=\"zero\"` or `init=\"first\"`"),
    "SC124": ("An order is not a number ≥ 1", "`moment(grad, order=3, beta=beta)`, `root(x, 3)`"),
    "SC125": ("A state starts from something that is no number", "`state(init=0)` or `state(init=param)`"),
    "SC126": ("A moment has no such attribute", "`.prev`, `.corrected`, `.next`"),
    "SC127": ("An attribute of a moment is set", "only a state's `.next` can be set"),
    "SC128": ("`.next` of a moment with a fixed recurrence is set", "use `state()` for a recurrence of your own"),
    "SC129": ("A state's `.next` is set twice", "keep one"),
    "SC130": ("A state has no `.next`", "`s.next = …`, using `s.prev`"),
    "SC131": ("A matrix product is used", "none: signconv compiles elementwise operations and reductions"),
    "SC132": ("An expression is indexed, iterated or measured", "an expression stands for one element: use `sum`, `mean`, `norm`, `max`, `min`"),
    "SC133": ("An expression is used as a truth value", "`where(condition, a, b)`; `max()` and `min()` of the DSL"),
    "SC134": ("An expression is used as a number", "use the DSL's own functions"),
    "SC135": ("The optimizer defines no update", "`numerator = …` (with or without `denominator`), or `update = …`"),
    "SC136": ("There is a denominator without a numerator", "add `numerator = …`"),
    "SC137": ("The decay is of no known kind", "`l2(…)`, `decoupled(…)`, `independent(…)`"),
    "SC138": ("The optimizer has no learning rate", "`lr = hyper(1e-3, ge=0)`"),
    "SC139": ("A name is never read", "use it or delete it"),
    "SC140": ("The update does not depend on the gradient", "check numerator and moments"),
    "SC141": ("Moments read each other's new value", "`.prev` reads the last step's"),
    "SC142": ("Bias correction where there is no bias of that form", "`.corrected` belongs to an `ema` that starts from zero"),
    "SC143": ("A comparison stands outside `where`", "`where(condition, a, b)`"),
    "SC144": ("A power of elements has an exponent outside 1 … 16", "use `sqrt`, `root`, or a division"),
    "SC145": ("`beta**t` or `t % k` of something that differs between elements", "these are for hyperparameters, t and numbers"),
    "SC146": ("A broken power of what may be negative", "`abs(x)**p`"),
    "SC147": ("A beta or a decay's weight differs between elements", "use hyperparameters, t and numbers"),
    "SC148": ("`max_ema` of what may be negative", "`max_ema(abs(…), beta)`"),
    "SC149": ("`stochastic_sign` inside an expression", "it can only be the whole update"),
    "SC150": ("`norm` or `mean` of a scalar", "reduce something that has elements"),
    "SC151": ("A program made by hand or by a pass has a link that cannot be", "see `signconv/ir/nodes.py`, `LINKS`"),
    "SC152": ("A program made by hand or by a pass has a node that cannot be", "see `signconv/ir/nodes.py`, `FUNCTIONS`"),
    "SC153": ("Both `numerator` and `update` are bound", "keep one"),
    "SC154": ("An expression has no such attribute", "moments alone have `.prev`, `.corrected`, `.next`: bind one first"),
    "SC155": ("The passes are not given as one string", "`compile(\"adamw\", convert=\"soft:p=3,stosign\")`"),
    "SC156": ("A moment's `store=` is unknown", "`store=\"fp32\"`, or any other word of `--state`"),
    "SC157": ("Norms or sums over many tensors are read over two scopes", "one of `over=\"group\"` and `over=\"all\"`"),
    "SC158": ("A reduction has no such scope", "`over=\"group\"` or `over=\"all\"`; without it the tensor"),
    "SC159": ("The update reads what is known after it", "`x.prev`, the last step's value"),
    "SC160": ("`eval_param` or `new_param` is made of what it cannot be", "`param`, moments and hyperparameters in `eval_param`"),
    "SC161": ("A reduction of what is known after the update", "reduce what is known before it"),
    "SC162": ("`new_param` does not read `stepped`", "write it as a change of `stepped`"),
    "SC163": ("`axis=` is none that a reduction knows", "-1, -2, (-2, -1), 0 or (1, ...); none for the whole tensor"),
    "SC164": ("A reduction of numbers that leave nothing to reduce, or have no name", "the message says what is possible"),
    "SC165": ("`extra(…)` says neither per element nor per step, or more of its values than `ge=0`", "`extra(per=\"element\")`, `extra(per=\"step\", ge=0)`"),
    "SC166": ("`given(x)` of something that is no extra input", "`x = extra(per=\"step\")`, then `given(x)`"),
    "SC167": ("A state that is made of sums over all tensors reads `t`", "count in a state: `n = state()`, `n.next = n.prev + 1`"),
    "SC168": ("The weight of l2 decay reads a sum over all tensors", "`decoupled(…)`, or a state's `.prev`"),
    "SC169": ("How a matrix sign is to be found is none that `msign` knows", "the message lists what there is"),
    "SC170": ("A matrix sign of what a reduction left", "`msign` of all elements, then reduce"),
    "SC201": ("No pass has this name", "`signconv list`"),
    "SC202": ("The pass has no such option", "the message lists its options"),
    "SC203": ("An option of a pass is given twice", "keep one"),
    "SC204": ("A pass is asked for twice", "ask once"),
    "SC205": ("Two passes each decide how the ratio becomes the update", "ask for one of them"),
    "SC206": ("The pass adds names that the optimizer uses already", "rename them in the spec"),
    "SC207": ("The optimizer's update ends in a sign already", "leave the pass out"),
    "SC208": ("The optimizer looks ahead already", "leave `nesterov` out"),
    "SC209": ("`nesterov` finds no average to look ahead with", "leave it out"),
    "SC210": ("`presign` would change nothing", "leave it out"),
    "SC211": ("`soft` needs a numerator that is one average and nothing else", "leave it out, or rewrite the spec"),
    "SC212": ("The order of `soft` is missing or not a number in its range", "`soft:p=3`"),
    "SC213": ("The option `eps` of a link has another value than drop and keep", "`stosign:eps=keep`"),
    "SC214": ("The option `noise` of `stosign` has no such value", "`stosign:noise=golden`"),
    "SC215": ("The option `to` of `init` is missing or has no such value", "`init:to=zero`, `init:to=first`"),
    "SC216": ("`init` would change nothing, or averages are corrected for their start", "leave it out"),
    "SC217": ("`clip` takes no such norm, value or scope, or the optimizer reads another norm", "`clip`, `clip:norm=0.5`, `clip:over=group`, `clip:value=1`"),
    "SC218": ("An option of a pass is no number in its range", "the message says which"),
    "SC219": ("`schedulefree` finds no update of one step's gradient", "leave it out"),
    "SC220": ("`cautious` after a sign, or of the gradient itself", "ask for `cautious` with the link, not of an optimizer that has one"),
    "SC221": ("The optimizer keeps a second point already", "leave the pass out"),
    "SC225": ("A denominator of extra inputs may be negative, and the pass would turn the update round", "declare them with `ge=0`, or write `max(…, eps)`"),
    "SC301": ("No storage has this name", "`fp8`, `int8`, `fp4`, `fp8-raw`, `bf16`, `fp32`"),
    "SC302": ("`fp8-raw` for a moment that is no average of signs", "`--state fp8`, or `--convert presign`"),
    "SC303": ("No arithmetic has this name", "`fp32`, `bf16`"),
    "SC304": ("A function of this optimizer has no bf16 arithmetic", "`--math fp32`"),
    "SC306": ("No backend has code for this function here", "rewrite the spec with another function"),
    "SC307": ("`--name` cannot be the class's name", "an ASCII identifier that is no keyword and that the module does not use itself"),
    "SC308": ("A file cannot be written", "`--out` to a folder you can write"),
    "SC309": ("The evaluator is given a hyperparameter the program lacks", "check its name"),
    "SC310": ("The evaluator needs the draw of a stochastic sign", "`noise=`"),
    "SC311": ("A moment does not fit the bits asked for, or none fits `fp4` or `int8`", "`--state fp8`, `v=fp8`"),
    "SC312": ("`--state` names a moment that is not there or has no width, or says a thing twice", "`--state m=fp8,v=fp4`: the moments are those of `signconv show`"),
    "SC315": ("The evaluator needs an extra input that the step cannot do without", "`extras={name: …}`"),
    "SC316": ("What is to be written is there already, and signconv did not write it", "another name or folder; move the file away"),
    "SC317": ("A file that `new` would write is there already", "another name; move the file away"),
    "SC318": ("A name that `new` cannot give to a file and a class", "the message says why; `my_adam`, say"),
    "SC390": ("The compiler contradicts itself: a fault of signconv", "please report the spec and the message"),
    "SC401": ("No backend has this name", "`backend=\"auto\"`"),
    "SC402": ("The seed is no integer in range", "0 ≤ seed < 2**63"),
    "SC403": ("The optimizer has no such argument", "the message says why, or what it takes"),
    "SC404": ("A hyperparameter such as `betas` has the wrong count of numbers", "`betas=(0.9, 0.999)`"),
    "SC405": ("A hyperparameter is a tensor of more than one element", "a tensor of one element, or a number"),
    "SC406": ("A hyperparameter is not a number", "give a number"),
    "SC407": ("A hyperparameter is outside its range", "the message states the range"),
    "SC408": ("`master=` is unknown", "`master=None`, `master=\"split\"`"),
    "SC409": ("`maximize` or `skip_nonfinite` is neither True nor False", "`True` or `False`; a string is not read"),
    "SC410": ("A param group was made for another program", "leave out `program` and `format`"),
    "SC411": ("A parameter is complex", "optimize `torch.view_as_real(parameter)`"),
    "SC412": ("A parameter that requires a gradient is neither fp32 nor bf16", "`model.float()` or `model.bfloat16()`, or freeze it"),
    "SC413": ("A parameter is sparse", "use dense ones"),
    "SC414": ("A gradient is sparse", "`sparse=False`, or `torch.optim.SparseAdam` for these"),
    "SC415": ("A parameter and its gradient are on different devices", "move the model first, then build the optimizer"),
    "SC416": ("A gradient is neither fp32 nor bf16", "give it one of these dtypes"),
    "SC417": ("A parameter is on the meta device", "move the model to a real device before stepping"),
    "SC418": ("A parameter no longer has the shape of its state", "make the optimizer anew"),
    "SC419": ("A DTensor parameter is a sum of parts, or cut into uneven ones", "redistribute it"),
    "SC420": ("A gradient is not placed as its DTensor parameter", "redistribute the gradient"),
    "SC421": ("`cast` is asked for another dtype than bf16 and fp32", "`torch.bfloat16`, `torch.float32`"),
    "SC422": ("A pattern of `keep=` fits no parameter", "a pattern such as `*norm*`"),
    "SC423": ("A parameter has no memory that is its elements: a wrapped (quantized) tensor, a freed storage", "train plain tensors; leave this one out, or freeze it"),
    "SC424": ("A parameter was made in inference mode", "make the model outside, or `p.data = p.clone()`"),
    "SC425": ("Elements of a parameter share memory", "`p.data = p.contiguous()`"),
    "SC426": ("A tensor of the state was converted, moved or taken away", "give it back before the step, or load the state_dict anew"),
    "SC427": ("Two parameters share memory", "tie them as one Parameter, or leave one out"),
    "SC428": ("A parameter stands twice in a param group", "list it once"),
    "SC429": ("A gradient has another shape than its parameter", "`zero_grad()` and backward again"),
    "SC430": ("A gradient has no memory that is its elements", "assign `p.grad` a plain tensor"),
    "SC431": ("The optimizer was not generated by signconv", "pass one that was"),
    "SC432": ("`gradient_release` is on already", "`remove()` the first handle"),
    "SC433": ("`gradient_release` with `skip_nonfinite`", "`skip_nonfinite=False`"),
    "SC434": ("`gradient_release` of plain parameters on several ranks (DDP)", "`fully_shard`, or step without it"),
    "SC435": ("`gradient_release` with GradScaler", "train in bf16, or `remove()` the handle"),
    "SC436": ("Something in a param group is no parameter", "put tensors there"),
    "SC437": ("Replicas of a model have different default seeds", "give all ranks one seed, `seed=0`"),
    "SC438": ("A step count put into the state is none", "a whole number from 0"),
    "SC439": ("A step inside `frozen()` found memory freed, or other parameters in a group", "`zero_grad(set_to_none=False)`, or step outside of it"),
    "SC440": ("A parameter is a piece of FullyShardedDataParallel's flat one", "FSDP2: `torch.distributed.fsdp.fully_shard`"),
    "SC441": ("A backward of `gradient_release` with `max_norm` has no norm", "`with handle.norm():` around a first backward"),
    "SC442": ("`max_norm` is not above 0", "a positive number"),
    "SC443": ("`handle.norm()` begins where gradients are", "`zero_grad()` after `step()`; accumulated ones: `clip_grad_norm_` and an ordinary step"),
    "SC444": ("A param group asks for a storage of its own", "a second optimizer, built with another `--state`, for its parameters"),
    "SC445": ("`offload` is given DTensors", "`fully_shard(..., offload_policy=CPUOffloadPolicy())`"),
    "SC446": ("`offload` twice on one optimizer", "`remove()` the first handle"),
    "SC447": ("Host memory for `offload` cannot be held in place", "`ulimit -l`, or less state"),
    "SC448": ("`offload` is given parameters on the CPU, or no size", "move the model to the GPU first"),
    "SC449": ("An offloaded optimizer steps inside a CUDA graph", "capture without `offload`"),
    "SC450": ("A compiled or exported step outlives its optimizer", "keep the optimizer; leave it out of `torch.export`"),
    "SC451": ("`gradient_release` with `offload`: a second backward while a batch waits for gradients of the first", "`optimizer.step()` after every backward"),
    "SC452": ("torchtitan's container is given the name of no optimizer", "`signconv-…` as a file of generated/ is called, or a class by its whole path"),
    "SC453": ("`gradient_release(average=…)` inside DistributedDataParallel", "take DDP off the model"),
    "SC454": ("`gradient_release(average=…)` with DTensors", "leave `average` out"),
    "SC455": ("A parameter that came after `gradient_release` with `max_norm` or `average`", "`remove()` the handle and release again"),
    "SC456": ("Ranks used different parameters under `gradient_release(average=…)`", "a checkpoint; every parameter on every rank"),
    "SC457": ("`gradient_release(average=…)` without a process group of this rank", "`init_process_group()` first; a group that this rank is in"),
    "SC458": ("`gradient_release` of an optimizer that reads the norm of all gradients", "build it without `clip`, and give `gradient_release` `max_norm=`"),
    "SC459": ("A checkpoint of an evaluated model has no training values", "save after `optimizer.train()`, or the whole `state_dict()`"),
    "SC460": ("A step, a load or master weights after `optimizer.eval()`", "`optimizer.train()` first"),
    "SC465": ("`step` is given an extra input that the optimizer does not have", "the message says what it takes"),
    "SC466": ("An extra input that every step reads was not passed", "`step(name=…)`"),
    "SC467": ("An extra input per step is no number", "a float, or a floating tensor of one element"),
    "SC468": ("An extra input per element is no list of tensors with one for every parameter that has a gradient", "a sequence in the order of the param groups, or `{parameter: tensor}`"),
    "SC469": ("A tensor of an extra input does not fit its parameter", "its shape, device and placement; fp32 or bf16, dense"),
    "SC470": ("`gradient_release` with an optimizer that has extra inputs", "take ordinary steps"),
    "SC471": ("`gradient_release` with an optimizer that reads sums over all tensors", "take ordinary steps"),
    "SC472": ("`offload` with an optimizer that reads sums over all tensors", "keep its state on the GPU"),
    "SC473": ("`hybrid` is given no optimizer, another library's, or a hybrid", "optimizers generated by signconv; step others beside it"),
    "SC474": ("Two parts of a hybrid have one parameter", "leave it out of one; `signconv.matrices` splits a model"),
    "SC475": ("A param group of a hybrid has no rule, an unknown one or another than before", "`{\"params\": …, \"rule\": \"AdamW\"}`; the message lists the rules"),
    "SC476": ("A part of a hybrid is stepped inside backward by itself", "`remove()` the handle, and `gradient_release(hybrid)`"),
    "SC477": ("A pattern of `but=` fits no parameter", "a pattern such as `*router*`"),
    "SC501": ("This is no optimizer's state_dict", "pass what `state_dict()` returned"),
    "SC502": ("The state_dict has another count of param groups or parameters", "build the optimizer as it was when saved"),
    "SC503": ("The state_dict is another program's", "load it with the optimizer that wrote it"),
    "SC504": ("A param group of the state_dict has no parameters", "pass it as it was saved"),
    "SC505": ("The state has master weights that this parameter cannot have", "`master=\"split\"`, or `master_weights` first"),
    "SC506": ("The state of a parameter lacks a key", "pass it as it was saved"),
    "SC507": ("A state tensor has another dtype or shape", "pass it as it was saved, to the same model"),
    "SC508": ("A compiled class cannot be pickled: the class it was made from has no importable name", "define it at the top level of a module, or save `state_dict()`"),
    "SC509": ("A pickled optimizer's spec means something else now", "restore the spec, or start with fresh state"),
    "SC510": ("The other optimizer lacks a moment that this one keeps", "start anew, or from an optimizer with the same averages"),
    "SC511": ("bitsandbytes state has scales of another kind", "load it there with block_wise=True first"),
    "SC512": ("`load_moments` is given a state_dict of this library", "`load_state_dict`, or `load_moments(optimizer)`"),
    "SC513": ("`torch_state_dict` of moments that torch.optim does not have", "keep this library's state_dict"),
    "SC514": ("The state_dict has other rules than the hybrid", "make the optimizers as they were when it was saved"),
    "SC601": ("`backend=\"triton\"` without a GPU or without Triton", "`backend=\"auto\"`; `signconv doctor`"),
    "SC602": ("`backend=\"cpu\"` for parameters that are not on the CPU", "`backend=\"auto\"`"),
    "SC603": ("`backend=\"cpu\"` without llvmlite", "install the extra `cpu`"),
    "SC604": ("The CPU backend has no code for an operation of this optimizer", "`backend=\"reference\"`"),
    "SC605": ("`device` is cuda and there is no CUDA device", "`auto`; `signconv doctor`"),
    "SC606": ("The cache folder belongs to another user, who could put code there", "`SIGNCONV_CACHE`: a folder of your own"),
    "SC607": ("The cache folder cannot be made", "`SIGNCONV_CACHE`: a folder you can write"),
    "SC608": ("The templates are missing", "install signconv again"),
    "SC609": ("A chart without matplotlib", "install matplotlib"),
    "SC610": ("Kernels cannot be compiled where they are interpreted", "unset `TRITON_INTERPRET`"),
    "SC611": ("A file generated by release 0.1 is imported", "build it again, with the command in its docstring"),
    "SC700": ("The command line is wrong: an unknown option or value", "`signconv COMMAND --help`"),
    "SC701": ("`verify` of a generated file or class with `convert` or other options of a build", "leave them out: the file names them"),
    "SC702": ("The generated file does not exist", "check the path"),
    "SC703": ("The generated file cannot be loaded", "build it again"),
    "SC704": ("The file defines no generated optimizer", "pass one that `signconv build` wrote"),
    "SC705": ("The spec that a generated file was built from is not found", "verify where the spec file is"),
    "SC706": ("No compilation target has this name", "the message lists them"),
    "SC707": ("A generated file was built from a class in no file or in a function", "`signconv.verify` with that class"),
    "SC708": ("`verify` is given a class that no compiler wrote", "the generated class itself, or its spec"),
    "SC709": ("`verify` compares no step", "`steps=3`"),
    "SC710": ("`verify` is given an unknown device", "`auto`, `cpu`, `cuda`"),
    "SC711": ("A subject of the benchmark names no optimizer", "`SPEC[+PASS…][@STATE][@math=…][@params=…]`"),
    "SC712": ("A subject of the benchmark has an unknown modifier", "the message lists the valid ones"),
    "SC713": ("No other library has this name", "the message lists them"),
    "SC714": ("No workload has this name", "`A`, `B`, `C`, `D`, `all`"),
    "SC715": ("A chart's name has an unknown ending", "`.png`, `.svg`, `.pdf`"),
    "SC716": ("There is nothing to draw", "measure at least one optimizer"),
    "SC717": ("A record or a chart cannot be written", "choose a folder you can write"),
    "SC718": ("A record cannot be read", "pass what `signconv bench --json` wrote"),
    "SC719": ("The page has no place for measurements", "add the two marks that the message names"),
    "SC720": ("A record is outside the page's folder", "copy it beside the page first"),
    "SC721": ("The step kernel has no machine code to read", "run on a GPU"),
    "SC722": ("`convert-state` finds no optimizer's state_dict of plain tensors in the file", "`--key`, or `load_moments` in Python"),
    "SC723": ("`convert-state` is not told which optimizer wrote the file", "`--from SPEC`"),
    "SC724": ("4-bit state alone does not say the shapes of its parameters", "`load_moments` or `torch_state_dict` in Python"),
    "SC725": ("A converted checkpoint cannot be written", "choose a folder you can write"),
    "SC726": ("`lr` is given no range of learning rates", "`low` below `high`, both above 0, 20 steps or more"),
    "SC727": ("A function for `lr` does not return what it has to", "`make()` returns (model, loss), `loss(i)` a scalar that requires a gradient"),
    "SC728": ("A function for `lr` raises, or its loss is not finite at first", "the line that the message names"),
    "SC729": ("`lr` finds no such function", "`path/to/file.py:make`"),
    "SC730": ("A function for `lr` returns one model twice, or other models and batches", "make everything inside `make()`"),
}  # fmt: skip


class Site(NamedTuple):
    """One ``raise`` of signconv: where it is, the class it raises, its code if it has one."""

    file: str
    line: int
    kind: str
    code: str | None


def raises(package: Path) -> Iterator[Site]:
    """Every ``raise`` with a new error in the package's files, generated ones left out; and every
    ``return`` of one with a code, which a caller raises."""
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package).as_posix()
        if file.startswith("generated/"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            made = node.exc if isinstance(node, ast.Raise) else getattr(node, "value", None)
            if not isinstance(node, ast.Raise | ast.Return) or not isinstance(made, ast.Call):
                continue
            kind, given = ast.unparse(made.func), made.args
            if isinstance(node, ast.Return) and kind != "coded":
                continue
            if kind == "coded":
                kind, given = ast.unparse(given[0]), given[1:]
            first = given[0].value if given and isinstance(given[0], ast.Constant) else None
            code = first if isinstance(first, str) and first.startswith("SC") else None
            yield Site(file, node.lineno, kind, code)


def page() -> str:
    """The whole page."""
    kinds: dict[str, set[str]] = {"SC700": {"usage"}}
    for site in raises(Path(signconv.__file__).parent):
        if site.code:
            kinds.setdefault(site.code, set()).add(site.kind)
    text = HEAD
    for door, title in DOORS.items():
        text += f"\n## {title}\n\n| code | raised as | what is wrong | what to do |\n|---|---|---|---|\n"
        for code, (wrong, remedy) in CODES.items():
            if code[2] == door:
                text += f"| {code} | {', '.join(sorted(kinds[code]))} | {wrong} | {remedy} |\n"
    return text
