"""Codecs, roots and quotients for NVIDIA GPUs, in PTX: ``kernel.ops`` in fewer instructions.

A step's speed is decided by its integer instructions, and Triton handles the bytes of a packed
register one at a time.  Here two or four elements share the packing.  Every function returns the
bits of its namesake in ``kernel.ops``, which runs everywhere else; a GPU test compares them.

Fields are 32 random bits, of which an encoder takes the upper ones.
"""

from __future__ import annotations

from signconv.runtime.compat import tl, triton


@triton.jit
def fma(a, b, c):
    """a*b + c; in assembly, so that whoever reads the PTX knows what the compiler fused."""
    return tl.inline_asm_elementwise(
        "fma.rn.f32 $0, $1, $2, $3;",
        "=f,f,f,f",
        args=[a, b, c],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def sqrt(x):
    """The correctly rounded square root of a finite x >= 2^-100, NaN of Inf (Markstein's correction
    of an approximation with a fused multiply-add, as in the compiler's own fast path)."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .f32 y, s, h, r;
        rsqrt.approx.ftz.f32 y, $1;
        mul.rn.f32 s, $1, y;
        mul.rn.f32 h, y, 0f3F000000;
        neg.f32 r, s;
        fma.rn.f32 r, r, s, $1;
        fma.rn.f32 $0, r, h, s;
        }
        """,
        "=f,f",
        args=[x],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def reciprocal(b):
    """1 / b, correctly rounded, for 2^-126 <= b <= 2^126, by one step of Newton's; 0 of larger
    numbers, NaN of Inf."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .f32 r, n, e;
        rcp.approx.ftz.f32 r, $1;
        neg.f32 n, $1;
        fma.rn.f32 e, n, r, 0f3F800000;
        fma.rn.f32 $0, r, e, r;
        }
        """,
        "=f,f",
        args=[b],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def divide(a, b):
    """a / b, correctly rounded, for 2^-60 <= |a|, |b| <= 2^60, by Markstein's corrections."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .f32 r, n, e, q;
        rcp.approx.ftz.f32 r, $2;
        neg.f32 n, $2;
        fma.rn.f32 e, n, r, 0f3F800000;
        fma.rn.f32 r, r, e, r;
        mul.rn.f32 q, $1, r;
        fma.rn.f32 e, n, q, $1;
        fma.rn.f32 q, e, r, q;
        fma.rn.f32 e, n, q, $1;
        fma.rn.f32 $0, e, r, q;
        }
        """,
        "=f,f,f",
        args=[a, b],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def two_to_four(field):
    """The upper 23 bits of ``field`` as the fraction of a number in [2, 4)."""
    return tl.inline_asm_elementwise(
        "shf.r.clamp.b32 $0, $1, 0x80, 9;",
        "=r,r",
        args=[field],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def decode_e4m3(code):
    """uint8 codes as fp32; needs the conversion of compute capability 8.9."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b16 a, b, h0, h1, h2, h3;
        .reg .b32 p, q;
        mov.b32 {a, b}, $4;
        cvt.rn.f16x2.e4m3x2 p, a;
        cvt.rn.f16x2.e4m3x2 q, b;
        mov.b32 {h0, h1}, p;
        mov.b32 {h2, h3}, q;
        cvt.f32.f16 $0, h0;
        cvt.f32.f16 $1, h1;
        cvt.f32.f16 $2, h2;
        cvt.f32.f16 $3, h3;
        }
        """,
        "=f,=f,=f,=f,r",
        args=[code],
        dtype=tl.float32,
        is_pure=True,
        pack=4,
    )


@triton.jit
def decode_e5m3(code):
    """uint8 codes as fp32: a code is the 8 bits of an fp16 below its sign."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b16 h0, h1, h2, h3;
        .reg .b32 p, q;
        prmt.b32 p, $4, 0, 0x1404;
        prmt.b32 q, $4, 0, 0x3424;
        shr.u32 p, p, 1;
        shr.u32 q, q, 1;
        mov.b32 {h0, h1}, p;
        mov.b32 {h2, h3}, q;
        cvt.f32.f16 $0, h0;
        cvt.f32.f16 $1, h1;
        cvt.f32.f16 $2, h2;
        cvt.f32.f16 $3, h3;
        }
        """,
        "=f,=f,=f,=f,r",
        args=[code],
        dtype=tl.float32,
        is_pure=True,
        pack=4,
    )


@triton.jit
def decode_e6m2(code):
    """uint8 codes as fp32.

    A code's bits go below the largest exponents of fp32, so that NaN is one.
    """
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 c0, c1, c2, c3;
        .reg .f32 x0, x1, x2, x3;
        prmt.b32 c0, $4, 0, 0x4440;
        prmt.b32 c1, $4, 0, 0x4441;
        prmt.b32 c2, $4, 0, 0x4442;
        prmt.b32 c3, $4, 0, 0x4443;
        mad.lo.u32 c0, c0, 0x200000, 0x60000000;
        mad.lo.u32 c1, c1, 0x200000, 0x60000000;
        mad.lo.u32 c2, c2, 0x200000, 0x60000000;
        mad.lo.u32 c3, c3, 0x200000, 0x60000000;
        mov.b32 x0, c0;
        mov.b32 x1, c1;
        mov.b32 x2, c2;
        mov.b32 x3, c3;
        fma.rn.f32 $0, x0, 0f01000000, 0fA1800000;
        fma.rn.f32 $1, x1, 0f01000000, 0fA1800000;
        fma.rn.f32 $2, x2, 0f01000000, 0fA1800000;
        fma.rn.f32 $3, x3, 0f01000000, 0fA1800000;
        }
        """,
        "=f,=f,=f,=f,r",
        args=[code],
        dtype=tl.float32,
        is_pure=True,
        pack=4,
    )


@triton.jit
def encode_e4m3(x, scale, field):
    """x * scale, whose exponents are the code's, to uint8 codes by stochastic rounding.

    The kept bits are 26 to 20 and the sign; the field's upper 20 bits decide the rounding.
    """
    return tl.inline_asm_elementwise(
        """
        {
        .reg .f32 x0, x1, x2, x3;
        .reg .b32 y0, y1, y2, y3, n0, n1, n2, n3, p, q, s, t;
        mul.rn.f32 x0, $1, $5;
        mul.rn.f32 x1, $2, $6;
        mul.rn.f32 x2, $3, $7;
        mul.rn.f32 x3, $4, $8;
        mov.b32 y0, x0;
        mov.b32 y1, x1;
        mov.b32 y2, x2;
        mov.b32 y3, x3;
        shr.u32 n0, $9, 12;
        shr.u32 n1, $10, 12;
        shr.u32 n2, $11, 12;
        shr.u32 n3, $12, 12;
        add.u32 y0, y0, n0;
        add.u32 y1, y1, n1;
        add.u32 y2, y2, n2;
        add.u32 y3, y3, n3;
        prmt.b32 p, y0, y1, 0x7632;
        prmt.b32 q, y2, y3, 0x7632;
        shl.b32 s, p, 4;
        shl.b32 t, q, 4;
        lop3.b32 p, p, s, 0x80008000, 0xE4;
        lop3.b32 q, q, t, 0x80008000, 0xE4;
        prmt.b32 $0, p, q, 0x7531;
        }
        """,
        "=r,f,f,f,f,f,f,f,f,r,r,r,r",
        args=[x, scale, field],
        dtype=tl.uint8,
        is_pure=True,
        pack=4,
    )


@triton.jit
def encode_e5m3(x, scale, field):
    """x * scale >= 0, whose exponents are the code's, to uint8 codes by stochastic rounding.

    The kept bits are 27 to 20; the field's upper 20 bits decide the rounding.
    """
    return tl.inline_asm_elementwise(
        """
        {
        .reg .f32 x0, x1, x2, x3;
        .reg .b32 y0, y1, y2, y3, n0, n1, n2, n3, p, q;
        mul.rn.f32 x0, $1, $5;
        mul.rn.f32 x1, $2, $6;
        mul.rn.f32 x2, $3, $7;
        mul.rn.f32 x3, $4, $8;
        mov.b32 y0, x0;
        mov.b32 y1, x1;
        mov.b32 y2, x2;
        mov.b32 y3, x3;
        shr.u32 n0, $9, 12;
        shr.u32 n1, $10, 12;
        shr.u32 n2, $11, 12;
        shr.u32 n3, $12, 12;
        add.u32 y0, y0, n0;
        add.u32 y1, y1, n1;
        add.u32 y2, y2, n2;
        add.u32 y3, y3, n3;
        prmt.b32 p, y0, y1, 0x7632;
        prmt.b32 q, y2, y3, 0x7632;
        shl.b32 p, p, 4;
        shl.b32 q, q, 4;
        prmt.b32 $0, p, q, 0x7531;
        }
        """,
        "=r,f,f,f,f,f,f,f,f,r,r,r,r",
        args=[x, scale, field],
        dtype=tl.uint8,
        is_pure=True,
        pack=4,
    )


@triton.jit
def encode_e6m2(x, scale, field):
    """x * scale + 2^-63 for x >= 0 to uint8 codes by stochastic rounding.

    The kept bits are 28 to 21; the field's upper 21 bits decide the rounding.
    """
    return tl.inline_asm_elementwise(
        """
        {
        .reg .f32 x0, x1, x2, x3;
        .reg .b32 y0, y1, y2, y3, n0, n1, n2, n3, p, q;
        fma.rn.f32 x0, $1, $5, 0f20000000;
        fma.rn.f32 x1, $2, $6, 0f20000000;
        fma.rn.f32 x2, $3, $7, 0f20000000;
        fma.rn.f32 x3, $4, $8, 0f20000000;
        mov.b32 y0, x0;
        mov.b32 y1, x1;
        mov.b32 y2, x2;
        mov.b32 y3, x3;
        shr.u32 n0, $9, 11;
        shr.u32 n1, $10, 11;
        shr.u32 n2, $11, 11;
        shr.u32 n3, $12, 11;
        add.u32 y0, y0, n0;
        add.u32 y1, y1, n1;
        add.u32 y2, y2, n2;
        add.u32 y3, y3, n3;
        prmt.b32 p, y0, y1, 0x7632;
        prmt.b32 q, y2, y3, 0x7632;
        shl.b32 p, p, 3;
        shl.b32 q, q, 3;
        prmt.b32 $0, p, q, 0x7531;
        }
        """,
        "=r,f,f,f,f,f,f,f,f,r,r,r,r",
        args=[x, scale, field],
        dtype=tl.uint8,
        is_pure=True,
        pack=4,
    )


@triton.jit
def decode_bf16(x):
    """bf16 as fp32."""
    return tl.inline_asm_elementwise(
        """
        shl.b32 $0, $2, 16;
        and.b32 $1, $2, 0xFFFF0000;
        """,
        "=r,=r,r",
        args=[x],
        dtype=tl.float32,
        is_pure=True,
        pack=2,
    )


@triton.jit
def encode_bf16(x, field):
    """fp32 to bf16 by stochastic rounding; past the largest bf16 the low bits are cut off."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .pred k0, k1;
        .reg .f32 a0, a1;
        .reg .b32 y0, y1, n0, n1;
        abs.f32 a0, $1;
        abs.f32 a1, $2;
        setp.le.f32 k0, a0, 0f7F7F0000;
        setp.le.f32 k1, a1, 0f7F7F0000;
        mov.b32 y0, $1;
        mov.b32 y1, $2;
        selp.b32 n0, $3, 0, k0;
        selp.b32 n1, $4, 0, k1;
        shr.u32 n0, n0, 16;
        shr.u32 n1, n1, 16;
        add.u32 y0, y0, n0;
        add.u32 y1, y1, n1;
        prmt.b32 $0, y0, y1, 0x7632;
        }
        """,
        "=r,f,f,r,r",
        args=[x, field],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=2,
    )


@triton.jit
def encode_bf16_by_eight(x, field):
    """As ``encode_bf16``, with one branch for eight numbers in place of a selection for each: fewer
    instructions and more registers at a time."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .pred k;
        .reg .f32 a;
        .reg .b32 y0, n0, y1, n1, y2, n2, y3, n3, y4, n4, y5, n5, y6, n6, y7, n7;
        abs.f32 a, $4;
        setp.le.f32 k, a, 0f7F7F0000;
        abs.f32 a, $5;
        setp.le.and.f32 k, a, 0f7F7F0000, k;
        abs.f32 a, $6;
        setp.le.and.f32 k, a, 0f7F7F0000, k;
        abs.f32 a, $7;
        setp.le.and.f32 k, a, 0f7F7F0000, k;
        abs.f32 a, $8;
        setp.le.and.f32 k, a, 0f7F7F0000, k;
        abs.f32 a, $9;
        setp.le.and.f32 k, a, 0f7F7F0000, k;
        abs.f32 a, $10;
        setp.le.and.f32 k, a, 0f7F7F0000, k;
        abs.f32 a, $11;
        setp.le.and.f32 k, a, 0f7F7F0000, k;
        mov.b32 y0, $4;
        mov.b32 y1, $5;
        mov.b32 y2, $6;
        mov.b32 y3, $7;
        mov.b32 y4, $8;
        mov.b32 y5, $9;
        mov.b32 y6, $10;
        mov.b32 y7, $11;
        @!k bra CUT;
        shr.u32 n0, $12, 16;
        add.u32 y0, y0, n0;
        shr.u32 n1, $13, 16;
        add.u32 y1, y1, n1;
        shr.u32 n2, $14, 16;
        add.u32 y2, y2, n2;
        shr.u32 n3, $15, 16;
        add.u32 y3, y3, n3;
        shr.u32 n4, $16, 16;
        add.u32 y4, y4, n4;
        shr.u32 n5, $17, 16;
        add.u32 y5, y5, n5;
        shr.u32 n6, $18, 16;
        add.u32 y6, y6, n6;
        shr.u32 n7, $19, 16;
        add.u32 y7, y7, n7;
        bra DONE;
        CUT:
        abs.f32 a, $4;
        setp.le.f32 k, a, 0f7F7F0000;
        shr.u32 n0, $12, 16;
        @k add.u32 y0, y0, n0;
        abs.f32 a, $5;
        setp.le.f32 k, a, 0f7F7F0000;
        shr.u32 n1, $13, 16;
        @k add.u32 y1, y1, n1;
        abs.f32 a, $6;
        setp.le.f32 k, a, 0f7F7F0000;
        shr.u32 n2, $14, 16;
        @k add.u32 y2, y2, n2;
        abs.f32 a, $7;
        setp.le.f32 k, a, 0f7F7F0000;
        shr.u32 n3, $15, 16;
        @k add.u32 y3, y3, n3;
        abs.f32 a, $8;
        setp.le.f32 k, a, 0f7F7F0000;
        shr.u32 n4, $16, 16;
        @k add.u32 y4, y4, n4;
        abs.f32 a, $9;
        setp.le.f32 k, a, 0f7F7F0000;
        shr.u32 n5, $17, 16;
        @k add.u32 y5, y5, n5;
        abs.f32 a, $10;
        setp.le.f32 k, a, 0f7F7F0000;
        shr.u32 n6, $18, 16;
        @k add.u32 y6, y6, n6;
        abs.f32 a, $11;
        setp.le.f32 k, a, 0f7F7F0000;
        shr.u32 n7, $19, 16;
        @k add.u32 y7, y7, n7;
        DONE:
        prmt.b32 $0, y0, y1, 0x7632;
        prmt.b32 $1, y2, y3, 0x7632;
        prmt.b32 $2, y4, y5, 0x7632;
        prmt.b32 $3, y6, y7, 0x7632;
        }
        """,
        "=r,=r,=r,=r,f,f,f,f,f,f,f,f,r,r,r,r,r,r,r,r",
        args=[x, field],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=8,
    )


@triton.jit
def encode_e4m3_nearest(x):
    """fp32 to uint8 codes, ties to even, saturating; Inf and NaN store NaN.

    Needs the conversion of compute capability 8.9, which would store Inf as 448: x + 0*x makes
    it NaN and changes nothing else.
    """
    return tl.inline_asm_elementwise(
        """
        {
        .reg .f32 x0, x1, x2, x3;
        .reg .b16 a, b;
        fma.rn.f32 x0, $1, 0f00000000, $1;
        fma.rn.f32 x1, $2, 0f00000000, $2;
        fma.rn.f32 x2, $3, 0f00000000, $3;
        fma.rn.f32 x3, $4, 0f00000000, $4;
        cvt.rn.satfinite.e4m3x2.f32 a, x1, x0;
        cvt.rn.satfinite.e4m3x2.f32 b, x3, x2;
        mov.b32 $0, {a, b};
        }
        """,
        "=r,f,f,f,f",
        args=[x],
        dtype=tl.uint8,
        is_pure=True,
        pack=4,
    )
