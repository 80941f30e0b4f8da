"""The WebUI computes fp8 weights on a CPU under autocast to bfloat16, where open_clip's text tower hands attention a
mask in float32, which torch refuses. On a GPU it does not come to that. Here the mask is cast."""

import torch

attention = torch.nn.functional.scaled_dot_product_attention


def with_cast_mask(query, key, value, attn_mask=None, *args, **kwargs):
    if attn_mask is not None and attn_mask.is_floating_point() and torch.is_autocast_cpu_enabled():
        attn_mask = attn_mask.to(query.dtype)
    return attention(query, key, value, attn_mask, *args, **kwargs)


torch.nn.functional.scaled_dot_product_attention = with_cast_mask
