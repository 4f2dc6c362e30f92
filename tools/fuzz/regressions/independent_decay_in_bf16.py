# {"convert": [], "state": "fp32", "math": "bf16", "dtype": "float32", "shapes": [[33]], "gradients": ["normal"], "seed": 0, "warm": 1, "transposed": false, "maximize": false}
from signconv.dsl import Optimizer


class Mine(Optimizer):
    lr = hyper(0.3, ge=0)
    weight_decay = hyper(0.1, ge=0)
    numerator = grad
    decay = independent(weight_decay)
