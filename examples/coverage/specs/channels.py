"""Optimizers that look at channels: what one index of the first dimension has, or the whole first
dimension."""

from signconv.dsl import (
    Optimizer,
    abs,
    decoupled,
    ema,
    grad,
    hyper,
    l2,
    max,
    mean,
    min,
    ndim,
    norm,
    numel,
    param,
    sqrt,
    state,
    sum,
    t,
    where,
)


class SGDP(Optimizer):
    """SGD whose momentum does not lengthen weights that are scale-invariant (Heo et al. 2021, arXiv
    2006.08217, Alg. 1): those whose gradient is at right angles to them, channel by channel or as a
    whole, which are decayed less.
    """

    lr = hyper(1e-3, ge=0)
    momentum, dampening = hyper(0.9, ge=0, lt=1), hyper(0.0, ge=0, lt=1)
    delta, wd_ratio = hyper(0.1, ge=0), hyper(0.1, ge=0)
    eps = hyper(1e-8, gt=0)
    weight_decay = hyper(0.0, ge=0)

    m = state()
    m.next = momentum * m.prev + (1 - dampening) * grad

    weights, size = norm(param, axis=(1, ...)), norm(grad, axis=(1, ...))
    product = sum(grad * param, axis=(1, ...))
    elements = sum(where(grad > 0, 1, 1), axis=(1, ...))
    cosines = abs(product) / (max(weights, eps) * max(size, eps))
    cosine = abs(sum(grad * param)) / (max(norm(param), eps) * max(norm(grad), eps))
    by_channel = max(cosines * sqrt(elements)) < delta
    as_whole = cosine * sqrt(numel) < delta
    of_channel = param / (weights + eps)
    of_whole = param / (norm(param) + eps)
    radial = of_channel * sum(of_channel * m, axis=(1, ...))
    along = where(by_channel, radial, where(as_whole, of_whole * sum(of_whole * m), 0))
    less = where(by_channel, wd_ratio, where(as_whole, wd_ratio, 1))
    ratio = where(ndim >= 2, less, 1)
    update = m - where(ndim >= 2, along, 0) + weight_decay * ratio / (1 - momentum) * param


class AdamP(Optimizer):
    """Adam whose steps do not lengthen weights that are scale-invariant (Heo et al. 2021, arXiv
    2006.08217, Alg. 2): those whose gradient is at right angles to them, channel by channel or as a
    whole, which are decayed less.
    """

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    delta, wd_ratio = hyper(0.1, ge=0), hyper(0.1, ge=0)
    eps = hyper(1e-8, gt=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    adam = m.corrected * sqrt(1 - beta2**t) / (sqrt(v) + eps)

    weights, size = norm(param, axis=(1, ...)), norm(grad, axis=(1, ...))
    product = sum(grad * param, axis=(1, ...))
    elements = sum(where(grad > 0, 1, 1), axis=(1, ...))
    cosines = abs(product) / (max(weights, eps) * max(size, eps))
    cosine = abs(sum(grad * param)) / (max(norm(param), eps) * max(norm(grad), eps))
    by_channel = max(cosines * sqrt(elements)) < delta
    as_whole = cosine * sqrt(numel) < delta
    of_channel = param / (weights + eps)
    of_whole = param / (norm(param) + eps)
    radial = of_channel * sum(of_channel * adam, axis=(1, ...))
    along = where(by_channel, radial, where(as_whole, of_whole * sum(of_whole * adam), 0))
    less = where(by_channel, wd_ratio, where(as_whole, wd_ratio, 1))
    ratio = where(ndim >= 2, less, 1)
    update = adam - where(ndim >= 2, along, 0) + weight_decay * ratio * param


class TAM(Optimizer):
    """Momentum that gradients along it count more in (Malviya et al. 2024, arXiv 2412.18790).

    Alignment is taken by element, of what is normalized along the first dimension.
    """

    lr = hyper(1e-3, ge=0)
    momentum, decay_rate = hyper(0.9, ge=0, lt=1), hyper(0.9, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = state()
    before = where(t == 1, grad, m.prev)
    of_before = where(ndim >= 2, norm(before, axis=0), norm(before))
    of_grad = where(ndim >= 2, norm(grad, axis=0), norm(grad))
    s = ema(before / max(of_before, 1e-12) * (grad / max(of_grad, 1e-12)), decay_rate)
    m.next = momentum * before + ((1 + s) / 2 + eps) * grad
    update = m
    decay = decoupled(weight_decay)


class AdaTAM(Optimizer):
    """Adam, uncorrected, with TAM's momentum (Malviya et al. 2024, arXiv 2412.18790)."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    decay_rate = hyper(0.9, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = state()
    of_before = where(ndim >= 2, norm(m.prev, axis=0), norm(m.prev))
    of_grad = where(ndim >= 2, norm(grad, axis=0), norm(grad))
    s = ema(m.prev / max(of_before, 1e-12) * (grad / max(of_grad, 1e-12)), decay_rate)
    m.next = beta1 * m.prev + ((1 + s) / 2 + eps) * grad
    v = ema(grad**2, beta2)
    numerator = m
    denominator = sqrt(v) + eps
    decay = decoupled(weight_decay)


class Nero(Optimizer):
    """Steps by neuron, whose weights stay centered and of length 1 (Liu et al. 2021, arXiv
    2102.07227, Alg. 1).

    A neuron of a vector is one element. Weights are brought there before the first step too.
    """

    lr = hyper(0.01, gt=0)
    beta = hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)

    off_center = param - mean(param, axis=(1, ...))
    brought = where(ndim >= 2, off_center / (norm(off_center, axis=(1, ...)) + eps), param)
    start = where(t == 1, brought, param)
    sizes = where(ndim >= 2, mean(norm(start, axis=(1, ...))), mean(abs(start)))
    scale = state()
    scale.next = where(t == 1, where(sizes == 0, 0.01, sizes), scale.prev)
    v = ema(where(ndim >= 2, sum(grad**2, axis=(1, ...)), grad**2), beta)
    stepped_to = start - lr * scale * grad / (sqrt(v.corrected) + eps)
    centered = stepped_to - mean(stepped_to, axis=(1, ...))
    constrained = centered / (norm(centered, axis=(1, ...)) + eps)
    update = (param - where(ndim >= 2, constrained, stepped_to)) / lr


class ROSE(Optimizer):
    """Centered gradients over their range in each channel (github.com/MatthewK78/Rose), l2 decay.

    Where ranges differ much between channels, their mean takes part. There is no state.
    """

    lr = hyper(1e-3, ge=0)
    weight_decay = hyper(1e-4, ge=0)

    centered = where(ndim >= 2, grad - mean(grad, axis=(1, ...)), grad)
    ranges = abs(max(centered, axis=(1, ...))) - min(centered, axis=(1, ...))
    usual = mean(ranges)
    spread = sqrt(mean((ranges - usual) ** 2))
    trust = where(usual == 0, 0, usual / (spread + usual))
    blended = usual + trust * (ranges - usual)
    numerator = centered
    denominator = where(blended == 0, 1, blended)
    decay = l2(weight_decay)
