"""`htgrpo eval`: images in a benchmark's layout, their scores, and tables of them."""

import typer

app = typer.Typer(help="Benchmarks: generate images, score them, sum up.")
