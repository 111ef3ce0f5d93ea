"""Images before training: centre crop and whitening per image, or one scale for a whole split.

`images` are (N, C, H, W), floating point and finite, a tensor or an array; results are copies of
their kind, device and dtype (float32 for half types). Bad arguments are a ValueError.
"""

import dataclasses

import torch

from replication._core.inputs import Kind, as_images, as_integer, like
from replication.data.split import Split


def centre_crop(images: Kind, size: int) -> Kind:
    """Return the central ``size`` x ``size`` pixels of every image.

    Where an odd number of rows or columns goes, one more goes at the bottom or on the right. `size`
    is 1 to the smaller of H and W; Zhang et al. 2017 take 28 of CIFAR-10's 32 pixels.
    """
    given = as_images(images)
    height, width = given.shape[2:]
    size = as_integer(size, "size", 1)
    if size > min(height, width):
        raise ValueError(f"size: expected at most {min(height, width)}, found {size}")
    top, left = (height - size) // 2, (width - size) // 2
    cut = given[:, :, top : top + size, left : left + size]
    return like(images)(cut.clone(memory_format=torch.contiguous_format))


def whiten_images(images: Kind) -> Kind:
    """Return every image with mean 0 and standard deviation 1 over its own pixels and channels.

    (x - mean) / max(std, 1 / sqrt(D)) over the D = C H W numbers of an image, with the population's
    standard deviation (Zhang et al. 2017, appendix A; TensorFlow's per-image standardisation). The
    bound, meant for pixels in [0, 1], keeps an image without contrast at about 0.
    """
    given = as_images(images)
    flat = given.flatten(1)
    out = flat - flat.mean(1, keepdim=True)
    # from the centred numbers: those of a bright image with little contrast would cancel
    std = out.square().mean(1, keepdim=True).sqrt()
    out = out.div_(std.clamp_min(flat.shape[1] ** -0.5))
    return like(images)(out.reshape(given.shape))


def preprocess(split: Split, crop: int | None = None, whiten: bool = False) -> Split:
    """Return a split with its training and test images cropped, then whitened, image by image.

    `crop` is the side of the `centre_crop`, None for none. `source` and `describe()` say what was
    done (a crop to the size that the images have already is not mentioned), `digest` is that of the
    new images.
    """
    done = []
    if crop is not None:
        if split.train.images.shape[2:] != (crop, crop):
            done.append(f"centre crop {crop}x{crop}")
        split = split.with_images(lambda images: centre_crop(images, crop))
    if whiten:
        done.append("whitened per image")
        split = split.with_images(whiten_images)
    source, steps = "; ".join([split.source, *done]), (*split.preprocessing, *done)
    return dataclasses.replace(split, source=source, preprocessing=steps)


def standardise(split: Split) -> tuple[Split, float, float]:
    """Return the split with (pixel - mean) / std, and that mean and std.

    Both are taken over all pixels and channels of the training images (for full MNIST about 0.1307
    and 0.3081). A set without any spread keeps std = 1.
    """
    pixels = split.train.images.cpu().double()  # a GPU rounds otherwise, and the digest shows it
    mean, std = pixels.mean().item(), pixels.std(correction=0).item() or 1.0
    return split.with_images(lambda images: images.sub(mean).div_(std)), mean, std
