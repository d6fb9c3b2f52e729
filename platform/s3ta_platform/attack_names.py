"""Attacks have names such as `pgd_targeted_eps16` (see AttackSettings.name): what these tell."""

import re

from s3ta.settings import Goal, Rule

UNTIL = "_until_success"
KEEPS_BEST = tuple(f"{rule.name}_" for rule in Rule if rule.keeps_best)
WORST = "worst_case"
TRANSFER = "transfer_"
"""Begins the name of an attack that other models' gradients lead."""
GOALS = ("targeted", *(goal.name for goal in Goal))
"""The first word after the family; a target that is drawn at random goes without saying so."""
SAME_TARGET = "_targeted_"
"""In the name of every attack whose targets are drawn from the seed and the image's id."""
KNOWN = {
    "apgd_untargeted": "APGD-CE",
    "apgd_likeliest_dlr": "APGD-T",
    "fab_likeliest": "FAB-T",
    "square_untargeted": "Square",
    "random_untargeted": "random signs",
    WORST: "worst case of these attacks",
}
"""Attacks that the field knows by a name of their own."""
PROPER = {"adam": "Adam", "dlr": "DLR"}
"""Words of a name that are written otherwise."""
MAIN_STEP = 16
"""From this many steps on, the step size of PGD no longer depends on the number of steps."""


def has_own_step_size(attack: str, steps: int) -> bool:
    """Whether a reading comes from a run of its own, with larger steps than the main trajectory.

    PGD moves by epsilon * max(1/16, 1/n) per step: below 16 steps smaller ones couldn't cross the
    ball.
    """
    whole = attack.startswith("pgd_") and not any(w in attack for w in ("_adam", "_step"))
    return whole and 0 < steps < MAIN_STEP


def attack_title(attack: str) -> str:
    """`pgd_targeted_eps25.5` as a reader would write it: `targeted PGD, ε = 25.5/255`."""
    name, eps, epsilon = attack.rpartition("_eps")
    if not eps:
        return attack.replace("_", " ")
    known = next((k for k in KNOWN if name == k or name.startswith(f"{k}_")), None)
    if known is not None:
        title, details = KNOWN[known], name.removeprefix(known)
    else:
        family, _, rest = name.partition("_")
        goal = next((g for g in GOALS if rest == g or rest.startswith(f"{g}_")), "")
        title, details = (
            f"{goal.replace('_', ' ')} {family.upper()}".strip(),
            rest.removeprefix(goal),
        )
    words = ["until success" if UNTIL in f"{details}_" else ""]
    words += details.replace(UNTIL, "").split("_")
    # `5starts` and `step0.125` are a word and a number.
    parts = [PROPER.get(word, word) for word in words if word]
    said = [re.sub(r"(?<=\d)(?=[a-z])|(?<=[a-z])(?=\d)", " ", part) for part in parts]
    return f"{title}{' (' + ', '.join(said) + ')' if said else ''}, ε = {epsilon}/255"


def any_step(attack: str) -> bool:
    """Whether only what had happened at any step is known: it leaves an image at its goal alone."""
    return f"{UNTIL}_" in attack or attack.startswith(KEEPS_BEST)
