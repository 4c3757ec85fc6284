"""How well gpt2-large foretells a text: python train.py config/eval_gpt2_large.py --dataset=hitchikersguide"""

init_from = "gpt2-large"
eval_only = True
eval_iters = 500  # many, for a good estimate
batch_size = 8
wandb_log = False
