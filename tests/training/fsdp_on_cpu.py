"""gpt2lab's command line with its model in shards (FSDP) on CPUs, for torchrun.

accelerate shards models on accelerators alone; if it believes that its processes have GPUs, it does the same by gloo.
"""

import os

os.environ |= {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "GPT2Block",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}

from accelerate import PartialState
from accelerate.utils import DistributedType

from gpt2lab.cli import main

join = PartialState.__init__


def join_as_gpus(self, *arguments, **options):
    join(self, *arguments, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


PartialState.__init__ = join_as_gpus
main()
