"""The baby GPT: for a GPU, where it trains in minutes."""

out_dir = "out-hitchikers"
eval_interval = 250
eval_iters = 200
log_interval = 10
always_save_checkpoint = False  # a small text is soon learnt by heart: keep the best model, not the last

wandb_log = False
wandb_project = "hitchikers"
wandb_run_name = "baby-gpt"

dataset = "hitchikersguide"
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256  # tokens, some 200 words

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

learning_rate = 1e-3  # small models can take more
max_iters = 5000
lr_decay_iters = 5000
min_lr = 1e-4
beta2 = 0.99  # a longer memory, since an iteration has few tokens
warmup_iters = 100
