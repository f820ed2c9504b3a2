"""`gnexp check`: the claims of the article, measured on any norm.

It may import config, data, norms, models, training, measure, runner and analysis. No file is
written and no figure drawn here.
"""
