"""Settings of the methods that drop whole blocks."""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from itertools import groupby
from typing import ClassVar, Literal

from pydantic import Field

from paredown.contracts.recipes.stage import Family, Stage
from paredown.contracts.shapes import ModelShape


class Depth(Stage):
    """How many blocks go. What is left is numbered anew, and later stages see the new numbers."""

    family: ClassVar[Family] = Family.DEPTH
    needs_calibration: ClassVar[bool] = True

    share: float = Field(
        0.2, gt=0, lt=1, description="Share of the blocks dropped, to the nearest whole block; ignored with blocks."
    )
    blocks: int | None = Field(None, ge=1, le=4095, description="How many blocks are dropped, instead of share.")
    skip: tuple[str, ...] = Field(
        (),
        max_length=64,
        description="Glob patterns of linear layers left as they are, such as model.layers.0.*: a block with such a "
        "layer stays. Numbers are those of the model that this stage is given.",
    )

    def dropped(self, num_blocks: int) -> int:
        """How many blocks of so many go."""
        return self.blocks if self.blocks is not None else max(1, int(self.share * num_blocks + 0.5))

    def protected(self, linear_names: Sequence[Sequence[str]]) -> frozenset[int]:
        """Blocks that stay because of `skip`; `linear_names` are those of each block in turn."""
        return frozenset(block for block, names in enumerate(linear_names) if any(map(self.skips, names)))

    def shape_after(self, shape: ModelShape) -> ModelShape:
        return shape.without_blocks(self.dropped(shape.num_blocks))

    def most(self, num_blocks: int, protected: AbstractSet[int]) -> int:
        """The most blocks that can go: one always stays, and so do protected ones."""
        return min(num_blocks - 1, num_blocks - len(protected))


class ShortGpt(Depth):
    """Drop the blocks whose output is most like their input. arXiv:2403.03853"""

    title: ClassVar[str] = "ShortGPT"
    paper: ClassVar[str] = "arXiv:2403.03853"

    method: Literal["shortgpt"] = "shortgpt"


class Deeper(Depth):
    """Drop the run of consecutive blocks across which the last token turns least. arXiv:2403.17887"""

    title: ClassVar[str] = "Deeper layers"
    paper: ClassVar[str] = "arXiv:2403.17887"

    method: Literal["deeper"] = "deeper"
    last_tokens: int = Field(
        1, ge=1, le=4096, description="Tokens at the end of each sequence that are compared; the paper takes the last."
    )

    def most(self, num_blocks: int, protected: AbstractSet[int]) -> int:
        """The longest run without a protected block."""
        runs = groupby(range(num_blocks), lambda block: block in protected)
        return min(num_blocks - 1, max((len(list(run)) for held, run in runs if not held), default=0))


class Laco(Depth):
    """Merge rear blocks into a prior one by their differences while the output stays similar. arXiv:2402.11187"""

    title: ClassVar[str] = "Layer collapse"
    paper: ClassVar[str] = "arXiv:2402.11187"

    method: Literal["laco"] = "laco"
    layers_per_merge: int = Field(4, ge=2, le=64, description="Blocks that one merge makes into one (C in the paper).")
    lowest: int = Field(1, ge=0, le=4095, description="The first block that others may be merged into (L).")
    highest: int | None = Field(
        None, ge=2, le=4096, description="Blocks from this one on are not merged at first (H); empty means all may be."
    )
    interval: int = Field(2, ge=1, le=64, description="Blocks between one merge and the next, at least (I).")
    threshold: float = Field(
        0.65,
        ge=-1,
        lt=1,
        description="Cosine similarity to the base's output that a merge must keep (T); lowered by 0.05 at a time "
        "until enough blocks are gone.",
    )
    samples: int = Field(10, ge=1, le=4096, description="Calibration sequences that a merge is judged on.")
    merging: Literal["last", "sum"] = Field(
        "last",
        description="What a merge makes of a block's linears: those of the last block that goes into it, which is what "
        "the authors' code computes; or its own plus all differences from them, the formula that the paper prints.",
    )

    def most(self, num_blocks: int, protected: AbstractSet[int]) -> int:
        """What goes when every merge is accepted."""
        merges = self.walk(num_blocks, num_blocks - 1, protected, lambda _merges: True)
        return sum(count for _, count in merges)

    def walk(
        self,
        num_blocks: int,
        goal: int,
        protected: AbstractSet[int],
        accepts: Callable[[tuple[tuple[int, int], ...]], bool],
    ) -> tuple[tuple[int, int], ...]:
        """The paper's Algorithm 1 up to `goal` blocks: merges (block, how many after it go into it), in order.

        A block's number is that of the model as the merges before left it. Numbers fall, so it is the base's too.
        """
        own = list(range(num_blocks))  # the base's number of each block that is left
        merges: tuple[tuple[int, int], ...] = ()
        block = min(self.highest or num_blocks, num_blocks) - self.layers_per_merge
        while block >= self.lowest and num_blocks - len(own) < goal:
            count = min(self.layers_per_merge - 1, goal - (num_blocks - len(own)))
            tried = (*merges, (block, count))
            if protected.isdisjoint(own[block : block + count + 1]) and accepts(tried):
                merges = tried
                del own[block + 1 : block + count + 1]
                block = min(block - self.interval, len(own) - self.layers_per_merge)
            else:
                block -= 1
        return merges
