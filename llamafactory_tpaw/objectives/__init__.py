# SPDX-License-Identifier: Apache-2.0
"""The objectives as pure functions of tensors: no model, no trainer, no file.

Log-probs are sums over the response's tokens in nats. Team tensors have shape (B, J): batch first, players last,
oldest first.
"""

from .iris import iris_loss
from .logps import SequenceLogps, sequence_logps
from .tpaw import TpawLoss, tpaw_loss
from .tspin import TspinLoss, tspin_loss


__all__ = ["SequenceLogps", "TpawLoss", "TspinLoss", "iris_loss", "sequence_logps", "tpaw_loss", "tspin_loss"]
