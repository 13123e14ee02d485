"""Where the picture is taken from.

Axes: N environments (or candidate cameras), H image rows, W image columns.

World frame as in MuJoCo: x forward, y left, z up, metres. Image plane coordinates are measured in image heights from
the middle of the image, x to the right and y up; pixel (i, j) is sampled at its centre, i.e. at
`((j + 0.5 - W / 2) / H, (H / 2 - i - 0.5) / H)`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

PRECISE = jax.lax.Precision.HIGHEST  # GPUs would otherwise round the factors of a matrix product to 10 bits


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Camera:
    """A pinhole camera that follows a point. Every field may carry a leading axis [N]: one camera per environment."""

    position: Float[Array, "*n 3"]  # m, from the followed point, world axes
    rotation: Float[Array, "*n 3 3"]  # columns: image right, image up, backward (away from the scene), world axes
    focal: Float[Array, "*n"]  # focal length in image heights: f = 1 sees 53 degrees vertically
    center: Float[Array, "*n 2"]  # principal point as a fraction of (width, height); (0.5, 0.5) is the middle


def side_camera(distance: float, height: float, focal: float = 1.0, center: tuple[float, float] = (0.5, 0.5)) -> Camera:
    """A camera on the robot's right that looks along +y, so that a robot facing +x walks to the right of the image.

    Args:
      distance: from the followed point, along -y, m.
      height: above the followed point, m.
      focal: focal length in image heights.
      center: where the optical axis meets the image, as a fraction of (width, height) from the upper left corner.

    Raises:
      ValueError: distance or focal not positive.
    """
    if not distance > 0:
        raise ValueError(f"distance: expected metres > 0, got {distance}")
    if not focal > 0:
        raise ValueError(f"focal: expected image heights > 0, got {focal}")
    return Camera(
        position=jnp.array([0.0, -distance, height], jnp.float32),
        rotation=jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]], jnp.float32),
        focal=jnp.asarray(focal, jnp.float32),
        center=jnp.asarray(center, jnp.float32),
    )


def check_size(height: int, width: int) -> None:
    """Refuses an image without pixels.

    Raises:
      ValueError: a size that is not positive.
    """
    if height <= 0 or width <= 0:
        raise ValueError(f"height, width: expected at least 1 pixel each, got {height} x {width}")


def image_plane(column: Array, row: Array, height: int, width: int) -> tuple[Array, Array]:
    """Image plane coordinates x and y, in image heights, of the centres of pixels (float32)."""
    return (column + (0.5 - width / 2)) / height, ((height / 2 - 0.5) - row) / height


def pixel_grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Image plane coordinates of the pixel centres, in image heights: x [1, 1, W] to the right, y [1, H, 1] up.

    Raises:
      ValueError: a size that is not positive.
    """
    check_size(height, width)
    x, y = image_plane(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32), height, width)
    return x.reshape(1, 1, width), y.reshape(1, height, 1)


def ray_matrix(camera: Camera, aspect: float) -> Float[Array, "*n 3 3"]:
    """The matrix M of `direction = M @ (x, y, 1)`: image plane coordinates to world ray directions.

    A direction has length 1 along the optical axis, so the ray parameter is the depth along that axis.
    `aspect` is width / height.
    """
    batch = jnp.broadcast_shapes(camera.focal.shape, camera.center.shape[:-1], camera.rotation.shape[:-2])
    rotation, center = (
        jnp.broadcast_to(camera.rotation, (*batch, 3, 3)),
        jnp.broadcast_to(camera.center, (*batch, 2)),
    )
    focal = jnp.broadcast_to(camera.focal, batch)[..., None]
    right, up, backward = rotation[..., 0] / focal, rotation[..., 1] / focal, rotation[..., 2]
    forward = -backward - (center[..., :1] - 0.5) * aspect * right - (0.5 - center[..., 1:]) * up
    return jnp.stack([right, up, forward], axis=-1)


def pixel_rays(camera: Camera, height: int, width: int) -> Float[Array, "*n H W 3"]:
    """World directions of the rays through the pixel centres, of length 1 along the optical axis."""
    x, y = pixel_grid(height, width)
    points = jnp.stack(jnp.broadcast_arrays(x[0], y[0], np.ones_like(x[0])), axis=-1)
    return jnp.einsum("...ij,hwj->...hwi", ray_matrix(camera, width / height), points, precision=PRECISE)
