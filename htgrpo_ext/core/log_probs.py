"""Log-probabilities of chosen codes, without a second table of all codes.

V codebook, M rows of logits, T chosen codes, m rows at once.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

AT_ONCE = 2**21  # entries of a float32 table [m, V]


class _ChosenLogProbs(torch.autograd.Function):
    """Keeps the logits as the model gave them, in bfloat16 or float32, and writes their gradient in pieces."""

    @staticmethod
    def forward(ctx, logits_MV: Tensor, slot_T: Tensor, code_T: Tensor) -> Tensor:
        total_M = torch.cat([piece.float().logsumexp(-1) for piece in _pieces(logits_MV)])
        ctx.save_for_backward(logits_MV, slot_T, code_T, total_M)
        return logits_MV[slot_T, code_T].float() - total_M[slot_T]

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_T: Tensor) -> tuple[Tensor, None, None]:
        logits_MV, slot_T, code_T, total_M = ctx.saved_tensors
        # d/dlogits of sum_t g_t (logit[slot_t, code_t] - log sum exp logits[slot_t]): g_t at the chosen codes, less
        # the softmax times the row's sum of g_t.
        row_M = torch.zeros_like(total_M).index_put((slot_T,), gradient_T, accumulate=True)
        result_MV, start = torch.empty_like(logits_MV), 0
        for piece in _pieces(logits_MV):
            stop = start + len(piece)
            # Those of other pieces add zero somewhere: to select these would make the device wait for their number.
            of_piece_T = torch.where((slot_T >= start) & (slot_T < stop), gradient_T, 0.0)
            place_T = (slot_T - start).clamp(0, len(piece) - 1)
            chosen = torch.zeros(piece.shape, device=piece.device)
            chosen = chosen.index_put((place_T, code_T), of_piece_T, accumulate=True)
            softmax = (piece.float() - total_M[start:stop, None]).exp()
            result_MV[start:stop] = chosen - row_M[start:stop, None] * softmax
            start = stop
        return result_MV, None, None


def _pieces(logits_MV: Tensor) -> tuple[Tensor, ...]:
    return logits_MV.split(max(1, AT_ONCE // logits_MV.shape[1]))


def chosen_log_probs(logits_MV: Tensor, slot_T: Tensor, code_T: Tensor) -> Tensor:
    """log softmax(logits)[slot_t, code_t] of each t, in float32 whatever the type of the logits. float32 [T]

    slot_T, code_T  int64; a pair may come several times
    """
    return _ChosenLogProbs.apply(logits_MV, slot_T, code_T)
