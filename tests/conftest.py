import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("tests", deadline=None, derandomize=True, max_examples=60, database=None)
settings.load_profile("tests")
