"""What is compared for each optimizer of the collection, and what the others wait for.

A row of ``AGREES`` names a spec of the catalogue, or a class of a file in specs/, with a value for
each of its hyperparameters. The collection's class gets the same ones by name, ``beta1``,
``beta2``, … as its ``betas``; ``theirs`` holds what it calls or does otherwise. An extra input has
the name that the class's ``step`` gives it; a number is what the closure returns. To cover one
more: write its spec, move its name from waits.py to here and run
``python -m examples.coverage.run``.
"""

from __future__ import annotations

import torch

from .compare import SHAPES, STEPS
from .matrix import MATRIX
from .row import Row

AGREES: dict[str, Row] = {
    "a2grad": Row(
        "momentum.py:A2Grad",
        {"lr": 1.0, "beta": 7.0, "lips": 6.0},
        {"lr": None},
        "The uniform variant. The collection's class has no learning rate.",
        scheduled=False,
    ),
    "accsgd": Row("momentum.py:AccSGD", {"kappa": 800.0, "xi": 8.0, "constant": 0.6}),
    "adabelief": Row("adam_like.py:AdaBelief", {"eps": 1e-4}),
    "adabound": Row(
        "adam_like.py:AdaBound",
        {"base_lr": 3e-3, "final_lr": 0.05, "gamma": 0.01},
        {"base_lr": None},
    ),
    "adadelta": Row("adadelta", {"lr": 0.5, "rho": 0.8}),
    "adafactor": Row(
        "factored.py:AdaFactor",
        {"decay_rate": 0.7, "eps1": 1e-8, "eps2": 0.9, "clip_threshold": 0.7, "beta2": 0.85},
        {"decay_rate": -0.7, "relative_step": False, "momentum_dtype": torch.float64},
        "With lr as it is given (`relative_step=False`), and momentum in float64 in place of bf16.",
    ),
    "adagc": Row(
        "tensor_norms.py:AdaGC",
        {
            "beta": 0.9,
            "lambda_abs": 2.0,
            "lambda_rel": 0.9,
            "warmup_steps": 6,
            "weight_decay": 0.2,
        },
        note="The collection sums the norm of all gradients in float32.",
        tolerance=1e-7,
    ),
    "adahessian": Row(
        "extras.py:AdaHessian",
        {"hessian_power": 0.8},
        {"update_period": STEPS},
        "The same estimate of the Hessian's diagonal is passed to both, in every third step.",
        every=3,
    ),
    "adai": Row("together.py:Adai", {"lr": 0.03, "beta1": 0.3, "dampening": 0.8, "eps": 1e-2}),
    "adalite": Row(
        "factored.py:Adalite",
        {"g_norm_min": 0.1, "ratio_min": 0.05, "tau": 0.5, "eps1": 1e-4, "eps2": 1e-4},
    ),
    "adalomo": Row(
        "factored.py:AdaLOMO",
        {"lr": 0.03, "decay_rate": 0.7, "eps1": 1e-8, "eps2": 0.9, "clip_threshold": 0.7},
        {"decay_rate": -0.7},
        "The collection computes in float32, and cannot step the weights of a convolution.",
        tolerance=1e-5,
        shapes=SHAPES[:2],
    ),
    "adam": Row("adam"),
    "adamax": Row("adam_like.py:AdaMax"),
    "adamc": Row(
        "adam_like.py:AdamC",
        {"max_lr": 3e-3},
        {"max_lr": None},
        "The layers that a normalization follows: a param group with `normalized`.",
        group={"normalized": True},
    ),
    "adamg": Row(
        "adam_like.py:AdamG",
        {"lr": 0.4, "scale": 0.3, "power": 0.3},
        {"scale": None, "power": None, "p": 0.3, "q": 0.3},
    ),
    "adammini": Row(
        "factored.py:AdamMini",
        {"blocks": 1, "weight_decay": 0.2},
        {"blocks": None, "num_embeds": 5, "num_heads": 5},
        "Blocks, which the collection takes from the names of a model's parameters, are given by "
        "param group; heads have one row. The collection computes in float32.",
        tolerance=1e-6,
        by_shape={(7,): {"blocks": 2}, (3, 2, 2, 2): {"blocks": 0}},
        names=("wq.weight", "bias", "embed"),
    ),
    "adamod": Row("adam_like.py:AdaMod", {"beta3": 0.99}),
    "adamp": Row("channels.py:AdamP", {"lr": 0.1, "delta": 1.2, "wd_ratio": 0.3}),
    "adams": Row("together.py:AdamS"),
    "adamw": Row("adamw"),
    "adamwsn": Row(
        "factored.py:AdamWSN",
        groups={
            (6, 5): {"sn": True, "subset_size": 5},
            (7,): {"sn": False},
            (3, 2, 2, 2): {"sn": True, "subset_size": 8},
        },
        note="Subsets are what one index of the first dimension has, which `subset_size` by param "
        "group makes of the collection's; its default is runs of about sqrt(n) elements.",
    ),
    "adan": Row("adan", {}, {"weight_decouple": True}),
    "adanorm": Row("adam_like.py:AdaNorm", {"r": 0.8}),
    "adapnm": Row("adam_like.py:AdaPNM", {"beta3": 0.9}),
    "adashift": Row("tensor_norms.py:AdaShift"),
    "adasmooth": Row("averaged.py:AdaSmooth", {"beta1": 0.4}),
    "adatam": Row("channels.py:AdaTAM", {"decay_rate": 0.8}),
    "ademamix": Row(
        "ademamix",
        {"alpha": 3.0, "warmup": 15.0, "beta3": 0.99},
        {"warmup": None, "t_alpha_beta3": 15.0, "weight_decouple": True},
    ),
    "adopt": Row(
        "adopt",
        {},
        {"weight_decouple": True, "clip_lambda": lambda step: (step - 1) ** 0.25},
        "The collection clips one step ahead of the paper, which `clip_lambda` mends, and decays "
        "weights in the first step, which only fills the second moment.",
        tolerance=0.03,
    ),
    "aggmo": Row("momentum.py:AggMo", {"beta1": 0.1, "beta2": 0.8, "beta3": 0.95}),
    "aida": Row("tensor_norms.py:Aida", {"xi": 1e-3}),
    "alig": Row(
        "extras.py:AliG",
        {"lr": 0.01, "momentum": 0.7},
        {"lr": None, "max_lr": 0.01},
        "The collection sums the norm of all gradients in float32. Its cap is lr here.",
        tolerance=1e-7,
        scheduled=False,
    ),
    "amos": Row(
        "tensor_norms.py:Amos",
        {"beta": 0.9, "extra_l2": 1e-3, "c_coef": 0.3, "d_coef": 0.4, "eps": 1e-6, "scale": 0.5},
        {"scale": None},
        by_shape={(6, 5): {"scale": (2 / 5) ** 0.5}, (3, 2, 2, 2): {"scale": 0.5**0.5}},
        note="The scale, which the collection takes from the shape, is given by param group.",
    ),
    "ano": Row("adam_like.py:Ano"),
    "apollodqn": Row(
        "tensor_norms.py:ApolloDQN",
        {"base_lr": 3e-3, "init_lr": 1e-4, "warmup_steps": 6, "beta": 0.8},
        {"base_lr": None},
        "Constant rebound, the default.",
    ),
    "asgd": Row(
        "together.py:ASGD",
        {"lr": 0.02, "amplifier": 0.8, "theta": 0.8, "dampening": 3.0},
        note="The collection takes the norms of all weights and gradients in float32. lr is not "
        "halved, since it changes lr itself.",
        tolerance=1e-5,
        scheduled=False,
    ),
    "avagrad": Row("together.py:AvaGrad", {"lr": 0.02}),
    "bcos": Row(
        "adam_like.py:BCOS", {"beta": 0.8, "weight_decay": 0.2}, note="Mode c, the default."
    ),
    "came": Row("came", {"eps1": 1e-8, "eps2": 1e-6, "clip_threshold": 0.7}),
    "dadaptadagrad": Row("distances.py:DAdaptAdaGrad", {"lr": 0.8, "d0": 1e-2, "momentum": 0.5}),
    "dadaptadam": Row(
        "distances.py:DAdaptAdam",
        {"lr": 0.8, "d0": 1e-2},
        {"weight_decouple": True},
        "The collection's distance is made of the second moment before the step, unlike that of "
        "the paper and of `dadapt_adam` in the catalogue.",
    ),
    "dadaptadan": Row(
        "distances.py:DAdaptAdan",
        {"lr": 0.8, "d0": 1e-2, "beta3": 0.98},
        {"weight_decouple": True},
        "The collection's second moment is of fourth powers, Adan's of squares.",
    ),
    "dadaptlion": Row(
        "distances.py:DAdaptLion", {"lr": 0.8, "d0": 1e-2}, {"weight_decouple": True}
    ),
    "dadaptsgd": Row(
        "distances.py:DAdaptSGD",
        {"lr": 0.8, "d0": 1e-2},
        note="The collection sums the norm of the first gradients in float32.",
        tolerance=1e-6,
    ),
    "diffgrad": Row("adam_like.py:DiffGrad"),
    "dualadam": Row("adam_like.py:DualAdam", {"switch_rate": 0.07}),
    "emofact": Row(
        "extras.py:EmoFact",
        {"beta": 0.8},
        {"beta": None, "betas": (0.8, 0.95)},
        "Without shadow weights, off by default.",
    ),
    "emolynx": Row("extras.py:EmoLynx", note="Without shadow weights, off by default."),
    "emonavi": Row("extras.py:EmoNavi", note="Without shadow weights, off by default."),
    "exadam": Row("adam_like.py:EXAdam"),
    "fadam": Row(
        "tensor_norms.py:FAdam",
        {"clip_at": 0.7, "power": 0.4, "eps": 0.03, "eps_2": 0.02, "weight_decay": 0.2},
        {
            "clip_at": None,
            "power": None,
            "clip": 0.7,
            "p": 0.4,
            "momentum_dtype": torch.float64,
            "fim_dtype": torch.float64,
        },
        "Both states in float64.",
    ),
    "flashadamw": Row(
        "adamw", {}, {"quantize": False}, "Without its storage: that is an option of a build here."
    ),
    "focus": Row("momentum.py:FOCUS", {"gamma": 0.2}),
    "fromage": Row("tensor_norms.py:Fromage"),
    "ftrl": Row(
        "averaged.py:FTRL",
        {"lr": 0.1, "lr_power": -0.4, "beta": 0.5, "lambda_1": 0.1, "lambda_2": 0.1},
    ),
    "grams": Row("adam_like.py:Grams"),
    "gravity": Row(
        "tensor_norms.py:Gravity",
        {"lr": 0.3, "beta": 0.8},
        {"alpha": 0.0},
        "Momentum starts from 0 (`alpha=0`), not from noise.",
    ),
    "grokfastadamw": Row(
        "adam_like.py:GrokFastAdamW",
        {"grokfast_alpha": 0.9, "grokfast_lamb": 1.5, "grokfast_after_step": 3},
        {"normalize_lr": False},
    ),
    "kate": Row("variance.py:Kate", {"delta": 0.1}),
    "lamb": Row("tensor_norms.py:LAMB"),
    "laprop": Row("adam_like.py:LaProp"),
    "lars": Row("tensor_norms.py:LARS", {"lr": 0.1, "trust_coefficient": 0.01}),
    "lion": Row("lion"),
    "lomo": Row(
        "tensor_norms.py:LOMO",
        {"lr": 0.1, "clip_grad_norm": 2.0, "clip_grad_value": 0.5},
        note="The collection computes in float32.",
        tolerance=1e-5,
    ),
    "madgrad": Row("averaged.py:MADGRAD"),
    "mars": Row(
        "tensor_norms.py:MARS",
        {
            "lr": 2e-3,
            "base_lr": 2e-3,
            "gamma": 0.05,
            "lr_1d": 5e-3,
            "beta_1d": 0.7,
            "beta_sq_1d": 0.9,
            "weight_decay_1d": 0.2,
        },
        {"base_lr": None, "beta_1d": None, "beta_sq_1d": None, "betas_1d": (0.7, 0.9)},
        "MARS-AdamW (`mars_type`), the default.",
    ),
    "msvag": Row("variance.py:MSVAG", {"beta": 0.8}),
    "nadam": Row("nadam", {"momentum_decay": 0.01}, {"decoupled_weight_decay": True}),
    "nero": Row("channels.py:Nero", {"beta": 0.8}),
    "novograd": Row("tensor_norms.py:NovoGrad"),
    "padam": Row("adam_like.py:PAdam", {"partial": 0.3}),
    "pid": Row("momentum.py:PID", {"integral": 3.0, "derivative": 5.0}),
    "pnm": Row("momentum.py:PNM", {"beta2": 0.9}),
    "prodigy": Row(
        "distances.py:Prodigy",
        {"lr": 0.8, "d0": 1e-2, "d_coef": 1.5, "eps": 1e-2},
        note="The collection multiplies eps by the new distance, the paper and `prodigy` in the "
        "catalogue by the one before.",
    ),
    "qhadam": Row(
        "adam_like.py:QHAdam",
        {"nu1": 0.7, "nu2": 0.9},
        note="The collection keeps the sums of the averages' weights in float32.",
        tolerance=1e-7,
    ),
    "qhm": Row("momentum.py:QHM", {"nu": 0.6}),
    "racs": Row("factored.py:RACS", {"beta": 0.8, "alpha": 0.4, "gamma": 1.05}),
    "radam": Row("rectified.py:RAdam", {"n_sma_threshold": 6}),
    "ranger": Row(
        "rectified.py:Ranger",
        {"alpha": 0.4, "k": 4, "n_sma_threshold": 6},
        {"degenerated_to_sgd": True},
        "With `degenerated_to_sgd`, since without it the collection's first steps go up the "
        "gradient.",
    ),
    "ranger21": Row(
        "channels.py:Ranger21",
        {
            "lr": 3e-3,
            "base_lr": 3e-3,
            "min_lr": 1e-3,
            "warm_up": 4,
            "warm_down": 6,
            "total": 22,
            "amplitude": 0.7,
            "beta_softplus": 30.0,
            "agc_clipping_value": 0.7,
            "agc_eps": 0.01,
            "norm_loss_factor": 0.1,
            "k": 4,
            "alpha": 0.6,
            "weight_decay": 0.3,
        },
        {
            "base_lr": None,
            "amplitude": None,
            "beta0": 0.7,
            "warm_up": None,
            "warm_down": None,
            "total": None,
            "min_lr": None,
            "k": None,
            "alpha": None,
            "num_iterations": 22,
            "num_warm_up_iterations": 4,
            "num_warm_down_iterations": 6,
            "warm_down_min_lr": 1e-3,
            "lookahead_merge_time": 4,
            "lookahead_blending_alpha": 0.6,
        },
    ),
    "rmsprop": Row(
        "rmsprop",
        {"alpha": 0.8, "weight_decay": 0.0},
        note="torch's weight decay is l2, that of the catalogue decoupled; compared without.",
    ),
    "rose": Row("channels.py:ROSE"),
    "sara": Row(
        "variance.py:SaRA",
        {"threshold": 0.8, "progressive_iter": 6},
        note="Without the rank constraint (an SVD of one matrix a step), off by default.",
    ),
    "schedulefreeadamw": Row(
        "schedulefree_adamw", {"r": 0.5, "weight_lr_power": 1.5, "warmup_steps": 5}
    ),
    "schedulefreeradam": Row("rectified.py:ScheduleFreeRAdam", {"r": 0.5, "weight_lr_power": 1.5}),
    "schedulefreesgd": Row(
        "averaged.py:ScheduleFreeSGD", {"r": 0.5, "weight_lr_power": 1.5, "warmup_steps": 5}
    ),
    "sgd": Row("momentum.py:SGD"),
    "sgdp": Row("channels.py:SGDP", {"delta": 1.5, "wd_ratio": 0.3}),
    "sgdsai": Row(
        "tensor_norms.py:SGDSaI",
        note="A matrix of one row is a matrix here, and to the collection a vector.",
    ),
    "sgdw": Row("momentum.py:SGDW", {}, {"nesterov": True}, "With Nesterov's look-ahead."),
    "signsgd": Row("momentum.py:SignSGD"),
    "simplifiedademamix": Row("adam_like.py:SimplifiedAdEMAMix", {"beta2": 0.9, "alpha": 0.5}),
    "sm3": Row(
        "sm3",
        {"weight_decay": 0.0},
        {"weight_decay": None, "eps": 0.0},
        "Of matrices and vectors: of the weights of a convolution the collection keeps the largest "
        "by each of four dimensions. It has no weight decay.",
        shapes=SHAPES[:2],
    ),
    "sophiah": Row(
        "sophia",
        {"gamma": 1.0, "rho": 0.4, "weight_decay": 0.2},
        {"gamma": None, "rho": None, "p": 0.4, "update_period": STEPS},
        "The same estimate of the Hessian's diagonal is passed to both, in every third step.",
        every=3,
    ),
    "srmm": Row("momentum.py:SRMM", {"beta": 0.6, "memory_length": 7}),
    "stableadamw": Row("stableadamw"),
    "stablespam": Row(
        "tensor_norms.py:StableSPAM",
        {"gamma1": 0.6, "gamma2": 0.8, "theta": 0.9, "update_proj_gap": 8},
        note="Without the cosine decay of the betas, off by default.",
    ),
    "swats": Row(
        "together.py:SWATS",
        {"lr": 1e-2, "eps": 4e-3},
        note="Where several tensors are ready for SGD in one step, the collection takes the rate "
        "of the last, the spec the mean of theirs. Here one is, in step 8. lr is not halved, since "
        "the collection changes it itself.",
        scheduled=False,
    ),
    "tam": Row("channels.py:TAM", {"decay_rate": 0.8}),
    "tiger": Row("momentum.py:Tiger", {"beta": 0.8}),
    "vsgd": Row("variance.py:VSGD", {"ghattg": 20.0, "ps": 1e-3, "tau1": 0.7, "tau2": 0.8}),
    "yogi": Row("variance.py:Yogi", {"initial_accumulator": 1e-3, "eps": 1e-2}),
    **MATRIX,
}
