"""The norm passport: every claim of the article as a measurement, for any norm."""
