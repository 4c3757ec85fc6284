"""
The laptop size: trains on any CPU in minutes.

Validation loss on the novel, by optimizer and learning rate (that of AdamW's part behind the stroke, where it differs):

    Muon 5e-3          4.298 after 800 iterations     Muon 1e-2 / 3e-3   4.279     Muon 1e-2   4.307
    AdamW 1e-3         4.477 after 800 of 2000, in nanoGPT's schedule
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
max_iters = 800
lr_decay_iters = 800
min_lr = 5e-4
beta2 = 0.99  # a longer memory, since an iteration has few tokens
warmup_iters = 100
