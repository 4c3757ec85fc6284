"""
What make demo trains: the laptop size, with a vocabulary learnt from the text, in a minute or two on any CPU.

    python data/prepare.py data/hitchikersguide/transcriptions.txt --dataset=demo --encoding=bpe --clean=True
    python train.py config/train_demo.py

docs/speed.md has the other settings that were tried.
"""

out_dir = "out-demo"
eval_interval = 200
eval_iters = 20
log_interval = 10
always_save_checkpoint = False  # the model soon overfits a small text: keep the best, not the last

dataset = "demo"
gradient_accumulation_steps = 1
batch_size = 12
block_size = 64  # tokens, about 50 words

n_layer = 4
n_head = 4
n_embd = 128
dropout = 0.0

optimizer = "muon"
learning_rate = 5e-3
max_iters = 1000
lr_decay_iters = 1000
min_lr = 0.0
beta2 = 0.99  # average over more iterations, since each has few tokens
warmup_iters = 40
