"""What `htgrpo diagnose` changes in a run's settings. Loads no torch, so that a refused configuration is quick."""


def settings_of(prompts: int) -> list[str]:
    """What a diagnosis changes in a run's settings, as `key=value`: size, sampler, one whole batch."""
    return [f"rollout.prompts_per_cycle={2 * prompts}", "loop.micro_batches=1", "rollout.sampler=emerge"]
