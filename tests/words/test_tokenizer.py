"""The words world's tokenizer, against brute force and against scipy's k-means."""

from random import Random

import numpy as np
import torch
from scipy.cluster.vq import kmeans2

from htgrpo_ext.words import tokenizer
from htgrpo_ext.words.drawing import draw


def pictures(count: int) -> torch.Tensor:
    rng = Random(3)
    return torch.from_numpy(np.stack([draw("river", rng, bool(i % 2)) for i in range(count)]))


def test_each_patch_becomes_the_nearest_of_the_codebook():
    pictures_BHW = pictures(3)
    codebook_VD = torch.randint(0, 256, (40, 16), generator=torch.Generator().manual_seed(0)).float()
    codebook_VD[7] = codebook_VD[30]  # of equals the first
    codes_BN = tokenizer.encode(pictures_BHW, codebook_VD)
    assert codes_BN.shape == (3, 96)
    for b in range(3):
        for n in range(96):
            row, column = divmod(n, 16)
            patch = pictures_BHW[b, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].reshape(16).long()
            distances = [int(((patch - code.long()) ** 2).sum()) for code in codebook_VD]
            assert codes_BN[b, n] == distances.index(min(distances))


def test_decoding_undoes_encoding_where_the_codebook_has_every_patch():
    pictures_BHW = pictures(2)
    codebook_VD = tokenizer.to_patches(pictures_BHW).flatten(0, 1)
    decoded_BHW = tokenizer.decode(tokenizer.encode(pictures_BHW, codebook_VD), codebook_VD)
    assert torch.equal(decoded_BHW, pictures_BHW.float())


def test_the_codebook_is_scipys_k_means_from_the_same_start():
    patches_PD = tokenizer.to_patches(pictures(40)).flatten(0, 1)
    start = patches_PD[torch.randperm(len(patches_PD), generator=torch.Generator().manual_seed(5))[:12]]
    assert len(start.unique(dim=0)) == 12  # no code is lost, so that scipy's rule for lost codes does not matter
    expected, codes = kmeans2(patches_PD.double().numpy(), start.double().numpy(), iter=4, minit="matrix")
    assert len(np.unique(codes)) == 12
    found = tokenizer.fit(patches_PD, 12, 4, torch.Generator().manual_seed(5))
    assert np.abs(found.numpy() - expected).max() <= 0.51  # rounded to whole grey levels


def test_a_lost_code_starts_again_at_a_patch():
    patches_PD = torch.tensor(
        [[0.0] * 16] * 50 + [[255.0] * 16]
    )  # most starts are equal, and only the first is nearest
    found = tokenizer.fit(patches_PD, 4, 60, torch.Generator().manual_seed(0))
    assert {float(level) for level in found.unique()} == {0.0, 255.0}
