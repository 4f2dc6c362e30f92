"""Two faults for compute-sanitizer to find: a check that finds nothing anywhere proves nothing.

``python -m tools.sanitizer.planted memcheck`` writes one element behind a tensor,
``racecheck`` lets all threads of a block write one word of shared memory.
"""

import sys

import torch
import triton
import triton.language as tl


@triton.jit
def write_behind(pointer, numel) -> None:  # type: ignore[no-untyped-def]
    tl.store(pointer + numel, 1.0)


@triton.jit
def race(pointer, BLOCK: tl.constexpr) -> None:  # type: ignore[no-untyped-def]
    lane = tl.arange(0, BLOCK)
    seen = tl.inline_asm_elementwise(
        "{ .shared .align 4 .b32 word; st.volatile.shared.b32 [word], $1;"
        " ld.volatile.shared.b32 $0, [word]; }",
        "=r,r",
        [lane],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
    tl.store(pointer + lane, seen)


def main() -> None:
    """Plant the fault that the tool named is for."""
    print("== module planted", flush=True)
    if sys.argv[1] == "racecheck":
        race[(1,)](torch.zeros(128, dtype=torch.int32, device="cuda"), BLOCK=128, num_warps=4)
    else:
        x = torch.zeros(33, device="cuda")
        write_behind[(1,)](x, x.numel())
    torch.cuda.synchronize()
    print("== module planted launched 1", flush=True)


if __name__ == "__main__":
    main()
