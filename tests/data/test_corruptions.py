"""The corruptions: their formulas, their severities, and that an image's is its own."""

import colorsys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from gnexp.data.corruptions import table
from gnexp.data.corruptions.blur import defocus_kernel, streak
from gnexp.data.corruptions.draws import Draws
from gnexp.data.corruptions.table import CORRUPTIONS, EXTRA, PUBLISHED, SEVERITIES, corrupt
from gnexp.data.synthetic import shapes10

# Where the published parameters trade one effect for another, the distance does not grow: glass
# blurs more but shuffles less, frost hides more of the image, elastic tilts less but ripples more,
# and motion blur at 4 only lengthens a kernel whose tail is nothing.
NOT_MONOTONIC = ("glass_blur", "frost", "elastic_transform", "motion_blur")
SPATIAL = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform")


@pytest.fixture(scope="module")
def x_N3SS() -> torch.Tensor:
    return torch.from_numpy(shapes10(10, 40)[2])


def flat(level: int, count: int = 40, side: int = 32) -> torch.Tensor:
    return torch.full((count, 3, side, side), level, dtype=torch.uint8)


def assert_rounded(got: torch.Tensor, exact: np.ndarray) -> None:
    """Every level is the nearest to the exact value in [0, 255] (float64)."""
    assert np.abs(got.numpy() - exact.clip(0, 255)).max() <= 0.5 + 1e-5


def test_the_fifteen_published_kinds_and_three_pure_ones_have_five_severities():
    assert len(PUBLISHED) == 15
    assert set(CORRUPTIONS) - set(PUBLISHED) == {"pure_contrast", "pure_brightness", "colour_cast"}
    assert all(len(entry.parameters) == 5 for entry in CORRUPTIONS.values())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_distance_from_the_image_grows_with_severity_where_the_parameters_say_so(name, x_N3SS):
    distances = [
        (corrupt(x_N3SS, name, severity, 0).double() - x_N3SS.double()).abs().mean().item()
        for severity in SEVERITIES
    ]
    assert distances[0] > 0.5  # levels of 255
    if name not in NOT_MONOTONIC:
        assert distances == sorted(set(distances))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_alike_alone_in_any_part_and_in_any_chunk(name, x_N3SS, monkeypatch):
    before, state = x_N3SS.clone(), torch.get_rng_state()
    whole = corrupt(x_N3SS, name, 4, 7)
    assert torch.equal(x_N3SS, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(corrupt(x_N3SS, name, 4, 7), whole)
    assert torch.equal(corrupt(x_N3SS[11:12], name, 4, 7, first=11), whole[11:12])
    monkeypatch.setattr(table, "_VALUES_AT_ONCE", 3 * 3072)
    assert torch.equal(corrupt(x_N3SS[2:], name, 4, 7, first=2), whole[2:])


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "snow", "frost"])
def test_seed_severity_and_index_each_change_the_draws(name):
    x = flat(90, 2)
    one = corrupt(x, name, 2, 0)
    assert not torch.equal(one, corrupt(x, name, 2, 1))
    assert not torch.equal(one, corrupt(x, name, 3, 0))
    assert not torch.equal(one[0], one[1])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_size_from_8_pixels_works(name, x_N3SS):
    for side, severity in ((8, 5), (21, 1), (40, 5)):
        x = torch.nn.functional.interpolate(x_N3SS[:2], size=side)
        y = corrupt(x, name, severity, 0)
        assert (y.shape, y.dtype) == (x.shape, torch.uint8)
        assert corrupt(x[:0], name, severity, 0).shape == (0, 3, side, side)


@pytest.mark.parametrize("severity", [1, 5])
@pytest.mark.parametrize("name", [*SPATIAL, "contrast", "pure_contrast", "pixelate"])
def test_what_moves_or_averages_pixels_leaves_a_flat_image_alone(name, severity):
    x = flat(77, 3)
    assert torch.equal(corrupt(x, name, severity, 0), x)


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.04), (5, 0.10)])
def test_gaussian_noise_has_mean_zero_and_the_published_deviation(severity, sigma):
    noise = corrupt(flat(127), "gaussian_noise", severity, 0).double() - 127
    count = noise.numel()
    assert abs(noise.mean().item()) < 5 * 255 * sigma / count**0.5
    assert noise.std().item() == pytest.approx(255 * sigma, rel=5 / (2 * count) ** 0.5 + 1e-3)


@pytest.mark.parametrize(("severity", "photons"), [(1, 500), (5, 50)])
def test_shot_noise_has_the_variance_of_photon_counts(severity, photons):
    y = corrupt(flat(102), "shot_noise", severity, 0).double() / 255
    assert y.mean().item() == pytest.approx(0.4, abs=1e-3)
    assert y.var().item() == pytest.approx(0.4 / photons, rel=0.03)


@pytest.mark.parametrize(("severity", "share"), [(1, 0.01), (5, 0.07)])
def test_impulse_noise_sets_half_of_its_share_to_black_and_half_to_white(severity, share):
    y = corrupt(flat(100), "impulse_noise", severity, 0)
    for level in (0, 255):
        assert (y == level).double().mean().item() == pytest.approx(share / 2, rel=0.1)
    assert ((y == 0) | (y == 255) | (y == 100)).all()


@pytest.mark.parametrize(("severity", "gain"), [(1, 0.75), (2, 0.5), (3, 0.4), (4, 0.3), (5, 0.15)])
def test_contrast_shrinks_towards_the_mean_of_each_colour_and_pure_contrast_of_all(
    severity, gain, x_N3SS
):
    x = x_N3SS.numpy().astype(np.float64)
    for name, axes in (("contrast", (2, 3)), ("pure_contrast", (1, 2, 3))):
        mean = x.mean(axis=axes, keepdims=True)
        assert_rounded(corrupt(x_N3SS, name, severity, 0), gain * x + (1 - gain) * mean)


@pytest.mark.parametrize(("severity", "added"), [(1, 0.05), (5, 0.3)])
def test_brightness_adds_to_the_value_of_hsv_and_pure_brightness_to_all_colours(
    severity, added, x_N3SS
):
    x = x_N3SS[:1].clone()
    x[0, :, 0, 0] = 0  # black, which has no hue
    pixels = x[0].flatten(1).T.numpy() / 255
    hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in pixels]
    rgb = np.array([colorsys.hsv_to_rgb(h, s, min(v + added, 1)) for h, s, v in hsv])
    assert_rounded(corrupt(x, "brightness", severity, 0)[0].flatten(1), 255 * rgb.T)
    pure = x.numpy().astype(np.float64) + 255 * added
    assert_rounded(corrupt(x, "pure_brightness", severity, 0), pure)


@pytest.mark.parametrize(("severity", "strength"), [(1, 0.1), (5, 0.5)])
def test_a_colour_cast_is_an_affine_map_of_its_own_per_image_and_colour_and_clips_nothing(
    severity, strength, x_N3SS
):
    y = corrupt(x_N3SS, "colour_cast", severity, 0).double().flatten(2).numpy()
    x = x_N3SS.double().flatten(2).numpy()
    maps = np.array([[np.polyfit(*pair, 1) for pair in zip(*each)] for each in zip(x, y)])
    gain, shift = maps[..., 0], maps[..., 1]
    assert np.abs(gain[..., None] * x + shift[..., None] - y).max() < 0.75  # rounding, and the fit
    assert gain.min() > 1 - strength - 0.02
    assert gain.max() < 1 - strength / 2 + 0.02
    assert shift.min() > -2
    assert (gain * 255 + shift).max() < 257
    assert len(np.unique(gain.round(6))) == gain.size


def test_jpeg_is_what_pillow_saves_at_the_published_qualities(x_N3SS):
    for severity, quality in enumerate((80, 65, 58, 50, 40), start=1):
        file = BytesIO()
        image = Image.fromarray(np.moveaxis(x_N3SS[5].numpy(), 0, -1))
        image.save(file, format="JPEG", quality=quality)
        expected = np.moveaxis(np.asarray(Image.open(file)), -1, 0)
        y = corrupt(x_N3SS[5:6], "jpeg_compression", severity, 0)
        assert np.array_equal(y[0].numpy(), expected)


def test_pixelate_is_pillows_box_to_fewer_pixels_and_back(x_N3SS):
    for severity, pixels in enumerate((30, 28, 27, 24, 20), start=1):
        image = Image.fromarray(np.moveaxis(x_N3SS[5].numpy(), 0, -1))
        image = image.resize((pixels, pixels), Image.Resampling.BOX)
        expected = np.moveaxis(np.asarray(image.resize((32, 32), Image.Resampling.BOX)), -1, 0)
        y = corrupt(x_N3SS[5:6], "pixelate", severity, 0)[0]
        assert np.array_equal(y.numpy(), expected)
        assert len({tuple(line) for line in y[0].tolist()}) == pixels  # the other rows repeat


def test_a_defocus_kernel_sums_to_one_and_is_the_answer_to_a_point():
    for severity, (radius, alias) in enumerate(CORRUPTIONS["defocus_blur"].parameters, start=1):
        kernel = defocus_kernel(radius, alias)
        assert kernel.sum() == pytest.approx(1, abs=1e-12)
        assert np.allclose(kernel, kernel.T, rtol=0, atol=1e-15)
        assert np.allclose(kernel, kernel[::-1, ::-1], rtol=0, atol=1e-15)
        x, reach = flat(0, 1), len(kernel) // 2
        x[0, :, 15, 16] = 255
        cut = slice(15 - reach, 16 + reach), slice(16 - reach, 17 + reach)
        y = corrupt(x, "defocus_blur", severity, 0)
        assert_rounded(y[0, 1][cut], 255 * kernel)
        assert y[0, 1].sum() == y[0, 1][cut].sum()


@pytest.mark.parametrize("degrees", [0.0, 90.0, 45.0])
def test_a_streak_is_half_a_gaussian_along_its_direction(degrees):
    row = torch.rand(1, 1, 20, 20, generator=torch.Generator().manual_seed(0)).double()
    got = streak(row, torch.tensor([degrees]), radius=2, sigma=1.5)[0, 0].numpy()
    weights = np.exp(-(np.arange(5) ** 2) / 4.5)
    weights /= weights.sum()
    # On the diagonal, a step is 0.7 pixels each way, rounded: 0, 1, 1, 2, 3.
    right, down = {0.0: (range(5), [0] * 5), 90.0: ([0] * 5, range(5))}.get(
        degrees, ([0, 1, 1, 2, 3], [0, 1, 1, 2, 3])
    )
    padded = np.pad(row[0, 0].numpy(), ((0, 4), (0, 4)), mode="edge")
    expected = sum(
        w * padded[d : d + 20, r : r + 20] for w, r, d in zip(weights, right, down, strict=True)
    )
    assert np.allclose(got, expected, rtol=0, atol=1e-12)  # float64


def test_motion_blur_has_another_direction_for_each_image():
    x = flat(0, 20)
    x[:, :, 16, 20] = 255
    y = corrupt(x, "motion_blur", 5, 0)[:, 0].double()
    at = torch.arange(32.0, dtype=torch.float64)
    down = (y * at[:, None]).sum((1, 2)) / y.sum((1, 2)) - 16
    right = (y * at).sum((1, 2)) / y.sum((1, 2)) - 20
    angles = torch.rad2deg(torch.atan2(-down, -right))
    assert angles.min() > -50
    assert angles.max() < 50
    assert angles.max() - angles.min() > 40


def test_zoom_blur_averages_linear_enlargements_of_the_middle(x_N3SS):
    x = x_N3SS[0, 0].double().numpy()
    zooms = np.arange(1, 1.16, 0.01)
    total = x.copy()
    for zoom in zooms:
        kept = int(np.ceil(32 / zoom))
        top = (32 - kept) // 2
        size = round(kept * zoom)
        at = np.linspace(0, kept - 1, size)
        part = x[top : top + kept, top : top + kept]
        part = np.stack([np.interp(at, np.arange(kept), line) for line in part])
        part = np.stack([np.interp(at, np.arange(kept), line) for line in part.T], axis=1)
        cut = (size - 32) // 2
        total += part[cut : cut + 32, cut : cut + 32]
    assert_rounded(corrupt(x_N3SS, "zoom_blur", 3, 0)[0, 0], total / (len(zooms) + 1))


def test_glass_at_1_gives_each_pixel_the_colour_of_itself_or_a_neighbour_above_or_left(x_N3SS):
    x, y = x_N3SS.long(), corrupt(x_N3SS, "glass_blur", 1, 0).long()
    code_x, code_y = ((z * torch.tensor([1, 256, 65536])[:, None, None]).sum(1) for z in (x, y))
    near = [code_x.roll((down, right), (1, 2)) for down in (0, 1) for right in (0, 1)]
    inner = (slice(None), slice(2, None), slice(2, None))
    same = torch.stack([(code_y == other)[inner] for other in near])
    assert same.any(0).all()
    assert all(0.2 < each.double().mean() < 0.4 for each in same)
    assert torch.equal(y[:, :, :2], x[:, :, :2])
    assert torch.equal(y[:, :, :, :2], x[:, :, :, :2])


@pytest.mark.parametrize(("severity", "density"), [(1, 0.2), (5, 1.5)])
def test_fog_on_white_spans_all_that_its_density_allows_and_never_exceeds_the_brightest(
    severity, density, x_N3SS
):
    y = corrupt(flat(255, 5), "fog", severity, 0).flatten(1)
    assert (y.amax(1) == 255).all()  # 32 is a power of two: the whole map is in the image
    assert (y.amin(1) - 255 / (1 + density)).abs().max() <= 0.5 + 1e-5  # rounding
    y = corrupt(x_N3SS, "fog", severity, 0).flatten(1)
    assert (y.amax(1) <= x_N3SS.flatten(1).amax(1)).all()


def test_snow_only_lightens_and_whitens_in_patches(x_N3SS):
    for severity in SEVERITIES:
        gain = corrupt(x_N3SS, "snow", severity, 0).double() - x_N3SS.double()
        assert gain.min() >= 0
        assert gain.std() > 5


def test_frost_at_1_adds_at_most_its_share_and_is_bluish():
    gain = corrupt(flat(0), "frost", 1, 0).double()
    assert gain.max() <= round(0.2 * 255)
    red, green, blue = gain.mean((0, 2, 3))
    assert red < green < blue
    assert 0.3 < gain.mean() / (0.2 * 255) < 0.7


def test_an_elastic_transform_at_1_is_affine(x_N3SS):
    ramp = torch.arange(32.0).mul(3).add(80).byte().expand(30, 3, 32, 32)
    y = corrupt(ramp, "elastic_transform", 1, 0).double()[:, 0, 8:24, 8:24]
    for image in y:  # away from the border, a ramp stays a ramp
        assert image.diff(n=2, dim=0).abs().max() <= 2  # of rounding
        assert image.diff(n=2, dim=1).abs().max() <= 2
    slope = y.diff(dim=2).mean((1, 2))
    assert 1.5 < slope.min() < slope.max() < 4.5  # 3, turned and stretched
    assert slope.std() > 0.1


@pytest.mark.parametrize("severity", [2, 5])
def test_an_elastic_transform_is_what_scipy_makes_of_the_same_draws(severity, x_N3SS):
    strength, smoothness, tilt = CORRUPTIONS["elastic_transform"].parameters[severity - 1]
    draws = Draws(0, "corruption elastic_transform", severity, [4], torch.device("cpu"))
    points = np.array([[26.0, 26], [26, 6], [6, 6]])  # 16 and 10 to either side, as published
    moved = points + 32 * tilt * (2 * draws.uniform(3, 2)[0].numpy() - 1)
    noise = 2 * draws.uniform(2, 32, 32)[0].numpy() - 1
    # From a warped (column, row) back to where it came from: expressed in the moved triangle.
    edges_to, edges_from = (moved[1:] - moved[0]).T, (points[1:] - points[0]).T
    matrix = edges_from @ np.linalg.inv(edges_to)
    rows, columns = np.mgrid[:32, :32].astype(float)
    offset = np.stack([columns - moved[0, 0], rows - moved[0, 1]]).reshape(2, -1)
    source = (matrix @ offset + points[0][:, None])[::-1].reshape(2, 32, 32)
    smooth = [
        ndimage.gaussian_filter(each, 32 * smoothness, mode="reflect", truncate=3) for each in noise
    ]
    right, down = 32 * strength * np.array(smooth)
    for channel, got in zip(
        x_N3SS[4].double().numpy(), corrupt(x_N3SS, "elastic_transform", severity, 0)[4]
    ):
        warped = ndimage.map_coordinates(channel, source, order=1, mode="mirror")
        at = rows + down, columns + right
        exact = ndimage.map_coordinates(warped, at, order=1, mode="reflect")
        assert_rounded(got, exact)


@pytest.mark.parametrize(
    ("name", "severity", "sentence"),
    [
        ("foggy", 1, "corruptions=foggy is unknown; did you mean fog? Valid: gaussian_noise, "),
        (EXTRA[0], 1, "corruptions=speckle_noise comes only from the files of CIFAR-10-C"),
        ("fog", 6, "severity=6 must be a whole number from 1 to 5"),
        ("fog", True, "severity=True must be a whole number from 1 to 5"),
    ],
)
def test_a_wrong_name_or_severity_is_refused_in_one_sentence(name, severity, sentence):
    with pytest.raises(ValueError) as caught:
        corrupt(flat(0, 1), name, severity, 0)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
