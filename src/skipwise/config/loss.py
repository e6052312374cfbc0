"""What a run adds to the next-token loss."""

from pydantic import Field

from skipwise.config.base import StrictModel
from skipwise.errors import ConfigError


class LossConfig(StrictModel):
    """What is added to the next-token loss. By default nothing.

    Attributes:
        far_extra: extra weight of all labels with a far context together, as a share of the weight of all labels. A far
            context is as long as the original window or longer. The weight is shared by inverse frequency: contexts of
            1 to 2 original windows, 2 to 4, and so on get equal parts of it, however many labels they have. Weights are
            then scaled so that their mean is 1. Not with streaming or context parallelism.
        distill: factor on the divergence of each prediction from the model's own prediction for the same tokens at
            positions without skips. A step takes a third more compute. Not with context parallelism.

    Source: EXACT (arXiv 2605.10544) for `far_extra`; self-distillation over perturbed positions (arXiv 2604.14339) for
    `distill`.
    """

    far_extra: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    distill: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)

    def check(self, *, context: int, streaming: bool) -> None:
        """Refuses additions where windows are split, or where documents are not known before training.

        Args:
            context: processes that hold each window together.
            streaming: whether documents are read during training.

        Raises:
            ConfigError: as said.
        """
        for name, value in self.model_dump().items():
            if value and context > 1:
                raise ConfigError(
                    f"setting 'loss.{name}' is {value:g} and 'parallel.context' is {context}; it needs whole windows: "
                    "leave one of them out",
                    page="parallel-run",
                )
        if self.far_extra and streaming:
            raise ConfigError(
                f"setting 'loss.far_extra' is {self.far_extra:g} and 'data.streaming' is true; contexts are counted "
                "before training, which needs stored documents: leave one of them out"
            )
