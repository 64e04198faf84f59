"""Mistakes of a user, and what the command line says to each."""

import json

from tests.lit_safe.constraint.dual_mistakes import DUAL
from tests.lit_safe.errors.mistaken_run import BASE, C_DPO, FIT, HUB, RUN, SAFE_DPO, Mistake, pairs, record, run

REFUSAL = ("--scorer", "configs/scorer/refusal.yaml")
TFIDF = ("--scorer", "configs/scorer/tfidf.yaml")
SCORE = ("fit", "-c", "configs/base.yaml", "-c", "configs/score/cost.yaml", "-c", "run.yaml", "--model.pair.source",
         "models.sources.TinyLlama", "--model.pair.layers", "1")  # fmt: skip

TABLE: dict[str, Mistake] = {
    **DUAL,
    # commands and flags
    "misspelt command": Mistake(("exprot", "--out", "x"), ("there is no command 'exprot'", "try: export")),
    "nothing given": Mistake(("fit",), ("--data, --model must be given", "configs/base.yaml")),
    "unknown flag": Mistake(
        (*FIT, "--trainer.max_epoch", "3"), ("there is no option --trainer.max_epoch", "try: --trainer.max_epochs")
    ),
    "unknown flag of the command": Mistake(
        (*FIT, "--sed_everything", "3"), ("there is no option --sed_everything", "--seed_everything")
    ),
    "unknown flag of a class": Mistake(
        (*FIT, "--model.objective.bata", "1"),
        ("lit_safe.objectives.DPO has no argument 'bata'", "--model.objective.bata", "try: beta"),
    ),
    "flag without its group": Mistake((*FIT, "--beta", "1"), ("there is no option --beta", "--model.objective.beta")),
    "one dash": Mistake(
        (*FIT, "-trainer.max_epochs", "3"), ("there is no option -trainer.max_epochs", "--trainer.max_epochs")
    ),
    "word too many": Mistake((*FIT, "quick"), ("'quick' is a word too many", "--option quick")),
    "a seed of the data alone": Mistake(
        (*FIT, "--data.seed", "1"), ("--data.seed has no effect", "the seed of a run is --seed_everything")
    ),
    "flag without value": Mistake((*FIT, "--trainer.max_epochs"), ("--trainer.max_epochs expected one argument",)),
    # YAML files
    "no such shipped file": Mistake(
        ("fit", "-c", "configs/experiment/quikstart.yaml"),
        ("there is no file configs/experiment/quikstart.yaml", "try: configs/experiment/quickstart.yaml"),
    ),
    "no such file": Mistake(("fit", "-c", "rum.yaml"), ("there is no file rum.yaml", "try: run.yaml")),
    "folder for a file": Mistake(
        ("fit", "-c", "mine"), ("mine is a folder, not a YAML file", "mine/a.yaml"), {"mine/a.yaml": ""}
    ),
    "YAML syntax": Mistake(
        FIT, ("run.yaml is not YAML", "line 2, column"), {"run.yaml": "trainer: {max_epochs: 1\nmodel: x: y\n"}
    ),
    "YAML tab": Mistake(FIT, ("run.yaml is not YAML", "line 2", "tabs"), {"run.yaml": "trainer:\n\tmax_epochs: 1\n"}),
    "YAML list": Mistake(FIT, ("run.yaml holds a list, not keys with values",), {"run.yaml": "- trainer\n"}),
    "YAML empty": Mistake(FIT, ("run.yaml is empty, not keys with values",), {"run.yaml": ""}),
    "YAML not UTF-8": Mistake(FIT, ("run.yaml is not UTF-8 text",), {"run.yaml": b"trainer: {max_time: \xe9}\n"}),
    "YAML unknown group": Mistake(
        FIT,
        ("there is no setting 'modle'", "run.yaml, line 18", "try: model"),
        {"run.yaml": RUN + "modle: {class_path: lit_safe.training.module.PreferenceAlignment}\n"},
    ),
    "YAML unknown empty group": Mistake(
        FIT, ("there is no setting 'modle'", "run.yaml, line 18", "try: model"), {"run.yaml": RUN + "modle: {}\n"}
    ),
    "YAML unknown group without a value": Mistake(
        FIT, ("there is no setting 'dul'", "run.yaml, line 18", "try: dual"), {"run.yaml": RUN + "dul:\n"}
    ),
    "YAML unknown key": Mistake(
        FIT,
        ("there is no setting 'trainer.max_stepz'", "run.yaml, line 1", "trainer.max_steps"),
        run("max_steps", "max_stepz"),
    ),
    "YAML unknown key of a class": Mistake(
        FIT,
        ("data.sources.scored.ScoredPairs has no argument 'paht'", "run.yaml, line 8, key data.sources.paht", "path"),
        run("          path:", "          paht:"),
    ),
    "YAML unknown key of a list": Mistake(
        FIT,
        ("data.annotators.scores.Score has no argument 'treshold'", "run.yaml, line 12", "try: threshold"),
        run("threshold: 0.0", "treshold: 0.0"),
    ),
    "YAML value": Mistake(
        FIT,
        ("'two' is not a value of trainer.max_steps", "run.yaml, line 1", "a whole number"),
        run("max_steps: 2", "max_steps: two"),
    ),
    "YAML choice": Mistake(
        FIT,
        ("'helpfull' is not a value of data.order", "run.yaml, line 13, key data.order", "try: helpful (one of"),
        run("order: helpful", "order: helpfull"),
    ),
    "YAML missing key": Mistake(
        FIT,
        ("data.sources.scored.ScoredPairs needs path", "run.yaml, line", "data.sources.path"),
        run("          path: pairs.jsonl\n", ""),
    ),
    "YAML names no file": Mistake(
        FIT,
        ("there is no file model/tinny.yaml, named by model.pair", "run.yaml, line 18", "configs/model/tiny.yaml"),
        {"run.yaml": RUN + "model: {init_args: {pair: model/tinny.yaml}}\n"},
    ),
    "YAML key twice": Mistake(
        FIT,
        ("run.yaml: the key 'trainer' appears twice", "run.yaml, line 18"),
        {"run.yaml": RUN + "trainer: {max_steps: 3}\n"},
    ),
    # class paths
    "no such module": Mistake(
        FIT,
        ("there is no class data.modul.PreferenceData", "run.yaml, line 3", "try: data.module.PreferenceData"),
        run("data.module.PreferenceData", "data.modul.PreferenceData"),
    ),
    "no such class": Mistake(
        (*FIT, "--model.objective", "lit_safe.objectives.SafeDP0"),
        ("there is no class lit_safe.objectives.SafeDP0", "--model.objective", "try: lit_safe.objectives.SafeDPO"),
    ),
    "class of another kind": Mistake(
        (*FIT, "--model", "torch.nn.Linear"),
        ("torch.nn.Linear is no StepModule", "where: --model", "lit_safe.training.module.PreferenceAlignment"),
    ),
    "class without its methods": Mistake(
        (*FIT, "--model.objective", "own_objective.Mine"),
        ("own_objective.Mine is no Objective", "--model.objective", "configs/objective/dpo.yaml"),
        {"own_objective.py": "class Mine:\n    pass\n"},
    ),
    "class whose file fails": Mistake(
        (*FIT, "--model.objective", "own_broken.Mine"),
        ("own_broken.Mine cannot be imported", "'not_installed_here'", "pip install"),
        {"own_broken.py": "import not_installed_here\n"},
    ),
    "bare name of an objective": Mistake(
        (*FIT, "--model.objective", "safe_dpo"),
        ("'safe_dpo' is neither a YAML file nor a class", "try: configs/objective/safe_dpo.yaml"),
    ),
    "misspelt file of an objective": Mistake(
        (*FIT, "--model.objective", "configs/objective/safedpo.yaml"),
        ("there is no file configs/objective/safedpo.yaml", "try: configs/objective/safe_dpo.yaml"),
    ),
    "misspelt optimizer": Mistake(
        (*FIT, "--model.optimizer", "torch.optim.AdamWW"),
        ("there is no class torch.optim.AdamWW", "--model.optimizer", "torch.optim.AdamW"),
    ),
    "misspelt callback": Mistake(
        (*FIT, "--trainer.callbacks+=EarlyStoping"),
        ("'EarlyStoping' is neither a YAML file nor a class", "lightning.pytorch.callbacks.EarlyStopping"),
    ),
    # values
    "whole number": Mistake(
        (*FIT, "--trainer.max_epochs", "many"),
        ("'many' is not a value of trainer.max_epochs", "--trainer.max_epochs", "a whole number"),
    ),
    "number": Mistake(
        (*FIT, "--model.optimizer.lr", "fast"),
        ("'fast' is not a value of model.optimizer.lr", "--model.optimizer.lr", "a number"),
    ),
    "true or false": Mistake(
        (*FIT, "--trainer.enable_progress_bar", "perhaps"),
        ("'perhaps' is not a value of trainer.enable_progress_bar", "true or false"),
    ),
    "choice": Mistake(
        (*FIT, "--data.on_bad_row", "ignore"), ("'ignore' is not a value of data.on_bad_row", "one of error, skip")
    ),
    "labels of C-DPO": Mistake(
        (*FIT, *C_DPO, "--model.objective.labels", "sof"),
        ("'sof' is not a value of model.objective.labels", "soft, sampled, hard"),
    ),
    "precision": Mistake(
        (*FIT, "--trainer.precision", "bf16-mixd"),
        ("'bf16-mixd' is not a value of trainer.precision", "try: bf16-mixed"),
    ),
    "beta": Mistake(
        (*FIT, "--model.objective.beta", "-1"), ("beta must be > 0, got -1.0", "where: --model.objective.beta")
    ),
    "multiplier": Mistake(
        (*FIT, "--model.multiplier", "-2"),
        ("multiplier must be >= 0 and finite, got -2.0", "where: --model.multiplier"),
    ),
    "pairs of a step": Mistake(
        (*FIT, "--data.pairs_per_step", "0"),
        ("pairs_per_step must be at least 1, got 0", "--data.pairs_per_step"),
    ),
    "clipping norm": Mistake(
        (*FIT, "--model.gradient_clip_norm", "-1"),
        ("gradient_clip_norm must be > 0", "where: --model.gradient_clip_norm"),
    ),
    "learning rate": Mistake(
        (*FIT, "--model.optimizer.lr", "-3"), ("Invalid learning rate: -3.0", "where: --model.optimizer.lr")
    ),
    "metric of a callback": Mistake(
        (
            *FIT,
            "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping",
            "--trainer.callbacks.init_args.monitor=train/los",
        ),
        ("no metric 'train/los' is logged", "--trainer.callbacks.init_args.monitor", "try: train/loss"),
    ),
    "warm-up": Mistake(
        (*FIT, "--model.schedule.warmup_ratio", "2"), ("warmup_ratio must", "where: --model.schedule.warmup_ratio")
    ),
    # the machine
    "accelerator": Mistake(
        (*FIT, "--trainer.accelerator", "gpuu"),
        ("there is no accelerator 'gpuu'", "where: --trainer.accelerator", "try: gpu"),
    ),
    "accelerator that is not there": Mistake(
        (*FIT, "--trainer.accelerator", "mps"),
        ("this machine has no such device for torch: accelerator 'mps'", "--trainer.accelerator cpu"),
        code=1,
    ),
    "devices": Mistake(
        (*FIT, "--trainer.devices", "some"),
        ("'some' is not a value of trainer.devices", "where: --trainer.devices", "a whole number >= 1"),
    ),
    "strategy": Mistake(
        (*FIT, "--trainer.strategy", "dpp"),
        ("there is no strategy 'dpp'", "where: --trainer.strategy", "try: ddp"),
    ),
    "strategy of another machine": Mistake(
        (*FIT, "--trainer.strategy", "fsdp"), ("The strategy `fsdp` requires a GPU", "where: --trainer.strategy")
    ),
    "accumulation": Mistake(
        (*FIT, "--trainer.accumulate_grad_batches", "4"),
        ("trainer.accumulate_grad_batches: not supported; set data.pairs_per_step", "data.micro_batch_tokens"),
    ),
    "clipping": Mistake(
        (*FIT, "--trainer.gradient_clip_val", "1"),
        (
            "trainer.gradient_clip_val: not supported; set model.gradient_clip_norm",
            "where: --trainer.gradient_clip_val",
        ),
    ),
    # data
    "no such data file": Mistake(
        FIT,
        ("pairz.jsonl", "run.yaml, line 8, key data.sources.path", "try: pairs.jsonl"),
        run("pairs.jsonl", "pairz.jsonl"),
        1,
    ),
    "null": Mistake(FIT, ("row pairs.jsonl:8, column 'response_1'",), {"pairs.jsonl": pairs(response_1=None)}, 1),
    "text for a number": Mistake(
        FIT, ("row pairs.jsonl:8, column 'cost_0': is str, not a number",), {"pairs.jsonl": pairs(cost_0="high")}, 1
    ),
    "no such column": Mistake(
        FIT,
        ("row pairs.jsonl:1, column 'rewards_0'", "run.yaml, line 9", "try: reward_0"),
        run("[reward_0, reward_1]", "[rewards_0, reward_1]"),
        1,
    ),
    "no JSON": Mistake(FIT, ("row pairs.jsonl:2, column '*': is not JSON",), {"pairs.jsonl": pairs(1) + "{\n"}, 1),
    "no rows": Mistake(FIT, ("the train split has no rows",), {"pairs.jsonl": ""}, 1),
    "no labels": Mistake(
        (*FIT, *SAFE_DPO),
        ("the train split has no rows: 0 of 40 rows kept", "order"),
        run(
            "data.annotators.scores.Scores\n      init_args: {reward_from: {column: reward}, "
            "costs_from: [{column: cost, threshold: 0.0}]}",
            "data.annotators.flags.Flags",
        ),
        1,
    ),
    "nothing to learn": Mistake(
        (*FIT, *SAFE_DPO),
        ("the objective leaves out all",),
        {"pairs.jsonl": "".join(json.dumps(record(i) | {"cost_0": 1.0, "cost_1": 1.0}) + "\n" for i in range(40))},
        1,
    ),
    "data set of the hub": Mistake(
        (*FIT, "--data", "configs/data/trl.yaml"),
        ("trl-lib/ultrafeedback_binarized[train]: cannot be loaded", "configs/data/trl.yaml, line"),
        code=1,
    ),
    # models, checkpoints, folders
    "model of the hub": Mistake(
        (*FIT, *HUB, "no-org/no-model"),
        ("there is no model 'no-org/no-model'", "where: --model.pair.source.name_or_path", "./folder"),
        code=1,
    ),
    "model folder that is not there": Mistake(
        (*FIT, *HUB, "./mine"), ("there is no model './mine'", "where: --model.pair.source.name_or_path"), code=1
    ),
    "model folder without a model": Mistake(
        (*FIT, *HUB, "./mine"),
        ("./mine is no whole model", "config.json"),
        {"mine/readme.txt": ""},
        1,
    ),
    "adapter that fits nothing": Mistake(
        (
            *FIT,
            "--model.pair.adaptation",
            "models.adaptation.LoRA",
            "--model.pair.adaptation.target_modules",
            "[q_prj]",
        ),
        ("target_modules fits nothing in LlamaForCausalLM", "target_modules"),
        code=1,
    ),
    "no such checkpoint": Mistake((*FIT, "--ckpt_path", "runs/none.ckpt"), ("there is no", "runs/none.ckpt"), code=1),
    "checkpoint that is none": Mistake((*FIT, "--ckpt_path", "x.ckpt"), ("x.ckpt",), {"x.ckpt": "hello"}, 1),
    "run folder is a file": Mistake(
        (*FIT, "--trainer.default_root_dir", "pairs.jsonl"), ("pairs.jsonl", "--trainer.default_root_dir"), code=1
    ),
    "run folder is the working folder": Mistake(
        (*FIT, "--trainer.default_root_dir", "."), ("trainer.default_root_dir is '.'", "runs/first"), code=1
    ),
    "run folder is an address": Mistake(
        (*FIT, "--trainer.default_root_dir", "s3://x/y"), ("trainer.default_root_dir is 's3://x/y'",), code=1
    ),
    # other commands
    "export of nothing": Mistake(("export", *BASE), ("--ckpt_path, --out must be given",)),
    "export of a text": Mistake(
        ("export", *BASE, "--ckpt_path", "x.ckpt", "--out", "out"), ("x.ckpt",), {"x.ckpt": "hello"}, 1
    ),
    "compare of one run": Mistake(("compare", "runs/a"), ("compare: two runs",), code=1),
    "compare of nothing": Mistake(("compare",), ("--runs must be given",)),
    "sample of no split": Mistake(
        ("sample", *BASE, "--out", "s.jsonl", "--split", "tran"), ("'tran' is not a value of split", "try: train")
    ),
    "sample of no responses": Mistake(
        ("sample", *BASE, "--out", "s.jsonl", "--samples_per_prompt", "0"),
        ("samples_per_prompt must be >= 1", "--samples_per_prompt"),
    ),
    "certify of no scorer": Mistake(
        ("certify", *BASE, "--out", "c"), ("there is no scorer: give --scorer", "dual.estimator")
    ),
    "certify without a range": Mistake(
        ("certify", *BASE, "--scorer", "tests.test_commands.Cost", "--out", "c", "--limit", "0.1"),
        ("a bound of E[cost] needs the range of the costs", "--cost_range"),
    ),
    "certify of no limit": Mistake(
        ("certify", *BASE, *REFUSAL, "--out", "c"), ("there is no limit to certify", "--unsafe_limit")
    ),
    "certify of a share in percent": Mistake(
        ("certify", *BASE, *REFUSAL, "--out", "c", "--unsafe_limit", "5"),
        ("unsafe_limit is a share between 0 and 1, got 5",),
    ),
    "certify of a limit outside the range": Mistake(
        ("certify", *BASE, *REFUSAL, "--out", "c", "--limit", "3", "--cost_range", "[0, 1]"),
        ("the limit 3.0 is not in the cost_range [0.0, 1.0]",),
    ),
    "certify of a limit in other units": Mistake(
        ("certify", *BASE, *TFIDF, "--out", "c", "--limit", "0.1", "--cost_range", "[0, 1]", "--units", "probability"),
        ("--units is probability, and the costs of TfidfHarm are in log_odds",),
    ),
    "certify of strata in no file": Mistake(
        ("certify", *BASE, *REFUSAL, "--out", "c", "--unsafe_limit", "0.1", "--strata", "strata.csv"),
        ("there is no file strata.csv",),
        code=1,
    ),
    "certify by a scorer that saw the split": Mistake(
        ("certify", *BASE, *TFIDF, "--scorer.folder", "s", "--out", "c", "--limit", "0.1", "--cost_range", "[0, 1]"),
        ("the scorer TfidfHarm was trained on the certify split",),
        {"s/card.json": json.dumps({"trained_on": ["train", "certify"]})},
        1,
    ),
    "reach without a scorer": Mistake(
        ("reach", *BASE, *C_DPO), ("reachability needs a cost function", "configs/cost/rollout.yaml")
    ),
    "reach of one response": Mistake(
        ("reach", *BASE, *C_DPO, "--samples_per_prompt", "1"), ("prompts and samples_per_prompt must be >= 2",)
    ),
    "auto without its callback": Mistake(
        (*FIT, *C_DPO, "--model.multiplier", "auto"),
        ("model.multiplier auto needs the callback that estimates it", "configs/trainer/reach.yaml"),
    ),
    "probabilities that are none": Mistake(
        (
            *FIT,
            *C_DPO,
            "--dual.lr",
            "0.1",
            "--dual.estimator",
            "configs/cost/labels.yaml",
            "--dual.estimator.labels",
            "probability",
        ),
        ("labels: probability needs costs in [0, 1]",),
    ),
    "reachability of DPO": Mistake(
        (*FIT, "-c", "configs/trainer/reach.yaml"),
        ("Reachability is about the multiplier, and DPO does not read it", "configs/objective/c_dpo.yaml"),
    ),
    "doctor on no device": Mistake(
        ("doctor", *BASE, "--device", "cudaa"), ("--device cudaa is not a device", "auto, cpu, cuda")
    ),
    "copy of no file": Mistake(
        ("configs", "copy", "objective/safedpo"), ("there is no shipped file 'objective/safedpo'", "objective/safe_dpo")
    ),
    "copy of nothing": Mistake(("configs", "copy"), ("configs copy needs a name", "lit-safe configs")),
    "no such word of configs": Mistake(("configs", "cpoy", "base"), ("configs has no 'cpoy'", "try: copy")),
    "flag of the oracle": Mistake(("oracle", "--seedz", "0"), ("there is no option --seedz", "try: --seeds")),
    "objective of the oracle": Mistake(
        ("oracle", "--objectives", "safedpo", "--folder", "o"), ("there is no", "configs/oracle/safe_dpo.yaml")
    ),
    "annotate into a file of another kind": Mistake(
        ("annotate", *BASE, *TFIDF, "--out", "scored.csv"),
        ("--out scored.csv: the name must end in .parquet or .jsonl",),
    ),
    "score model without a loss": Mistake(
        (*SCORE, "--model.cost", "null"), ("reward and cost are both null, so nothing would train",)
    ),
    "score model of a policy": Mistake(
        (*SCORE, "--model.pair", "models.pair.PolicyReference"), ("models.pair.PolicyReference is no ScoringModel",)
    ),
    "score model without unsafe responses": Mistake(
        SCORE,
        ("model.cost: the train split has only safe responses for the constraint 'cost'", "the annotator's threshold"),
        run("threshold: 0.0", "threshold: 9.0"),
        code=1,
    ),
    "score model of more layers than there are": Mistake(
        (*SCORE, "--model.pair.layers", "5"), ("layers must be 1 to 2, the layers of LlamaForCausalLM; got 5",), code=1
    ),
    "no such score model": Mistake(
        (
            *FIT,
            *C_DPO,
            "--dual.lr",
            "1",
            "--dual.estimator",
            "configs/cost/rollout.yaml",
            "--dual.estimator.cost",
            "models.scorers.score_folder.ScoreFolder",
            "--dual.estimator.cost.folder",
            "runs/none/score_model",
        ),
        ("there is no score model in runs/none/score_model: train one", "configs/score/cost.yaml"),
        code=1,
    ),
    "annotate of nothing": Mistake(("annotate",), ("--scorer, --out, --data, --model must be given",)),
}
"""What was wrong, in words, and the mistake."""

SLOW = (
    "certify of no limit", "certify of a share in percent", "certify of a limit outside the range",
    "certify of strata in no file",
    "text for a number", "model folder that is not there", "nothing to learn", "no labels", "clipping", "dual step",
    "no JSON", "devices", "strategy of another machine", "multiplier", "no estimator", "data set of the hub", "warm-up",
    "run folder is a file", "sample of no responses", "metric of a callback", "learning rate", "export of a text",
    "adapter that fits nothing", "clipping norm", "auto without its callback", "reachability of DPO",
)  # fmt: skip
"""Rows like others, which build a model or read data: about two seconds each."""
