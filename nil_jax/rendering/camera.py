"""Where the picture is taken from.

Axes: N environments (or candidate cameras), H image rows, W image columns.

World frame as in MuJoCo: x forward, y left, z up, metres. Image plane coordinates are measured in image heights from
the middle of the image, x to the right and y up; pixel (i, j) is sampled at its centre, i.e. at
`((j + 0.5 - W / 2) / H, (H / 2 - i - 0.5) / H)`.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Float

PRECISE = jax.lax.Precision.HIGHEST  # GPUs would otherwise round the factors of a matrix product to 10 bits
ORTHOGRAPHIC_RANGE = 100.0  # m: an orthographic camera sees as far as this


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Camera:
    """A camera that follows a point. Every array may carry a leading axis [N]: one camera per environment.

    A geom that holds a pinhole camera is not drawn; an orthographic one also sees what is behind it.
    """

    position: Float[Array, "*n 3"]  # m, from the followed point, world axes
    rotation: Float[Array, "*n 3 3"]  # columns: image right, image up, backward (away from the scene), world axes
    focal: Float[Array, "*n"]  # focal length in image heights: f = 1 sees 53 degrees; orthographic: image heights per m
    center: Float[Array, "*n 2"]  # principal point as a fraction of (width, height); (0.5, 0.5) is the middle
    orthographic: bool = field(default=False, metadata={"static": True})


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


def model_camera(
    mj_model: mujoco.MjModel,
    name: str,
    cam_xpos: Float[Array | np.ndarray, "*n cameras 3"],
    cam_xmat: Float[Array | np.ndarray, "*n cameras 9"],
) -> Camera:
    """A camera of the MJCF, perspective or orthographic: to be used with the origin as the followed point.

    Args:
      mj_model: compiled model.
      name: of the camera.
      cam_xpos: where all cameras of the model are, m; of `mujoco.MjData` or `mjx.Data` after a forward pass.
      cam_xmat: their orientations (an `mjx.Data` has them as 3 x 3: reshape).

    Raises:
      ValueError: there is no such camera.
    """
    names = [mj_model.camera(i).name for i in range(mj_model.ncam)]
    if name not in names:
        raise ValueError(f"camera: expected one of the model's ({', '.join(names) or 'it has none'}), got {name!r}")
    i = names.index(name)
    orthographic = bool(mj_model.cam_projection[i] == mujoco.mjtProjection.mjPROJ_ORTHOGRAPHIC)
    sensor, (_, focal, *principal) = mj_model.cam_sensorsize[i], mj_model.cam_intrinsic[i]
    center = np.full(2, 0.5)
    if sensor[1] > 0:
        focal, center = focal / sensor[1], center - np.array(principal) / sensor
    else:
        focal = 1 / mj_model.cam_fovy[i] if orthographic else 0.5 / np.tan(np.radians(mj_model.cam_fovy[i]) / 2)
    return Camera(
        position=jnp.asarray(cam_xpos[..., i, :], jnp.float32),
        rotation=jnp.asarray(cam_xmat[..., i, :], jnp.float32).reshape(*cam_xmat.shape[:-2], 3, 3),
        focal=jnp.asarray(focal, jnp.float32),
        center=jnp.asarray(center, jnp.float32),
        orthographic=orthographic,
    )


def check_size(height: int, width: int) -> None:
    """Refuses an image without pixels.

    Raises:
      ValueError: a size that is not positive.
    """
    if height <= 0 or width <= 0:
        raise ValueError(f"height, width: expected at least 1 pixel each, got {height} x {width}")


def image_plane(column: Array | np.ndarray, row: Array | np.ndarray, height: int, width: int) -> tuple[Array, Array]:
    """Image plane coordinates x and y, in image heights, of the centres of pixels (float32)."""
    return (column + (0.5 - width / 2)) / height, ((height / 2 - 0.5) - row) / height


def lens(camera: Camera, aspect: float) -> Float[Array, "*n 4 4"]:
    """The matrix that takes (x, y, 1, w) to homogeneous coordinates (P, s) of a point: P / s, from the followed point.

    The nearness w grows towards the camera and is linear in (x, y) on every plane: 1 / depth in perspective,
    `ORTHOGRAPHIC_RANGE - depth` without. `aspect` is width / height.
    """
    batch = jnp.broadcast_shapes(camera.focal.shape, camera.center.shape[:-1], camera.position.shape[:-1])
    batch = jnp.broadcast_shapes(batch, camera.rotation.shape[:-2])
    position, rotation = (
        jnp.broadcast_to(camera.position, (*batch, 3)),
        jnp.broadcast_to(camera.rotation, (*batch, 3, 3)),
    )
    focal, center = jnp.broadcast_to(camera.focal, batch)[..., None], jnp.broadcast_to(camera.center, (*batch, 2))
    right, up, forward = rotation[..., 0] / focal, rotation[..., 1] / focal, -rotation[..., 2]
    shift = (center[..., :1] - 0.5) * aspect * right + (0.5 - center[..., 1:]) * up
    if camera.orthographic:
        columns, last = [right, up, position + ORTHOGRAPHIC_RANGE * forward - shift, -forward], [0.0, 0.0, 1.0, 0.0]
    else:
        columns, last = [right, up, forward - shift, position], [0.0, 0.0, 0.0, 1.0]
    bottom = jnp.broadcast_to(jnp.array(last, jnp.float32), (*batch, 1, 4))
    return jnp.concatenate([jnp.stack(columns, axis=-1), bottom], axis=-2)


def depth_of(camera: Camera, nearness: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Depth along the optical axis, m, where the nearness is not 0."""
    return ORTHOGRAPHIC_RANGE - nearness if camera.orthographic else 1 / nearness


def pixel_rays(camera: Camera, height: int, width: int) -> tuple[Float[Array, "*n H W 3"], Float[Array, "*n H W 3"]]:
    """The rays through the pixel centres: where they start, m around the followed point, and their directions.

    A direction has length 1 along the optical axis, so that depth counts its multiples.

    Raises:
      ValueError: a size that is not positive.
    """
    check_size(height, width)
    column, row = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    points = jnp.stack([*image_plane(column, row, height, width), jnp.ones((height, width))], axis=-1)
    matrix = lens(camera, width / height)
    directions = jnp.einsum("...ij,hwj->...hwi", matrix[..., :3, :3], points, precision=PRECISE)
    if not camera.orthographic:
        return jnp.broadcast_to(matrix[..., None, None, :3, 3], directions.shape), directions
    forward = jnp.broadcast_to(-matrix[..., None, None, :3, 3], directions.shape)
    return directions - ORTHOGRAPHIC_RANGE * forward, forward
