# {"convert": ["stosign:eps=keep", "soft:p=4"], "state": "fp32", "math": "fp32", "dtype": "float32", "shapes": [[5, 3], [2, 33]], "gradients": ["small", "small"], "seed": 0, "warm": 2, "transposed": true, "maximize": false}
from signconv.dsl import Optimizer


class Mine(Optimizer):
    lr = hyper(0.3, ge=0)
    rho0 = hyper(0.0, ge=0, lt=1)
    rho1 = hyper(0.99, ge=0, lt=1)
    m0 = max_ema(rho1 * abs(grad), rho0)
    m1 = state(init=1)
    m1.next = m1.prev * rho0 + rho0**(t - 3)
    update = stochastic_sign(((root(t, 3) * mean(grad) * sign(grad))) * m1 * m1.prev, ((abs(m0) + abs(m0)) + (m0)**2))
