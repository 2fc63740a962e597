import numpy as np
from numpy.typing import NDArray

from unblemish.kernels.api import Double, Float
from unblemish.kernels.feature_terms import Int
from unblemish.kernels.image_terms import Byte, Half

def instruction_sets() -> list[str]: ...

class Engine:
    def __init__(self, threads: int, instruction_set: str) -> None: ...
    @property
    def threads(self) -> int: ...
    @property
    def instruction_set(self) -> str: ...
    def rgi_closed_form(
        self,
        x: Float,
        g: Float,
        lam: Float,
        scale: Float,
        mask: Float,
        cotangent: Float,
        objective: Double,
    ) -> None: ...
    def rgi_gradient(
        self,
        x: Float,
        g: Float,
        mask: Float,
        lam: Float,
        scale: Float,
        cotangent: Float,
        mask_gradient: Float,
        objective: Double,
    ) -> None: ...
    def residual_l2(
        self,
        x: Float,
        g: Float,
        scale: Float,
        cotangent: Float,
        objective: Double,
        weight: Float | None,
    ) -> None: ...
    def residual_l1(
        self,
        x: Float,
        g: Float,
        scale: Float,
        cotangent: Float,
        objective: Double,
        weight: Float | None,
    ) -> None: ...
    def adam(
        self,
        p: Float,
        grad: Float,
        m: Float,
        v: Float,
        step: int,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        lower: float,
        upper: float,
    ) -> None: ...
    def project_ball(self, p: Float, centre: Float | None, radius: Float) -> None: ...
    def norms(self, x: Float, squared: Double, largest: Double) -> None: ...
    def all_finite(self, x: Float) -> bool: ...
    def mahalanobis(
        self,
        f: Float,
        mean: Float,
        whitening: Float,
        cells: Int,
        scores: Float,
        cotangent: Float | None,
    ) -> None: ...
    def mahalanobis_low_rank(
        self,
        f: Float,
        mean: Float,
        basis: Float,
        inverse_variance: Float,
        cells: Int,
        scores: Float,
        cotangent: Float | None,
    ) -> None: ...
    def top_candidates(
        self,
        queries: Float,
        bank: Float,
        index: Int,
        distances: Float,
        norms: Float | None,
    ) -> None: ...
    def nearest_candidate(
        self,
        f: Float,
        bank: Float,
        candidates: Int,
        scores: Float,
        cotangent: Float | None,
        chosen: Int,
    ) -> None: ...
    def total_variation(self, n: Float, weight: Float, gradient: Float, value: Double) -> None: ...
    def log_penalty(
        self,
        x: Float,
        n: Float,
        weight: Float,
        free: Byte,
        epsilon: float,
        gradient: Float,
        value: Double,
    ) -> None: ...
    def mixture_prior(
        self,
        n: Float,
        means: Float,
        precisions: Float,
        weight: Float,
        free: Byte,
        gradient: Float,
        value: Double,
    ) -> None: ...
    def sharing_weights(
        self, x: Float, radius: int, sigma_space: float, sigma_colour: float, weights: Half
    ) -> None: ...
    def share_gradient(
        self, gradient: Float, weights: Half, radius: int, shared: Float
    ) -> None: ...
    def share_gradient_direct(
        self,
        gradient: Float,
        x: Float,
        radius: int,
        sigma_space: float,
        sigma_colour: float,
        shared: Float,
    ) -> None: ...
    def adan(
        self,
        n: Float,
        x: Float,
        g: Float,
        first: Float,
        slope: Float,
        second: Float,
        previous: Float,
        free: Byte,
        step: int,
        rate: Float,
        clip: float,
        lower: float,
        upper: float,
        floor: float,
        beta1: float,
        beta2: float,
        beta3: float,
        eps: float,
    ) -> None: ...
    def dssim(
        self,
        x: Float,
        g: Float,
        scale: Float,
        data_range: float,
        window: int,
        sigma: float,
        dissimilarity: Float | None,
        direct: Float | None,
        cotangent: Float | None,
        objective: Double,
    ) -> None: ...
    def gaussian_nll(
        self,
        x: Float,
        g: Float,
        log_scale: Float,
        scale: Float,
        cotangent: Float,
        log_scale_cotangent: Float,
        objective: Double,
    ) -> None: ...
    def energy_step(
        self,
        x: Float,
        start: Float,
        pulled: Float,
        lam: Float,
        rate: Float,
        direct: Float | None,
        direct_factor: float,
        mask: Float | None,
        restored: Float | None,
        first: Float | None,
        second: Float | None,
        step: int,
        beta1: float,
        beta2: float,
        eps: float,
        weigh_step: bool,
        proximal: bool,
        lower: float,
        upper: float,
        l1: Double,
        squared_change: Double,
        largest_change: Double,
    ) -> None: ...

class KCentre:
    def __init__(self, engine: Engine, rows: Float, first: int, pool: int) -> None: ...
    def choose(self, out: NDArray[np.int64]) -> None: ...
