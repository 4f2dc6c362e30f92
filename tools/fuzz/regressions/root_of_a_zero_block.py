# {"convert": [], "state": "fp8", "math": "fp32", "dtype": "float32", "shapes": [[32]], "gradients": ["normal"], "seed": 0, "warm": 0, "transposed": false, "maximize": false}
from signconv.dsl import Optimizer


class Mine(Optimizer):
    lr = hyper(0.01, ge=0)
    beta1 = hyper(0.9, ge=0, lt=1)
    m1 = moment((grad - grad), order=3, beta=beta1)
    m2 = ema(grad, beta1)
    numerator = m2
    denominator = sqrt(m1)
