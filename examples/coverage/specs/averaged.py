"""Optimizers whose weights are averages, or made anew from sums."""

from signconv.dsl import (
    Optimizer,
    abs,
    exp,
    grad,
    hyper,
    l2,
    log,
    max,
    min,
    param,
    root,
    sign,
    sqrt,
    state,
    stepped,
    t,
    where,
)


class ScheduleFreeSGD(Optimizer):
    """Schedule-Free SGD (Defazio et al. 2024, arXiv 2405.15682), with warmup and the
    weights of its appendix."""

    lr = hyper(1.0, ge=0)
    momentum = hyper(0.9, gt=0, lt=1)
    r, weight_lr_power = hyper(0.0, ge=0), hyper(2.0, ge=0)
    warmup_steps = hyper(0, ge=0)
    weight_decay = hyper(0.0, ge=0)

    warm = min(t / max(warmup_steps, 1), 1)
    longest, total = state(), state()
    longest.next = max(longest.prev, lr * warm)
    weight = t**r * longest**weight_lr_power
    total.next = total.prev + weight
    c = where(total > 0, weight / max(total, 1e-30), 0)

    update = warm * (grad + weight_decay * param)
    moved = stepped - param
    z = state(param)
    z.next = z.prev + moved
    new_param = param + c * (z.prev - param) + (1 - momentum * (1 - c)) * moved
    eval_param = param + (1 - 1 / momentum) * (z - param)


class MADGRAD(Optimizer):
    """Momentumized dual averaging (Defazio & Jelassi 2021, arXiv 2101.11075, Alg. 1), l2 decay;
    eps is added to lr, as in the authors' code."""

    lr = hyper(1e-3, gt=0)
    momentum = hyper(0.9, gt=0, lt=1)
    eps = hyper(1e-6, gt=0)
    weight_decay = hyper(0.0, ge=0)

    weight = (lr + eps) * sqrt(t)
    squares, total = state(), state()
    squares.next = squares.prev + weight * grad**2
    total.next = total.prev + weight * grad
    start = state(param)
    start.next = start.prev
    z = start - total / (root(squares, 3) + eps)
    update = (1 - momentum) * (param - z) / lr
    decay = l2(weight_decay)


class FTRL(Optimizer):
    """Follow the regularized leader (McMahan et al. 2013, KDD, Alg. 1), with its power of 1/2
    free: the weights are a function of sums of the gradients."""

    lr = hyper(1e-3, gt=0)
    lr_power = hyper(-0.5, lt=0)
    beta, lambda_1, lambda_2 = hyper(0.0, ge=0), hyper(0.0, ge=0), hyper(0.0, ge=0)

    squares = state()
    squares.next = squares.prev + grad**2
    grown = exp(-lr_power * log(squares)) - exp(-lr_power * log(squares.prev))
    z = state()
    z.next = z.prev + grad - grown / lr * param
    made = (sign(z) * lambda_1 - z) / ((sqrt(squares) + beta) / lr + lambda_2)
    update = (param - where(abs(z) <= lambda_1, 0, made)) / lr


class AdaSmooth(Optimizer):
    """Adadelta with a window as long as progress is straight (Lu 2022, arXiv 2204.00825),
    l2 decay."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.5, ge=0, lt=1), hyper(0.99, ge=0, lt=1)
    eps = hyper(1e-6, gt=0)
    weight_decay = hyper(0.0, ge=0)

    last = state(param)
    last.next = param
    way, path = state(), state()
    way.next = way.prev + (param - last.prev)
    path.next = path.prev + abs(param - last.prev)
    c = (abs(way) / (path + eps) * (beta2 - beta1) + (1 - beta2)) ** 2
    v = state()
    v.next = v.prev + c * (grad**2 - v.prev)
    update = grad / sqrt(v + eps)
    decay = l2(weight_decay)
