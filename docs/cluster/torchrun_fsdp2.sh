#!/bin/bash
# A 7B policy on 2 machines with 8 GPUs each, without a scheduler. Run this on both machines, and say which one is the
# first:   HEAD=first.machine RANK_OF_MACHINE=0 bash docs/cluster/torchrun_fsdp2.sh
# Not run on two machines yet. For one machine leave out the four options of torchrun and --trainer.num_nodes.

set -u                            # a misspelt variable is an error, not an empty word

export OMP_NUM_THREADS=1          # threads of torch on the CPU, in each of the 8 processes
export HF_HUB_OFFLINE=1           # 16 processes must not ask the hub; download the model before

# --nnodes, --nproc_per_node   machines, and processes (GPUs) on each: as in --trainer.num_nodes and --trainer.devices
# --node_rank                  0 on the first machine, 1 on the second
# --master_addr, _port         where all processes meet: the first machine, and a port that is free there
# --ckpt_path auto             continue the newest whole checkpoint of the run folder, or start. All machines see it
torchrun --nnodes 2 --nproc_per_node 8 --node_rank "${RANK_OF_MACHINE}" \
    --master_addr "${HEAD}" --master_port 29500 \
    train.py fit -c configs/base.yaml -c configs/experiment/c_dpo_7b.yaml -c configs/trainer/fsdp2.yaml \
    --trainer.num_nodes 2 --trainer.devices 8 --trainer.default_root_dir runs/c_dpo_7b \
    --checkpoint.every_n_steps 100 --checkpoint.keep_last 2 --ckpt_path auto

# Ctrl-C and SIGTERM reach torchrun, which sends SIGTERM to its processes and waits 30 seconds before it kills them. A
# checkpoint that takes longer is lost, and the one before it stays. SIGUSR1 to the processes themselves has no such
# limit: kill -USR1, with the number of one of them.
