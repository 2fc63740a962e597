"""What RGI has on the device beside the protocol, against NumPy and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unblemish.errors import ShapeError
from unblemish.kernels.cuda import CudaKernels
from unblemish.kernels.fallback import NumpyKernels
from unblemish.runtime.methods.joint import _l1_gradient
from unblemish.runtime.methods.losses import ProfileL1
from unblemish.runtime.methods.terms import add_latent_prior

SHAPES = [(1, 1, 1, 1), (3, 3, 9, 11), (2, 5, 7, 3), (2, 1, 33, 40)]

# One rounding of a float32 for the elements; sums of some thousand of them, in another order.
ELEMENT = {"rtol": 2e-6, "atol": 2e-6}
SUM = {"rtol": 2e-6}


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest) -> CudaKernels:
    if request.param == "gpu":
        on_gpu: CudaKernels = request.getfixturevalue("gpu_kernels")
        return on_gpu
    make_driver = request.getfixturevalue("make_driver")
    return CudaKernels(driver=make_driver(multiprocessors=2))


class Images:
    """Arguments of a loss, residuals of either sign and of size 0."""

    def __init__(self, shape: tuple[int, ...], shared: bool) -> None:
        rng = np.random.default_rng(list(shape))
        self.x, self.g = rng.normal(size=(2, *shape)).astype(np.float32)
        self.g.flat[::5] = self.x.flat[::5]
        batch = shape[0]
        self.lam = rng.uniform(0.5, 2.0, batch).astype(np.float32)
        self.scale = rng.uniform(0.1, 1.0, batch).astype(np.float32)
        masks = (batch, 1 if shared else shape[1], *shape[2:])
        self.mask = rng.normal(0.5, 0.7, masks).astype(np.float32)
        self.mask.flat[::7] = 0.0
        self.mask.flat[3::7] = 1.0

    def outputs(self) -> dict[str, Any]:
        return {"cotangent": np.full_like(self.x, np.nan), "objective": np.full(len(self.x), 7.0)}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_closed_form_l1_is_that_of_the_host(
    kernels: CudaKernels, shape: tuple[int, ...], shared: bool
) -> None:
    i = Images(shape, shared)
    found, expected = i.outputs(), i.outputs()
    mask, wanted = np.empty_like(i.mask), np.empty_like(i.mask)
    kernels.rgi_closed_form_l1(i.x, i.g, i.lam, i.scale, mask=mask, **found)
    ProfileL1(NumpyKernels())(i.x, i.g, i.lam, i.scale, mask=wanted, **expected)
    np.testing.assert_array_equal(mask, wanted)
    np.testing.assert_allclose(found["cotangent"], expected["cotangent"], **ELEMENT)
    np.testing.assert_allclose(found["objective"], expected["objective"], **SUM)


def test_closed_form_l1_is_the_smaller_of_residual_and_lam(kernels: CudaKernels) -> None:
    i = Images((2, 3, 5, 4), True)
    found = i.outputs()
    kernels.rgi_closed_form_l1(i.x, i.g, i.lam, i.scale, mask=np.empty_like(i.mask), **found)
    size = np.abs(i.g - i.x).astype(np.float64).sum(axis=1)
    least = np.minimum(size, i.lam[:, None, None]).sum(axis=(1, 2))
    np.testing.assert_allclose(found["objective"], i.scale * least, **SUM)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_closed_form_l1_shows_what_is_not_finite(kernels: CudaKernels, bad: float) -> None:
    i = Images((3, 3, 9, 11), True)
    i.g[1, 2, 8, 10] = bad
    found = i.outputs()
    kernels.rgi_closed_form_l1(i.x, i.g, i.lam, i.scale, mask=np.empty_like(i.mask), **found)
    assert np.isfinite(found["objective"]).tolist() == [True, False, True]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_l1_is_that_of_the_host(
    kernels: CudaKernels, shape: tuple[int, ...], shared: bool
) -> None:
    i = Images(shape, shared)
    found, expected = i.outputs(), i.outputs()
    slope, wanted = np.empty_like(i.mask), np.empty_like(i.mask)
    arguments = (i.x, i.g, i.mask, i.lam, i.scale)
    kernels.rgi_gradient_l1(*arguments, mask_gradient=slope, **found)
    _l1_gradient(*arguments, mask_gradient=wanted, **expected)
    np.testing.assert_allclose(slope, wanted, **ELEMENT)
    np.testing.assert_allclose(found["cotangent"], expected["cotangent"], **ELEMENT)
    np.testing.assert_allclose(found["objective"], expected["objective"], **SUM)


@pytest.mark.parametrize("size", [1, 5, 130, 512])
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_latent_prior_is_that_of_the_host(kernels: CudaKernels, size: int, weight: float) -> None:
    rng = np.random.default_rng(size)
    z, gradient = rng.normal(size=(2, 4, size)).astype(np.float32)
    value = rng.normal(size=4)
    gradient[2, size // 2] = np.nan
    expected, slope = value.copy(), gradient.copy()
    add_latent_prior(z, weight, gradient=slope, value=expected)
    kernels.latent_prior(z, weight, gradient=gradient, objective=value)
    expected[2] = np.inf
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(gradient, slope, **ELEMENT)


@pytest.mark.parametrize("size", [1, 19, 300])
def test_disbelief_is_the_softplus_of_every_logit(kernels: CudaKernels, size: int) -> None:
    logit = np.random.default_rng(size).normal(0, 5, (3, size)).astype(np.float32)
    logit[0, 0], logit[1, -1] = 1e4, -1e4
    slope, value = np.empty_like(logit), np.array([1.0, 2.0, 3.0])
    kernels.disbelief(logit, 0.7, slope=slope, objective=value)
    wide = logit.astype(np.float64)
    expected = [1, 2, 3] + 0.7 * np.logaddexp(0, -wide).mean(axis=1)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    share = np.exp(-np.logaddexp(0, wide))
    np.testing.assert_allclose(slope, -0.7 / size * share, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_keep_unmasked_leaves_out_what_the_mask_covers(
    kernels: CudaKernels, shape: tuple[int, ...], shared: bool
) -> None:
    i = Images(shape, shared)
    kept, sum_of_both = np.empty_like(i.x), i.g.copy()
    kernels.keep_unmasked(i.x, i.mask, kept=kept)
    np.testing.assert_allclose(kept, (1 - i.mask) * i.x, **ELEMENT)
    kernels.keep_unmasked(i.x, i.mask, kept=sum_of_both, added=True)
    np.testing.assert_allclose(sum_of_both, i.g + (1 - i.mask) * i.x, **ELEMENT)
    kernels.keep_unmasked(i.x, None, kept=kept)
    np.testing.assert_array_equal(kept, i.x)


def test_values_are_added(kernels: CudaKernels) -> None:
    rng = np.random.default_rng(0)
    more, value = rng.normal(size=(2, 300))
    expected = value + more
    kernels.add_values(more, objective=value)
    np.testing.assert_array_equal(value, expected)


def test_arrays_of_another_shape_are_refused(kernels: CudaKernels) -> None:
    z, value = np.zeros((3, 4), np.float32), np.zeros(3)
    with pytest.raises(ShapeError, match="latent_prior: gradient must have the shape"):
        kernels.latent_prior(z, 0.1, gradient=z[:, :2].copy(), objective=value)
    with pytest.raises(ShapeError, match="disbelief: objective must have the shape"):
        kernels.disbelief(z, 0.1, slope=z.copy(), objective=np.zeros(4))
    image = np.zeros((3, 2, 4, 4), np.float32)
    with pytest.raises(ShapeError, match="keep_unmasked: mask"):
        kernels.keep_unmasked(image, np.zeros((3, 3, 4, 4), np.float32), kept=image.copy())
    with pytest.raises(ShapeError, match="keep_unmasked"):
        kernels.keep_unmasked(image, None, kept=image)  # the same memory
    with pytest.raises(ShapeError, match="add_values: objective must have the shape"):
        kernels.add_values(value, objective=np.zeros(4))
