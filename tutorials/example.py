"""The 4 x 4 example that every chapter works by hand: four tokens X, four output features W.

Column 2 of X holds two outliers, 12.70 and 8.89. The numbers are chosen so that every scale comes out round:
127 divides the largest magnitude of each row into a short decimal, with the outliers and without them.
"""

import numpy as np

X = np.array(
    [
        [0.50, -1.27, 0.08, 0.33],
        [2.54, 0.36, 12.70, -1.10],
        [-0.25, 0.635, 0.10, 0.31],
        [0.90, -1.905, 8.89, 0.45],
    ],
    np.float32,
)

W = np.array(
    [
        [0.10, -0.127, 0.04, 0.06],
        [0.254, 0.02, -0.15, 0.08],
        [-0.03, 0.09, 0.508, -0.20],
        [0.635, -0.25, 0.05, 0.30],
    ],
    np.float32,
)
