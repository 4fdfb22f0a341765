"""`hf-ris train` with accelerate's FSDP on CPU processes, which accelerate itself shards on GPUs only.

The one thing changed is what kind of processes accelerate takes them for; gloo carries what they tell each other.
Started by test_sharding.py as `accelerate launch --config_file train/accelerate/fsdp.yaml --num_processes 2 THIS ...`.
"""

from accelerate import PartialState
from accelerate.utils import DistributedType

from hf_ris.commands.train import main


if __name__ == "__main__":
    state = PartialState(cpu=True)
    assert state.distributed_type == DistributedType.MULTI_CPU and state.num_processes == 2
    state.distributed_type = DistributedType.MULTI_GPU
    main()
