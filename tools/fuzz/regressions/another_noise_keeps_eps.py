# {"convert": ["stosign:noise=fresh"], "state": "fp8", "math": "fp32", "dtype": "float32", "shapes": [[1]], "gradients": ["normal"], "seed": 0, "warm": 0, "transposed": false, "maximize": false}
from signconv.dsl import Optimizer


class Mine(Optimizer):
    lr = hyper(0.01, ge=0)
    beta1 = hyper(0.9, ge=0, lt=1)
    m1 = ema(abs(grad), beta1)
    eps0 = hyper(0.001, ge=0)
    update = stochastic_sign(abs(((grad * grad) + 0.5)), sqrt(m1.corrected) + eps0)
