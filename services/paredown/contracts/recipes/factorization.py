"""Settings of the methods that replace a weight by a product of thinner matrices."""

from typing import ClassVar, Literal

from pydantic import Field

from paredown.contracts.recipes.stage import Family, Stage


class Svd(Stage):
    """Low rank: the product of two factors that changes each layer's output least, by the singular values of the weight
    times the Cholesky factor of its inputs. arXiv:2403.07378"""

    title: ClassVar[str] = "SVD-LLM"
    paper: ClassVar[str] = "arXiv:2403.07378"
    family: ClassVar[Family] = Family.FACTORIZATION
    needs_calibration: ClassVar[bool] = True
    native: ClassVar[bool] = True

    method: Literal["svd"] = "svd"
    ratio: float = Field(0.2, gt=0, lt=1, description="Share of each layer's parameters removed.")
    whitening: bool = Field(
        True, description="Judge singular values by the layer's output; false is plain SVD of the weight, the baseline."
    )
    damping: float = Field(
        0.01, gt=0, le=1, description="Share of the mean diagonal added to the Hessian before it is factorized."
    )

    def rank(self, out_features: int, in_features: int) -> int:
        """The rank whose two factors have what is left of the parameters."""
        left = (1 - self.ratio) * out_features * in_features
        return max(1, int(left / (out_features + in_features) + 1e-9))
