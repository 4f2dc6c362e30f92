# {"convert": ["expected"], "state": "fp32", "math": "fp32", "dtype": "float32", "shapes": [[33]], "gradients": ["normal"], "seed": 0, "warm": 1, "transposed": false, "maximize": false}
from signconv.dsl import Optimizer


class Mine(Optimizer):
    lr = hyper(0.01, ge=0)
    rho = hyper(0.9, ge=0, le=1)
    part = tanh(1 - rho**t) + clip(t, 2, 4) * sign(rho - 0.5) + root(t, 3)
    product = state(init=1)
    product.next = product.prev * tanh(rho) + clip(rho, 0.5, 1)
    update = stochastic_sign(grad * part, abs(grad) * product)
