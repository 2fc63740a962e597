"""R-RGI: the weights move, the bundle's stay; without torch and with it."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unblemish.bundle import Bundle
from unblemish.errors import BundleError, ConfigError
from unblemish.kernels import default_kernels
from unblemish.runtime.backends import open_backend
from unblemish.runtime.inspection import Status
from unblemish.runtime.methods.rrgi import load_finetuner
from unblemish.runtime.options import SearchOptions
from unblemish.runtime.search import Search

Part = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
MakeBundle = Any

# Engines sum in another order; 20 steps of Adam carry that to the fourth digit.
ENGINES = 2e-3


@pytest.fixture
def shifted(part: Part) -> Part:
    """The part under a light that the generator never saw: off its manifold everywhere."""
    frame, clean, truth = part
    ramp = np.linspace(-0.06, 0.06, 16, dtype=np.float32)[None, :, None]
    return np.clip(frame + ramp, 0, 1), np.clip(clean + ramp, 0, 1), truth


def rrgi_bundle(make_bundle: MakeBundle, **options: Any) -> Bundle:
    bundle: Bundle = make_bundle(
        rgi={"lam": 0.02, "finetune_steps": 60, "finetune_lr": 1e-3}, **options
    )
    return bundle


def test_rrgi_closes_the_gap_to_a_part_off_the_manifold(
    make_bundle: MakeBundle, shifted: Part
) -> None:
    bundle = rrgi_bundle(make_bundle, finetune=True)
    frame, clean, truth = shifted
    errors, inside, wrong = {}, {}, {}
    for refine in ("rgi", "rrgi"):
        found = Search(bundle, SearchOptions(threads=1, refine=refine))(frame)
        errors[refine] = float(np.sqrt(np.square(found.restored - clean)[~truth].mean()))
        inside[refine] = float(np.sqrt(np.square(found.restored - clean)[truth].mean()))
        wrong[refine] = int(((found.mask > 0) != truth).sum())
    assert errors["rrgi"] < 0.7 * errors["rgi"]
    assert wrong["rrgi"] < 0.25 * wrong["rgi"]
    # The ramp itself is 0.035 strong there: the weights must not drift under the mask.
    assert inside["rrgi"] < 0.04


def test_rrgi_agrees_between_graphs_and_torch(make_bundle: MakeBundle, shifted: Part) -> None:
    pytest.importorskip("torch")
    bundle = rrgi_bundle(make_bundle, finetune=True)
    plain = Bundle(
        bundle.path,
        bundle.manifest.model_copy(
            update={
                "graphs": {
                    role: graph
                    for role, graph in bundle.manifest.graphs.items()
                    if not role.startswith("finetune")
                }
            }
        ),
    )
    results = [
        Search(b, SearchOptions(threads=1, refine="rrgi"))(shifted[0]) for b in (bundle, plain)
    ]
    np.testing.assert_allclose(results[0].restored, results[1].restored, atol=ENGINES)
    np.testing.assert_allclose(results[0].trace, results[1].trace, rtol=2e-2)


def test_rrgi_leaves_bundle_and_weights_alone(make_bundle: MakeBundle, shifted: Part) -> None:
    bundle = rrgi_bundle(make_bundle, finetune=True)
    before = {p.name: hashlib.sha256(p.read_bytes()).digest() for p in bundle.path.iterdir()}
    search = Search(bundle, SearchOptions(threads=1, refine="rrgi"))
    first = search(shifted[0])
    search(1 - shifted[0])
    again = search(shifted[0])
    np.testing.assert_array_equal(first.restored, again.restored)
    after = {p.name: hashlib.sha256(p.read_bytes()).digest() for p in bundle.path.iterdir()}
    assert before == after


def test_rrgi_is_never_worse_in_the_objective(make_bundle: MakeBundle, part: Part) -> None:
    bundle = rrgi_bundle(make_bundle, finetune=True)
    plain = Search(bundle, SearchOptions(threads=1, refine="rgi"))(part[0])
    tuned = Search(bundle, SearchOptions(threads=1, refine="rrgi"))(part[0])
    assert tuned.objective <= plain.objective * (1 + 1e-4)
    assert tuned.steps > plain.steps
    assert tuned.status is Status.CONVERGED


def test_settings_ask_for_rrgi_by_their_steps(make_bundle: MakeBundle) -> None:
    bundle = rrgi_bundle(make_bundle, finetune=True)
    assert Search(bundle, SearchOptions(threads=1)).refine == "rrgi"


def test_load_finetuner_says_what_is_missing(make_bundle: MakeBundle) -> None:
    bundle = rrgi_bundle(make_bundle, finetune=True)
    lost = Bundle(bundle.path, bundle.manifest.model_copy(update={"finetune_weights": None}))
    with pytest.raises(BundleError, match="no weights"):
        load_finetuner(lost, open_backend(threads=1), default_kernels())
    (bundle.path / "weights.npz").write_bytes(b"not an archive")
    with pytest.raises(BundleError, match="cannot be read"):
        load_finetuner(bundle, open_backend(threads=1), default_kernels())


def test_options_refuse_nonsense() -> None:
    for options in ({"refine": "best"}, {"schedule": "slow"}, {"max_steps": 0}):
        with pytest.raises(ConfigError):
            SearchOptions(**options)  # type: ignore[arg-type]


def test_rrgi_books_its_passes_with_those_of_the_search(
    make_bundle: MakeBundle, shifted: Part
) -> None:
    bundle = rrgi_bundle(make_bundle, finetune=True)
    search = Search(bundle, SearchOptions(threads=1, refine="rrgi"))
    assert search._finetuner is not None
    calls = []
    forward = search._finetuner.engine.forward

    def counted(*arguments: Any) -> Any:
        before = search._engines.generator.watch.seconds.get("forward", 0.0)
        image = forward(*arguments)
        calls.append(search._engines.generator.watch.seconds["forward"] > before)
        return image

    search._finetuner.engine.forward = counted  # type: ignore[method-assign]
    search(shifted[0])
    assert calls
    assert all(calls)
