"""How well gpt2-xl predicts a text: python train.py config/eval_gpt2_xl.py --dataset=hitchikersguide"""

init_from = "gpt2-xl"
eval_only = True
eval_iters = 500  # many batches, for a precise estimate
batch_size = 8
wandb_log = False
