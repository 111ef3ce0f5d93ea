"""The papers' networks, built by name so that a specification can be written down as text.

Every network is a plain `torch.nn.Module` with named layers. `build` draws the initial weights
from a seed of its own and leaves torch's global generator as it was.
"""

from replication.models._layers import ACTIVATIONS
from replication.models.build import MODELS, build, mlp, mnist_convnet
from replication.models.convnets import morcos_convnet, plain, svcca_convnet, tiny10
from replication.models.efficientnet_lite import efficientnet_lite0
from replication.models.inception import small_alexnet, small_inception
from replication.models.resnet import resnet
from replication.models.sequences import row_lstm, vit

VERSION = 1  # of the numbers: raise it when they change

__all__ = [
    "ACTIVATIONS", "MODELS", "build", "efficientnet_lite0", "mlp", "mnist_convnet",
    "morcos_convnet", "plain", "resnet", "row_lstm", "small_alexnet", "small_inception",
    "svcca_convnet", "tiny10", "vit",
]  # fmt: skip
