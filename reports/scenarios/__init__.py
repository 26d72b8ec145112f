"""What sparse attention costs in quality: pretrained models run with every pattern, small ones trained.

One file a scenario (`language`, `code`, `retrieval` and `embeddings`; `vision` and `training`); each writes
`reports/results/<name>.json`.
"""
