"""The networks as data are the networks."""

import pytest

from jaxmnist import VARIANTS, create_model
from jaxmnist.models.description import describe

PARAMETERS = dict(zip(VARIANTS, (6_379_786, 4_572, 4_652, 4_708, 6_124, 6_124, 7_364), strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_description_has_the_networks_parameters(variant):
    network = describe(create_model(variant))
    count = 0
    for layer in network:
        if layer["kind"] == "conv":
            count += layer["kernel_size"] ** 2 * layer["inputs"] * layer["features"]
            count += layer["features"] * layer["use_bias"]
        if layer["kind"] == "norm":
            count += 2 * layer["features"]
    assert count == PARAMETERS[variant]
    assert (network[-1]["features"], network[-1]["side"]) == (10, 1)
