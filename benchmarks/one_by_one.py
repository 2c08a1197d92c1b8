"""The peers of the training benchmark: transformers + PEFT, one user after another in one model.

- tuned: padding to the batch's longest example, fused attention, no gradient checkpointing, logits at the columns alone
  where some example of the batch has its answer (`logits_to_keep`, which transformers' own loss does not do), and one
  model for all users whose adapter is set anew.
- published: the same with what the paper's published code does: gradient checkpointing, padding to a multiple of 8,
  logits of all positions.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel

from oppu.model.kinds import ModuleConfig
from oppu.model.module import Module
from oppu.model.tokens import Encoded
from oppu.train import Job, TrainConfig, batches_of, learning_rate_factor

Losses = dict[str, list[float]]
"""Of each user's steps."""
LossOf = Callable[[PeftModel, list[Encoded]], torch.Tensor]
"""The mean loss of a batch's answer tokens."""


def peft_model(model: PreTrainedModel, like: Module, module: ModuleConfig, *, published: bool) -> PeftModel:
    """The base with transformers' own attention and PEFT's LoRA, in the shape of one of oppu's modules."""
    model.set_attn_implementation("sdpa")
    targets = list(like.config["target_modules"])
    made = get_peft_model(model, PeftConfig(r=module.rank, lora_alpha=int(module.alpha), target_modules=targets))
    made.train()
    if published:
        made.activation_checkpointing_enable()
        made.enable_input_require_grads()
    return made


def train_one_by_one(
    model: PeftModel, starts: Mapping[str, Module], loss_of: LossOf, jobs: Sequence[Job], config: TrainConfig
) -> Losses:
    """One user after another with transformers, PEFT and torch's AdamW, each from the numbers of `starts`."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    losses: Losses = {}
    for job in jobs:
        set_peft_model_state_dict(model, dict(starts[job.user_id].tensors))
        total = config.epochs * math.ceil(len(job.examples) / config.batch_size)
        optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        seen = losses[job.user_id] = []
        for step, batch in enumerate(batches_of(job, config)):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * learning_rate_factor(step, total, config.warmup)
            loss = loss_of(model, batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            optimizer.step()
            seen.append(loss.item())
    return losses


def tuned_loss(model: PeftModel, batch: list[Encoded]) -> torch.Tensor:
    """With logits where some example has its answer, and nowhere else."""
    inputs = {name: tensor.to(model.device) for name, tensor in padded(batch).items()}
    labels = inputs.pop("labels")
    columns = (labels[:, 1:] != -100).any(0).nonzero()[:, 0]
    logits = model(**inputs, logits_to_keep=columns).logits
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), labels[:, columns + 1].flatten())


def published_loss(model: PeftModel, batch: list[Encoded]) -> torch.Tensor:
    """With all logits, as transformers computes a loss, on a width that is a multiple of 8."""
    inputs = {name: tensor.to(model.device) for name, tensor in padded(batch, 8).items()}
    loss: torch.Tensor = model(**inputs).loss
    return loss


def padded(batch: list[Encoded], multiple: int = 1) -> dict[str, torch.Tensor]:
    """A batch as a data collator makes it: padded on the right to its longest example, or to the next `multiple`."""
    width = math.ceil(max(len(e.tokens) for e in batch) / multiple) * multiple
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    labels = torch.full((len(batch), width), -100)
    for line, e in enumerate(batch):
        ids[line, : len(e.tokens)] = torch.tensor(e.tokens)
        mask[line, : len(e.tokens)] = 1
        labels[line, e.answer_start : len(e.tokens)] = torch.tensor(e.tokens[e.answer_start :])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
