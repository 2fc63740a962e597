"""Distances of features to what is normal; torch's side by einsum, cdist and autograd."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kernel_jobs.job import Array, Job
from unblemish.kernels.api import Kernels


def _slope(score: Callable[[Tensor], Tensor], f: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.enable_grad():
            leaf = f.detach().requires_grad_()
            scores = score(leaf)
            return scores, torch.autograd.grad(scores.sum(), leaf)

    return call


class Gaussians:
    """A feature of `channels` numbers and the mean of a Gaussian at each of `places`."""

    def __init__(self, places: int, channels: int) -> None:
        self.rng = np.random.default_rng(0)
        shape = (1, places, channels)
        self.f = self.rng.normal(size=shape).astype(np.float32)
        self.mean = self.rng.normal(size=shape[1:]).astype(np.float32)
        self.cells = np.arange(places, dtype=np.int32)[None]
        self.scores, self.cotangent = np.empty(shape[:2], np.float32), np.empty(shape, np.float32)
        self.bytes = 3 * self.f.nbytes + 2 * self.cells.nbytes


def mahalanobis(places: int, channels: int) -> Job:
    """Full covariances: packed whitening here, the symmetric inverse in torch."""
    a = Gaussians(places, channels)
    w = np.tril(a.rng.normal(size=(places, channels, channels)) / np.sqrt(channels))
    rows, columns = np.tril_indices(channels)
    whitening = np.ascontiguousarray(w[:, rows, columns], np.float32)
    inverse = torch.from_numpy((w.transpose(0, 2, 1) @ w).astype(np.float32))
    mean = torch.from_numpy(a.mean)

    def ours(k: Kernels) -> None:
        k.mahalanobis(a.f, a.mean, whitening, a.cells, scores=a.scores, cotangent=a.cotangent)

    def score(f: Tensor) -> Tensor:
        d = f - mean
        return torch.einsum("bli,lij,blj->bl", d, inverse, d)

    by_torch = _slope(score, torch.from_numpy(a.f))
    return Job("mahalanobis", ours, by_torch, a.bytes + whitening.nbytes, [a.scores, a.cotangent])


def mahalanobis_low_rank(places: int, channels: int, rank: int) -> Job:
    """Covariances of few images."""
    a = Gaussians(places, channels)
    scale = np.sqrt(channels * rank)
    basis = (a.rng.normal(size=(places, channels, rank)) / scale).astype(np.float32)
    inverse = a.rng.uniform(0.5, 2, places).astype(np.float32)
    mean, b, p = (torch.from_numpy(v) for v in (a.mean, basis, inverse))

    def ours(k: Kernels) -> None:
        k.mahalanobis_low_rank(
            a.f, a.mean, basis, inverse, a.cells, scores=a.scores, cotangent=a.cotangent
        )

    def score(f: Tensor) -> Tensor:
        d = f - mean
        along = torch.einsum("lcr,blc->blr", b, d)
        return p * (d.square().sum(2) - along.square().sum(2))

    by_torch = _slope(score, torch.from_numpy(a.f))
    moved = a.bytes + basis.nbytes + inverse.nbytes
    return Job("mahalanobis_low_rank", ours, by_torch, moved, [a.scores, a.cotangent])


def bank_jobs(cells: int, channels: int, rows: int, near: int) -> list[Job]:
    """The search over the bank, for one row and for `near`, and the nearest of what it found."""
    rng = np.random.default_rng(0)
    # Features of images lie near a few directions, not evenly in all of them.
    directions = rng.normal(size=(20, channels)) / np.sqrt(20)
    f, bank = (
        (rng.normal(size=(n, 20)) @ directions + rng.normal(size=(n, channels)) * 0.3).astype("f")
        for n in (cells, rows)
    )
    norms = np.asarray(np.square(bank).sum(axis=1))
    query, stored = torch.from_numpy(f), torch.from_numpy(bank)
    out = []
    for count in (1, near):
        index, distances = np.empty((cells, count), np.int32), np.empty((cells, count), np.float32)

        def search(k: Kernels, index: Array = index, out: Array = distances) -> None:
            k.top_candidates(f, bank, index=index, distances=out, norms=norms)

        def by_cdist(count: int = count) -> object:
            return torch.cdist(query, stored).topk(count, largest=False)

        moved = f.nbytes + bank.nbytes + index.nbytes + distances.nbytes
        out.append(Job(f"top_candidates, {count}", search, by_cdist, moved, [distances]))
    return [*out, _nearest(f, bank, index)]


def _nearest(f: Array, bank: Array, index: Array) -> Job:
    """One step of the descent: the features have moved away from where the candidates are from."""
    from unblemish.kernels.cpu import CpuKernels

    CpuKernels(1).top_candidates(f, bank, index=index, distances=np.empty(index.shape, np.float32))
    moved = f + np.random.default_rng(1).normal(size=f.shape).astype(np.float32) * np.float32(0.1)
    here, candidates = moved[None], index[None]
    scores, cotangent = np.empty(candidates.shape[:2], np.float32), np.empty_like(here)
    chosen = np.empty(scores.shape, np.int32)
    listed = torch.from_numpy(bank)[torch.from_numpy(index).long()]  # gathered once

    def ours(k: Kernels) -> None:
        k.nearest_candidate(
            here, bank, candidates, scores=scores, cotangent=cotangent, chosen=chosen
        )

    def score(v: Tensor) -> Tensor:
        return (v[:, None] - listed).square().sum(2).min(1).values

    by_torch = _slope(score, torch.from_numpy(moved))
    size = 2 * here.nbytes + bank.nbytes + candidates.nbytes + 2 * scores.nbytes
    return Job("nearest_candidate", ours, by_torch, size, [scores, cotangent])
