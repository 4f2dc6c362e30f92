from signconv.dsl import Optimizer, ema, grad, hyper, max, param, sqrt, state, stepped, t, where


class ScheduleFreeAdamW(Optimizer):
    """Schedule-Free AdamW (Defazio et al. 2024, arXiv 2405.15682, Alg. 1).

    Gradients are taken at y, the parameter; the iterate is kept. The model is evaluated at the
    average of iterates: optimizer.eval() before evaluation, optimizer.train() after it. There is
    no schedule but a warm-up.
    """

    lr = hyper(2.5e-3, ge=0)
    beta1, beta2 = hyper(0.9, gt=0, le=1), hyper(0.999, ge=0, lt=1)
    eps = hyper(1e-8, ge=0)
    weight_decay = hyper(0.0, ge=0)
    warmup_steps = hyper(0, ge=0)
    r, weight_lr_power = hyper(0.0, ge=0), hyper(2.0, ge=0)

    warm = where(t <= warmup_steps, t / max(warmup_steps, 1), 1)
    now = lr * warm
    highest = state(0.0)
    highest.next = max(highest.prev, now)
    weight = t**r * highest**weight_lr_power
    weight_sum = state(0.0)
    weight_sum.next = weight_sum.prev + weight
    share = where(weight_sum > 0, weight / weight_sum, 0)

    v = ema(grad**2, beta2)
    update = warm * (grad / (sqrt(v.corrected) + eps) + weight_decay * param)
    change = stepped - param
    iterate = state(param)
    iterate.next = iterate.prev + change
    new_param = param + share * (iterate.prev - param) + (1 - beta1 * (1 - share)) * change
    eval_param = param + (1 - 1 / beta1) * (iterate - param)
