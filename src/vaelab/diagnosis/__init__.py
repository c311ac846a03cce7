"""What is wrong with a run, or with somebody's own model: measured findings, each with its cause and a remedy.

A run (`vaelab.diagnosis.run_checks`) is judged by its training (`check_training`), its curves (`check_curves`), its
latents (`check_latents`), and its likelihood and data (`check_likelihood`, `check_scale`). A foreign model
(`vaelab.diagnosis.foreign`) is asked.
"""

from vaelab.diagnosis.case import Case, look
from vaelab.diagnosis.doctor import doctor
from vaelab.diagnosis.findings import Diagnosis, Finding, Illness, Plot, Severity

__all__ = ["Case", "Diagnosis", "Finding", "Illness", "Plot", "Severity", "doctor", "look"]
