"""The LSTM over rows and the vision transformer, against torch's own layers."""

import pytest
import torch
from test_models_architectures import count, draw, shapes
from torch import nn

from replication import activations, models
from replication.models.sequences import Attention, LSTMLayer, MLPSublayer, Rows

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


# --- LSTM --------------------------------------------------------------------------------------


@DTYPES
def test_an_lstm_layer_is_torch_s(dtype):
    ours = LSTMLayer(5, 7).to(dtype)
    theirs = nn.LSTM(5, 7, batch_first=True).to(dtype)
    theirs.load_state_dict({f"{key}_l0": value for key, value in ours.state_dict().items()})
    x = draw(4, 9, 5, dtype=dtype)
    torch.testing.assert_close(ours(x), theirs(x)[0])
    for result in (ours(x), theirs(x)[0]):
        result.square().sum().backward()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)


def test_the_weights_of_an_lstm_fill_the_interval_of_its_units():
    for parameter in LSTMLayer(50, 100).parameters():
        assert 0.095 < parameter.abs().max() <= 0.1


def test_rows_are_read_from_the_top_with_all_their_channels():
    image = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    rows = Rows()(image)
    assert rows.shape == (2, 4, 15)
    assert torch.equal(rows[1, 2], torch.cat([image[1, c, 2] for c in range(3)]))


@pytest.mark.parametrize("layers", [1, 3])
def test_the_layers_of_the_lstm(layers):
    model = models.build("row_lstm", units=6, layers=layers, channels=3, size=10)
    stack = [f"lstm{index}" for index in range(1, layers + 1)]
    found = shapes(model, 3, 8, 10)
    assert list(found) == ["rows", *stack, "last", "fc"]
    assert {found[name] for name in stack} == {(8, 6)}
    assert (found["rows"], found["last"], found["fc"]) == ((8, 30), (6,), (10,))
    first, others = 4 * 6 * (30 + 6 + 2), (layers - 1) * 4 * 6 * (6 + 6 + 2)
    assert count(model) == first + others + 70


def test_logits_come_from_the_last_row():
    model, images = models.build("row_lstm", units=6).eval(), draw(2, 1, 28, 28)
    found = activations.record(model, images)
    assert torch.equal(found["last"], found["lstm2"][:, -1])
    other = images.clone()
    other[:, :, -1] = 0
    changed = activations.record(model, other)["lstm2"]
    assert torch.equal(changed[:, :-1], found["lstm2"][:, :-1])
    assert not torch.equal(changed[:, -1], found["lstm2"][:, -1])


def test_the_recipe_for_the_last_state_gives_matrices():
    model = models.build("row_lstm", units=6)
    found = activations.record(
        model,
        draw(4, 1, 28, 28),
        layers=["lstm1", "lstm2", "last"],
        reduction=lambda x: x[:, -1] if x.ndim == 3 else x,
    )
    assert {tuple(value.shape) for value in found.values()} == {(4, 6)}
    assert torch.equal(found["lstm2"], found["last"])


# --- transformer -------------------------------------------------------------------------------


@DTYPES
def test_a_block_is_torch_s_encoder_layer(dtype):
    attention, mlp = Attention(12, 3).to(dtype), MLPSublayer(12, 20).to(dtype)
    theirs = nn.TransformerEncoderLayer(
        12, 3, 20, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).to(dtype)
    for own, other in (
        (attention.norm, theirs.norm1),
        (attention.project, theirs.self_attn.out_proj),
        (mlp.norm, theirs.norm2),
        (mlp.fc1, theirs.linear1),
        (mlp.fc2, theirs.linear2),
    ):
        other.load_state_dict(own.state_dict())
    theirs.self_attn.in_proj_weight.data.copy_(attention.qkv.weight)
    theirs.self_attn.in_proj_bias.data.copy_(attention.qkv.bias)
    x = draw(4, 6, 12, dtype=dtype)
    torch.testing.assert_close(mlp(attention(x)), theirs(x))


def test_the_layers_of_the_transformer():
    model = models.build("vit", depth=2, width=8, heads=2, patch=8)
    found = shapes(model, 3, 32, 32)
    blocks = ["attention1", "mlp1", "attention2", "mlp2"]
    assert list(found) == ["patches", "tokens", *blocks, "norm", "first", "fc"]
    assert {found[name] for name in ("tokens", *blocks, "norm")} == {(17, 8)}
    assert (found["patches"], found["first"]) == ((8, 4, 4), (8,))
    embedding = (3 * 64 + 1) * 8 + 8 + 17 * 8
    block = 2 * 16 + (8 + 1) * 24 + (8 + 1) * 8 + (8 + 1) * 16 + (16 + 1) * 8
    assert count(model) == embedding + 2 * block + 16 + 90


@pytest.mark.parametrize(("name", "expected"), [("row_lstm", 214_282), ("vit", 208_970)])
def test_the_default_sizes(name, expected):
    assert count(models.build(name)) == expected


def test_every_sublayer_adds_to_the_residual_stream():
    model = models.build("vit", 0, torch.float64, depth=2, width=8, heads=2, patch=8)
    found = activations.record(model, draw(3, 3, 32, 32, dtype=torch.float64))
    stream = found["tokens"]
    for block in (1, 2):
        for name, last in ((f"attention{block}", "project"), (f"mlp{block}", "fc2")):
            torch.testing.assert_close(found[name], stream + found[f"{name}.{last}"])
            stream = found[name]
    assert torch.equal(found["first"], found["norm"][:, 0])


def test_patches_are_equals_but_for_their_positions():
    model = models.build("vit", 0, torch.float64, depth=2, width=8, heads=2, patch=8).eval()
    images = draw(2, 3, 32, 32, dtype=torch.float64)
    swapped = images.roll(8, dims=3)  # whole patches change places
    assert not torch.allclose(model(swapped), model(images))
    model.tokens.positions.data.zero_()
    torch.testing.assert_close(model(swapped), model(images))


def test_positions_start_small_and_the_class_token_from_zero():
    tokens = models.build("vit", 1).tokens
    assert not tokens.class_token.any()
    assert tokens.positions.std().item() == pytest.approx(0.02, rel=0.1)
