"""The language in which optimizers are written: ``from signconv.dsl import *``.

Inside a class body the names ``grad``, ``param``, ``t``, ``ema`` and all functions are bound
already, so the import is only needed for ``Optimizer`` (and by linters).
"""

from signconv.dsl.functions import (
    abs,
    clip,
    columns,
    decoupled,
    ema,
    exp,
    extra,
    given,
    grad,
    hyper,
    independent,
    l2,
    log,
    max,
    max_ema,
    mean,
    min,
    moment,
    msign,
    ndim,
    norm,
    numel,
    param,
    root,
    rows,
    sign,
    sqrt,
    state,
    stepped,
    stochastic_sign,
    sum,
    t,
    tanh,
    where,
)
from signconv.dsl.optimizer import Optimizer

__all__ = [
    "Optimizer", "abs", "clip", "columns", "decoupled", "ema", "exp", "extra", "given", "grad",
    "hyper", "independent", "l2", "log", "max", "max_ema", "mean", "min", "moment", "msign",
    "ndim", "norm", "numel", "param", "root", "rows", "sign", "sqrt", "state", "stepped",
    "stochastic_sign", "sum", "t", "tanh", "where",
]  # fmt: skip
