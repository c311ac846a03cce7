"""The examination of somebody's own VAE: it is asked, for its configuration is not known.

Its noise is replaced (`reading`), its loss called with chosen arguments (`loss_probe`, `loss_terms`), and each call of
torch watched (`tracing`), so that a finding can name the line. What is known then, the `patient`, goes to the checks.
"""

from vaelab.diagnosis.foreign.examination import ILLNESSES, examine

__all__ = ["ILLNESSES", "examine"]
