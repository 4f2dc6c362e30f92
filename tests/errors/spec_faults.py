"""Descriptions of optimizers that provoke each code of the first door: code -> (body, words)."""

BODIES: dict[str, tuple[str, str]] = {
    "SC109": ("numerator = gradd", "undefined symbol 'gradd'; did you mean 'grad'"),
    "SC110": ("numerator = grad * (1 / 0)", "ZeroDivisionError: division by zero"),
    "SC111": ("β = hyper(0.9)\nnumerator = grad", "'β': names are ASCII identifiers"),
    "SC112": ("max = ema(grad, 0.9)", "'max' is a name of the DSL"),
    "SC113": ("seed = hyper(1.0)", "'seed' is reserved for generated code"),
    "SC114": ("m = ema(grad, 0.9)\nm = ema(grad, 0.5)", "'m' is bound twice"),
    "SC115": ("a = b = ema(grad, 0.9)", "'a' already names this"),
    "SC116": ("numerator = ema(grad, 0.9) + 1", "has no name: bind it first"),
    "SC117": ("k = 'text'", "'k' is bound to a str: a spec holds numbers"),
    "SC118": ("numerator = grad + 'x'", r"'x' \(str\) cannot stand in an expression"),
    "SC119": ("numerator = grad * 1e400", "inf is not a finite number"),
    "SC120": ("k = hyper('0.9')", "default must be a number, not '0.9'"),
    "SC121": (
        "k = hyper(2.0, lt=1)\nnumerator = grad * k",
        "k = 2 is outside its own range: k < 1",
    ),
    "SC122": ("m = ema(grad, 1.5)\nnumerator = m", "beta = 1.5 is outside 0 <= beta <= 1"),
    "SC123": ("m = ema(grad, 0.9, init='ones')", "init='ones' is neither 'zero' nor 'first'"),
    "SC124": ("m = moment(grad, order=0, beta=0.9)", "order = 0 is not a number >= 1"),
    "SC125": ("m = state(grad)", "takes a number, or param"),
    "SC126": ("m = ema(grad, 0.9)\nnumerator = m.corected", "did you mean 'corrected'"),
    "SC127": ("m = ema(grad, 0.9)\nm.beta = 0.5\nnumerator = m", "only a state's .next can"),
    "SC128": ("m = ema(grad, 0.9)\nm.next = grad", r"only state\(\) has .next; ema\(\) fixes"),
    "SC129": ("m = state()\nm.next = grad\nm.next = grad", "m.next is set twice"),
    "SC130": ("m = state()\nnumerator = m.prev + grad", "state 'm' has no m.next"),
    "SC131": ("numerator = grad @ grad", "a matrix product is not supported"),
    "SC132": ("numerator = grad[0]", "stands for one element"),
    "SC133": ("numerator = grad if grad > 0 else -grad", r"no truth value.*where\(cond, a, b\)"),
    "SC134": ("numerator = float(grad)", "not a number yet; use the DSL's own functions"),
    "SC135": ("m = ema(grad, 0.9)", "Mine needs either `numerator = …` or `update = …`"),
    "SC136": ("denominator = sqrt(grad**2)\nupdate = grad", "a denominator but no numerator"),
    "SC137": ("decay = 3\nnumerator = grad", "decay is one of l2"),
    "SC139": ("k = hyper(0.9)\nnumerator = grad", "hyperparameter 'k' is never read"),
    "SC140": ("numerator = param * 0.5", "update does not depend on the gradient"),
    "SC141": (
        "a = state()\nb = state()\na.next = b + grad\nb.next = a + grad\nnumerator = a",
        "cycle: a -> b -> a: .*use .prev",
    ),
    "SC142": (
        "m = ema(grad, 0.9, init='first')\nnumerator = m.corrected",
        ".corrected needs an ema that starts from zero",
    ),
    "SC143": ("numerator = grad > 0", r"a comparison is no number: write where\(condition, a, b\)"),
    "SC144": ("numerator = grad**-1", "an exponent from 1 to 16"),
    "SC145": ("numerator = 2**grad", r"beta\*\*t is for scalars"),
    "SC146": ("numerator = grad**1.5", r"may be negative: write abs\(x\)\*\*1.5"),
    "SC147": ("numerator = grad\ndecay = decoupled(grad)", "the same for all elements"),
    "SC148": ("u = max_ema(grad, 0.9)\nnumerator = grad / u", "input that is never negative"),
    "SC149": ("numerator = stochastic_sign(grad, 1) * 2", "can only be the whole update"),
    "SC150": ("numerator = grad * norm(t)", r"norm\(\) of a scalar"),
    "SC153": ("numerator = grad\nupdate = grad", "binds both numerator and update: keep one"),
    "SC154": ("numerator = (grad * 2).prev", "only a moment has .prev: bind one"),
}

#: Other codes of a pass or of the lowering: code -> (body, passes, state, math, words).
BUILDS: dict[str, tuple[str, str | None, str, str, str]] = {
    "SC201": ("numerator = grad", "stosing", "fp32", "fp32", "unknown pass 'stosing'; did you"),
    "SC202": ("numerator = grad", "stosign:a=1", "fp32", "fp32", "no option 'a=1'; it takes: eps"),
    "SC203": (
        "numerator = grad", "stosign:eps=keep:eps=drop", "fp32", "fp32", "'eps' is given twice"
    ),
    "SC204": ("numerator = grad", "sign,sign", "fp32", "fp32", "'sign' is asked for twice"),
    "SC205": ("numerator = grad", "sign,stosign", "fp32", "fp32", "exclude each other"),
    "SC206": (
        "G, G2 = grad * 2, grad * 3\nnumerator = G + G2", "stosign", "fp32", "fp32",
        "already uses the names G, G2",
    ),
    "SC207": ("update = sign(grad)", "sign", "fp32", "fp32", "has the link sign already"),
    "SC208": (
        "m = ema(grad, 0.9)\nnumerator = 0.9 * m + 0.1 * grad", "nesterov", "fp32", "fp32",
        "looks ahead already: it adds g, the newest input of m",
    ),
    "SC209": ("numerator = grad", "nesterov", "fp32", "fp32", "reads an EMA; Mine's reads none"),
    "SC210": ("numerator = sign(grad) + 1", "presign", "fp32", "fp32", r"reads sign\(grad\)"),
    "SC211": ("numerator = grad", "soft:p=2", "fp32", "fp32", "Mine's reads no moment"),
    "SC212": ("numerator = grad", "soft:p=99", "fp32", "fp32", "a number 1 <= p <= 8"),
    "SC215": ("m = ema(grad, 0.9)\nnumerator = m", "init", "fp32", "fp32", "init needs where"),
    "SC216": ("numerator = grad", "init:to=zero", "fp32", "fp32", "no average of"),
    "SC214": ("numerator = grad", "stosign:noise=gold", "fp32", "fp32", "did you mean 'golden'"),
    "SC213": ("numerator = grad", "stosign:eps=maybe", "fp32", "fp32", "neither eps=drop"),
    "SC301": ("numerator = grad", None, "fp16", "fp32", "state format 'fp16'; did you mean 'bf16'"),
    "SC302": ("m = ema(grad, 0.9)\nnumerator = m", None, "fp8-raw", "fp32", "has no scales"),
    "SC303": ("numerator = grad", None, "fp32", "fp16", "--math fp16: arithmetic is fp32 or bf16"),
    "SC304": (
        "numerator = grad / norm(grad)", None, "fp32", "bf16", r"--math bf16 does not go with norm"
    ),
    "SC305": (
        "numerator = grad / norm(grad * norm(grad))", None, "fp32", "fp32",
        "a third pass over the tensor",
    ),
    "SC311": (
        "m = ema(grad, 0.9)\nG = max_ema(abs(m), 0.9)\nnumerator = m\ndenominator = G",
        None, "fp4", "fp32", "no moment of .* fits 4 bits",
    ),
}  # fmt: skip
