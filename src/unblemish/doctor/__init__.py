"""What is installed, what of it really works, and what to do about the rest."""

from unblemish.doctor.examination import Finding, Report, examine

__all__ = ["Finding", "Report", "examine"]
