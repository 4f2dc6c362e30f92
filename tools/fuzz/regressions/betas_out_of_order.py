# {"convert": ["stosign:eps=keep", "presign"], "state": "fp8", "math": "fp32", "dtype": "bfloat16", "shapes": [[33]], "gradients": ["spike"], "seed": 1099511627779, "warm": 0, "transposed": true, "maximize": true}
from signconv.dsl import Optimizer


class Mine(Optimizer):
    lr = hyper(0.01, ge=0)
    beta1 = hyper(0.99, ge=0, lt=1)
    rho1 = hyper(0.9, ge=0, le=1)
    buf0 = state(init=param)
    buf0.next = beta1 * buf0.prev + (1 - rho1) * param
    m1 = ema(abs(grad), beta1)
    beta3 = hyper(0.0, ge=0, lt=1)
    m2 = state(init=param)
    m2.next = beta3 * m2.prev + (1 - rho1) * param
    part0 = 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad
    part1_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name = 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad + 0.01 * grad
    rho3 = hyper(0.5, ge=0, lt=1)
    part2_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name = rho3 * m1 * 1
    rho4 = hyper(0.5, ge=0, lt=1)
    weight_decay0 = hyper(0.1, ge=0)
    numerator = (where((part2_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name / (max(abs(part0), 1e-3) + 0.001)) != where((m2 - param) != abs(rho4), m1, m1), where((m2 - param) != abs(rho4), m1, m1), abs(part2_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name))) + (buf0 - param) + (m2 - param) + part0 + part1_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name + m1.corrected + part2_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name_with_a_long_name
    decay = l2(weight_decay0)
