"""The small ways in which ``tools.mutation`` breaks signconv: edits, and the tests to ask first.

An edit is (file, text, broken text), made wherever the text occurs.  Where torch and Triton have
twins, both are broken alike, or else their comparison would find every mutant and hide what the
others miss.
"""

from __future__ import annotations

from typing import NamedTuple

Edit = tuple[str, str, str]

REFERENCE, TRITON = "signconv/runtime/reference", "signconv/runtime/kernel"
OPTIMIZER, FORMATS = "signconv/runtime/optimizer.py", "signconv/runtime/formats.py"
KERNEL, BUCKET, ENGINE = f"{TRITON}/step.py", f"{TRITON}/bucket.py", f"{TRITON}/engine.py"
LOWER, SIGN = "signconv/lower/schedule.py", "signconv/lower/sign_form.py"
STORE, EVALUATE = "signconv/lower/storage.py", "signconv/ir/evaluate.py"
CPU = "signconv/runtime/cpu/engine.py"
MEMORY = "signconv/runtime/kernel/memory.py"
PARTIAL = "tests/runtime/test_partial_blocks.py"
PASSES = "signconv/passes"

FUZZ = "tests/fuzz/test_fuzz.py::test_programs_that_once_failed"
RANDOM = "tests/fuzz/test_fuzz.py::test_random_programs[0]"
ORACLE = "tests/specs/test_specs.py"
FAULTS = "tests/runtime/test_faults.py"
SKIP = f"{FAULTS}::test_skip_nonfinite_counts_and_changes_nothing"
LAWS = "tests/theorems/test_metamorphic.py"
FP8, NOISE = "tests/runtime/reference/test_codecs.py", "tests/runtime/reference/test_random_bits.py"
ARITHMETIC, RUNNING = (
    "tests/runtime/reference/test_arithmetic.py",
    "tests/runtime/test_optimizer.py",
)
THEOREMS = "tests/theorems/test_unbiased.py"
BACKENDS = "tests/runtime/test_backend.py"
SAME = f"{BACKENDS}::test_a_step_gives_the_same_bits"


class Mutant(NamedTuple):
    """One broken compiler; ``survives`` explains a survivor on a machine without a GPU."""

    name: str
    edits: tuple[Edit, ...]
    first: tuple[str, ...]
    survives: str = ""


MUTANTS = (
    # ---------------------------------------------------------------- specs and evaluator
    Mutant(
        "adamw: beta1 and beta2 swapped in the spec",
        (
            ("signconv/specs/adamw.py", "m = ema(grad, beta1)", "m = ema(grad, beta2)"),
            ("signconv/specs/adamw.py", "v = ema(grad**2, beta2)", "v = ema(grad**2, beta1)"),
        ),
        (ORACLE,),
    ),
    Mutant(
        "nadam: this step's momentum in place of the next one's",
        (("signconv/specs/nadam.py", "(t + 1) * momentum_decay", "t * momentum_decay"),),
        (ORACLE,),
    ),
    Mutant(
        "adan: no change at the first step left out",
        (("signconv/specs/adan.py", "where(t == 1, 0, 1)", "where(t == 1, 1, 1)"),),
        (ORACLE,),
    ),
    Mutant(
        "evaluator: bias correction one step late",
        ((EVALUATE, "1 - self(beta) ** self.t)", "1 - self(beta) ** (self.t + 1))"),),
        (ORACLE, "tests/ir/test_evaluate.py"),
    ),
    Mutant(
        "evaluator: decoupled decay without lr",
        ((EVALUATE, "change + lr * weight * param", "change + weight * param"),),
        (ORACLE, "tests/ir/test_evaluate.py"),
    ),
    # ---------------------------------------------------------------- passes
    Mutant(
        "nesterov: the weights of the look-ahead swapped",
        ((
            f"{PASSES}/nesterov.py",
            'add(mul(m.beta, Ref("value", name)), mul(sub(1, m.beta), m.input))',
            'add(mul(sub(1, m.beta), Ref("value", name)), mul(m.beta, m.input))',
        ),),
        ("tests/theorems/test_nag.py", "tests/theorems/test_identities.py"),
    ),
    Mutant(
        "nesterov: bias correction of the plain average",
        ((
            f"{PASSES}/nesterov.py",
            'sub(1, mul(beta, op("pow", beta, STEP)))', 'sub(1, op("pow", beta, STEP))',
        ),),
        ("tests/theorems/test_identities.py", "tests/passes/test_commutation.py"),
    ),
    Mutant(
        "stosign: eps kept by default",
        ((f"{PASSES}/stosign.py", 'elif keep == "drop":', 'elif keep == "keep":'),),
        ("tests/passes/test_stosign.py",),
    ),
    Mutant(
        "stosign: the default lr not lowered",
        ((f"{PASSES}/base.py", '0.2 if h.name == "lr" else 5.0', '1.0 if h.name == "lr" else 5.0'),),
        ("tests/passes/test_stosign.py",),
    ),
    Mutant(
        "stosign: the running maximum of m, not of abs(m)",
        ((f"{PASSES}/base.py", 'Op("abs", (p.numerator,))', "p.numerator"),),
        ("tests/passes/test_stosign.py",),
    ),
    Mutant(
        "soft: a signed odd power in the denominator",
        ((f"{PASSES}/soft.py", "order % 2 == 0 else size", "order % 2 == 1 else size"),),
        ("tests/theorems/test_identities.py", "tests/passes/test_commutation.py"),
    ),
    Mutant(
        "soft: the moments keep betas of their own",
        ((
            f"{PASSES}/soft.py",
            'replace(m, beta=Ref("hyper", beta), init="zero")', 'replace(m, init="zero")',
        ),),
        ("tests/theorems/test_identities.py", "tests/passes/test_commutation.py"),
    ),
    Mutant(
        "presign: averages start with the first input",
        ((f"{PASSES}/presign.py", 'if m.init == "first" and', 'if m.init == "none" and'),),
        ("tests/theorems/test_identities.py", "tests/passes/test_commutation.py"),
    ),
    # ---------------------------------------------------------------- lowering
    Mutant(
        "ema: the factor 1 - beta dropped",
        ((LOWER, "mul(self.element(rest, m.name), u),", "u,"),),
        (ORACLE, FUZZ, RANDOM),
    ),
    Mutant(
        "ema: the two weights swapped",
        (
            (LOWER, "mul(self.element(beta, m.name), prev)", "mul(self.element(rest, m.name), prev)"),
            (LOWER, "mul(self.element(rest, m.name), u)", "mul(self.element(beta, m.name), u)"),
        ),
        (ORACLE, FUZZ, RANDOM),
    ),
    Mutant(
        "lowering: bias correction one step late",
        (("signconv/lower/scalars.py", 'sub(1, op("pow", beta, STEP))', 'sub(1, op("pow", beta, op("add", STEP, 1)))'),),
        (ORACLE, FUZZ, RANDOM),
    ),
    Mutant(
        "init=first: the first input at weight 1 - beta",
        ((LOWER, 'op("where", start, 1, rest)', "rest"),),
        (ORACLE, FUZZ, RANDOM),
    ),
    Mutant(
        "l2 decay of the wrong sign",
        ((LOWER, "add(GRAD, mul(weight, PARAM))", "sub(GRAD, mul(weight, PARAM))"),),
        (ORACLE, FUZZ, RANDOM),
    ),
    Mutant(
        "decoupled decay without lr",
        ((
            LOWER,
            'stepped = add(PARAM, mul(self.scalar(sub(0, lr), "minus_lr"), update))',
            "stepped = sub(PARAM, update)",
        ),),
        (ORACLE, FUZZ, RANDOM),
    ),
    Mutant(
        "independent decay not divided by the first lr",
        ((LOWER, 'weight = mul(div(Ref("hyper", "lr"), first_lr), weight)', 'weight = mul(Ref("hyper", "lr"), weight)'),),
        (ORACLE, FUZZ, RANDOM),
    ),
    Mutant(
        "fusion: a difference whose second product keeps its sign",
        (("signconv/lower/fusion.py", "else _negative(b.args[0])", "else b.args[0]"),),
        ("tests/lower/test_fusion.py",),
    ),
    Mutant(
        "ratios: the root's correction left out",
        (("signconv/lower/quotients.py", 'return mul(root, low.scalar(factor, "root_correction"))', "return root"),),
        (ORACLE, RANDOM),
    ),
    Mutant(
        "ratios: the numerator's correction not divided out of decay",
        ((LOWER, "weight = over(weight, scale)", "weight = weight"),),
        (ORACLE, "tests/lower/test_schedule.py::test_statements"),
    ),
    Mutant(
        "ratios: any numerator counts as tied to its denominator",
        (("signconv/ir/bounds.py", "return bool(below) and self.linear(numerator) and above <= kept", "return True"),),
        ("tests/ir/test_bounds.py",),
    ),
    Mutant(
        "reference: a fused multiply-add rounded twice",
        ((f"{REFERENCE}/arithmetic.py", "return torch.where(inexact, odd, total).to(torch.float32)", "return total.to(torch.float32)"),),
        ("tests/runtime/reference/test_fma.py",),
    ),
    Mutant(
        "reference: reciprocals of huge numbers are not 0",
        ((f"{REFERENCE}/arithmetic.py", "torch.where(b <= 2.0**126, torch.div(torch.full_like(b, 1.0), b), b * 0.0)", "torch.div(torch.full_like(b, 1.0), b)"),),
        ("tests/runtime/reference/test_denominators.py",),
    ),
    Mutant(
        "ratios: what is tiny below is a floor",
        (
            (
                f"{REFERENCE}/arithmetic.py",
                "torch.where(x < 2.0**-100, 2.0**100, sqrt(x) + (x - x))",
                "torch.where(x < 2.0**-100, 2.0**-50, sqrt(x) + (x - x))",
            ),
        ),
        ("tests/runtime/test_extremes.py::test_a_denominator_that_fades_first_makes_no_wild_step",),
    ),
    Mutant(
        "ratios: an average that never changes ties",
        (
            (
                "signconv/ir/bounds.py",
                "return frozenset({m.name}) if fades else frozenset()",
                "return frozenset({m.name})",
            ),
        ),
        ("tests/ir/test_bounds.py",),
    ),
    Mutant(
        "inverse roots: one step less",
        (("signconv/lower/decompositions.py", "for _ in range(1 if n <= 8 else 2):", "for _ in range(0 if n <= 8 else 1):"),),
        ("tests/runtime/reference/test_denominators.py",),
    ),
    Mutant(
        "max of what may be negative as if it could not",
        ((
            LOWER,
            'e.fn == "max" and all(self.ranges.nonneg(a) for a in e.args)',
            'e.fn == "max" and any(self.ranges.nonneg(a) for a in e.args)',
        ),),
        ("tests/lower", ORACLE, FUZZ, RANDOM, ARITHMETIC),
    ),
    Mutant(
        "clip: the upper bound before the lower",
        ((
            LOWER,
            'self.element(op("min", op("max", x, low), high), hint)',
            'self.element(op("max", op("min", x, high), low), hint)',
        ),),
        ("tests/lower/test_expressions.py::test_reference_computes_what_the_evaluator_says",),
    ),
    Mutant(
        "the bound between moments not kept (blast radius)",
        ((LOWER, 'if p.link == "ratio" and (not exact', 'if p.link == "none" and (not exact'),),
        ("tests/runtime/test_extremes.py", FAULTS),
    ),
    Mutant(
        "sign form: the denominator's bias correction dropped",
        ((SIGN, "gain = over(den_factor, _power(num_factor, order))", "gain = over(ONE, _power(num_factor, order))"),),
        ("tests/lower/test_schedule.py::test_statements", RANDOM),
    ),
    Mutant(
        "sign form: the noise not raised to the order",
        ((SIGN, "signed_power(m, order), signed_power(NOISE, order)", "signed_power(m, order), NOISE"),),
        ("tests/lower/test_schedule.py::test_statements", ORACLE, FUZZ,),
    ),
    Mutant(
        "sign form: the power of m without its sign",
        ((SIGN, "    result: Expr = x\n", "    result: Expr = size\n"),),
        ("tests/lower/test_schedule.py::test_statements", ORACLE, FUZZ,),
    ),
    Mutant(
        "storage: second moments in E4M3",
        ((STORE, 'return "e5m3" if degree <= 2', 'return "e4m3" if degree <= 2'),),
        ("tests/lower/test_schedule.py::test_format_by_degree",),
    ),
    Mutant(
        "storage: m and v draw from each other's bits",
        ((STORE, "wanted = (0, 2) if below else (0, 1)", "wanted = (0, 1) if below else (0, 2)"),),
        ("tests/lower/test_schedule.py::test_bits_plan", "tests/lower/test_schedule.py::test_sign_noise_and_parameter_never_share",),
    ),
    Mutant(
        "storage: v rounds with the sign's bits",
        ((STORE, "[(0, 2), (0, 1)] if noise else", "[(0, 0), (0, 1)] if noise else"),),
        ("tests/lower/test_schedule.py::test_bits_plan",),
    ),
    Mutant(
        "storage: FP8 for moments that nothing ties together",
        ((STORE, "None if m.name in loose else degrees", "degrees"),),
        ("tests/runtime/test_extremes.py::test_a_huge_element_costs_its_neighbours_no_wild_step",),
    ),
    # ---------------------------------------------------------------- kernel and tables
    Mutant(
        "kernel: the mask one element too long",
        ((MEMORY, "start, offsets, offsets < left,", "start, offsets, offsets <= left,"),),
        ("tests/runtime/kernel/test_tails.py", "tests/runtime/test_optimizer.py::test_kernel_noise_does_not_depend_on_chunking",),
    ),
    Mutant(
        "kernel: no mask in tails",
        ((MEMORY, "start, offsets, offsets < left,", "start, offsets, offsets < ROWS * 32,"),),
        ("tests/runtime/kernel/test_tails.py",),
    ),
    Mutant(
        "kernel: the row mask one row too long",
        ((MEMORY, "row_mask = row * 32 < left", "row_mask = row * 32 <= left"),),
        ("tests/runtime/kernel/test_tails.py",),
    ),
    Mutant(
        "kernel: tails always at the chunk's first rows",
        ((KERNEL, "ops.places(start + first,", "ops.places(start + 0 * first,"),),
        ("tests/runtime/kernel/test_tails.py",),
    ),
    Mutant(
        "kernel: the column of the size read as that of the place",
        ((KERNEL, "offset = tl.load(entry + COLUMN_OFFSET)", "offset = tl.load(entry + COLUMN_NUMEL)"),),
        (SAME,),
    ),
    Mutant(
        "kernel: scales read from the column of the codes",
        ((KERNEL, "scale_ptr = typed_pointer(pointers[2 * i + 1], tl.uint8, FULL)", "scale_ptr = typed_pointer(pointers[2 * i], tl.uint8, FULL)"),),
        (SAME,),
    ),
    Mutant(
        "kernel: FIELDS swapped",
        ((KERNEL, "FIELDS[i] // 3], FIELDS[i] % 3)", "FIELDS[i] // 3], 2 - FIELDS[i] % 3)"),),
        (SAME,),
    ),
    Mutant(
        "tables: a master weight's columns left out of the width",
        (("signconv/runtime/tables.py", "return Column.STATE + 2 * moments + 2", "return Column.STATE + 2 * moments"),),
        ("tests/runtime/test_tables.py",),
    ),
    Mutant(
        "strided parameters: stepped copies not written back",
        (("signconv/runtime/dense.py", "            p.copy_(flat)\n", "            pass\n"),),
        (f"{BACKENDS}::test_strided_tensors_are_stepped_as_contiguous_ones",),
    ),
    Mutant(
        "codecs: moments of high order stored without a root (torch alone)",
        ((f"{REFERENCE}/codecs.py", "return Roots(fmt) if fmt.order > 1 else Blocks(fmt)", "return Blocks(fmt)"),),
        ("tests/runtime/test_formats.py",),
    ),
    Mutant(
        "legacy: a checkpoint of any program accepted",
        (("signconv/runtime/legacy.py", "return formats if known_as and known_as in stands_for else None", "return formats"),),
        ("tests/runtime/test_legacy.py",),
    ),
    Mutant(
        "identity: what a reduction reads left out",
        (("signconv/lower/identity.py", "key = (fn, tuple(self._seen[id(x)] for x in e.args))", 'key = (fn, tuple(self._seen[id(x)] for x in e.args if e.fn not in ("norm", "mean")))'),),
        ("tests/lower/test_identity.py::test_every_meaning_is_part_of_it",),
    ),
    Mutant(
        "tables: the last, partial chunk left out",
        ((BUCKET, "[-(-n // self.shape.chunk) for n in blocks]", "[n // self.shape.chunk or 1 for n in blocks]"),),
        ("tests/runtime/kernel/test_tails.py",),
    ),
    Mutant(
        "tables: parameters of different t share their scalars",
        ((ENGINE, "{p: row for row, p in enumerate(params)}", "dict.fromkeys(params, 0)"),),
        ("tests/runtime/test_optimizer.py::test_t_is_per_parameter_and_survives_changing_gradients",),
    ),
    Mutant(
        "tables: alignment taken for granted",
        ((BUCKET, "host[:, Column.ALIGNED] = (values % 16 == 0).all(dim=0)", "host[:, Column.ALIGNED] = 1"),),
        ("tests/runtime/kernel/test_tails.py::test_a_pointer_that_is_not_aligned_takes_the_masked_branch",),
    ),
    Mutant(
        "tables: a moved pointer not noticed",
        ((BUCKET, "        if pointers != self.pointers:\n            self._upload(pointers)\n        seen", "        if not self.pointers:\n            self._upload(pointers)\n        seen"),),
        ("tests/runtime/kernel/test_follow.py",),
    ),
    Mutant(
        "scalar kernel: a skipped step counts",
        ((f"{TRITON}/scalars.py", "tl.store(clock + row, t, mask=active)", "tl.store(clock + row, t)"),),
        (SKIP,),
    ),
    Mutant(
        "triton: maximize ignored",
        ((ENGINE, '-1.0 if group["maximize"] else 1.0', "1.0"),),
        ("tests/runtime/test_optimizer.py::test_maximize_is_descent_on_the_negated_gradient",),
    ),
    Mutant(
        "launches: a factor for gradients goes the first step's way for ever",
        ((BUCKET, "        if (scaled, kinds, mode) not in self.launchers:\n", "        scaled = next(iter(self.launchers), [scaled])[0]\n        if (scaled, kinds, mode) not in self.launchers:\n"),),
        (f"{RUNNING}::test_gradients_are_multiplied_at_the_steps_that_ask_for_it",),
    ),
    Mutant(
        "extra inputs: a number stays that of the first step",
        ((ENGINE, "self.replays or self.taken.get(i) != repr(value)", "i not in self.taken"),),
        ("tests/runtime/test_extras.py",),
    ),
    Mutant(
        "extra inputs: what was not passed counts as passed",
        (("signconv/runtime/extras.py", "tuple(x.name in given for x in", "tuple(True for x in"),),
        ("tests/runtime/test_extras.py",),
    ),
    Mutant(
        "extra inputs: what one asks for counts as read outside",
        (("signconv/ir/extras.py", "(yes, known | {asked})", "(yes, known)"),),
        ("tests/dsl/test_extras.py", "tests/runtime/test_extras.py"),
    ),
    Mutant(
        "cpu: the last, partial chunk left out",
        ((CPU, "[-(-size // self.rows) for size in sizes]", "[size // self.rows or 1 for size in sizes]"),),
        ("tests/runtime/cpu/test_engine.py::test_verify_compares_chunks_too",),
    ),
    Mutant(
        "kernel: what is no element has a part in its block's scale",
        ((MEMORY, "        x = tl.where(mask, x, 0.0)", "        x = x"),),
        (PARTIAL,),
    ),
    Mutant(
        "kernel: the last of an odd row's 4-bit codes not read",
        ((MEMORY, "exists & (2 * byte < left)", "exists & (2 * byte + 1 < left)"),),
        (PARTIAL,),
    ),
    Mutant(
        "cpu: an element's number loses its carry into the upper half",
        (("signconv/runtime/cpu/rows.py", "high + carried.to(torch.int32)", "high"),),
        (PARTIAL,),
    ),
    Mutant(
        "state: partial blocks not counted in what 0.1 kept in bf16",
        (("signconv/runtime/state.py", 'found[m.name] = "bf16"', "pass"),),
        ("tests/runtime/test_legacy.py",),
    ),
    Mutant(
        "codecs: 4 bits rounded towards zero (torch alone)",
        ((f"{REFERENCE}/codecs.py", "(size.view(torch.int32) + shift_right(field, 32 - drop)) >> drop", "size.view(torch.int32) >> drop"),),
        ("tests/runtime/reference/test_fp4.py",),
    ),
    Mutant(
        "storage: a denominator that bounds nothing gets 4 bits",
        (("signconv/lower/storage.py", 'return "e4m0" if powers and bounds else None', 'return "e4m0" if powers else None'),),
        ("tests/lower/test_four_bits.py",),
    ),
    Mutant(
        "storage: what another moment reads gets 4 bits",
        (("signconv/lower/storage.py", "narrow = None if kept else", "narrow = None if False else"),),
        ("tests/lower/test_four_bits.py",),
    ),
    Mutant(
        "cpu: maximize ignored",
        (("signconv/runtime/reference/step.py", '-1.0 if task.group["maximize"] else 1.0', "1.0"),),
        ("tests/theorems/test_metamorphic.py::test_maximize_is_descent_on_the_negated_gradient",),
    ),
    Mutant(
        "shards: every rank draws what the first one does",
        (("signconv/runtime/sharded.py", "return sum(begin * n for", "return sum(0 * begin * n for"),),
        ("tests/distributed/test_sharded.py::test_any_number_of_ranks_gives_the_same_bits",),
    ),
    Mutant(
        "shards: columns are numbered as a tensor of their own",
        (("signconv/runtime/sharded.py", "torch.tensor(row_length(p), dtype", "torch.tensor(row_length(made), dtype"),),
        ("tests/distributed/test_meshes.py",),
    ),
    Mutant(
        "shards: of two cuts of one dimension the later one comes first",
        (("signconv/runtime/mesh.py", "order.insert(sizes.index(_strided(placed)), i)", "order.append(i)"),),
        ("tests/distributed/test_meshes.py",),
    ),
    Mutant(
        "shards: what was gathered is read as a view",
        (("signconv/runtime/sharded.py", "[_copy(_full(x.detach()), local(x).device) for", "[_full(x.detach()) for"),),
        ("tests/distributed/test_offload.py",),
    ),
    Mutant(
        "owners: one rank owns everything",
        (("signconv/runtime/owners.py", "(done + cost, place)", "(done, place)"),),
        ("tests/distributed/test_sharded.py::test_matrices_are_dealt_out",),
    ),
    Mutant(
        "owners: clocks do not come back",
        (("signconv/runtime/owners.py", "*(n for n in kept if n not in self._cut)]", "]"),),
        ("tests/distributed/test_sharded.py::test_matrices_are_dealt_out",),
    ),
    Mutant(
        "kernel: columns are numbered without a jump",
        ((KERNEL, "index += further", "index += 0 * further"),),
        ("tests/runtime/test_columns.py",),
    ),
    Mutant(
        "CPU: columns are numbered without a jump",
        (("signconv/runtime/cpu/walk.py", "among = b.add(b.mul(row, pitch)", "among = b.add(b.mul(row, length)"),),
        ("tests/runtime/test_columns.py",),
    ),
    Mutant(
        "seeds: ranks with parameters of their own draw alike",
        (("signconv/runtime/seeds.py", "{p: r * APART for", "{p: 0 * APART for"),),
        ("tests/runtime/test_doors_noise.py",),
    ),
    Mutant(
        "scales: apart where the number itself is read as well",
        (("signconv/lower/fusion.py", "0 < read[m.name] == beside[m.name]", "0 < beside[m.name]"),),
        ("tests/lower/test_fusion.py",),
    ),
    Mutant(
        "scales: a coefficient without its block's",
        (("signconv/runtime/reference/memory.py", "factor = codecs.scales_of(scale.view(-1))", "factor = codecs.scales_of(scale.view(-1)) * 0 + 1"),),
        (SAME,),
    ),
    Mutant(
        "exchange: moments of another optimizer are rounded down",
        (("signconv/runtime/exchange.py", "words[m.bits.word].field(m.bits.field))", "words[m.bits.word].field(m.bits.field) * 0)"),),
        ("tests/runtime/test_exchange.py",),
    ),
    Mutant(
        "exchange: torch's sum of gradients taken for an average",
        (("signconv/runtime/foreign.py", "_fp32(entry[\"momentum_buffer\"]) * sum_to_average(group)", "_fp32(entry[\"momentum_buffer\"])"),),
        ("tests/runtime/test_exchange.py",),
    ),
    # ---------------------------------------------------------------- arithmetic, both twins
    Mutant(
        "draws: the same at every step",
        (
            (f"{REFERENCE}/random_bits.py", "^ (seed >> 32 & MASK)) ^ (t & MASK))", "^ (seed >> 32 & MASK)))"),
            (f"{TRITON}/random_bits.py", "mix32(mix32(x ^ t.to(tl.uint32)) + word)", "mix32(mix32(x) + word)"),
        ),
        ("tests/runtime/reference/test_random_bits.py::test_keys_do_not_repeat", "tests/runtime/reference/test_random_bits.py::test_one_element_over_time",),
    ),
    Mutant(
        "draws: every word is stream 0",
        (
            (f"{REFERENCE}/random_bits.py", "word = stream * 0x9E3779B9", "word = 0"),
            (f"{TRITON}/random_bits.py", "word = tl.full((), stream, tl.uint32) * 0x9E3779B9", "word = tl.full((), 0, tl.uint32)"),
        ),
        ("tests/runtime/reference/test_random_bits.py::test_keys_do_not_repeat",),
    ),
    Mutant(
        "draws: the sign's noise from the parameter's bits",
        (
            (f"{REFERENCE}/random_bits.py", "self.hashed * signed32(MULTIPLIERS[which])", "self.hashed * signed32(MULTIPLIERS[0])"),
            (f"{TRITON}/random_bits.py", "x = hashed * SECOND", "x = hashed * FIRST"),
        ),
        ("tests/runtime/reference/test_random_bits.py::test_fields_of_a_word_are_independent", "tests/runtime/reference/test_random_bits.py::test_sign_noise_and_parameter_rounding_do_not_interact",),
    ),
    Mutant(
        "sign noise: -1 possible, the mean half a step low",
        (
            (f"{REFERENCE}/random_bits.py", "0x40000001).view(torch.float32) - 3.0", "0x40000000).view(torch.float32) - 3.0"),
            (f"{TRITON}/random_bits.py", "((field >> 9) | 0x40000001)", "((field >> 9) | 0x40000000)"),
        ),
        ("tests/runtime/reference/test_random_bits.py::test_sign_noise_is_every_midpoint_once",),
    ),
    Mutant(
        "FP8: nearest instead of stochastic rounding",
        (
            (f"{REFERENCE}/codecs.py", "(size.view(torch.int32) + shift_right(field, 32 - drop)) >> drop", "(size.view(torch.int32) + (1 << (drop - 1))) >> drop"),
            (f"{TRITON}/codecs.py", "bits += field >> 12", "bits += 0x80000"),
            (f"{TRITON}/codecs.py", "(bits + (field >> 11)) >> 21", "(bits + 0x100000) >> 21"),
            (f"{TRITON}/codecs.py", "(bits + (field >> 12)) >> 20", "(bits + 0x80000) >> 20"),
        ),
        ("tests/runtime/reference/test_codecs.py::test_mean_over_all_halves_is_the_value",),
    ),
    Mutant(
        "bf16: cut off instead of rounded stochastically",
        (
            (f"{REFERENCE}/codecs.py", "rounded = bits + shift_right(field, 16)", "rounded = bits + 0 * field"),
            (f"{TRITON}/codecs.py", "3.3895313892515355e38, bits + (field >> 16), bits)", "3.3895313892515355e38, bits + 0 * field, bits)"),
        ),
        ("tests/runtime/reference/test_codecs.py::test_bf16_mean_over_all_halves_is_exactly_the_value",),
    ),
    Mutant(
        "codecs: E6M2's block scale one binade higher (PyTorch)",
        ((FORMATS, "E6M2 = Float8(2, 67, 0xFB, 2.0**3, 1, 0xF7, signed=False)", "E6M2 = Float8(2, 67, 0xFB, 2.0**3, 0, 0xF7, signed=False)"),),
        ("tests/runtime/test_formats.py", "tests/runtime/reference/test_codecs.py"),
    ),
    Mutant(
        "codecs: moments at the end of fp32's range read as Inf",
        ((f"{REFERENCE}/codecs.py", "torch.where(byte < 254 - layout.headroom, layout.largest, layout.top)", "layout.largest + 0 * byte"),),
        ("tests/runtime/reference/test_codecs.py",),
    ),
    Mutant(
        "legacy: codes of before taken for today's",
        (("signconv/runtime/state.py", "        if old is new:\n            continue", "        continue"),),
        ("tests/runtime/test_legacy.py",),
    ),
    Mutant(
        "noise: an antithetic step draws anew",
        ((f"{REFERENCE}/random_bits.py", '"antithetic": t & ~1', '"antithetic": t'),),
        ("tests/runtime/reference/test_noise.py",),
    ),
    Mutant(
        "noise: golden turns by a simple fraction",
        ((f"{REFERENCE}/random_bits.py", "TURN = 0x9E3778C1", "TURN = 0x80000001"),),
        ("tests/runtime/reference/test_noise.py",),
    ),
    Mutant(
        "noise: what is rounded shares the sign's lasting hash",
        ((f"{REFERENCE}/random_bits.py", "        super().__init__(x ^ shift_right(x, 15) ^ key1)", "        super().__init__(word.hashed)"),),
        ("tests/runtime/reference/test_noise.py",),
    ),
    Mutant(
        "PTX: a bit of E5M3 too low",
        ((f"{TRITON}/ptx.py", "        shr.u32 q, q, 1;", "        shr.u32 q, q, 2;"),),
        ("tests/runtime/kernel/test_ptx.py",),
    ),
    Mutant(
        "PTX: of eight parameters one is not looked at",
        ((f"{TRITON}/ptx.py", "        abs.f32 a, $11;\n        setp.le.and.f32 k, a, 0f7F7F0000, k;\n", ""),),
        ("tests/runtime/kernel/test_ptx.py",),
    ),
    Mutant(
        "block scale: the exponent off by one, no headroom",
        (
            (FORMATS, "Float8(3, 121, 0x7E, 2.0**9, 7, 0x77)", "Float8(3, 121, 0x7E, 2.0**9, 8, 0x77)"),
            (f"{TRITON}/codecs.py", "(1 if FORMAT == E6M2 else 7)", "(1 if FORMAT == E6M2 else 8)"),
        ),
        ("tests/runtime/reference/test_codecs.py::test_headroom_is_one_binade",),
    ),
    Mutant(
        "block scale: the exponent off by one, half the range unused",
        (
            (FORMATS, "Float8(3, 121, 0x7E, 2.0**9, 7, 0x77)", "Float8(3, 121, 0x7E, 2.0**9, 6, 0x77)"),
            (f"{TRITON}/codecs.py", "(1 if FORMAT == E6M2 else 7)", "(1 if FORMAT == E6M2 else 6)"),
        ),
        ("tests/runtime/reference/test_codecs.py::test_headroom_is_one_binade",),
    ),
    Mutant(
        "max: NaN in the first operand lost",
        (
            (f"{REFERENCE}/arithmetic.py", "return torch.where(a.isnan(), a, torch.where(b.isnan(), b, larger))", "return torch.where(b.isnan(), b, larger)"),
            (f"{TRITON}/arithmetic.py", "return tl.where(a != a, a, tl.where(b != b, b, larger))", "return tl.where(b != b, b, larger)"),
        ),
        ("tests/runtime/reference/test_arithmetic.py::test_maximum_and_minimum",),
    ),
    Mutant(
        "ratio: x/0 moves the parameter",
        (
            (f"{REFERENCE}/arithmetic.py", "torch.where((b == 0) & (a.abs() < torch.inf), 0.0, torch.div(a, b))", "torch.where((b == 0) & (a == 0), 0.0, torch.div(a, b))"),
            (f"{TRITON}/arithmetic.py", 'tl.where((b == 0) & (tl.abs(a) < float("inf")), 0.0, tl.div_rn(a, b))', "tl.where((b == 0) & (a == 0), 0.0, tl.div_rn(a, b))"),
        ),
        ("tests/runtime/reference/test_arithmetic.py::test_ratio_is_the_quotient_except_over_zero",),
    ),
    Mutant(
        "bf16 arithmetic: ties away from zero",
        (
            (f"{REFERENCE}/codecs.py", "(bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000", "(bits + 0x8000) & -0x10000"),
            (f"{TRITON}/codecs.py", "(bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000", "(bits + 0x8000) & 0xFFFF0000"),
        ),
        ("tests/runtime/reference/test_codecs.py::test_bf16_nearest_equals_torch",),
    ),
    Mutant(
        "master weights: rounded down instead of to nearest",
        (
            (f"{REFERENCE}/memory.py", "((bits + 0x8000) & -0x10000).view(torch.float32), bits.to", "(bits & -0x10000).view(torch.float32), bits.to"),
            (f"{TRITON}/memory.py", "((bits + 0x8000) & 0xFFFF0000).to(tl.float32, bitcast=True)", "(bits & 0xFFFF0000).to(tl.float32, bitcast=True)"),
        ),
        ("tests/runtime/test_master.py::test_the_bf16_half_is_the_nearest_and_differs_from_torchs_at_ties_alone",),
    ),
    # ---------------------------------------------------------------- one twin, optimizer, files
    Mutant(
        "sums: halves added, not neighbours (torch alone)",
        ((f"{REFERENCE}/reduce.py", "x = x[0::2] + x[1::2]", "x = x[: len(x) // 2] + x[len(x) // 2 :]"),),
        ("tests/runtime/reference/test_arithmetic.py::test_kernel_sums_by_the_same_tree",),
    ),
    Mutant(
        "draws: all parameters share their draws",
        (("signconv/runtime/places.py", "self._end = max(self._end, start + room(p))", "self._end = 0"),),
        ("tests/runtime/test_optimizer.py::test_offsets_are_multiples_of_32_in_param_groups_order",),
    ),
    Mutant(
        "load_state_dict: the next parameter's offset forgotten",
        (("signconv/runtime/places.py", "            self._enter(p, start)\n\n    def of", "            pass\n\n    def of"),),
        ("tests/resume/test_resume.py::test_a_group_added_after_loading_draws_its_own_bits",),
    ),
    Mutant(
        "skip_nonfinite: skipped steps not counted",
        ((OPTIMIZER, "self._skipped[device].add_(flag.to(torch.int64))", "self._skipped[device].add_(0)"),),
        (SKIP,),
    ),
    Mutant(
        "state allocated piece by piece when memory runs out",
        ((OPTIMIZER, 'fresh[p] = self._new_state(p, groups[i]["master"])', 'self.state[p] = self._new_state(p, groups[i]["master"])'),),
        (f"{FAULTS}::test_state_is_all_or_nothing_when_memory_runs_out",),
    ),
    Mutant(
        "frozen: freed memory is not noticed",
        (("signconv/runtime/checked.py", "if same and not self._gone:", "if same:"),),
        ("tests/runtime/test_frozen.py",),
    ),
    Mutant(
        "frozen: param groups may change",
        (("signconv/runtime/checked.py", "if same and not self._gone:", "if not self._gone:"),),
        ("tests/runtime/test_frozen.py",),
    ),
    Mutant(
        "state: its pointers are not compared",
        (("signconv/runtime/kernel/bucket.py", "if [*map(_POINTER, self._state())] != state:", "if False:"),),
        ("tests/runtime/kernel/test_follow.py",),
    ),
    Mutant(
        "scalars: new hyperparameters are not uploaded",
        (("signconv/runtime/kernel/engine.py", "or not all(map(is_, read, self.known))", ""),),
        ("tests/runtime/test_frozen.py",),
    ),
    Mutant(
        "hooks: of all optimizers are left out",
        ((
            "signconv/runtime/settings.py",
            "            or optimizers._global_optimizer_pre_hooks\n            or optimizers._global_optimizer_post_hooks\n",
            "",
        ),),
        ("tests/runtime/test_hooks.py",),
    ),
    Mutant(
        "build: the target written in place",
        (("signconv/pipeline/files.py", "    mark = secrets.token_hex(8)", "    path.write_text(source)\n    mark = secrets.token_hex(8)"),),
        ("tests/pipeline/test_files.py",),
    ),
    # ---------------------------------------------------------------- proofs, eps, verify's bound
    Mutant(
        "proofs: a power is at most 1 whatever its exponent",
        (("signconv/ir/analysis.py", "grows = self.positive(exponent) if strictly else self.nonneg(exponent)", "grows = True"),),
        ("tests/ir/test_analysis.py::test_sign_and_size_of_scalars",),
    ),
    Mutant(
        "proofs: exponents of t may be negative",
        (("signconv/prove/proofs.py", "if not never_negative(exponent):", "if False:"),),
        ("tests/prove/test_claims.py::test_exponents_that_are_never_negative", "tests/prove/test_claims.py::test_the_proof_itself_looks_at_exponents"),
    ),
    Mutant(
        "proofs: no run against a bound that was derived",
        (("signconv/prove/proofs.py", "    if found is None:\n        return b\n    why", "    if True:\n        return b\n    why"),),
        ("tests/prove/test_claims.py::test_a_false_claim_does_not_come_out",),
    ),
    Mutant(
        "counterexamples: late steps alone",
        (("signconv/prove/refute.py", "run = Run(p, size, at, late)", "run = Run(p, size, at, True)"),),
        ("tests/prove/test_claims.py::test_early_steps_are_looked_at_alone",),
    ),
    Mutant(
        "proofs: an update without denominator always grows",
        (("signconv/prove/proofs.py", "if isinstance(degree, int | float) and degree > 0:", "if True:"),),
        ("tests/prove/test_claims.py::test_claims",),
    ),
    Mutant(
        "bounds: betas that change with t count as constant",
        (("signconv/ir/bounds.py", "return is_constant(beta, p) and ranges", "return is_scalar(beta, p) and ranges"),),
        ("tests/ir/test_bounds.py::test_which_betas_have_a_bound",),
    ),
    Mutant(
        "floors: those of the present betas alone",
        ((LOWER, 'op("min", Ref("prev", name), e)', "e"),),
        ("tests/ir/test_bounds.py::test_a_user_who_changes_betas_keeps_the_stored_moment",),
    ),
    Mutant(
        "load_state_dict: a checkpoint without floors is refused",
        (("signconv/runtime/state.py", "entry = {**started, **entry}", "entry = {**entry}"),),
        ("tests/runtime/test_legacy.py",),
    ),
    Mutant(
        "stosign: numbers inside maxima go as eps does",
        (("signconv/passes/base.py", 'if e.fn == "add":\n        kept = _summands(e, p)', 'if e.fn in ("add", "max"):\n        e = replace(e, fn="add")\n        kept = _summands(e, p)'),),
        ("tests/passes/test_stosign.py::test_equations",),
    ),
    Mutant(
        "stosign: numbers inside the roots of a sum go",
        (("signconv/passes/base.py", "kept = [_summands(a, p) for a in e.args if", "kept = [without_offset(a, p) for a in e.args if"),),
        ("tests/passes/test_stosign.py::test_equations",),
    ),
    Mutant(
        "nesterov: a look-ahead of signs not seen",
        (("signconv/passes/nesterov.py", "of_gradient(e) and e in walk(read)", "e == GRAD"),),
        ("tests/passes/test_nesterov.py::test_presign_does_not_hide_a_look_ahead",),
    ),
    Mutant(
        "verify: intervals that nothing leaves",
        (("signconv/verification/witnesses.py", "inside = box.has(got) | box.open", "inside = box.has(got) | True"),),
        ("tests/verification/test_condition.py::test_a_fault_of_that_size_is_noticed",),
    ),
    Mutant(
        "verify: intervals that decide nothing pass",
        (("signconv/verification/witnesses.py", "DECIDED = 0.5", "DECIDED = 0.0"),),
        ("tests/verification/test_condition.py::test_a_program_that_rounding_takes_apart_is_not_called_equal",),
    ),
    Mutant(
        "verify: rounding of one operation counts for nothing",
        (("signconv/verification/enclosure.py", "    by = ulps * x.unit\n", "    by = 0.0\n"),),
        ("tests/verification/test_condition.py::test_a_correct_spec_agrees",),
    ),
    # ---------------------------------------------------------------- a hostile reader
    Mutant(
        "scalars: the kernel's remainder has the sign of the dividend",
        ((f"{TRITON}/scalars.py", "moved = tl.where(((rest < 0) != (b < 0)) & (rest != 0), rest + b, rest)", "moved = rest"),),
        ("tests/ir/test_scalars.py::test_python_kernel_and_evaluator_agree_on_edges",),
    ),
    Mutant(
        "scalars: max drops NaN (Python alone)",
        ((f"{REFERENCE}/scalars.py", "if a != a or a > b:", "if a > b:"),),
        ("tests/ir/test_scalars.py::test_functions_of_two_numbers_are_numpys",),
    ),
    Mutant(
        "scalars: a negative whole power is 1",
        ((f"{REFERENCE}/scalars.py", "return divide64(1.0, result) if n < 0 else result", "return 1.0 if n < 0 else result"),),
        ("tests/ir/test_scalars.py::test_whole_powers_are_numpys",),
    ),
    Mutant(
        "scalars: functions of numbers are left to the kernel, which types them fp32",
        (("signconv/lower/scalars.py", "return made if folded is None else folded", "return made"),),
        ("tests/lower/test_folding.py",),
    ),
    Mutant(
        "independent decay: lr0 = 0 gives NaN",
        (("signconv/lower/schedule.py", 'op("where", op("eq", first, 0), math.inf, first)', "first"),),
        ("tests/ir/test_scalars.py::test_independent_decay_from_a_rate_of_zero_is_none",),
    ),
    Mutant(
        "a comparison counts as a number",
        (("signconv/ir/check.py", "    for e in all_expressions(p):\n        if isinstance(e, Op) and e.fn in RELATIONS:", "    for e in p.roots:\n        if isinstance(e, Op) and e.fn in RELATIONS:"),),
        ("tests/ir/test_scalars.py::test_a_condition_may_have_a_name_and_is_no_number",),
    ),
    Mutant(
        "deep expressions are not cut",
        (("signconv/dsl/parts.py", "DEPTH = 40", "DEPTH = 10**9"),),
        ("tests/dsl/test_deep.py",),
    ),
    Mutant(
        "a class may hide what its module uses",
        (("signconv/render/module.py", "    _free(class_name, source)\n", ""),),
        ("tests/pipeline/test_hostile.py::test_a_class_does_not_hide_what_its_module_uses",),
    ),
    Mutant(
        "paths are markup",
        (("signconv/terminal.py", "out.print(plain(line), soft_wrap=True, markup=False)", "out.print(plain(line), soft_wrap=True)"),),
        ("tests/pipeline/test_hostile.py::test_paths_are_printed_as_they_are_and_on_one_line",),
    ),
    Mutant(
        "Ctrl-C leaves an unfinished file",
        (("signconv/pipeline/files.py", "except BaseException:  # Ctrl-C", "except OSError:  # Ctrl-C"),),
        ("tests/pipeline/test_hostile.py::test_ctrl_c_leaves_nothing_behind",),
    ),
    Mutant(
        "verify: a file that exits ends verify",
        (("signconv/verification/bits.py", "    except BaseException as error:  # SystemExit", "    except Exception as error:  # SystemExit"),),
        ("tests/pipeline/test_hostile.py::test_verify_of_a_broken_file_says_so",),
    ),
    Mutant(
        "antithetic noise: the second step of a pair rounds as the first",
        ((f"{REFERENCE}/random_bits.py", "anew = ODD if t & 1 else MULTIPLIERS[1:]", "anew = MULTIPLIERS[1:]"),),
        ("tests/runtime/reference/test_noise.py::test_fields_of_two_steps_are_independent", "tests/runtime/reference/test_noise.py::test_the_steps_of_a_pair_round_by_multipliers_of_their_own"),
    ),
    Mutant(
        "state of another noise: taken without a word",
        (("signconv/runtime/groups.py", "if (before := legacy.noise(theirs, program)) != program.noise:", "if (before := legacy.noise(theirs, program)) is None:"),),
        ("tests/runtime/test_legacy.py::test_state_goes_from_one_noise_to_another_with_a_word",),
    ),
    Mutant(
        "offload: what was edited is not fetched again",
        (("signconv/runtime/staging.py", "if self.holds[n] is batch and batch.seen == batch.host._version:", "if self.holds[n] is batch:"),),
        ("tests/runtime/test_offload.py::test_state_may_be_edited_in_place_and_replaced",),
    ),
    Mutant(
        "offload: batches are not sent back",
        (("signconv/runtime/staging.py", "batch.host.copy_(self.slots[n][:size])\n        else:\n            stepped", "pass\n        else:\n            stepped"),),
        ("tests/runtime/test_offload.py::test_the_bits_are_those_without_it",),
    ),
    Mutant(
        "offload: state on its way is read as it lies",
        (("signconv/runtime/offload.py", "            self.wait()  # it may be", "            pass  # it may be"),),
        ("tests/runtime/test_offload.py::test_state_that_is_late_is_waited_for",),
    ),
    Mutant(
        "averages: each rank in its own order",
        (("signconv/runtime/averaging.py", "        self._complete[self._place[number]] = p\n", "        self._begin(p)\n"),),
        ("tests/distributed/test_release.py",),
    ),
    Mutant(
        "compiled step: a copy that a graph gave stays as it was",
        (("signconv/runtime/compiled.py", "                given.copy_(p)\n", ""),),
        ("tests/runtime/test_compiled.py::test_one_graph_has_the_bits_of_a_plain_step",),
    ),
    Mutant(
        "lr range: what batches differ by counts as learning",
        (("signconv/tuning/lr_range.py", "(value - self.untouched[i])", "(value - self.untouched[0])"),),
        ("tests/tuning/test_lr_range.py::test_what_batches_differ_by_is_neither_a_fall_nor_a_rise",),
    ),
    Mutant(
        "clip: gradients keep their scale in the norm",
        (("signconv/runtime/reference/step.py", "hypers.append(ops.divide64(float(task.norm), scale))", "hypers.append(float(task.norm))"),),
        ("tests/passes/test_clip.py::test_scaled_gradients_are_clipped_as_they_would_be_unscaled",),
    ),
    Mutant(
        "clip: each group has its own norm",
        (("signconv/runtime/totals.py", 'if self.scope == "group":\n            return self.groups', "if True:\n            return self.groups"), ("signconv/runtime/totals.py", 'if self.scope == "group":\n            return self.total', "if True:\n            return self.total")),
        ("tests/passes/test_clip.py::test_the_norm_is_clipped_as_torch_does",),
    ),
    Mutant(
        "eval: a step goes on from the point of evaluation",
        (("signconv/runtime/evaluation.py", "    if any(g.get(EVALUATING) for g in optimizer.param_groups):\n", "    if False:\n"),),
        ("tests/runtime/test_evaluation.py::test_a_step_in_evaluation_is_refused",),
    ),
    Mutant(
        "schedulefree: what is new of the average is not in the parameter",
        (("signconv/passes/schedulefree.py", "mul(sub(1, mul(beta, sub(1, c))), change),", "change,"),),
        ("tests/passes/test_laws.py::test_law_holds[adamw-schedulefree]",),
    ),
    Mutant(
        "after the update: param is what it became",
        (("signconv/lower/schedule.py", "return rewrite(e, lambda x: old if x == PARAM else None)", "return e"),),
        ("tests/specs/test_specs.py::test_reference_follows_the_evaluator[schedulefree_adamw]",),
    ),
)  # fmt: skip
