from signconv.dsl import Optimizer, decoupled, ema, grad, hyper, sign


class S3GD(Optimizer):
    """Smoothed SignSGD (WhyPhy Labs 2025, the S3GD post): an EMA of the gradient's sign.

    Their published form stores m in E4M3 without scales and rounds to nearest: build it with
    --state fp8-raw.  The default, FP8 with block scales, rounds stochastically instead, since
    nearest rounding stops m at 0.75 of its limit.
    """

    lr = hyper(1e-4, ge=0)
    momentum = hyper(0.9, ge=0, lt=1)
    weight_decay = hyper(0.0, ge=0)

    m = ema(sign(grad), momentum)
    numerator = m
    decay = decoupled(weight_decay)
