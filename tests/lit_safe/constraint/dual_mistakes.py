"""Mistakes of a user in the group ``dual``, and what the command line says to each."""

from tests.lit_safe.errors.mistaken_run import C_DPO, FIT, Mistake

COST = ("--dual.estimator", "configs/cost/rollout.yaml")
PID = ("--dual.controller", "configs/controller/pid.yaml")

DUAL: dict[str, Mistake] = {
    "limit": Mistake((*FIT, "--dual.limit", "low"), ("'low' is not a value of dual.limit", "--dual.limit", "a number")),
    "dual step": Mistake((*FIT, "--dual.lr", "-1"), ("lr must be >= 0 and finite, got -1.0", "where: --dual.lr")),
    "two limits": Mistake(
        (*FIT, *C_DPO, "--dual.lr", "1", "--dual.limit", "[0, 1]", "--dual.estimator", "configs/cost/rollout.yaml"),
        ("limit has shape [2], the module's multiplier []", "--dual.limit"),
    ),
    "no estimator": Mistake(
        (*FIT, *C_DPO, "--dual.lr", "1"), ("lr > 0 needs an estimator of the cost", "configs/cost/rollout.yaml")
    ),
    "controller and step": Mistake(
        (*FIT, *C_DPO, *COST, "--dual.lr", "1", "--dual.controller", "configs/controller/pid.yaml"),
        ("controller PIDLagrangian and dual.lr are both given: leave dual.lr out", "where: --dual.controller"),
    ),
    "unknown key in the YAML of a scorer": Mistake(
        (*FIT, *C_DPO, *COST, "--dual.estimator.cost", "mine.yaml"),
        ("models.scorers.refusal.RefusalJudge has no argument 'openin'", "mine.yaml, line 2", "try: opening"),
        {"mine.yaml": "class_path: models.scorers.refusal.RefusalJudge\ninit_args: {openin: 9}\n"},
    ),
    "value in a YAML that a YAML names": Mistake(
        (*FIT, *C_DPO, "--dual.estimator", "mine.yaml"),
        ("'two' is not a value of dual.estimator.cost.opening", "judge.yaml, line 2", "a whole number"),
        {
            "mine.yaml": "class_path: lit_safe.constraint.costs.rollout.RolloutCost\ninit_args: {cost: judge.yaml}\n",
            "judge.yaml": "class_path: models.scorers.refusal.RefusalJudge\ninit_args: {opening: two}\n",
        },
    ),
    "YAML that names itself": Mistake(
        (*FIT, *C_DPO, *COST, "--dual.estimator.cost", "mine.yaml"),
        ("dual.estimator.cost.cost: Config file loop detected: mine.yaml -> mine.yaml", "mine.yaml, line 2"),
        {"mine.yaml": "class_path: lit_safe.rollouts.rectified.Rectified\ninit_args: {cost: mine.yaml}\n"},
    ),
    "bare name of a controller": Mistake(
        (*FIT, *C_DPO, *COST, "--dual.controller", "pid"),
        ("'pid' is neither a YAML file nor a class", "try: configs/controller/pid.yaml"),
    ),
    "gain of a controller": Mistake(
        (*FIT, *C_DPO, *COST, *PID, "--dual.controller.pid_kp", "-1"),
        ("pid_kp must be >= 0 and finite, got -1.0", "where: --dual.controller.pid_kp"),
    ),
    "argument of a controller": Mistake(
        (*FIT, *C_DPO, *COST, *PID, "--dual.controller.kp", "1"),
        ("lit_safe.constraint.controllers.pid.PIDLagrangian has no argument 'kp'", "pid_kp, pid_ki"),
    ),
    "controller without an estimator": Mistake(
        (*FIT, *C_DPO, *PID), ("controller PIDLagrangian needs an estimator of the cost", "configs/cost/rollout.yaml")
    ),
    "controller of an objective without multiplier": Mistake(
        (*FIT, *COST, *PID),
        ("dual.controller is PIDLagrangian, and DPO does not read the multiplier", "configs/objective/c_dpo.yaml"),
    ),
    "gains of another number than constraints": Mistake(
        (*FIT, *C_DPO, *COST, *PID, "--dual.controller.pid_ki", "[0.1, 0.2]"),
        ("pid_ki has shape [2], the module's multiplier []", "--dual.controller.pid_ki"),
    ),
    "log space from 0": Mistake(
        (
            *FIT,
            *C_DPO,
            *COST,
            "--dual.controller",
            "configs/controller/log_space.yaml",
            "--dual.controller.init",
            "null",
        ),
        ("model.multiplier 0.0 is below minimum 0.001", "set dual.controller.init"),
    ),
    "margin": Mistake((*FIT, "--dual.margin", "-0.5"), ("margin must be auto, or >= 0 and finite", "--dual.margin")),
    "word for a margin": Mistake((*FIT, "--dual.margin", "atuo"), ("'atuo' is not a value of dual.margin",)),
    "range of a margin": Mistake(
        (*FIT, "--dual.margin", "auto", "--dual.margin_for.cost_range", "[3, -3]"),
        (
            "margin_for.cost_range must be two finite numbers in order",
            "got [3.0, -3.0]",
            "--dual.margin_for.cost_range",
        ),
    ),
    "range of a margin without the limit": Mistake(
        (
            *FIT,
            *C_DPO,
            *COST,
            "--dual.lr",
            "1",
            "--dual.limit",
            "9",
            "--dual.margin",
            "auto",
            "--dual.margin_for.cost_range",
            "[-3, 3]",
        ),
        ("limit 9.0 is not inside margin_for.cost_range [-3, 3]", "margin_for.cost_range"),
    ),
    "power of a margin": Mistake(
        (*FIT, "--dual.margin", "auto", "--dual.margin_for.power", "1"),
        ("margin_for.power must lie in (0.5, 1), got 1.0", "--dual.margin_for.power"),
    ),
}
