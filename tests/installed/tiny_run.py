"""Use an installed lit-safe as a newcomer would: ``python tests/installed/tiny_run.py PATH_TO_PYTHON``.

Runs in an empty folder with the interpreter of the environment to try. Needs no network and about a minute.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

OBJECTIVE = '''from dataclasses import dataclass

from lit_safe.objectives import DPO


@dataclass(frozen=True)
class Mine(DPO):
    """A user's objective in the working directory."""
'''
YAML = """# shipped files by the names that the documents use, from a file of the user's own
trainer: {default_root_dir: runs/mine, callbacks+: [{class_path: lit_safe.report.before_after.BeforeAfter,
  init_args: {prompts: 2, max_new_tokens: 4}}]}
model: {init_args: {objective: configs/objective/safe_dpo.yaml}}
"""


def main() -> None:
    """Run every step in one empty folder; stop at the first that fails."""
    python = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="an empty folder ") as place:
        folder = Path(place)

        def run(*words: str, module: bool = False) -> str:
            program = [python, "-m", "lit_safe"] if module else [str(Path(python).parent / "lit-safe")]
            environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
            done = subprocess.run(
                [*program, *words], cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False
            )
            if done.returncode:
                sys.exit(f"lit-safe {' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
            print("ok: lit-safe", " ".join(words), flush=True)
            return done.stdout + done.stderr

        assert run("--version").startswith("lit-safe "), "no version"
        assert "configs/base.yaml" in run("configs").splitlines(), "the shipped files are not listed"
        assert "fit" in run("--help", module=True), "the help lists no fit"
        _write_data(folder)
        run("configs", "copy", "data/scored")  # read in place of the shipped file from now on
        (folder / "my_objective.py").write_text(OBJECTIVE, encoding="utf-8")
        (folder / "mine.yaml").write_text(YAML, encoding="utf-8")

        common = ["-c", "configs/base.yaml", "-c", "configs/trainer/cpu.yaml", "--data", "configs/data/scored.yaml"]
        common += ["--data.pairs_per_step", "8", "--data.max_length", "96"]
        mine = [*common, "-c", "mine.yaml"]
        own = ["--model.objective", "my_objective.Mine", "--trainer.default_root_dir", "runs/own"]
        run("doctor", *common)
        run("fit", *mine)
        run("fit", *mine, *own, module=True)
        (folder / "runs" / "own" / "report.md").unlink()
        run("report", "runs/own")
        run("compare", "runs/mine", "runs/own")
        checkpoint = ["--ckpt_path", "runs/mine/checkpoints/last.ckpt"]
        run("export", *mine, *checkpoint, "--out", "exported")
        reports = ["runs/mine/report.md", "runs/own/report.md", "runs/compare"]
        for made in (*reports, "exported/model.safetensors", "exported/config.json"):
            assert (folder / made).exists(), f"{made} was not written"
        more = {path.name for path in folder.iterdir()} - {"configs", "runs", "exported", "__pycache__"}
        assert more == {"pairs.jsonl", "my_objective.py", "mine.yaml"}, f"left behind: {more}"
    print("an installed lit-safe works from an empty folder")


def _write_data(folder: Path) -> None:
    rows = [
        {"prompt": f"Name thing {i}.", "response_0": f"Thing {i}, I think.", "response_1": f"It is {i}!"}
        | {"reward_0": i % 3, "reward_1": 0.5, "cost_0": i % 4 - 1.5, "cost_1": i % 5 - 1.5}
        for i in range(80)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
