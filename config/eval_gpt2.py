"""How well gpt2 predicts a text: python train.py config/eval_gpt2.py --dataset=hitchikersguide"""

init_from = "gpt2"
eval_only = True
eval_iters = 500  # many batches, for a precise estimate
batch_size = 8
wandb_log = False
