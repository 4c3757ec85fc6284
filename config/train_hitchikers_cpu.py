"""
The laptop size: trains on any CPU in minutes.

Validation loss on the novel, by optimizer and learning rate (that of AdamW's part behind the stroke, where it differs):

    after 800 iterations, min_lr a tenth, 100 of warm-up: Muon 5e-3 4.298, 1e-2 / 3e-3 4.279, 1e-2 4.307
    after 640, min_lr 0: Muon 5e-3 4.347; with 40 of warm-up 4.335; then with 7e-3 4.334, beta2 0.95 4.385,
        weight_decay 0.3 4.343, weight_decay 0 4.335; 1e-2 / 3e-3 4.354
    after 880 of 8 windows each, min_lr 0: Muon 5e-3 4.355
    AdamW 1e-3, in nanoGPT's schedule: 4.477 after 800 of 2000, 4.312 after 2000
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
min_lr = 0.0
beta2 = 0.99  # a longer memory, since an iteration has few tokens
warmup_iters = 40
