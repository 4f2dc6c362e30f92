"""Which parameters of a model a matrix rule is for, and which are left to another."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator

from torch import nn

from signconv.runtime import axes
from signconv.runtime.errors import coded

Named = list[tuple[str, nn.Parameter]]
#: What models call the layer that makes their output.
HEADS = ("classifier", "fc", "head", "lm_head", "output", "score")
#: Methods by which transformers and timm say it themselves.
_ASKED = ("get_output_embeddings", "get_classifier")
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def matrices(model: nn.Module, but: str | Iterable[str] = ()) -> tuple[Named, Named]:
    """The parameters of a model in two lists of (name, parameter), both in the model's order: the
    matrices inside it, for Muon and its like, and all others, for AdamW, say.

    A parameter is a matrix of its first dimension by all others (of a convolution, filters by what
    each sums over); with one row or one column it is none.  Others are also the weights of
    embeddings and of the output layer with all that is tied to them, and what ``but`` names: names,
    or patterns such as ``"*router*"``.  The output layer is what ``get_output_embeddings()`` or
    ``get_classifier()`` returns, and outside of the model's repeated blocks a Linear with as many
    outputs as the largest embedding has rows and the last Linear in a module called classifier, fc,
    head, lm_head, output or score.  Parameters that require no gradient are in neither.

    Raises ValueError for a pattern that fits no name.
    """
    every = list(model.named_parameters(remove_duplicate=False))
    ends = {id(p) for layer in _ends(model) for p in layer.parameters(recurse=False)}
    for pattern in [but] if isinstance(but, str) else but:
        found = {id(p) for name, p in every if name == pattern or _fits(name, pattern)}
        if not found:
            some = ", ".join(name for name, _ in every[:5])
            raise coded(
                ValueError,
                "SC477",
                f"but={pattern!r} fits none of the model's {len(every)} parameter names "
                f"({some}, …): use a pattern such as '*router*'",
            )
        ends |= found
    inside: Named = []
    others: Named = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            _, rows, columns = axes.matrices(p.shape, "")
            matrix = min(rows, columns) > 1 and id(p) not in ends
            (inside if matrix else others).append((name, p))
    return inside, others


def _fits(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern)


def _ends(model: nn.Module) -> Iterator[nn.Module]:
    """Embeddings and output layers."""
    modules = dict(model.named_modules())
    embeddings = [m for m in modules.values() if isinstance(m, _EMBEDDINGS)]
    yield from embeddings
    words = max((m.num_embeddings for m in embeddings), default=0)
    for name, module in modules.items():
        for method in _ASKED:
            found = getattr(module, method, None)
            made = found() if callable(found) else None
            if isinstance(made, nn.Module):
                yield made
        *outer, last = name.split(".")
        if any(part.isdecimal() for part in outer):  # a block of several
            continue
        if isinstance(module, nn.Linear) and module.out_features == words:
            yield module
        if last in HEADS:
            layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
            yield from layers[-1:]
