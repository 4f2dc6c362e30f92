# {"convert": ["stosign:eps=keep"], "state": "bf16", "math": "fp32", "dtype": "bfloat16", "shapes": [[2, 33], [1], [1]], "gradients": ["spike", "huge", "small"], "seed": 0, "warm": 1, "transposed": true, "maximize": true}
from signconv.dsl import Optimizer


class Mine(Optimizer):
    lr = hyper(0.3, ge=0)
    weight_decay0 = hyper(0.1, ge=0)
    update = sign((((grad)**3 / (t % -3))))
    decay = decoupled(weight_decay0)
