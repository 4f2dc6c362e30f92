"""SGD and its momenta, as the collection computes them."""

from signconv.dsl import (
    Optimizer,
    decoupled,
    ema,
    grad,
    hyper,
    l2,
    norm,
    param,
    sign,
    sqrt,
    state,
    stepped,
    t,
    where,
)


class SGD(Optimizer):
    """Heavy ball with dampening (Sutskever et al. 2013), as torch.optim.SGD: m1 = g1, l2 decay."""

    lr = hyper(1e-3, ge=0)
    momentum, dampening = hyper(0.9, ge=0, lt=1), hyper(0.0, ge=0, lt=1)
    weight_decay = hyper(0.0, ge=0)

    m = state()
    m.next = where(t == 1, grad, momentum * m.prev + (1 - dampening) * grad)
    update = m
    decay = l2(weight_decay)


class SGDW(Optimizer):
    """SGD with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101, Alg. 1), here
    with Nesterov's look-ahead."""

    lr = hyper(1e-4, ge=0)
    momentum, dampening = hyper(0.9, ge=0, lt=1), hyper(0.0, ge=0, lt=1)
    weight_decay = hyper(0.0, ge=0)

    m = state()
    m.next = where(t == 1, grad, momentum * m.prev + (1 - dampening) * grad)
    update = grad + momentum * m
    decay = decoupled(weight_decay)


class SignSGD(Optimizer):
    """The sign of an EMA from zero (Bernstein et al. 2018, arXiv 1802.04434): Signum."""

    lr = hyper(1e-3, ge=0)
    momentum = hyper(0.9, ge=0, lt=1)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, momentum)
    update = sign(m)
    decay = decoupled(weight_decay)


class Tiger(Optimizer):
    """A tight-fisted optimizer (Su 2023, github.com/bojone/tiger): the sign of an EMA."""

    lr = hyper(1e-3, ge=0)
    beta = hyper(0.965, ge=0, lt=1)
    weight_decay = hyper(0.01, ge=0)

    m = ema(grad, beta)
    update = sign(m)
    decay = decoupled(weight_decay)


class FOCUS(Optimizer):
    """Signum that is drawn to a slow average of the weights (Liu et al. 2025, arXiv 2501.12243).

    Weight decay is of that average and moves the point whose side counts: a part of the update.
    """

    lr = hyper(1e-2, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.999, ge=0, lt=1)
    gamma = hyper(0.1, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, beta1)
    average = ema(param, beta2)
    drawn = weight_decay * average.corrected
    side = sign(param - lr * drawn - average.corrected)
    update = drawn + gamma * side + sign(m)


class AggMo(Optimizer):
    """The mean of three heavy balls (Lucas et al. 2019, arXiv 1804.00325), l2 decay."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2, beta3 = hyper(0.0, ge=0, lt=1), hyper(0.9, ge=0, lt=1), hyper(0.99, ge=0, lt=1)
    weight_decay = hyper(0.0, ge=0)

    light, middle, heavy = state(), state(), state()
    light.next = beta1 * light.prev + grad
    middle.next = beta2 * middle.prev + grad
    heavy.next = beta3 * heavy.prev + grad
    update = (light + middle + heavy) / 3
    decay = l2(weight_decay)


class QHM(Optimizer):
    """Quasi-hyperbolic momentum (Ma & Yarats 2019, arXiv 1810.06801, eq. 3 and 4), l2 decay."""

    lr = hyper(1e-3, ge=0)
    momentum, nu = hyper(0.9, ge=0, lt=1), hyper(0.7, ge=0)
    weight_decay = hyper(0.0, ge=0)

    m = ema(grad, momentum)
    update = nu * m + (1 - nu) * grad
    decay = l2(weight_decay)


class PID(Optimizer):
    """Proportional, integral and derivative control (An et al. 2018, CVPR), l2 decay."""

    lr = hyper(1e-3, ge=0)
    momentum, dampening = hyper(0.9, gt=0, lt=1), hyper(0.0, ge=0, lt=1)
    integral, derivative = hyper(5.0, ge=0), hyper(10.0, ge=0)
    weight_decay = hyper(0.0, ge=0)

    last = state()
    last.next = grad
    i = state()
    i.next = momentum * i.prev + (1 - dampening) * grad
    change = where(t > 1, grad - last.prev, 0)
    d = ema(change, momentum)
    update = grad + integral * i + derivative * d
    decay = l2(weight_decay)


class PNM(Optimizer):
    """Positive-negative momentum (Xie et al. 2021, arXiv 2103.17182): two EMAs, each
    updated in every other step."""

    lr = hyper(1e-3, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(1.0, ge=0)
    weight_decay = hyper(0.0, ge=0)

    odd = t % 2 == 1
    slow = beta1**2
    first, second = state(), state()
    first.next = where(odd, slow * first.prev + (1 - slow) * grad, first.prev)
    second.next = where(odd, second.prev, slow * second.prev + (1 - slow) * grad)
    now, before = where(odd, first, second), where(odd, second, first)
    update = ((1 + beta2) * now - beta2 * before) / sqrt((1 + beta2) ** 2 + beta2**2)
    decay = decoupled(weight_decay)


class AccSGD(Optimizer):
    """Accelerated SGD (Jain et al. 2017, arXiv 1704.08227, in the form of Kidambi et al. 2018,
    arXiv 1803.05591, Alg. 3), l2 decay."""

    lr = hyper(1e-3, ge=0)
    kappa, xi, constant = hyper(1000.0, gt=0), hyper(10.0, gt=0), hyper(0.7, gt=0)
    weight_decay = hyper(0.0, ge=0)

    beta = xi * constant**2 / kappa
    zeta = constant / (constant + beta)
    average = state(param)
    average.next = (1 - beta) * average.prev + beta * (param - lr * kappa / constant * grad)
    update = grad
    decay = l2(weight_decay)
    new_param = zeta * stepped + (1 - zeta) * average


class SRMM(Optimizer):
    """Regularized majorization-minimization (Lyu 2022, arXiv 2201.01652): averages of
    gradients and weights, forgotten every ``memory_length`` steps."""

    lr = hyper(1e-2, gt=0)
    beta = hyper(0.5, ge=0)
    memory_length = hyper(100, ge=1)

    w = (t % memory_length + 1) ** -beta
    slow = ema(grad, 1 - w)
    average = state()
    average.next = average.prev + w * (param - average.prev) - lr * slow
    update = (param - average) / lr


class A2Grad(Optimizer):
    """Adaptive and accelerated SGD (Deng et al. 2018, arXiv 1810.00553) with the uniform moving
    average. It has no learning rate: lr scales its whole step, 1 is the paper's."""

    lr = hyper(1.0, ge=0)
    beta, lips = hyper(10.0, ge=0), hyper(10.0, gt=0)

    average = state()
    average.next = average.prev + (grad - average.prev) / t
    total = state()
    total.next = total.prev + norm(grad - average) ** 2
    size = 1 / (2 * lips / (t + 1) + beta * sqrt(total))
    x = state(param)
    x.next = x.prev - size * grad
    alpha = 2 / (t + 3)
    before = where(t > 1, 2 / (t + 2), 1)
    update = alpha * (param - x) + (1 - alpha) * before * size * grad
