"""Stills against MuJoCo's own ray caster, and against hand-computed colours."""

import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
import rays
from PIL import Image

from nil_jax.rendering import Camera, side_camera, still

SIZE = 128
FINE = 5  # the picture is this much larger than the oracle's, so that few of its pixels are half covered
HALF = 128  # of black on white: at least half of a pixel is covered
AGREEMENT = 0.995  # of all pixels
IOU = 0.99
DARK = '<light active="false"/>'  # a light that does not shine: no default lamp
NO_HEADLIGHT = '<visual><headlight active="0"/></visual>'
COLOURS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (0, 0, 0), (0.5, 0.5, 0)]
SHAPES = (
    'type="plane" size=".4 .3 .1" pos="0 .6 1" euler="60 20 0"',
    'type="sphere" size=".15" pos="0 0 .6"',
    'type="capsule" size=".08 .2" pos=".3 0 .3" euler="20 30 0"',
    'type="capsule" size=".05 .3" pos="0 0 -.2" euler="70 30 40"',
    'type="cylinder" size=".1 .15" pos="-.3 0 .3" euler="70 30 0"',
    'type="cylinder" size=".02 .3" pos="0 -.3 -.2" euler="90 30 40"',
    'type="ellipsoid" size=".1 .15 .2" pos="-.3 .1 -.2" euler="70 30 0"',
    'type="box" size=".1 .15 .2" pos=".3 .1 -.2" euler="70 30 0"',
)
ORIGIN = np.zeros(3)


def compiled(geoms, assets="", lights=DARK, visual=NO_HEADLIGHT):
    return mujoco.MjModel.from_xml_string(
        f"<mujoco>{visual}<asset>{assets}</asset><worldbody>{lights}<body>{geoms}</body></worldbody></mujoco>"
    )


def glowing(shapes):
    """Geoms that shine by themselves, each in a colour of its own: a pixel tells which geom it shows."""
    assets = "".join(
        f'<material name="m{i}" rgba="{" ".join(map(str, COLOURS[i]))} 1" emission="1" specular="0"/>'
        for i in range(len(shapes))
    )
    return compiled("".join(f'<geom {shape} material="m{i}"/>' for i, shape in enumerate(shapes)), assets)


def drawn(model, camera=None, qpos=None, target=ORIGIN, height=SIZE, width=SIZE, **kwargs):
    camera = side_camera(3.0, 0.0, 1.2) if camera is None else camera
    qpos = model.qpos0 if qpos is None else qpos
    return still(model, qpos, camera, target, height=height, width=width, **kwargs)


def cast(model, camera, target=ORIGIN, qpos=None, size=SIZE):
    """Geom ids [H, W] by MuJoCo, -1 where a ray through a pixel's centre hits nothing."""
    data = mujoco.MjData(model)
    data.qpos[:] = model.qpos0 if qpos is None else qpos
    mujoco.mj_kinematics(model, data)
    return rays.cast(model, data, camera, target, size)[0]


def drawn_finely(model, camera, **kwargs):
    """The pixels [128, 128, 3] of a larger picture that lie where the oracle's rays pass."""
    picture = drawn(model, camera, height=FINE * SIZE, width=FINE * SIZE, **kwargs)
    return picture[FINE // 2 :: FINE, FINE // 2 :: FINE]


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("camera", [side_camera(3.0, 0.2, 1.2), side_camera(2.0, -0.4, 0.9, (0.55, 0.4))])
def test_primitives_of_every_type_are_seen_where_mujoco_sees_them(camera):
    model = glowing(SHAPES)
    assert len(set(model.geom_type.tolist())) == 6
    picture = drawn_finely(model, camera, geom_ids=range(model.ngeom)).astype(float) / 255
    palette = np.array([*COLOURS, (1, 1, 1)])
    ids = np.abs(picture[:, :, None] - palette).sum(axis=-1).argmin(axis=-1)
    ids[ids == len(COLOURS)] = -1
    oracle = cast(model, camera)
    assert set(np.unique(oracle)) == {-1, *range(len(SHAPES))}
    assert (ids == oracle).mean() >= AGREEMENT
    covered = drawn_finely(black(model), camera, geom_ids=range(model.ngeom))[..., 0] <= HALF
    assert (covered == (oracle >= 0)).mean() >= AGREEMENT
    assert iou(covered, oracle >= 0) >= IOU


def black(model):
    """Lights off, all geoms black: a pixel's darkness is the part of it that is covered."""
    model.geom_rgba[:], model.mat_rgba[:] = (0, 0, 0, 1), (0, 0, 0, 1)
    model.vis.headlight.active, model.light_active[:] = 0, 0
    return model


def test_real_meshes_are_seen_where_mujoco_sees_them(shared):
    model = black(mujoco.MjModel.from_xml_path(str(shared / "menagerie" / "unitree_h1" / "h1.xml")))
    camera, rng = side_camera(3.0, 0.0, 1.3), np.random.default_rng(0)
    for _ in range(2):
        qpos = model.qpos0.copy()
        qpos[7:] += rng.normal(scale=0.3, size=model.nq - 7)
        target = np.array([0.0, 0.0, 1.0])
        covered = drawn_finely(model, camera, qpos=qpos, target=target)[..., 0] <= HALF
        oracle = cast(model, camera, target, qpos) >= 0
        assert (covered == oracle).mean() >= AGREEMENT
        assert iou(covered, oracle) >= IOU


def test_box_that_reaches_behind_the_camera_is_cut_off_there():
    shapes = ['type="box" size=".2 2 .1" pos=".5 -1.5 0"', 'type="box" size=".1 .1 .1" pos="-.3 0 0"']
    model, camera = glowing(shapes), side_camera(2.0, 0.2)
    covered = (drawn_finely(model, camera) < 128).any(axis=-1)
    oracle = cast(model, camera) >= 0
    assert (covered == oracle).mean() >= AGREEMENT
    assert not drawn(model, side_camera(1.0, 0.0), target=np.array([0.0, 9.0, 0.0])).min() < 255


@pytest.mark.parametrize("orthographic", [False, True])
def test_ball_has_the_size_and_place_of_the_formula(orthographic):
    model = black(compiled('<geom type="sphere" size=".1" pos=".3 .5 .2"/>'))
    side = side_camera(2.0, 0.1, focal=0.8, center=(0.4, 0.6))
    camera = Camera(side.position, side.rotation, side.focal, side.center, orthographic)
    coverage = 1 - drawn(model, camera, height=100, width=150)[..., 0] / 255
    scale = 80.0 if orthographic else 80 / 2.5  # pixels per metre at the ball
    rows, columns = np.indices(coverage.shape) + 0.5
    assert (coverage * columns).sum() / coverage.sum() == pytest.approx(60 + scale * 0.3, abs=0.05)
    assert (coverage * rows).sum() / coverage.sum() == pytest.approx(60 - scale * 0.1, abs=0.05)
    assert coverage.sum() == pytest.approx(np.pi * (0.1 * scale) ** 2, rel=0.02)


def test_edge_pixels_are_partly_covered_and_others_are_not():
    model = black(compiled('<geom type="box" size=".3 .3 .3" euler="0 20 0"/>'))
    values = drawn(model)[..., 0]
    assert {0, 255} < set(np.unique(values))
    between = (values > 0) & (values < 255)
    assert 0.5 < between.sum() / (4 * 0.6 * 1.2 / 2.7 * SIZE) < 3  # about the length of the outline in pixels


def test_own_colour_comes_before_the_material_and_the_default_colour_after_it():
    assets = '<material name="red" rgba="1 0 0 1" emission="1"/>'
    geoms = '<geom type="sphere" size=".2" material="red" pos="{} 0 0" {}/>'
    model = compiled(geoms.format(-0.4, "") + geoms.format(0.4, 'rgba="0 0 1 1"'), assets)
    picture = drawn(model)
    assert picture[SIZE // 2, SIZE // 2 - 20].tolist() == [255, 0, 0]
    assert picture[SIZE // 2, SIZE // 2 + 20].tolist() == [0, 0, 255]


def test_colour_of_a_lit_face_is_the_formula_of_opengl():
    """Face across the view, headlight and a lamp 60 degrees off; no highlight: specular is 0."""
    lamp = '<light type="directional" dir=".8660254 .5 0" diffuse=".6 .6 .6" ambient=".1 0 0"/>'
    visual = '<visual><headlight ambient=".1 .1 .1" diffuse=".2 .2 .2" specular="0 0 0"/></visual>'
    assets = '<material name="m" rgba=".9 .5 .2 1" specular="0" emission=".1"/>'
    picture = drawn(compiled('<geom type="box" size=".5 .1 .5" material="m"/>', assets, lamp, visual))
    light = np.array([0.8, 0.7, 0.7])  # emission .1, ambient .1 and red .1, headlight .2, lamp .6 cos 60
    assert picture[SIZE // 2, SIZE // 2] == pytest.approx(255 * light * [0.9, 0.5, 0.2], abs=1)


def test_ball_is_brighter_towards_the_lamp():
    for sign in (-1, 1):
        lamp = f'<light type="directional" dir="{-sign} .5 0"/>'
        picture = drawn(compiled('<geom type="sphere" size=".5"/>', "", lamp)).astype(int)
        towards, away = (picture[SIZE // 2, SIZE // 2 + side * 20, 0] for side in (sign, -sign))
        assert towards > away + 50


def test_near_spot_light_fades_with_distance_and_ends_at_its_cone():
    lamp = '<light pos="0 -1 0" dir="0 1 0" cutoff="20" exponent="0" attenuation="0 0 1" diffuse=".8 .8 .8"/>'
    row = drawn(compiled('<geom type="box" size=".6 .1 .6"/>', "", lamp))[SIZE // 2, :, 0]
    middle, pixels = SIZE // 2, SIZE * 1.2 / 2.9  # per metre on the face
    assert row[middle] > 100
    assert row[middle] > row[middle + int(0.25 * pixels)] > 50
    assert row[middle + int(0.4 * pixels)] == 0


@pytest.mark.parametrize("kind", ["directional", "spot"])
def test_plate_throws_a_shadow_unless_the_lamp_casts_none(kind):
    geoms = '<geom type="box" size="1 1 .05"/><geom type="box" size=".2 .2 .02" pos="0 0 .5"/>'
    geoms += '<geom type="plane" size="0 0 1" pos="0 0 -.1"/>'  # endless, and no reason for a coarser map
    brightness = {}
    for cast_shadow in ("true", "false"):
        lamp = f'<light type="{kind}" pos="0 0 4" dir="0 0 -1" castshadow="{cast_shadow}" cutoff="60" exponent="0"/>'
        camera = side_camera(3.0, 0.0, 1.0)
        tilted = np.array([[1, 0, 0], [0, np.sqrt(0.5), -np.sqrt(0.5)], [0, np.sqrt(0.5), np.sqrt(0.5)]], np.float32)
        camera = Camera(jnp.array([0.0, -3.0, 3.0]), jnp.asarray(tilted), camera.focal, camera.center)
        picture = drawn(compiled(geoms, "", lamp), camera)
        ground = project(camera, [0.0, -0.1, 0.05]), project(camera, [0.6, 0.0, 0.05])
        brightness[cast_shadow] = [int(picture[i, j, 0]) for i, j in ground]
    assert brightness["true"][0] < 10
    assert brightness["false"][0] > 80
    assert brightness["true"][1] == brightness["false"][1] > 80


def project(camera, point):
    """Row and column of the pixel that shows a point."""
    right, up, back = (np.asarray(point) - np.asarray(camera.position)) @ np.asarray(camera.rotation)
    scale = float(camera.focal) * SIZE / -back
    return int(SIZE / 2 - scale * up), int(SIZE / 2 + scale * right)


def two_colours(path):
    """A picture whose left half is red and right half blue; its upper quarter is green."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, :16], image[:, 16:], image[:8] = (255, 0, 0), (0, 0, 255), (0, 255, 0)
    Image.fromarray(image).save(path)


def test_texture_lies_on_a_mesh_as_its_own_coordinates_say(tmp_path):
    two_colours(tmp_path / "flag.png")
    (tmp_path / "flag.obj").write_text(
        "v -1 0 -1\nv 1 0 -1\nv 1 0 1\nv -1 0 1\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nvt .5 .5\n"
        "f 1/1 2/2 3/3\nf 1/1 3/3 4/4\nf 2/2 1/1 5/5\nf 3/3 2/2 5/5\nf 4/4 3/3 5/5\nf 1/1 4/4 5/5\n"
    )
    (tmp_path / "flag.xml").write_text(
        f'<mujoco>{NO_HEADLIGHT}<asset><texture name="t" type="2d" file="flag.png"/><mesh name="m" file="flag.obj"/>'
        f'<material name="t" texture="t" emission="1" rgba="1 1 1 1"/></asset><worldbody>{DARK}'
        '<body><geom type="mesh" mesh="m" material="t"/></body></worldbody></mujoco>'
    )
    model = mujoco.MjModel.from_xml_path(str(tmp_path / "flag.xml"))
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    picture = drawn(model, side_camera(4.0, 0.0, 1.2))
    pixels = SIZE * 1.2 / 4.0
    spots = {(-0.5, -0.5): (255, 0, 0), (0.5, -0.5): (0, 0, 255), (-0.5, 0.75): (0, 255, 0), (0.5, 0.75): (0, 255, 0)}
    for (x, z), colour in spots.items():
        assert tuple(picture[int(SIZE / 2 - z * pixels), int(SIZE / 2 + x * pixels)]) == colour


def test_texture_stands_upright_on_the_side_of_a_box(tmp_path):
    two_colours(tmp_path / "flag.png")
    assets = (
        f'<texture name="t" type="2d" file="{tmp_path}/flag.png"/>'
        '<material name="t" texture="t" emission="1" rgba="1 1 1 1"/>'
    )
    picture = drawn(compiled('<geom type="box" size=".5 .5 .5" material="t"/>', assets), side_camera(3.0, 0.0, 1.0))
    pixels = SIZE / 2.5
    for (x, z), colour in {(-0.3, -0.3): (255, 0, 0), (0.3, -0.3): (0, 0, 255), (0.3, 0.4): (0, 255, 0)}.items():
        assert tuple(picture[int(SIZE / 2 - z * pixels), int(SIZE / 2 + x * pixels)]) == colour


def test_cube_texture_lies_on_the_sides_of_a_box(tmp_path):
    """Right and left are +x and -x; up and down are +y and -y; front and back are +z and -z."""
    sides = {
        "right": (1, 0, 0),
        "left": (0, 1, 0),
        "up": (0, 0, 1),
        "down": (1, 1, 0),
        "front": (1, 0, 1),
        "back": (0, 1, 1),
    }
    for name, colour in sides.items():
        Image.new("RGB", (8, 8), tuple(255 * c for c in colour)).save(tmp_path / f"{name}.png")
    files = " ".join(f'file{name}="{name}.png"' for name in sides)
    (tmp_path / "cube.xml").write_text(
        f'<mujoco>{NO_HEADLIGHT}<asset><texture name="t" type="cube" {files}/><material name="t" texture="t" '
        f'emission="1" rgba="1 1 1 1"/></asset><worldbody>{DARK}<body><joint type="ball"/>'
        '<geom type="box" size=".5 .3 .4" material="t"/></body></worldbody></mujoco>'
    )
    model = mujoco.MjModel.from_xml_path(str(tmp_path / "cube.xml"))
    normals = {
        "right": (1, 0, 0),
        "left": (-1, 0, 0),
        "up": (0, 1, 0),
        "down": (0, -1, 0),
        "front": (0, 0, 1),
        "back": (0, 0, -1),
    }
    for name, normal in normals.items():
        turn = np.zeros(4)
        mujoco.mju_quatZ2Vec(turn, np.array(normal, float))  # z to the normal; then its inverse, then z to the camera
        mujoco.mju_negQuat(turn, turn)
        to_camera, qpos = np.array([np.sqrt(0.5), np.sqrt(0.5), 0, 0]), np.zeros(4)
        mujoco.mju_mulQuat(qpos, to_camera, turn)
        colour = drawn(model, qpos=qpos)[SIZE // 2, SIZE // 2]
        assert tuple(colour) == tuple(255 * c for c in sides[name]), name


def test_fine_texture_far_away_is_its_mean_colour():
    assets = (
        '<texture name="t" type="2d" builtin="checker" rgb1="0 0 0" rgb2="1 1 1" width="256" height="256"/>'
        '<material name="t" texture="t" texrepeat="300 300" emission="1" rgba="1 1 1 1"/>'
    )
    model = compiled('<geom type="plane" size="1 1 .1" euler="90 0 0" material="t"/>', assets)
    picture = drawn(model, geom_ids=[0])[SIZE // 2 - 20 : SIZE // 2 + 20, SIZE // 2 - 20 : SIZE // 2 + 20, 0].astype(
        float
    )
    assert picture.mean() == pytest.approx(127.5, abs=3)
    assert picture.std() < 20  # black and white: 127


def test_glass_lets_through_what_is_behind_it():
    assets = (
        '<material name="glass" rgba="1 0 0 .4" emission="1" specular="0"/>'
        '<material name="wall" rgba="0 0 1 1" emission="1" specular="0"/>'
    )
    geoms = (
        '<geom type="box" size=".4 .05 .4" material="glass"/>'
        '<geom type="box" size=".2 .1 .2" pos="0 {} 0" material="wall"/>'
    )
    behind, before = (drawn(compiled(geoms.format(y), assets)) for y in (0.5, -0.5))
    assert behind[SIZE // 2, SIZE // 2] == pytest.approx([0.4 * 255, 0, 0.6 * 255], abs=1)
    assert behind[SIZE // 2, SIZE // 2 + 16] == pytest.approx([255, 0.6 * 255, 0.6 * 255], abs=1)
    assert before[SIZE // 2, SIZE // 2].tolist() == [0, 0, 255]


def test_floor_is_darker_below_the_robot_and_hides_nothing():
    model = black(compiled('<geom type="sphere" size=".2" pos="0 0 .2"/>'))
    camera = side_camera(2.0, 0.7)
    plain, floor = drawn(model, camera), drawn(model, camera, floor=True)
    solid = plain[..., 0] == 0
    np.testing.assert_array_equal(floor[solid], plain[solid])
    assert (floor[0] == 255).all()  # above the horizon
    under, beside = (floor[project(camera, point)][0] for point in ([0.0, -0.15, 0.0], [0.5, -0.5, 0.0]))
    assert under < beside - 30


def test_model_without_lights_is_lit_all_the_same():
    for visual in ("", NO_HEADLIGHT):
        picture = drawn(compiled('<geom type="sphere" size=".5" rgba=".8 .8 .8 1"/>', lights="", visual=visual))
        assert 100 < picture[SIZE // 2, SIZE // 2].min() < 255


def test_brightest_bends_highlights_and_leaves_the_rest_alone():
    lamp = '<light type="directional" dir=".6 .8 0" diffuse="2.5 2.5 2.5" specular="0 0 0"/>'
    model = compiled('<geom type="sphere" size=".5" rgba=".9 .6 .3 1"/>', "", lamp)
    cut, bent = (drawn(model, brightest=b).astype(float) for b in (1.0, 0.8))
    dark = cut.max(axis=-1) < 0.5 * 255
    np.testing.assert_allclose(bent[dark], cut[dark], atol=1)  # rounding
    assert dark.sum() > 20
    middle = bent[SIZE // 2, SIZE // 2]
    assert cut[SIZE // 2, SIZE // 2, 0] == 255
    assert 0.75 * 255 < middle[0] <= 0.8 * 255
    assert middle / middle[0] == pytest.approx([1, 2 / 3, 1 / 3], abs=0.01)  # the hue is kept


def test_bad_input_is_refused():
    model, camera = compiled('<geom type="sphere" size=".5"/>'), side_camera(3.0, 0.0)
    shape = {"height": 8, "width": 8}
    with pytest.raises(ValueError, match="at least 1 pixel"):
        still(model, model.qpos0, camera, ORIGIN, height=0, width=8)
    with pytest.raises(ValueError, match=r"qpos: expected the model's 0 numbers, got shape \(3,\)"):
        still(model, np.zeros(3), camera, ORIGIN, **shape)
    with pytest.raises(ValueError, match="brightest"):
        still(model, model.qpos0, camera, ORIGIN, brightest=1.5, **shape)
    with pytest.raises(ValueError, match="camera: expected one"):
        still(
            model,
            model.qpos0,
            Camera(jnp.zeros((2, 3)), *(camera.rotation, camera.focal, camera.center)),
            ORIGIN,
            **shape,
        )
    with pytest.raises(ValueError, match=r"geom_ids: expected ids in 0\.\.0"):
        still(model, model.qpos0, camera, ORIGIN, geom_ids=[5], **shape)
    hills = mujoco.MjModel.from_xml_string(
        '<mujoco><asset><hfield name="hills" nrow="3" ncol="3" size="1 1 1 1"/></asset><worldbody>'
        '<geom name="ground" type="hfield" hfield="hills"/></worldbody></mujoco>'
    )
    with pytest.raises(ValueError, match=r"'ground'.*sphere.*got hfield"):
        still(hills, hills.qpos0, camera, ORIGIN, **shape)
