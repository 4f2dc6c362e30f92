from signconv.dsl import Optimizer, decoupled, grad, hyper, max, min, sqrt, state


class SM3(Optimizer):
    """Adagrad with the largest sum of each row and column (Anil et al. 2019, arXiv 1901.11150,
    SM3-II).

    The cover is rows and columns of the last two dimensions; those in front are matrices of their
    own.  Of a vector this is Adagrad.
    """

    lr = hyper(1e-1, ge=0)
    weight_decay = hyper(0.0, ge=0)

    row, column = state(), state()
    v = min(row.prev, column.prev) + grad**2
    row.next = max(v, axis=-1)
    column.next = max(v, axis=-2)
    numerator = grad
    denominator = sqrt(v)
    decay = decoupled(weight_decay)
