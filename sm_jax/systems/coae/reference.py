"""The definitions of `parts` and of the ranking loss, one number at a time; slow, for reading and testing."""

import jax.numpy as jnp


def attend(queries, keys, values, *, kind, where):
    """As `parts.attend`."""
    real = [number for number in range(len(keys)) if where[number]]
    rows = []
    for query in queries:
        products = [jnp.sum(query * keys[number]) for number in real]
        if kind == "softmax":
            total = sum(jnp.exp(product) for product in products)
            weights = [jnp.exp(product) / total for product in products]
        else:
            weights = [product / len(real) for product in products]
        rows.append(sum(weight * values[number] for weight, number in zip(weights, real, strict=True)))
    return jnp.stack(rows)


def excite(query, squeeze, excite):
    """As `parts.Excitation` for the map "k k c": one weight per channel; either layer is (kernel, bias)."""
    cells = [cell for row in query for cell in row]
    mean = sum(cells) / len(cells)
    hidden = jnp.maximum(mean @ squeeze[0] + squeeze[1], 0)
    return 1 / (1 + jnp.exp(-(hidden @ excite[0] + excite[1])))


def margin_ranking(scores, labels, *, positive_margin, negative_margin, where):
    """As `losses.margin_ranking.margin_ranking`."""
    real = [number for number in range(len(scores)) if where[number]]
    singles, pairs = [], []
    for place, i in enumerate(real):
        if labels[i]:
            singles.append(jnp.maximum(positive_margin - scores[i], 0))
        else:
            singles.append(jnp.maximum(scores[i] - negative_margin, 0))
        for j in real[place + 1 :]:
            apart = jnp.abs(scores[i] - scores[j])
            if labels[i] == labels[j]:
                pairs.append(jnp.maximum(apart - negative_margin, 0))
            else:
                pairs.append(jnp.maximum(positive_margin - apart, 0))
    zero = jnp.zeros(())
    return sum(singles, zero) / max(len(singles), 1) + sum(pairs, zero) / max(len(pairs), 1)
