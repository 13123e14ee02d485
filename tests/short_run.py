"""Flags of the smallest training run there is."""

SETTINGS = {
    "num-timesteps": 128,
    "num-envs": 8,
    "num-evals": 1,
    "num-eval-envs": 2,
    "learning-starts": 32,
    "batch-size": 16,
    "grad-updates-per-step": 1,
    "actor-hidden": 8,
    "critic-hidden": 8,
    "mask-size": 32,
    "frame-size": 32,
    "video-weight": 0.0,  # the student takes long to compile
}
TRAIN_FLAGS = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
