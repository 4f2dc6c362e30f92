"""Situations of param groups, seeds and checkpoints; see ``tests/support/doors.py``."""

from __future__ import annotations

from tests.support.doors import Situation

GROUPS = (
    Situation("params replaced", '`group["params"] = [new]`'),
    Situation("param replaced", '`group["params"][0] = new`, after steps'),
    Situation("param appended", '`group["params"].append(new)`'),
    Situation("param removed", 'a parameter deleted from `group["params"]`'),
    Situation("groups reordered", "`param_groups.reverse()`"),
    Situation("group removed", "`del param_groups[0]`"),
    Situation("not a parameter", 'a string in `group["params"]`', "SC436"),
    Situation("own keys", "keys of the user's own in a group (`lr_scale`, `name`, `rho`)"),
    Situation("misspelt key", "`weight_decy` in a group", "SC403"),
    Situation("numpy lr", "`lr` as a NumPy number"),
    Situation("text lr", '`lr` as the string `"0.5"`'),
    Situation("edited numpy lr", '`group["lr"]` set to a NumPy number between steps'),
    Situation("list of betas", "`betas` as a list, or a config's list"),
    Situation("word", '`group["lr"]` set to a word between steps', "SC406"),
    Situation("outside", '`group["lr"] = -1` between steps', "SC407"),
    Situation("negative tensor", "`lr=torch.tensor(-1.0)`", "SC407"),
    Situation("key deleted", '`del group["maximize"]`'),
    Situation("step zeroed", '`state[p]["step"].zero_()` of one parameter'),
    Situation("step number", '`state[p]["step"] = 0` of one parameter'),
    Situation("step float", '`state[p]["step"] = torch.tensor(0.0)` of one parameter'),
    Situation("step half", '`state[p]["step"] = 0.5`', "SC438"),
    Situation("own entry", "entries of the user's own in `state[p]`, before and after steps"),
    Situation("frozen", "frozen parameters of any dtype"),
    Situation("fused", "`fused=True`, `foreach=True`, `capturable=True`: one warning"),
    Situation("amsgrad", "`amsgrad=True`", "SC403"),
    Situation("defaults", "`type(o)(params, **o.defaults)`"),
    Situation("grad scaler", "`GradScaler`: `unscale_`, clipping, a step skipped"),
)
CHECKPOINTS = (
    Situation("strides", "loaded moments with other strides"),
    Situation("aliases", "loaded moments that share memory"),
    Situation("lacking keys", "a `state_dict` whose groups lack keys that have defaults"),
    Situation("loaded own", "entries and keys of the user's own in a `state_dict`"),
    Situation("number for step", "a `state_dict` whose step is the number 2.0"),
    Situation("other program", "the `state_dict` of another program", "SC503"),
    Situation("safetensors", "state through safetensors, as it is"),
    Situation("names", "`param_names` of named parameters"),
)
SITUATIONS = (*GROUPS, *CHECKPOINTS)
