"""What generated/ holds: one row enrols an optimizer in every build, test and check."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One generated file: the arguments of ``signconv build``."""

    spec: str
    convert: str | None = None
    state: str = "fp8"
    math: str = "fp32"

    @property
    def label(self) -> str:
        """The id of its tests: ``adamw-stosign-fp8-fp32``."""
        return "-".join(filter(None, (self.spec, self.convert, self.state, self.math)))


GENERATED = (
    Entry("adabelief"),
    Entry("adadelta"),
    Entry("adafactor"),
    Entry("adagrad"),
    Entry("adalomo"),
    Entry("adam"),
    Entry("adam_mini"),
    Entry("adamax"),
    Entry("adamax", "stosign"),
    Entry("adamw"),
    Entry("adamw", state="fp4"),
    Entry("adamw", "soft:p=2"),
    Entry("adamw", "soft:p=2,nesterov"),
    Entry("adamw", "soft:p=2,nesterov,stosign"),
    Entry("adamw", "soft:p=3,nesterov"),
    Entry("adamw", "stosign"),
    Entry("adamw", "stosign", state="fp4"),
    Entry("adamw", "stosign:noise=fresh"),
    Entry("adamw", "stosign:noise=golden"),
    Entry("adamuon"),
    Entry("adan"),
    Entry("ademamix"),
    Entry("adopt"),
    Entry("amsgrad"),
    Entry("came"),
    Entry("cautious_adamw"),
    Entry("dadapt_adam"),
    Entry("ie_stosignsgd"),
    Entry("lamb"),
    Entry("laprop"),
    Entry("lion"),
    Entry("lion", "stosign"),
    Entry("mars"),
    Entry("muon"),
    Entry("muon", state="fp4"),
    Entry("muon_rms"),
    Entry("nadam"),
    Entry("nadam", "stosign"),
    Entry("normuon"),
    Entry("prodigy"),
    Entry("radam"),
    Entry("rmsprop"),
    Entry("rmsprop", "stosign"),
    Entry("rprop"),
    Entry("s3"),
    Entry("s3gd"),
    Entry("s3gd", state="fp8-raw", math="bf16"),
    Entry("schedulefree_adamw"),
    Entry("scion"),
    Entry("sgd"),
    Entry("sgd", "nesterov"),
    Entry("sgd", "stosign"),
    Entry("signsgd"),
    Entry("signum"),
    Entry("sm3"),
    Entry("sophia"),
    Entry("stableadamw"),
    Entry("stosignsgd"),
    Entry("stosignsgd_v2"),
)
