"""The words world: pictures in which one word is written. Its prompts, and what the base model is trained on.

A prompt asks for a word of three to five letters; it names neither the background nor the font. Each length is a task.
A picture is 64 x 24 grey pixels, a grid of 16 x 6 tokens, each of 4 x 4 pixels from a codebook.
"""

from collections.abc import Iterator
from random import Random
from string import ascii_lowercase

from htgrpo_ext.words.vocabulary import WORDS

LETTERS = ascii_lowercase
LONGEST = 5  # letters
PATCH = 4  # pixels per side of a token
ROWS, COLUMNS = 6, 16  # of tokens
HEIGHT, WIDTH = ROWS * PATCH, COLUMNS * PATCH  # of pixels
NUM_IMAGE_TOKENS = ROWS * COLUMNS
CODEBOOK_SIZE = 512

TASKS = {"three_letters": 3, "four_letters": 4, "five_letters": 5}
MOST_HELD_OUT = 60  # words per task that the base model never sees; an evaluation may use so many

BEFORE, AFTER = 'the word "', '"'  # what a prompt has around its word

WORD_SHARE = 0.5  # of the pretraining pictures; the others show random letters, so that spelling has to be learnt


def make_prompt(task: str, text: str) -> dict:
    """Metadata of a prompt: its task, the text that a reader should find, and the sentence that the model reads."""
    return {"tag": task, "text": text, "prompt": f"{BEFORE}{text}{AFTER}"}


def split_prompts(held_out: int = 40) -> tuple[list[dict], list[dict]]:
    """RL prompts, and the first `held_out` evaluation prompts of each task.

    RL and pretraining never see the `MOST_HELD_OUT` words of a task that an evaluation may use, however many it takes.
    Raises ValueError for more than these.
    """
    if not 0 <= held_out <= MOST_HELD_OUT:
        raise ValueError(f"{held_out} words per task cannot be held out (at most {MOST_HELD_OUT})")
    train, evaluation = [], []
    for task, length in TASKS.items():
        words = list(WORDS[length])
        Random(f"split-{task}").shuffle(words)  # its own seed: the split does not change with the run's
        prompts = [make_prompt(task, word) for word in words]
        evaluation += prompts[:held_out]
        train += prompts[MOST_HELD_OUT:]
    return train, evaluation


def training_texts(rng: Random) -> Iterator[str]:
    """Endless texts for pretraining, all lengths equally often: words of the RL prompts, and random letters.

    A word that an evaluation may use never comes, not by chance either.
    """
    train, evaluation = split_prompts(MOST_HELD_OUT)
    kept = {prompt["text"] for prompt in evaluation}
    words = {length: [p["text"] for p in train if len(p["text"]) == length] for length in TASKS.values()}
    while True:
        length = rng.choice(list(words))
        text = rng.choice(words[length]) if rng.random() < WORD_SHARE else "".join(rng.choices(LETTERS, k=length))
        if text not in kept:
            yield text
