"""What other optimizers keep: torch.optim, and the codes of torchao, FlashOptim, bitsandbytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from signconv.runtime import mesh, sharded
from signconv.runtime.errors import coded

#: torch.optim's key -> what it is.
MEANINGS = {"exp_avg": "ema(g)", "exp_avg_sq": "ema(g**2)", "max_exp_avg_sq": "max(ema(g**2))"}
#: bitsandbytes keeps its tensors in a dictionary of their own in state_dicts.
_BNB = "__bnb_optimizer_quant_state__"
#: Elements per block scale of bitsandbytes, today's first.
_BNB_BLOCKS = (256, 2048, 4096)
#: FlashOptim's compressed checkpoints: largest code, whether of a root, whether bent by softsign.
_FLASH = {"exp_avg": (127.0, False, True), "exp_avg_sq": (255.0, True, False)}
_FLASH_GROUP = 32


def found_in(entry: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    """Meaning -> fp32 tensor (or DTensor) of what another optimizer's state of a parameter holds.

    Known are the keys of torch.optim, torchao (whose tensors know how to be dequantized),
    FlashOptim and bitsandbytes.
    """
    entry = {**entry, **entry.get(_BNB, {})}
    found: dict[str, Any] = {}
    for key, of in MEANINGS.items():
        if f"{key}::quantized" in entry and key in _FLASH:
            found[of] = _flash(key, entry)
        elif isinstance(entry.get(key), Tensor):
            found[of] = _fp32(entry[key])
    if isinstance(entry.get("momentum_buffer"), Tensor):
        found["ema(g)"] = _fp32(entry["momentum_buffer"]) * sum_to_average(group)
    first, second = (isinstance(entry.get(f"state{i}"), Tensor) for i in ("1", "2"))
    if first and second:
        found["ema(g)"] = _bitsandbytes(entry, "1")
        found["ema(g**2)"] = _bitsandbytes(entry, "2")
    elif first and is_momentum(group):
        found["ema(g)"] = _bitsandbytes(entry, "1") * sum_to_average(group)
    elif first and float(group["betas"][1]) > 0:  # Lion
        found["ema(g)"] = _bitsandbytes(entry, "1")
    elif first and float(group["betas"][0]) > 0:  # RMSprop
        found["ema(g**2)"] = _bitsandbytes(entry, "1")
    return found


def _fp32(x: Any) -> Any:
    """Of a tensor of any kind."""
    part = mesh.local(x)
    if hasattr(part, "codes") and hasattr(part, "dequantize"):  # torchao's
        whole = part.dequantize()
        x = sharded.wrap(whole, x, x.shape) if mesh.is_sharded(x) else whole
    if x.is_complex() or x.is_meta or x.layout != torch.strided:
        raise coded(
            ValueError, "SC507", f"a moment is a tensor of {x.dtype}, {x.layout}, {x.device}"
        )
    return x.detach().to(torch.float32)


def momentum_of(group: Mapping[str, Any]) -> float:
    if "momentum" in group:
        return float(group["momentum"])
    return float(group["betas"][0])


def is_momentum(group: Mapping[str, Any]) -> bool:
    """Whether a group belongs to SGD; that of bitsandbytes has betas, the second 0, and no eps."""
    betas = group.get("betas")
    if betas is None:
        return "momentum" in group
    return float(betas[1]) == 0.0 and float(group.get("eps", 1.0)) == 0.0


def sum_to_average(group: Mapping[str, Any]) -> float:
    """torch.optim.SGD adds (1 - dampening)·g where an average adds (1 - momentum)·g."""
    kept, rest = 1.0 - float(group.get("dampening", 0.0)), 1.0 - momentum_of(group)
    return rest / kept if kept > 0 and rest > 0 else 1.0


def _bitsandbytes(entry: Mapping[str, Any], i: str) -> Tensor:
    """Codes in a table of 256 numbers, times a scale per block."""
    codes = entry[f"state{i}"]
    if codes.dtype != torch.uint8:
        return _fp32(codes)
    table, scale = entry[f"qmap{i}"], entry.get(f"absmax{i}")
    if scale is None:
        raise coded(
            ValueError,
            "SC511",
            "bitsandbytes state without block scales (absmax) was written with block_wise=False, "
            "whose scales are of another kind: load it there with block_wise=True first",
        )
    flat = table.to(codes.device)[codes.reshape(-1).long()].float()
    sizes = [n for n in _BNB_BLOCKS if -(-flat.numel() // n) == scale.numel()]
    if not sizes:
        raise coded(
            ValueError,
            "SC511",
            f"bitsandbytes state of {flat.numel()} elements has {scale.numel()} block scales: that "
            f"is none of the known block sizes {', '.join(map(str, _BNB_BLOCKS))}",
        )
    each = scale.to(flat.device).float().repeat_interleave(sizes[0])[: flat.numel()]
    return (flat * each).view(codes.shape)


def _flash(key: str, entry: Mapping[str, Any]) -> Tensor:
    """FlashOptim's codes: of blocks of 32, with an fp16 scale, bent or of the square root."""
    largest, root, bent = _FLASH[key]
    codes, scale = entry[f"{key}::quantized"], entry[f"{key}::scales"]
    scale = scale.view(torch.float16) if scale.dtype == torch.bfloat16 else scale
    x = codes.reshape(-1).float() / largest
    if bent:
        x = x / (2.0 - x.abs())
    x = x * scale.reshape(-1).float().repeat_interleave(_FLASH_GROUP)[: x.numel()]
    return (x * x if root else x).view(codes.shape)
