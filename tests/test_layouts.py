"""Where units are: networks of other people, of which each layer must be read the right way."""

import pytest
import torch
from _random_networks import gaussian
from torch import nn

from replication import directions, similarity
from replication._core.vision import models as torchvision_models
from replication.activations import record


class ChannelsLast(nn.Module):
    """A convolution, blocks that keep channels last as Swin's do, and a read-out of their mean."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 2), nn.LayerNorm(6)
        self.mlp = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))
        self.keep, self.head = nn.Identity(), nn.Linear(6, 3)

    def forward(self, x):
        x = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return self.head(self.keep(x + self.mlp(x)).mean((1, 2)))


IMAGES = gaussian(7, 1, 5, 5)


@torch.no_grad()
def by_formula(model, images):
    """Return what `keep` outputs, averaged over positions."""
    x = model.norm(model.conv(images).permute(0, 2, 3, 1))
    return (x + model.mlp(x)).mean((1, 2))


def test_units_that_are_last_come_to_dimension_one():
    model = ChannelsLast().double()
    found = record(model, IMAGES)
    assert {k: tuple(v.shape[1:]) for k, v in found.items() if v.ndim > 3} == {
        **{"conv": (6, 4, 4), "norm": (6, 4, 4), "mlp.0": (9, 4, 4), "mlp.1": (9, 4, 4)},
        **{"mlp.2": (6, 4, 4), "keep": (6, 4, 4)},
    }
    means = record(model, IMAGES, ["keep"], reduction="spatial_mean")["keep"]
    torch.testing.assert_close(means, by_formula(model, IMAGES), rtol=0, atol=1e-12)
    said = record(model, IMAGES, ["keep"], orders={"ke*": "NHWC"})["keep"]
    assert torch.equal(said, found["keep"])


def test_blocks_of_swin_have_features_as_units():
    model = torchvision_models.swin_t(weights=None)
    found = record(model, gaussian(2, 3, 32, 32, dtype=torch.float32))
    stages = {f"features.{stage}": 96 * 2 ** ((stage - 1) // 2) for stage in (1, 3, 5, 7)}
    blocks = {key: key.rpartition(".")[0] for key in found if key.count(".") == 2}
    checked = [found[key].shape[1] == stages[s] for key, s in blocks.items() if s in stages]
    assert all(checked) and len(checked) == 12
    with torch.no_grad():  # the last block's mean over positions, before the last norm
        model.eval()
        x = model.features(gaussian(2, 3, 32, 32, dtype=torch.float32))
    torch.testing.assert_close(found["features.7.1"], x.movedim(-1, 1), rtol=0, atol=1e-5)


class Opaque(nn.Module):
    """Changes the shape in a way that nothing tells."""

    def forward(self, x):
        return x.unflatten(3, (2, 3)).flatten(1, 2)


def test_where_units_cannot_be_known_nothing_is_guessed():
    model = ChannelsLast().double()
    model.keep = nn.Sequential(Opaque())
    model.head = nn.Linear(3, 3).double()
    with pytest.warns(UserWarning, match=r"'keep.0' gave shape \(7, 16, 2, 3\).* not known"):
        assert "keep.0" not in record(model, IMAGES)
    with pytest.raises(ValueError, match=r"layers: 'keep.0' .* say so by orders"):
        record(model, IMAGES, ["keep.0"])
    told = record(model, IMAGES, ["keep.0"], orders={"keep.*": "NHWC"})["keep.0"]
    assert told.shape == (7, 3, 16, 2)
    for wrong in ({"keep.*": "NHW"}, {"keep.*": "NCCH"}, {"keep.*": 3}):
        with pytest.raises(ValueError, match=r"orders: 'keep.\*': expected letters"):
            record(model, IMAGES, orders=wrong)
    with pytest.raises(ValueError, match=r"orders: 'keep.0' gave shape .* expected 'NLC'"):
        record(model, IMAGES, ["keep.0"], orders={"*": "NLC"})


def test_steps_first_are_told_and_never_taken_for_examples():
    model = nn.Sequential(nn.LSTM(3, 4))
    steps = gaussian(6, 5, 3, dtype=torch.float32)
    with pytest.raises(ValueError, match="images: LSTM takes steps first, and there are 5"):
        record(model, steps[:5])

    class Turned(nn.Sequential):
        def forward(self, x):
            return self[0](x.movedim(0, 1))[0][-1]

    turned, images = Turned(nn.LSTM(3, 4)), steps.movedim(1, 0)  # 5 examples of 6 steps
    found = record(turned, images, ["0[0]"], orders={"0*": "LNC"})["0[0]"]
    with torch.no_grad():
        torch.testing.assert_close(found[:, -1], turned(images), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"'0\[0\]' gave shape \(6, 5, 4\) for 5 .* orders"):
        record(turned, images, ["0[0]"])


def test_ablation_of_tokens_or_of_channels_that_come_last_is_refused():
    labels = torch.arange(7) % 3
    with pytest.raises(ValueError, match=r"layers: 'keep' has units last"):
        directions.unit_ablation(ChannelsLast().double(), IMAGES, labels, ["keep"])
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Flatten(2), nn.Linear(5, 8), encoder, nn.Flatten(), nn.Linear(40, 3))
    with pytest.raises(ValueError, match=r"layers: '2' has units last"):
        directions.unit_ablation(model.double(), IMAGES[:, 0], labels, ["2"])


def test_similarity_of_recorded_blocks_is_that_of_their_features():
    one, other = ChannelsLast().double(), ChannelsLast().double()
    images = gaussian(30, 1, 5, 5, seed=1)
    means, maps = (
        [record(m, images, ["keep"], reduction=how) for m in (one, other)]
        for how in ("spatial_mean", None)
    )
    by_hand = float(similarity.cka(*(by_formula(model, images) for model in (one, other))))
    assert similarity.cka(*(found["keep"] for found in means)) == pytest.approx(by_hand, abs=1e-12)
    grid = similarity.compare(*maps, "cka")
    assert grid.values[0, 0] == pytest.approx(by_hand, abs=1e-9)


def test_examples_where_a_recurrent_layer_takes_steps_are_refused():
    with pytest.raises(ValueError, match="LSTM takes steps first and was given the 6 examples"):
        record(nn.LSTM(12, 8), torch.rand(6, 5, 12))
    acts = record(nn.LSTM(12, 8, batch_first=True), torch.rand(6, 5, 12), ["[0]"])
    assert acts["[0]"].shape == (6, 5, 8)
