# {"convert": [], "state": "fp8", "math": "fp32", "dtype": "float32", "shapes": [[1], [1]], "gradients": ["normal", "normal"], "seed": 0, "warm": 0, "transposed": false, "maximize": false}
from signconv.dsl import Optimizer


class Mine(Optimizer):
    lr = hyper(0.01, ge=0)
    x0 = extra(per="element")
    x1 = extra(per="element")
    beta1 = hyper(0.9, ge=0, lt=1)
    m0 = ema(grad, beta1)
    m1 = state(init=1)
    m1.next = max(m1.prev / 2, min(mean(grad, over="all"), 1))
    numerator = (m0) + x0 + x1 + m0 + (m1.prev * grad)
