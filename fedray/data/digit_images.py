"""scikit-learn's 8 x 8 digits at simulated sites with label skew: images without a download."""

import numpy as np

from fedray.data.partition import dirichlet
from fedray.data.site import Dataset
from fedray.errors import DataError

MIN_ROWS = 10  # a site with fewer images could not be split


def digits(num_sites: int = 20, alpha: float = 0.5, seed: int = 0, *, valid_fraction: float = 0.1,
           test_fraction: float = 0.2) -> Dataset:
    """Return 1,797 images of handwritten digits, `x` (rows, 1, 8, 8) from 0 to 1, dealt in Dirichlet(alpha)
    shares.

    Raises: DataError if scikit-learn is not installed or the deal is not possible.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("data=digits needs scikit-learn, which is not installed. Fix: pip install "
                        "'fedray[report]'"
                        ) from None
    images, labels = load_digits(return_X_y=True)
    x = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)  # the pixels are counts from 0 to 16
    return dirichlet(x, labels, num_sites=num_sites, alpha=alpha, seed=seed, min_rows=MIN_ROWS, name="digits",
                     valid_fraction=valid_fraction, test_fraction=test_fraction)
