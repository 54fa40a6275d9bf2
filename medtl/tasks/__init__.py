"""The two tasks, one file each behind one `Task`, and the code that they share.

task.py            the contract
classification.py  from labels
segmentation.py    from masks
ways.py            ways to train a model: an encoder with a fine-tuning strategy or an adaptation method
study.py           trains the ways on one cohort, tests them on held-out cases, and reports
"""
