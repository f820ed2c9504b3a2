"""From a config to finished run folders: plan, preflight, resume, schedule, execute, repair.

It may import config, store, data, norms, models, training and measure. It never sees a table, a
figure or a sentence for the terminal.
"""
