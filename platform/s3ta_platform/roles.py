"""What the attacks of a masking verdict must be, by their names. Imports no torch."""

from typing import Any

from s3ta.settings import Goal, Gradient, Loss, Rule, require
from s3ta_platform.schema import Experiment

ROLES: dict[str, dict[str, Any]] = {
    "pgd_ce": {"rule": Rule.sign, "loss": Loss.cross_entropy},
    "pgd_margin": {"rule": Rule.sign, "loss": Loss.margin},
    "apgd_ce": {"rule": Rule.apgd, "loss": Loss.cross_entropy},
    "apgd_t": {"rule": Rule.apgd, "loss": Loss.dlr, "goal": Goal.likeliest},
    "wide": {"rule": Rule.sign, "loss": Loss.margin, "epsilon_255": 127.5},
    "square": {"rule": Rule.square, "loss": Loss.margin},
    "spsa": {"gradient": Gradient.spsa},
    "transfer": {},
    "random": {"rule": Rule.random, "loss": Loss.margin},
}
"""What each attack must be; else untargeted, at the verdict's epsilon, by backpropagation."""


def check_roles(e: Experiment) -> None:
    """UserError unless the attacks that a verdict is made of are what they are called."""
    if e.masking is None:
        return
    unknown = [name for name in e.evaluate.attacks if name not in ROLES]
    known = f"one of {', '.join(ROLES)} where masking is asked for"
    require(not unknown, "evaluate.attacks", unknown, known)
    for role, attack in e.evaluate.attacks.items():
        usual: dict[str, Any] = {"goal": Goal.untargeted, "gradient": Gradient.autograd}
        usual["epsilon_255"] = e.masking.epsilon_255
        for name, wanted in {**usual, **ROLES[role]}.items():
            found = getattr(attack, name)
            said = getattr(wanted, "name", wanted)
            label = f"evaluate.attacks.{role}.{name}"
            require(found == wanted, label, getattr(found, "name", found), f"{said} there")
