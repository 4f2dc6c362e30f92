from signconv.dsl import Optimizer, grad, hyper, l2, sqrt, state


class AdagradL2(Optimizer):
    """Adagrad (Duchi, Hazan & Singer 2011, JMLR 12) with l2 decay, as torch.optim.Adagrad has it.

    Where gradient and decay cancel, the sum of squares hides a difference of two near numbers.
    """

    lr = hyper(1e-2, ge=0)
    eps = hyper(1e-10, ge=0)
    weight_decay = hyper(1e-2, ge=0)

    total = state()
    total.next = total.prev + grad**2
    numerator = grad
    denominator = sqrt(total) + eps
    decay = l2(weight_decay)
