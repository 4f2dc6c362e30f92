# {"convert": ["stosign:eps=keep"], "state": "fp8", "math": "fp32", "dtype": "float32", "shapes": [[0], [2049], [2, 3, 32]], "gradients": ["subnormal", "decades", "decades"], "seed": 5, "warm": 2, "transposed": true, "maximize": true}
from signconv.dsl import Optimizer


class Mine(Optimizer):
    lr = hyper(0.01, ge=0)
    beta1 = hyper(0.0, ge=0, lt=1)
    m0 = moment((grad * grad), order=4, beta=beta1)
    weight_decay0 = hyper(0.1, ge=0)
    numerator = tanh((m0 + where(norm(grad) > 0.5, grad, grad * 0.5)))
    denominator = sqrt(m0)
    decay = independent(weight_decay0 * 0.5)
