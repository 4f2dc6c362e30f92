"""4-bit codes for NVIDIA GPUs, in PTX: as in ``ptx.py``, eight elements of a register at a time.

A tile's neighbours come as two tensors [ROWS, 16], the first and the second of each byte.
"""

from __future__ import annotations

from signconv.runtime.compat import tl, triton


@triton.jit
def decode_e2m1(stored):
    """Bytes of two codes, as two tensors of fp32.

    A code's bits go to those of an fp16, for elements 16 bits apart at once.  NaN would be -0: it
    is looked for in all eight together.
    """
    return tl.inline_asm_elementwise(
        """
        {
        .reg .pred p, q;
        .reg .b16 h0, h1;
        .reg .b32 a, b;
        xor.b32 a, $8, 0x88888888;
        sub.u32 b, a, 0x11111111;
        not.b32 a, a;
        and.b32 a, a, b;
        and.b32 a, a, 0x88888888;
        setp.ne.u32 p, a, 0;
        shl.b32 a, $8, 9;
        and.b32 a, a, 0x0E000E00;
        shl.b32 b, $8, 12;
        and.b32 b, b, 0x80008000;
        or.b32 a, a, b;
        mov.b32 {h0, h1}, a;
        cvt.f32.f16 $0, h0;
        cvt.f32.f16 $2, h1;
        shl.b32 a, $8, 5;
        and.b32 a, a, 0x0E000E00;
        shl.b32 b, $8, 8;
        and.b32 b, b, 0x80008000;
        or.b32 a, a, b;
        mov.b32 {h0, h1}, a;
        cvt.f32.f16 $4, h0;
        cvt.f32.f16 $6, h1;
        shl.b32 a, $8, 1;
        and.b32 a, a, 0x0E000E00;
        shl.b32 b, $8, 4;
        and.b32 b, b, 0x80008000;
        or.b32 a, a, b;
        mov.b32 {h0, h1}, a;
        cvt.f32.f16 $1, h0;
        cvt.f32.f16 $3, h1;
        shr.u32 a, $8, 3;
        and.b32 a, a, 0x0E000E00;
        mov.b32 b, $8;
        and.b32 b, b, 0x80008000;
        or.b32 a, a, b;
        mov.b32 {h0, h1}, a;
        cvt.f32.f16 $5, h0;
        cvt.f32.f16 $7, h1;
        @!p bra DONE;
        mov.b32 a, $0;
        setp.eq.u32 q, a, 0x80000000;
        selp.f32 $0, 0f7FFFFFFF, $0, q;
        mov.b32 a, $4;
        setp.eq.u32 q, a, 0x80000000;
        selp.f32 $4, 0f7FFFFFFF, $4, q;
        mov.b32 a, $1;
        setp.eq.u32 q, a, 0x80000000;
        selp.f32 $1, 0f7FFFFFFF, $1, q;
        mov.b32 a, $5;
        setp.eq.u32 q, a, 0x80000000;
        selp.f32 $5, 0f7FFFFFFF, $5, q;
        mov.b32 a, $2;
        setp.eq.u32 q, a, 0x80000000;
        selp.f32 $2, 0f7FFFFFFF, $2, q;
        mov.b32 a, $6;
        setp.eq.u32 q, a, 0x80000000;
        selp.f32 $6, 0f7FFFFFFF, $6, q;
        mov.b32 a, $3;
        setp.eq.u32 q, a, 0x80000000;
        selp.f32 $3, 0f7FFFFFFF, $3, q;
        mov.b32 a, $7;
        setp.eq.u32 q, a, 0x80000000;
        selp.f32 $7, 0f7FFFFFFF, $7, q;
        DONE:
        }
        """,
        "=f,=f,=f,=f,=f,=f,=f,=f,r",
        args=[stored],
        dtype=(tl.float32, tl.float32),
        is_pure=True,
        pack=4,
    )


@triton.jit
def decode_e4m0(stored):
    """As ``decode_e2m1``; NaN would be 1."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .pred p, q;
        .reg .b16 h0, h1;
        .reg .b32 a, b;
        shr.u32 a, $8, 1;
        and.b32 a, a, $8;
        shr.u32 b, a, 2;
        and.b32 a, a, b;
        and.b32 a, a, 0x11111111;
        setp.ne.u32 p, a, 0;
        shl.b32 a, $8, 10;
        and.b32 a, a, 0x3C003C00;
        mov.b32 {h0, h1}, a;
        cvt.f32.f16 $0, h0;
        cvt.f32.f16 $2, h1;
        shl.b32 a, $8, 6;
        and.b32 a, a, 0x3C003C00;
        mov.b32 {h0, h1}, a;
        cvt.f32.f16 $4, h0;
        cvt.f32.f16 $6, h1;
        shl.b32 a, $8, 2;
        and.b32 a, a, 0x3C003C00;
        mov.b32 {h0, h1}, a;
        cvt.f32.f16 $1, h0;
        cvt.f32.f16 $3, h1;
        shr.u32 a, $8, 2;
        and.b32 a, a, 0x3C003C00;
        mov.b32 {h0, h1}, a;
        cvt.f32.f16 $5, h0;
        cvt.f32.f16 $7, h1;
        @!p bra DONE;
        setp.eq.f32 q, $0, 0f3F800000;
        selp.f32 $0, 0f7FFFFFFF, $0, q;
        setp.eq.f32 q, $4, 0f3F800000;
        selp.f32 $4, 0f7FFFFFFF, $4, q;
        setp.eq.f32 q, $1, 0f3F800000;
        selp.f32 $1, 0f7FFFFFFF, $1, q;
        setp.eq.f32 q, $5, 0f3F800000;
        selp.f32 $5, 0f7FFFFFFF, $5, q;
        setp.eq.f32 q, $2, 0f3F800000;
        selp.f32 $2, 0f7FFFFFFF, $2, q;
        setp.eq.f32 q, $6, 0f3F800000;
        selp.f32 $6, 0f7FFFFFFF, $6, q;
        setp.eq.f32 q, $3, 0f3F800000;
        selp.f32 $3, 0f7FFFFFFF, $3, q;
        setp.eq.f32 q, $7, 0f3F800000;
        selp.f32 $7, 0f7FFFFFFF, $7, q;
        DONE:
        }
        """,
        "=f,=f,=f,=f,=f,=f,=f,=f,r",
        args=[stored],
        dtype=(tl.float32, tl.float32),
        is_pure=True,
        pack=4,
    )


@triton.jit
def encode_e2m1(first, second, scale, field, other):
    """Bytes of two codes: fp32 in the code's range with the exponents of ``scale``, rounded on the
    bits by the upper 22 of the fields.  A sign counts where the code is not 0.
    """
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 w, r, f, s;
        .reg .f32 x;
        mov.b32 w, 0;
        mov.b32 s, 0;
        mov.b32 r, $8;
        shf.l.wrap.b32 s, r, s, 4;
        abs.f32 x, $8;
        mul.rn.f32 x, x, $12;
        mov.b32 r, x;
        shr.u32 f, $20, 10;
        add.u32 r, r, f;
        shl.b32 r, r, 6;
        and.b32 r, r, 0xF0000000;
        or.b32 w, w, r;
        mov.b32 r, $4;
        shf.l.wrap.b32 s, r, s, 4;
        abs.f32 x, $4;
        mul.rn.f32 x, x, $12;
        mov.b32 r, x;
        shr.u32 f, $16, 10;
        add.u32 r, r, f;
        shl.b32 r, r, 2;
        and.b32 r, r, 0xF000000;
        or.b32 w, w, r;
        mov.b32 r, $7;
        shf.l.wrap.b32 s, r, s, 4;
        abs.f32 x, $7;
        mul.rn.f32 x, x, $11;
        mov.b32 r, x;
        shr.u32 f, $19, 10;
        add.u32 r, r, f;
        shr.u32 r, r, 2;
        and.b32 r, r, 0xF00000;
        or.b32 w, w, r;
        mov.b32 r, $3;
        shf.l.wrap.b32 s, r, s, 4;
        abs.f32 x, $3;
        mul.rn.f32 x, x, $11;
        mov.b32 r, x;
        shr.u32 f, $15, 10;
        add.u32 r, r, f;
        shr.u32 r, r, 6;
        and.b32 r, r, 0xF0000;
        or.b32 w, w, r;
        mov.b32 r, $6;
        shf.l.wrap.b32 s, r, s, 4;
        abs.f32 x, $6;
        mul.rn.f32 x, x, $10;
        mov.b32 r, x;
        shr.u32 f, $18, 10;
        add.u32 r, r, f;
        shr.u32 r, r, 10;
        and.b32 r, r, 0xF000;
        or.b32 w, w, r;
        mov.b32 r, $2;
        shf.l.wrap.b32 s, r, s, 4;
        abs.f32 x, $2;
        mul.rn.f32 x, x, $10;
        mov.b32 r, x;
        shr.u32 f, $14, 10;
        add.u32 r, r, f;
        shr.u32 r, r, 14;
        and.b32 r, r, 0xF00;
        or.b32 w, w, r;
        mov.b32 r, $5;
        shf.l.wrap.b32 s, r, s, 4;
        abs.f32 x, $5;
        mul.rn.f32 x, x, $9;
        mov.b32 r, x;
        shr.u32 f, $17, 10;
        add.u32 r, r, f;
        shr.u32 r, r, 18;
        and.b32 r, r, 0xF0;
        or.b32 w, w, r;
        mov.b32 r, $1;
        shf.l.wrap.b32 s, r, s, 4;
        abs.f32 x, $1;
        mul.rn.f32 x, x, $9;
        mov.b32 r, x;
        shr.u32 f, $13, 10;
        add.u32 r, r, f;
        shr.u32 r, r, 22;
        and.b32 r, r, 0xF;
        or.b32 w, w, r;
        and.b32 f, w, 0x77777777;
        add.u32 f, f, 0x77777777;
        and.b32 f, f, s;
        and.b32 f, f, 0x88888888;
        or.b32 $0, w, f;
        }
        """,
        "=r,f,f,f,f,f,f,f,f,f,f,f,f,r,r,r,r,r,r,r,r",
        args=[first, second, scale, field, other],
        dtype=tl.uint8,
        is_pure=True,
        pack=4,
    )


@triton.jit
def encode_e4m0(first, second, scale, field, other):
    """As ``encode_e2m1``, of x >= 0, by the upper 23 bits."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 w, r, f;
        .reg .f32 x;
        mov.b32 w, 0;
        mul.rn.f32 x, $8, $12;
        mov.b32 r, x;
        shr.u32 f, $20, 9;
        add.u32 r, r, f;
        shl.b32 r, r, 5;
        and.b32 r, r, 0xF0000000;
        or.b32 w, w, r;
        mul.rn.f32 x, $4, $12;
        mov.b32 r, x;
        shr.u32 f, $16, 9;
        add.u32 r, r, f;
        shl.b32 r, r, 1;
        and.b32 r, r, 0xF000000;
        or.b32 w, w, r;
        mul.rn.f32 x, $7, $11;
        mov.b32 r, x;
        shr.u32 f, $19, 9;
        add.u32 r, r, f;
        shr.u32 r, r, 3;
        and.b32 r, r, 0xF00000;
        or.b32 w, w, r;
        mul.rn.f32 x, $3, $11;
        mov.b32 r, x;
        shr.u32 f, $15, 9;
        add.u32 r, r, f;
        shr.u32 r, r, 7;
        and.b32 r, r, 0xF0000;
        or.b32 w, w, r;
        mul.rn.f32 x, $6, $10;
        mov.b32 r, x;
        shr.u32 f, $18, 9;
        add.u32 r, r, f;
        shr.u32 r, r, 11;
        and.b32 r, r, 0xF000;
        or.b32 w, w, r;
        mul.rn.f32 x, $2, $10;
        mov.b32 r, x;
        shr.u32 f, $14, 9;
        add.u32 r, r, f;
        shr.u32 r, r, 15;
        and.b32 r, r, 0xF00;
        or.b32 w, w, r;
        mul.rn.f32 x, $5, $9;
        mov.b32 r, x;
        shr.u32 f, $17, 9;
        add.u32 r, r, f;
        shr.u32 r, r, 19;
        and.b32 r, r, 0xF0;
        or.b32 w, w, r;
        mul.rn.f32 x, $1, $9;
        mov.b32 r, x;
        shr.u32 f, $13, 9;
        add.u32 r, r, f;
        shr.u32 r, r, 23;
        and.b32 r, r, 0xF;
        or.b32 w, w, r;
        mov.b32 $0, w;
        }
        """,
        "=r,f,f,f,f,f,f,f,f,f,f,f,f,r,r,r,r,r,r,r,r",
        args=[first, second, scale, field, other],
        dtype=tl.uint8,
        is_pure=True,
        pack=4,
    )
