"""HMR-Adapter's experts without an adapter: the paper's baselines, fine-tuned or as they come."""

from __future__ import annotations

from torch import Tensor

from hmr_adapter import BodyAdapter, BodyFeatures, HandAdapter


class FineTunedHand(HandAdapter):
    """inject="none": the expert alone, trained as far as `trainable` says (Table 3, No. 1 to 3)."""

    DESIGN = "none"

    def build(self) -> None:
        pass

    def token(self, features: Tensor, *_) -> Tensor:
        return self.decoder(features)  # (B, 1, 1024)


class FineTunedBody(BodyAdapter):
    """inject="none": the expert alone, trained as far as `trainable` says (Table 4, No. 1 to 3)."""

    DESIGN = "none"

    def build(self) -> None:
        pass

    def poses(self, features: BodyFeatures, *_) -> tuple[Tensor, Tensor]:
        pose_6d = self.expert.initial_pose(features)
        return pose_6d, pose_6d
