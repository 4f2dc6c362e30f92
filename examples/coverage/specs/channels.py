"""Optimizers that look at channels: what one index of the first dimension has, or the whole first
dimension."""

from typing import Any

from signconv.dsl import (
    Optimizer,
    abs,
    decoupled,
    ema,
    exp,
    grad,
    hyper,
    l2,
    log,
    max,
    max_ema,
    mean,
    min,
    ndim,
    norm,
    numel,
    param,
    sqrt,
    state,
    stepped,
    sum,
    t,
    where,
)


def radial(step: Any, delta: Any, wd_ratio: Any, eps: Any) -> tuple[Any, Any]:
    """What to take out of a step, and how much of the weight decay is left.

    Weights are scale-invariant where gradients are at right angles to them: channel by channel, or
    all together. Steps along them only make them longer.
    """
    weights, size = norm(param, axis=(1, ...)), norm(grad, axis=(1, ...))
    product = sum(grad * param, axis=(1, ...))
    elements = sum(where(grad > 0, 1, 1), axis=(1, ...))
    cosines = abs(product) / (max(weights, eps) * max(size, eps))
    cosine = abs(sum(grad * param)) / (max(norm(param), eps) * max(norm(grad), eps))
    by_channel = max(cosines * sqrt(elements)) < delta
    as_whole = cosine * sqrt(numel) < delta
    of_channel, of_whole = param / (weights + eps), param / (norm(param) + eps)
    along_channel = of_channel * sum(of_channel * step, axis=(1, ...))
    along_whole = of_whole * sum(of_whole * step)
    along = where(by_channel, along_channel, where(as_whole, along_whole, 0))
    ratio = where(by_channel, wd_ratio, where(as_whole, wd_ratio, 1))
    return where(ndim >= 2, along, 0), where(ndim >= 2, ratio, 1)


class SGDP(Optimizer):
    """SGD whose momentum does not lengthen scale-invariant weights, which are decayed less (Heo et
    al. 2021, arXiv 2006.08217, Alg. 1)."""

    lr = hyper(1e-3, ge=0)
    momentum, dampening = hyper(0.9, ge=0, lt=1), hyper(0.0, ge=0, lt=1)
    delta, wd_ratio = hyper(0.1, ge=0), hyper(0.1, ge=0)
    eps = hyper(1e-8, gt=0)
    weight_decay = hyper(0.0, ge=0)

    m = state()
    m.next = momentum * m.prev + (1 - dampening) * grad

    along, ratio = radial(m, delta, wd_ratio, eps)
    update = m - along + weight_decay * ratio / (1 - momentum) * param


class AdamP(Optimizer):
    """Adam whose steps do not lengthen scale-invariant weights, which are decayed less (Heo et al.
    2021, arXiv 2006.08217, Alg. 2)."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    delta, wd_ratio = hyper(0.1, ge=0), hyper(0.1, ge=0)
    eps = hyper(1e-8, gt=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    adam = m.corrected * sqrt(1 - beta2**t) / (sqrt(v) + eps)

    along, ratio = radial(adam, delta, wd_ratio, eps)
    update = adam - along + weight_decay * ratio * param


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


class Ranger21(Optimizer):
    """AdamW with clipped, centered and normalized gradients, positive-negative momentum, a norm
    loss, a schedule and Lookahead (Wright & Demeure 2021, arXiv 2106.13731). ``base_lr`` is the lr
    at construction.

    The collection normalizes twice, the second time what has a deviation of nearly 1, and adds 1 to
    the sum of all variances, by whose mean it divides the weight decay.
    """

    lr, base_lr = hyper(1e-3, gt=0), hyper(1e-3, ge=0)
    warm_up, warm_down, total = hyper(100, ge=1), hyper(300, ge=1), hyper(1000, ge=1)
    min_lr = hyper(3e-5, ge=0)
    amplitude = hyper(0.9, ge=0, lt=1)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    beta_softplus = hyper(50.0, gt=0)
    agc_clipping_value, agc_eps = hyper(1e-2, ge=0), hyper(1e-3, ge=0)
    norm_loss_factor = hyper(1e-4, ge=0)
    k, alpha = hyper(5, ge=1), hyper(0.5, ge=0, le=1)
    eps = hyper(1e-8, gt=0)
    weight_decay = hyper(1e-4, ge=0)

    # Units are what one output has, of a kernel in one dimension each place of it
    by_unit = where(ndim == 3, norm(param, axis=-2), norm(param, axis=(1, ...)))
    weights = where(ndim >= 2, by_unit, norm(param))
    grad_by_unit = where(ndim == 3, norm(grad, axis=-2), norm(grad, axis=(1, ...)))
    size = max(where(ndim >= 2, grad_by_unit, norm(grad)), 1e-6)
    most = max(weights, agc_eps) * agc_clipping_value
    clipped = where(size > most, grad * (most / size), grad)
    centered = where(ndim >= 2, clipped - mean(clipped, axis=(1, ...)), clipped)
    deviation = sqrt(mean((centered - mean(centered)) ** 2) * (numel / (numel - 1)))
    normed = where(numel > 2, centered / (deviation + 1e-8), centered)
    again = where(numel > 2, normed / (deviation / (deviation + 1e-8) + 1e-8), normed)
    twice = where(ndim >= 2, again - mean(again, axis=(1, ...)), again)

    warmed = where(t > warm_up, lr, lr * min(t / warm_up, 1))
    down = max(t + 1 - (total - warm_down), 1) / (warm_down + 1)
    cooled = max(base_lr - (base_lr - min_lr) * min(down, 1), min_lr)
    rate = where(t < total - warm_down, warmed, cooled)

    v = ema(normed**2, beta2)
    largest = max_ema(v)
    root_of = sqrt(largest) / sqrt(1 - beta2**t) + eps
    sharp = beta_softplus * root_of
    soft = where(sharp > 20, root_of, log(1 + exp(min(sharp, 20))) / beta_softplus)
    odd = t % 2 == 1
    slow = beta1**2
    first, second = state(), state()
    first.next = where(odd, slow * first.prev + (1 - slow) * twice, first.prev)
    second.next = where(odd, second.prev, slow * second.prev + (1 - slow) * twice)
    now, before = where(odd, first, second), where(odd, second, first)
    mixed = ((1 + amplitude) * now - amplitude * before) / sqrt((1 + amplitude) ** 2 + amplitude**2)
    elements = sum(where(grad > 0, 1, 1), over="all")
    variance = mean(v.corrected, over="all") + 1 / elements
    decayed = weight_decay / sqrt(variance)
    left = 1 - rate * decayed
    norm_loss = 2 * norm_loss_factor * (1 - 1 / (abs(left) * weights + eps))
    shrunk = (decayed + norm_loss - rate * decayed * norm_loss) * param
    update = rate / lr * (mixed / (1 - beta1**t) / soft + shrunk)

    anchor = state(param)
    merged = t % k == 0
    anchor.next = where(merged, stepped + (1 - alpha) * (anchor.prev - stepped), anchor.prev)
    new_param = where(merged, anchor, stepped)
