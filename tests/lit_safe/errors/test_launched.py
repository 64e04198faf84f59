"""Devices and machines other than the launcher has started are one message, before anything is loaded."""

import pytest
from lightning import Trainer

from lit_safe.errors.places import Words
from lit_safe.errors.trainer import trainer_mistake

TORCHRUN = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN |= {"TORCHELASTIC_RUN_ID": "tests", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
SLURM = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "tests"}
SLURM |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "1"}


@pytest.mark.parametrize(
    ("launcher", "devices", "nodes", "said"),
    [
        (TORCHRUN, 1, 1, r"the product \(1 \* 1\) does not match the world size \(2\)"),
        (SLURM, 3, 2, r"the number of tasks per node configured in SLURM .*=4"),
        (SLURM, 4, 1, r"the number of nodes configured in SLURM .*=2"),
    ],
)
def test_another_number_than_the_launcher_started_is_one_message(
    launcher: dict[str, str], devices: int, nodes: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    run = Trainer(accelerator="cpu", devices=devices, num_nodes=nodes, strategy="ddp", logger=False)
    with pytest.raises(ValueError, match=said) as caught:
        run.strategy.launcher.launch(lambda: None)  # the first thing that `fit` does
    words = ["fit", "--trainer.devices", str(devices), "--trainer.num_nodes", str(nodes)]
    message = trainer_mistake(str(caught.value), Words(words))
    assert message is not None
    assert "not a value of" not in str(message)
    assert "as the launcher starts" in str(message)
    assert "--trainer." in str(message)
