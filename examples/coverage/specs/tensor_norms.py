"""Optimizers that read the norm, the mean or the largest element of a whole tensor."""

from signconv.dsl import (
    Optimizer,
    abs,
    clip,
    decoupled,
    ema,
    exp,
    grad,
    hyper,
    l2,
    log,
    max,
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


class LARS(Optimizer):
    """Layerwise trust ratios for SGD (You et al. 2017, arXiv 1708.03888, Alg. 1).

    Biases and other vectors have neither a trust ratio nor weight decay.
    """

    lr = hyper(1e-3, ge=0)
    momentum, dampening = hyper(0.9, ge=0, lt=1), hyper(0.0, ge=0, lt=1)
    trust_coefficient = hyper(1e-3, gt=0)
    weight_decay = hyper(0.0, ge=0)

    size = norm(param)
    below = norm(grad) + weight_decay * size
    trust = where(size > 0, where(below > 0, trust_coefficient * size / below, 1), 1)
    m = state()
    scaled = where(ndim >= 2, (grad + weight_decay * param) * trust, grad)
    m.next = momentum * m.prev + (1 - dampening) * scaled
    update = m


class LAMB(Optimizer):
    """Layerwise trust ratios for Adam (You et al. 2020, arXiv 1904.00962, Alg. 2).

    Norms of weights count up to 10, the second moment is not corrected, and the weights are
    decayed before their norm is taken: the first preprint's form, and the collection's.
    """

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-6, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    v = ema(grad**2, beta2)
    ratio = m / (sqrt(v) + eps)
    weights = min(norm(param) * abs(1 - lr * weight_decay), 10)
    size = norm(ratio)
    trust = where(weights == 0, 1, where(size == 0, 1, weights / (size + eps)))
    update = ratio * trust / (1 - beta1**t)
    decay = decoupled(weight_decay)


class Fromage(Optimizer):
    """Steps relative to the weights, kept at constant energy (Bernstein et al. 2020, arXiv
    2002.03432, Alg. 1)."""

    lr = hyper(1e-2, ge=0)

    weights, size = norm(param), norm(grad)
    scaled = where(weights > 0, where(size > 0, grad * (weights / size), grad), grad)
    update = scaled
    new_param = stepped / sqrt(1 + lr**2)


class NovoGrad(Optimizer):
    """Gradients normalized by tensor, then averaged (Ginsburg et al. 2019, arXiv 1905.11286,
    Alg. 1)."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.95, ge=0, lt=1), hyper(0.98, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    v = ema(norm(grad) ** 2, beta2, init="first")
    normed = grad / (sqrt(v) + eps) + weight_decay * param
    m = state()
    m.next = beta1 * m.prev + normed
    update = m


class SGDSaI(Optimizer):
    """SGD with step sizes that the first gradient sets (Xu et al. 2024, arXiv 2412.11768).

    The deviation of a vector does not count.
    """

    lr = hyper(1e-2, ge=0)
    momentum = hyper(0.9, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.01, ge=0)

    size = norm(grad)
    sigma = sqrt((mean(grad**2) - mean(grad) ** 2) * numel / (numel - 1))
    ratio = state()
    first = where(ndim >= 2, where(sigma > 0, size / (sigma + eps), size), size)
    ratio.next = where(t == 1, first, ratio.prev)
    m = ema(grad, momentum)
    update = ratio * m
    decay = decoupled(weight_decay)


class Amos(Optimizer):
    """Adam-like steps and a decay that adapts (Tian & Parikh 2022, arXiv 2210.11693, Alg. 1).

    ``scale`` is the paper's expected size of the trained weights, given by group: the collection
    takes 0.5 for vectors, sqrt(2 / columns) for matrices, sqrt(1 / columns) for other weights.
    """

    lr = hyper(1e-3, gt=0)
    beta, momentum = hyper(0.999, ge=0, lt=1), hyper(0.0, ge=0, lt=1)
    scale, extra_l2 = hyper(0.5, gt=0), hyper(0.0, ge=0)
    c_coef, d_coef = hyper(0.25, ge=0), hyper(0.25, ge=0)
    eps = hyper(1e-18, gt=0)

    square = mean(grad**2)
    v = ema(square, beta)
    r = (1 - beta**t) / (v + eps)
    b = state()
    c = 1 / sqrt(1 + c_coef * sqrt(lr) * b.prev)
    d = 1 / (1 + d_coef * sqrt(lr * scale) * b.prev)
    gamma = c * lr**2 * r * square
    b.next = b.prev * (1 + gamma) + gamma
    m = ema(d * ((gamma - extra_l2) / 2 * param + lr * scale * sqrt(r) * grad), momentum)
    update = m / lr


class AdaGC(Optimizer):
    """AdamW with gradients clipped by each tensor's own usual norm (Wang et al. 2025, arXiv
    2502.11034), in the first steps by the norm of all."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    beta = hyper(0.98, ge=0, lt=1)
    lambda_abs, lambda_rel = hyper(1.0, gt=0), hyper(1.05, gt=0)
    warmup_steps = hyper(100, ge=0)
    eps = hyper(1e-8, gt=0)
    weight_decay = hyper(0.1, ge=0)

    size = norm(grad)
    gamma = state()
    warming = where(t == 1, 1, where(t < warmup_steps, 1, 0))
    globally = min(lambda_abs / (norm(grad, over="all") + eps), 1)
    locally = min(lambda_rel * max(gamma.prev, eps) / max(size, eps), 1)
    share = where(warming > 0, globally, locally)
    least = where(t == 1, size * share, min(gamma.prev, size * share))
    gamma.next = where(warming > 0, least, beta * gamma.prev + (1 - beta) * size * share)
    clipped = grad * share
    m = ema(clipped, beta1)
    v = ema(clipped**2, beta2)
    numerator = m.corrected
    denominator = sqrt(v.corrected) + eps
    decay = decoupled(weight_decay)


class ApolloDQN(Optimizer):
    """A diagonal quasi-Newton method (Ma 2020, arXiv 2009.13586), constant rebound, l2
    decay."""

    lr = hyper(1e-2, gt=0)
    base_lr, init_lr, warmup_steps = hyper(1e-2, gt=0), hyper(1e-5, ge=0), hyper(500, ge=1)
    beta = hyper(0.9, ge=0, lt=1)
    eps = hyper(1e-4, gt=0)
    weight_decay = hyper(0.0, ge=0)

    alpha = (1 - beta) / (1 - beta**t)
    m, b, d = state(), state(), state()
    change = grad - m.prev
    m.next = m.prev + alpha * change
    scale = sqrt(norm(d.prev**2)) + eps / 0.01
    turned, curved = sum(change * d.prev), sum(b.prev * d.prev**2)
    delta = (-alpha * turned - curved) / scale**2
    b.next = b.prev + delta * (d.prev / scale) ** 2
    d.next = m / max(abs(b), 0.01)
    warm = where(t >= warmup_steps, lr, (base_lr - init_lr) * t / warmup_steps + init_lr)
    update = warm / lr * d
    decay = l2(weight_decay)


class Aida(Optimizer):
    """AdaBelief on mutual projections (Zhang et al. 2022, arXiv 2203.13273) of gradient and
    momentum, two of them, l2 decay. Either stays a multiple of what it was: only those are kept.
    """

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    xi, eps = hyper(1e-20, gt=0), hyper(1e-16, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    gg, mm = norm(grad) ** 2, norm(m) ** 2
    gm = sum(grad * m)
    a1, b1 = gm / (gg + xi), gm / (mm + xi)
    again = a1 * b1 * gm
    a2, b2 = a1 * again / (a1**2 * gg + xi), b1 * again / (b1**2 * mm + xi)
    v = state()
    v.next = beta2 * v.prev + (1 - beta2) * (b2 * m - a2 * grad) ** 2 + eps
    numerator = m.corrected
    denominator = (sqrt(v) + eps) / sqrt(1 - beta2**t)
    decay = l2(weight_decay)


class LOMO(Optimizer):
    """SGD on gradients that are clipped by value, then by the norm of all (Lv et al. 2023, arXiv
    2306.09782). Its point, a step as soon as a gradient is there, is ``gradient_release`` here.
    """

    lr = hyper(1e-3, ge=0)
    clip_grad_norm, clip_grad_value = hyper(1.0, gt=0), hyper(1.0, gt=0)

    share = min(clip_grad_norm / (norm(grad, over="all") + 1e-6), 1)
    update = clip(grad, -clip_grad_value, clip_grad_value) * share


class FAdam(Optimizer):
    """Natural gradients by a diagonal Fisher information (Hwang 2024, arXiv 2405.12807, Alg. 1).

    ``power`` is the paper's exponent of the Fisher information; eps falls where gradients do.
    """

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    clip_at, power = hyper(1.0, gt=0), hyper(0.5, gt=0)
    eps, eps_2 = hyper(1e-8, gt=0), hyper(0.01, gt=0)
    weight_decay = hyper(0.1, ge=0)

    fim = ema(grad**2, beta2 * (1 - beta2 ** (t - 1)) / (1 - beta2**t))
    usual = eps_2 * sqrt(mean(grad**2))
    least = where(usual > 0, min(usual, eps), eps)
    base = exp(power * log(fim)) + exp(2 * power * log(least))
    natural = grad / base
    m = ema(natural / max(sqrt(mean(natural**2)) / clip_at, 1), beta1)
    weights = param / base
    update = m + weight_decay * weights / max(sqrt(mean(weights**2)) / clip_at, 1)


class StableSPAM(Optimizer):
    """Adam on gradients whose peaks are clipped and whose norms are steadied (Huang et al. 2025,
    arXiv 2502.17055, Alg. 1), its moments set back every ``update_proj_gap`` steps."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    gamma1, gamma2 = hyper(0.7, ge=0, lt=1), hyper(0.9, ge=0, lt=1)
    theta = hyper(0.999, ge=0, lt=1)
    update_proj_gap = hyper(1000, ge=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)

    peak = max(abs(grad))
    usual_peak = ema(peak, theta)
    limit = usual_peak / (1 - theta**t)
    clipped = where(abs(grad) > limit, grad / peak * limit, grad)
    size = norm(clipped)
    m_norm, v_norm = ema(size, gamma1), ema(size**2, gamma2)
    steady = m_norm / (1 - gamma1**t) / (sqrt(v_norm / (1 - gamma2**t)) + eps)
    normed = clipped / size * steady
    reset = t % update_proj_gap == 0
    since = where(t < update_proj_gap, t, t % update_proj_gap + 1)
    m, v = state(), state()
    m.next = beta1 * where(reset, 0, m.prev) + (1 - beta1) * normed
    v.next = beta2 * where(reset, 0, v.prev) + (1 - beta2) * normed**2
    numerator = m / (1 - beta1**since)
    denominator = sqrt(v) / sqrt(1 - beta2**since) + eps
    decay = decoupled(weight_decay)


class AdaShift(Optimizer):
    """A window of ten gradients over the squares of the gradient before it, the largest of each
    tensor (Zhou et al. 2019, arXiv 1810.00143, Alg. 3). The first ten steps fill the window."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-10, ge=0)

    g1, g2, g3, g4, g5 = state(), state(), state(), state(), state()
    g6, g7, g8, g9, g10 = state(), state(), state(), state(), state()
    g1.next, g2.next, g3.next, g4.next, g5.next = grad, g1.prev, g2.prev, g3.prev, g4.prev
    g6.next, g7.next, g8.next, g9.next, g10.next = g5.prev, g6.prev, g7.prev, g8.prev, g9.prev
    weights = (1 - beta1**10) / (1 - beta1)
    m = state()
    m.next = beta1 * (m.prev - beta1**9 / weights * g10.prev) + grad / weights
    v = ema(max(g10.prev**2), beta2)
    size = sqrt(v / (1 - beta2 ** max(1, t - 10))) + eps
    update = where(t > 10, m / size, 0)


class Gravity(Optimizer):
    """Momentum of gradients that are damped where they come near the tensor's largest (Bahrami &
    Zadeh 2021, arXiv 2101.09192)."""

    lr = hyper(1e-2, ge=0)
    beta = hyper(0.9, ge=0, le=1)

    damped = grad / (1 + (grad * max(abs(grad))) ** 2)
    m = ema(damped, (beta * t + 1) / (t + 2))
    update = m


class MARS(Optimizer):
    """AdamW on gradients of less variance (Yuan et al. 2024, arXiv 2411.10438, MARS-approx), the
    gradient before the first one taken to be 0, as in the authors' code.

    Vectors take AdamW itself with values of their own; ``base_lr`` is the lr at construction.
    """

    lr, base_lr = hyper(3e-3, ge=0), hyper(3e-3, gt=0)
    beta1, beta2 = hyper(0.95, ge=0, lt=1), hyper(0.99, ge=0, lt=1)
    gamma = hyper(0.025, ge=0)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)
    lr_1d, weight_decay_1d = hyper(3e-3, ge=0), hyper(0.1, ge=0)
    beta_1d, beta_sq_1d = hyper(0.9, ge=0, lt=1), hyper(0.95, ge=0, lt=1)

    matrix = ndim >= 2
    last = state()
    last.next = grad
    c = grad + gamma * beta1 / (1 - beta1) * (grad - last.prev)
    taken = where(matrix, c / max(norm(c), 1), grad)
    m, v = state(), state()
    m.next = where(matrix, beta1, beta_1d) * m.prev + where(matrix, 1 - beta1, 1 - beta_1d) * taken
    v.next = (
        where(matrix, beta2, beta_sq_1d) * v.prev
        + where(matrix, 1 - beta2, 1 - beta_sq_1d) * taken**2
    )
    mean_of = m / where(matrix, 1 - beta1**t, 1 - beta_1d**t)
    size = (sqrt(v) + eps) / where(matrix, sqrt(1 - beta2**t), sqrt(1 - beta_sq_1d**t))
    share = where(matrix, 1, lr_1d / base_lr)
    update = share * (mean_of / size + where(matrix, weight_decay, weight_decay_1d) * param)
