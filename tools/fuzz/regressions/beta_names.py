# {"convert": [], "state": "fp32", "math": "fp32", "dtype": "float32", "shapes": [[33]], "gradients": ["normal"], "seed": 0, "warm": 1, "transposed": false, "maximize": false}
from signconv.dsl import Optimizer


class Mine(Optimizer):
    lr = hyper(0.1, ge=0)
    beta1, beta2 = hyper(0.9, ge=0, lt=1), hyper(0.99, ge=0, lt=1)
    beta4 = hyper(0.5, ge=0, lt=1)
    beta_slow = hyper(0.75, ge=0, lt=1)
    m = ema(grad, beta1)
    buf = ema(grad, beta2)
    last = ema(grad, beta4)
    slow = ema(grad, beta_slow)
    numerator = m + buf + last + slow
