"""The paper's numbers, in percent, to stand beside ours: Tables 1 to 3 of S3TA (Zoran et al.).

Where an attack is not stated fully in the paper, its number stands beside each of our readings of
it. The ResNet-152 trained with 30 steps is Xie et al.'s, who publish other numbers for it
themselves: 52.5/5.5, 41.7/31.0 and 39.0/36.1 at 10, 100 and 1000 steps.
"""

from dataclasses import dataclass

TARGETED = "pgd_targeted_eps16"
UNTARGETED = ("pgd_untargeted", "pgd_untargeted_margin_adam")
SPSA = "spsa_targeted_eps16"
STEPS = (10, 100, 250, 1000)


@dataclass(frozen=True)
class Published:
    """One system of the paper."""

    nominal: float | None = None
    table_1: tuple[tuple[float, float], ...] = ()
    """Top-1 and attack success at 10, 100, 250 and 1000 steps of targeted PGD."""
    table_2: tuple[float, ...] = ()
    """Top-1 under untargeted PGD of 200 steps, at epsilon 4/255 and 16/255."""
    table_3: tuple[float, ...] = ()
    """Top-1 and attack success under SPSA."""

    def at(self, attack: str, steps: int) -> tuple[float | None, float | None]:
        """Top-1 and attack success; None where the paper has no such number."""
        if attack == TARGETED and self.table_1 and steps in STEPS:
            return self.table_1[STEPS.index(steps)]
        if steps == 200 and self.table_2:
            for epsilon, top1 in zip((4, 16), self.table_2, strict=True):
                if attack in [f"{name}_eps{epsilon}" for name in UNTARGETED]:
                    return top1, None
        if (attack, steps) == (SPSA, 100) and self.table_3:
            return self.table_3[0], self.table_3[1]
        return None, None


NOTHING = Published()
SYSTEMS = {
    "ResNet-152": Published(
        70.66,
        ((53.48, 7.63), (36.91, 43.48), (32.50, 50.93), (29.5, 55.84)),
        (39.7, 6.3),
        (61.90, 2.20),
    ),
    "S3TA-2": Published(72.30, ((55.08, 9.06), (40.13, 40.31), (36.56, 46.56), (33.97, 50.40))),
    "S3TA-4": Published(72.48, ((56.78, 9.10), (42.54, 39.37), (40.00, 44.33), (37.99, 47.50))),
    "S3TA-8": Published(72.14, ((56.02, 9.50), (42.63, 39.06), (40.17, 44.01), (38.48, 47.09))),
    "S3TA-16": Published(
        72.54,
        ((57.45, 9.33), (44.19, 38.83), (40.71, 44.82), (38.70, 48.16)),
        (),
        (59.60, 1.90),  # which S3TA-16 Table 3 means is not said
    ),
    "ResNet-152-30": Published(
        63.62, ((53.30, 6.56), (39.56, 34.62), (37.56, 38.68), (36.18, 41.37))
    ),
    "DENOISE": Published(
        66.02,
        ((56.33, 5.00), (45.84, 27.36), (44.19, 30.66), (43.39, 32.54)),
        (38.9, 7.5),
        (63.70, 1.90),
    ),
    "S3TA-16-30": Published(
        64.55,
        ((55.08, 3.79), (47.18, 21.87), (46.65, 23.52), (46.11, 24.91)),
        (46.75, 9.8),  # the text of sec. 5.2 says that it is the one trained with 30 steps
    ),
    "LLR": Published(None, (), (47.0, 6.1)),
}
"""By the paper's own names; `-30` for 30 steps in training."""
