"""
Fine-tune GPT-2 on your text, on a GPU:  python train.py config/finetune_hitchikers.py

Needs 32 GB of GPU memory on paper, or 22 with --checkpoint_activations=True --optimizer=muon. Smaller models need less:
17 with --init_from=gpt2-large, 8 with gpt2-medium, 4 with gpt2. See docs/gpt2.md.
"""

init_from = "gpt2-xl"  # downloaded once, 6.4 GB; gpt2-large is 3.2, gpt2-medium 1.5, gpt2 0.5
out_dir = "out-hitchikers"
eval_interval = 5
eval_iters = 40
always_save_checkpoint = False  # a large model soon overfits a small text: keep the best

wandb_log = False
wandb_project = "hitchikers"
wandb_run_name = "finetune"

dataset = "hitchikersguide"
# 1 window x 1024 tokens x 32 micro-batches = 32,768 tokens per iteration.
# The novel has 187,067 tokens, so 20 iterations are 3.5 epochs.
batch_size = 1
gradient_accumulation_steps = 32
max_iters = 20

learning_rate = 3e-5
decay_lr = False  # constant
