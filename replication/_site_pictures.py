"""The pictures of a notebook as files, and the small one for its card."""

import io
from dataclasses import replace
from pathlib import Path

from replication import paths
from replication._site_notebooks import Body, Picture

THUMBNAILS = "thumbnails"  # where `replication.front_page` leaves them, below the figures folder
WIDTH = 640  # pixels: twice a card's width, for fine screens


def thumbnail(body: Body) -> Picture | None:
    """Return the small picture of a notebook: that of the front page, or else one of its own."""
    from PIL import Image

    file = paths.figures() / THUMBNAILS / f"{body.stem[:2]}.png"
    if file.is_file():
        with Image.open(file) as image:
            text, size = image.info.get("Description", body.title), image.size
        return Picture(file.name, file.read_bytes(), text, size, True)
    if body.thumbnail is None:
        return None
    stream = io.BytesIO()
    with Image.open(io.BytesIO(body.thumbnail.content)) as image:
        small = image.convert("RGB")
        small.thumbnail((WIDTH, WIDTH))
        small.save(stream, "PNG", optimize=True)
    return replace(body.thumbnail, content=stream.getvalue(), size=small.size)


def write(folder: Path, body: Body, thumbnail: Picture | None) -> None:
    """Write the pictures of a notebook, and a small one for its card."""
    place = folder / "notebooks" / body.stem
    place.mkdir(parents=True)
    for picture in body.pictures:
        (place / picture.name).write_bytes(picture.content)
    if thumbnail:
        (place / "thumbnail.png").write_bytes(thumbnail.content)
