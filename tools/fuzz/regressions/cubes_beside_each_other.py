# {"convert": [], "state": "fp32", "math": "fp32", "dtype": "float32", "shapes": [[33]], "gradients": ["normal"], "seed": 0, "warm": 1, "transposed": false, "maximize": false}
from signconv.dsl import Optimizer


class Mine(Optimizer):
    lr = hyper(0.3, ge=0)
    rho0 = hyper(0.0, ge=0, lt=1)
    buf1 = moment((grad - grad), order=4, beta=rho0)
    numerator = grad
    denominator = root(buf1, 3)
