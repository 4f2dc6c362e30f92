# {"convert": [], "state": "fp8", "math": "fp32", "dtype": "float32", "shapes": [[1]], "gradients": ["small"], "seed": 0, "warm": 0, "transposed": false, "maximize": false}
from signconv.dsl import Optimizer


class Mine(Optimizer):
    lr = hyper(0.01, ge=0)
    beta1 = hyper(0.9, ge=0, lt=1)
    m1 = ema(grad, beta1)
    v = ema(grad**2, beta1)
    numerator = m1
    denominator = sqrt(v / (1 - beta1**t))
