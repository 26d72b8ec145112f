"""What sparse attention costs in quality: a pretrained model run with every pattern, on real documents.

One file a scenario (`language`, `code`, `retrieval`); each writes `reports/results/<name>.json`.
"""
