"""Who sees whom in rows with images, exactly, packed and padded: Transformers' own masks are wrong for packed rows.

They look an image's tokens up by positions inside of the row, so a second row of a packed sequence gets the images of
the first. One function makes the masks, so that another form of them can take its place.

Suffixes of shapes: B rows, S tokens of a row (queries, then keys).
"""

from __future__ import annotations

import torch

from gemma_tune.models.towers.image_attention import ImageAttention


def runs(ids_BS: torch.Tensor, soft_ids: list[int]) -> torch.Tensor:
    """The number of the run of soft tokens that each token belongs to, -1 for others, [B, S].

    A run is one image, or one frame of a video: the family's other tokens stand between any two.
    """
    soft = torch.isin(ids_BS, torch.tensor(soft_ids, device=ids_BS.device))
    begins = soft & ~torch.nn.functional.pad(soft, (1, 0))[:, :-1]
    return torch.where(soft, begins.cumsum(-1) - 1, -1)


def image_masks(
    documents_BS: torch.Tensor, blocks_BS: torch.Tensor, window: int, sees: ImageAttention
) -> dict[str, torch.Tensor]:
    """What each token sees, by the type of layer: earlier tokens of its document, and all of its own image.

    Args:
        documents_BS: The number of each token's document (`document_numbers`).
        blocks_BS: The number of the image that a token belongs to, -1 for others.
        window: How many tokens back sliding layers see, the token itself included.
        sees: Where the tokens of an image see each other.

    Returns:
        Booleans, [B, 1, S, S], for `full_attention` and `sliding_attention`.
    """
    places = torch.arange(blocks_BS.shape[1], device=blocks_BS.device)
    back_SS = places[:, None] - places[None]
    same = documents_BS[:, :, None] == documents_BS[:, None]
    image = (blocks_BS[:, :, None] == blocks_BS[:, None]) & (blocks_BS >= 0)[:, :, None]
    causal = back_SS >= 0
    near = back_SS < window
    full = same & (causal | image if sees.in_full_layers else causal)
    sliding = same & (causal & near | image if sees.beyond_window else (causal | image) & near)
    return {"full_attention": full[:, None], "sliding_attention": sliding[:, None]}
