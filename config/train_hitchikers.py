"""
The baby GPT, for a GPU, where it trains in minutes:  python train.py config/train_hitchikers.py

With a vocabulary learnt from the novel (--dataset=demo, see config/train_demo.py) its arithmetic is 0.44 of that with
GPT-2's, reckoned and not measured on a GPU.
"""

out_dir = "out-hitchikers"
eval_interval = 250
eval_iters = 200
log_interval = 10
always_save_checkpoint = False  # the model soon overfits a small text: keep the best, not the last

wandb_log = False
wandb_project = "hitchikers"
wandb_run_name = "baby-gpt"

dataset = "hitchikersguide"
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256  # tokens, about 200 words

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

learning_rate = 1e-3  # small models can take a higher rate
max_iters = 5000
lr_decay_iters = 5000
min_lr = 1e-4
beta2 = 0.99  # average over more iterations, since each has few tokens
warmup_iters = 100
