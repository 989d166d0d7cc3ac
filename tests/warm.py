"""What the processes of `tests.processes` begin with: everything imported, and what transformers makes once, made."""

import gc

import peft.peft_model
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.models.gpt2 import tokenization_gpt2

import gpt2lab.cli.finetune
import gpt2lab.cli.generate
import gpt2lab.training.worker

__all__ = ["gpt2lab", "peft", "tokenization_gpt2"]
get_checkpoint_conversion_mapping("gpt2")
gc.collect()
gc.freeze()  # nothing that is here is looked through again by each process
