from signconv.dsl import Optimizer, clip, grad, hyper, sign, state, where


class Rprop(Optimizer):
    """Step sizes from signs alone (Riedmiller & Braun 1993), for full batches, as torch.optim's.

    A step size grows while the gradient keeps its sign, and where it turned the parameter waits a
    step.  Sizes count in lr, their limits too (torch's limits are absolute); they are kept in fp32,
    since decades may lie within a block.
    """

    lr = hyper(1e-2, ge=0)
    eta_minus, eta_plus = hyper(0.5, gt=0, lt=1), hyper(1.2, gt=1)
    step_min, step_max = hyper(1e-4, gt=0), hyper(5e3, gt=0)

    last_sign, step_size = state(0), state(1, store="fp32")
    turned = last_sign.prev * grad
    factor = where(turned > 0, eta_plus, where(turned < 0, eta_minus, 1))
    kept = where(turned < 0, 0, grad)
    last_sign.next = sign(kept)
    step_size.next = clip(step_size.prev * factor, step_min, step_max)
    update = sign(kept) * step_size
