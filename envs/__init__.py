"""Robots and physics: the environment interface, MJCF robots, and the registry that names them."""

# The folder is mapped to nil_jax.envs; a plain `import envs` from the repository root would make a second copy.
if __name__ != "nil_jax.envs":
    raise ImportError(f"this package imports as nil_jax.envs, not as {__name__!r}; type: import nil_jax.envs")

from nil_jax.envs.adapters import BraxEnv
from nil_jax.envs.base import AutoResetWrapper, Env, State, VmapWrapper
from nil_jax.envs.body import Body
from nil_jax.envs.registry import make, robots
from nil_jax.envs.robot import EnvConfig, RobotEnv, RobotSpec, forward_kinematics

__all__ = [
    "AutoResetWrapper",
    "Body",
    "BraxEnv",
    "Env",
    "EnvConfig",
    "RobotEnv",
    "RobotSpec",
    "State",
    "VmapWrapper",
    "forward_kinematics",
    "make",
    "robots",
]
