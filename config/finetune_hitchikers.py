"""
GPT-2 XL, the largest, learns to write like your text:  python train.py config/finetune_hitchikers.py

On paper it takes 32 GB of GPU memory, or 22 with --checkpoint_activations=True --optimizer=muon; with
--init_from=gpt2-large 17, gpt2-medium 8, gpt2 4.
"""

init_from = "gpt2-xl"  # or gpt2-large, gpt2-medium, gpt2: downloaded once, 6.4 GB, 3.2, 1.5, 0.5
out_dir = "out-hitchikers"
eval_interval = 5
eval_iters = 40
always_save_checkpoint = False  # a large model soon knows a small text by heart: keep the best

wandb_log = False
wandb_project = "hitchikers"
wandb_run_name = "finetune"

dataset = "hitchikersguide"
# 1 window x 1024 tokens x 32 micro-batches = 32,768 tokens an iteration; the novel has 187,067, so 20 are 3.5 epochs
batch_size = 1
gradient_accumulation_steps = 32
max_iters = 20

learning_rate = 3e-5
decay_lr = False  # constant
