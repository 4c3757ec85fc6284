"""
The laptop size: trains on any CPU in minutes.

Tried here, on the novel, with the best validation loss after so many iterations: @TRIED@
"""

out_dir = "out-hitchikers"
eval_interval = 200
eval_iters = 20
log_interval = 10
always_save_checkpoint = False  # a small text is soon learnt by heart: keep the best model, not the last

dataset = "hitchikersguide"
gradient_accumulation_steps = 1
batch_size = 12
block_size = 64  # tokens, some 50 words

n_layer = 4
n_head = 4
n_embd = 128
dropout = 0.0

optimizer = "muon"
learning_rate = 5e-3
max_iters = 1000
lr_decay_iters = 1000
min_lr = 5e-4
beta2 = 0.99  # a longer memory, since an iteration has few tokens
warmup_iters = 100
