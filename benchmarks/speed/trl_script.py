"""What a user of TRL would write: a LoRA adapter by DPO on a table of pairs.

python trl_script.py MODEL TABLE OUT BATCH RANK ATTENTION DEVICE
"""

import json
import sys
from pathlib import Path

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

model, table, out, batch, rank, attention, device = sys.argv[1:]
dataset = load_dataset("json", data_files=table, split="train").select_columns(["prompt", "chosen", "rejected"])
trainer = DPOTrainer(
    AutoModelForCausalLM.from_pretrained(model, attn_implementation=attention),
    args=DPOConfig(
        output_dir=out,
        bf16=True,
        # On by default, and slower; the memory is there.
        gradient_checkpointing=False,
        max_length=None,
        num_train_epochs=1,
        per_device_train_batch_size=int(batch),
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=device == "cpu",
    ),
    train_dataset=dataset,
    processing_class=AutoTokenizer.from_pretrained(model),
    peft_config=LoraConfig(r=int(rank), lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
)
result = trainer.train()
trainer.save_model(out)
Path(out, "train_loss.json").write_text(json.dumps(result.training_loss), encoding="utf-8")
