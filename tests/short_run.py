"""Settings of the shortest training runs there are; with them, runs of one environment share compiled programs."""

SETTINGS = {
    "num_timesteps": 64 * 8,
    "num_envs": 8,
    "num_evals": 2,
    "num_eval_envs": 2,
    "learning_starts": 64,
    "batch_size": 32,
    "grad_updates_per_step": 1,
    "actor_hidden": (16,),
    "critic_hidden": (16,),
    "video_weight": 0.0,  # the student takes long to compile
}
SIZES = {"mask_size": 32, "frame_size": 32}  # of a reference that is still to be made


def flags(settings: dict) -> list[str]:
    """The settings as a command takes them."""
    values = {name: value if isinstance(value, tuple) else (value,) for name, value in settings.items()}
    return [word for name, given in values.items() for word in (f"--{name.replace('_', '-')}", *map(str, given))]


TRAIN_FLAGS = flags(SETTINGS | SIZES)
